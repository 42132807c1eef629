"""Is a store as it should be, and what makes it so again?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from shmstore import _recovery, _trimming
from shmstore._memory import shortage

if TYPE_CHECKING:
    from shmstore._info import Finding, Recovered
    from shmstore._session import Session


class Maintained(ABC):
    """Calls of `Store` that look after it. None of them is needed in daily use."""

    __slots__ = ()

    @abstractmethod
    def _live(self) -> Session:
        """Return the session of an open handle."""

    def check(self, *, deep: bool = False) -> list[Finding]:
        """Prove every invariant of the format; return what is broken (nothing: all is well).

        Parameters
        ----------
        deep
            Read the data too, and hold it against its checksums (``checksum=True`` at creation).
            Frames that readers may write have none.
        """
        with shortage.told(Path(__file__).parent):
            from shmstore import _check  # noqa: PLC0415 - takes time that most processes can save

        return _check.check(self._live(), deep=deep)

    def recover(self) -> Recovered:
        """Undo what dead processes left, make all tables anew, and give up damaged objects.

        What dead processes left is also undone by whoever needs room or attaches; this call is for
        a store of which `check` reports something.
        """
        session = self._live()
        session.check_writeable()
        return session.lock.run(_recovery.recover, session)

    def trim(self) -> int:
        """Give the memory that no object occupies back to the system; return its bytes.

        It stays reserved otherwise for the next puts, which are much faster so. Of what was not
        needed for some ten seconds most goes back by itself, unless the store was created with
        ``prefault=True``.

        Examples
        --------
        >>> import numpy as np
        >>> from shmstore import Store
        >>> with Store.create(capacity="16MiB") as store:
        ...     store["large"] = np.zeros(1 << 20)
        ...     del store["large"]
        ...     store.trim() >= 8 << 20
        True
        """
        session = self._live()
        session.check_writeable()
        return _trimming.trim(session)
