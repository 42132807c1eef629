"""How does a program wait for objects that others put?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from shmstore._arguments import check_key
from shmstore._tuples import NamedTuple

if TYPE_CHECKING:
    from shmstore._session import Session
    from shmstore._watching import Watch


class Waited(NamedTuple):
    """Of which keys there are objects, and of which there are none."""

    done: set[str]
    not_done: set[str]


class Awaiting(ABC):
    """Calls of `Store` that wait for what other processes do.

    Who waits sleeps, and uses no processor. It takes one row of the store's table of waiters for
    each key, and a FIFO of its own in the store's folder.
    """

    __slots__ = ()

    @abstractmethod
    def _live(self) -> Session:
        """Return the session of an open handle."""

    def wait(
        self, keys: Iterable[str], *, timeout: float | None = None, return_when: str = "ALL"
    ) -> Waited:
        """Wait until there are objects under these keys, as `concurrent.futures.wait` does.

        Parameters
        ----------
        keys
            Each may be there already.
        timeout
            Seconds; None: for ever. When it is over that is no error.
        return_when
            "ALL": when all of them are there; "FIRST": when one is.

        Returns
        -------
        Waited
            ``(done, not_done)``, sets of keys. An object that was there may be gone again.

        Examples
        --------
        >>> from shmstore import Store
        >>> with Store.create(capacity="1MiB") as store:
        ...     store["a"] = 1
        ...     store.wait(["a", "b"], return_when="FIRST")
        Waited(done={'a'}, not_done={'b'})
        """
        from shmstore import _expecting, _waiting  # noqa: PLC0415 - takes time that most processes can save

        expected = _expecting.Expected(self._live, keys)
        expected.enough = expected.enough_for(return_when)
        with expected.sleeper:
            expected.wait(_waiting.check_timeout(timeout))
        return Waited(set(expected.done), expected.missing())

    def as_completed(self, keys: Iterable[str], timeout: float | None = None) -> Iterator[str]:
        """Iterate over keys in the order in which their objects come.

        Parameters
        ----------
        keys
            Those of objects that are there come first.
        timeout
            Seconds for all of them, from this call on; None: for ever.

        Raises
        ------
        WaitTimeoutError
            The time is over; `keys` are those that are missing.
        """
        from shmstore import _expecting, _waiting  # noqa: PLC0415 - takes time that most processes can save

        deadline = _waiting.deadline_of(_waiting.check_timeout(timeout))
        return _expecting.each(_expecting.Expected(self._live, keys), deadline)

    def watch(self, prefix: str = "") -> Watch:
        """Return an iterator over what is put and deleted under keys that begin so, from now on.

        It waits where there is nothing new. Close it, or use it in a ``with`` block.

        Examples
        --------
        >>> from shmstore import Store
        >>> with Store.create(capacity="1MiB") as store, store.watch("job/") as changes:
        ...     store["job/1"] = "first"
        ...     store["other"] = 2
        ...     del store["job/1"]
        ...     [(change.kind, change.key) for change in (next(changes), next(changes))]
        [('put', 'job/1'), ('delete', 'job/1')]
        """
        from shmstore._watching import Watch  # noqa: PLC0415 - takes time that most processes can save

        return Watch(self._live, check_key(prefix, "a prefix of keys (str)"))
