"""How does one process keep all others out? With the lock of an open file, flock(2).

It is the lock that filelock's `lock_descriptor` takes, so who uses that on the same file is kept
out too. filelock itself serves where there is no flock: to import it takes a fifth of the time that
NumPy takes.

Concurrency: the lock belongs to the open file, not to a thread: threads that share a descriptor do
not keep each other out. The kernel drops it when the last copy of the descriptor is closed.
"""

from __future__ import annotations

import errno
from typing import Final

try:
    import fcntl
except ImportError:  # no POSIX
    import filelock

    def lock_descriptor(fd: int) -> bool:
        """Take the lock of an open file; False: another open file has it."""
        return filelock.lock_descriptor(fd, blocking=False)

    def unlock_descriptor(fd: int) -> None:
        """Give the lock back."""
        filelock.unlock_descriptor(fd)
else:
    _EXCLUSIVE: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
    _TAKEN: Final = (errno.EAGAIN, errno.EACCES)

    def lock_descriptor(fd: int) -> bool:
        """Take the lock of an open file; False: another open file has it."""
        try:
            fcntl.flock(fd, _EXCLUSIVE)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise
        return True

    def unlock_descriptor(fd: int) -> None:
        """Give the lock back."""
        fcntl.flock(fd, fcntl.LOCK_UN)
