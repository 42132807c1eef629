"""Where on tmpfs does everything lie, and how does it go away again?"""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

TMPFS = Path("/dev/shm")
PREFIX = "shmstore-bench-"
_STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder on tmpfs that goes away whatever happens; shmstore's stores lie in it too."""
    for each in _STOPPERS:
        signal.signal(each, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=TMPFS))
    os.environ["SHMSTORE_ROOT"] = str(folder / "stores")
    try:
        yield folder
    finally:
        with uninterrupted():
            shutil.rmtree(folder)


def unique_name(folder: Path) -> str:
    """Return a name for shared memory that belongs to a folder in the scratch folder.

    What is called so, or begins so, goes away with the crew whose folder it is.
    """
    return "-".join(folder.relative_to(TMPFS).parts)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C and its like in here: for taking things down."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in _STOPPERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
