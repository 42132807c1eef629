"""What does a store offer to processes that work together?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from shmstore._handle import Handle
    from shmstore._memoizing import Memoized
    from shmstore._queue import Queue
    from shmstore._session import Session
    from shmstore._store import Store


class Cooperating(ABC):
    """Calls of `Store` that give what is built on it."""

    __slots__ = ()

    @abstractmethod
    def _live(self) -> Session:
        """Return the session of an open handle."""

    def queue(self, name: str, maxsize: int = 0) -> Queue:
        """Return the queue of a name: the same one in all processes. It is made by the first.

        Parameters
        ----------
        name
            Up to 64 bytes of UTF-8.
        maxsize
            As many objects may wait at most; 0: any number, or as many as it was made with.

        Returns
        -------
        Queue
            It works as long as this handle is open.

        Raises
        ------
        TypeError, ValueError
            The name cannot be one, `maxsize` is no int, or the queue was made with another.

        Examples
        --------
        >>> from shmstore import Store
        >>> with Store.create(capacity="1MiB") as store:
        ...     store.queue("jobs").put({"path": "a.csv"})
        ...     store.queue("jobs").get()
        {'path': 'a.csv'}
        """
        from shmstore._queue import Queue  # noqa: PLC0415 - takes time that most can save

        return Queue(cast("Handle", self), name, maxsize)

    def memoize(
        self,
        function: Callable[..., Any] | None = None,
        *,
        ttl: float | None = None,
        key: Callable[..., str] | None = None,
    ) -> Any:
        """Let all processes share the results of a function: computed once, by who asks first.

        To be used as ``@store.memoize`` or ``@store.memoize(ttl=...)``. Others that ask for the
        same meanwhile wait; when the process that computes it dies, one of them takes over. An
        exception is raised where it came up, and not kept. Results are read-only views.

        Parameters
        ----------
        function
            What is computed. It is known by its module, its name and its code.
        ttl
            Seconds until a result expires; None: as the store was created, by default never.
        key
            Called with the arguments, returns a text that stands for them. Without it they are
            pickled: arguments of other types, or in another order in a dict, are others.

        Returns
        -------
        Memoized
            Called like the function; it has `cache_info()`, `cache_clear()` and `cache_key(...)`.

        Examples
        --------
        >>> from shmstore import Store
        >>> with Store.create(capacity="1MiB") as store:
        ...
        ...     @store.memoize
        ...     def square(x):
        ...         return x * x
        ...
        ...     square(3), square(x=3), square.cache_info().hits
        (9, 9, 1)
        """
        from shmstore._memoizing import Memoized  # noqa: PLC0415 - as in `queue`

        def decorate(function: Callable[..., Any]) -> Memoized:
            return Memoized(cast("Store", self), function, ttl, key)

        return decorate if function is None else decorate(function)
