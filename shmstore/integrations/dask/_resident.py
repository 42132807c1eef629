"""Where do the results of a worker lie, and from when on in the store?

`SharedData` is what the worker keeps them in. What arrived as a ticket stays where it is. What a
task returned and is large goes into the store at once, or when it is first sent: at once costs a
copy that nobody may ever need, and a third of the time of tasks that pass on arrays among
themselves. So it is learned, by the name of the task, whose results others ask for. Everything
else, and what found no room, lies in the mapping that dask would use, which spills.

Nothing here raises what comes from the store: dask closes a worker whose mapping fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, MutableMapping
from itertools import chain
from typing import Any, Final

from dask.utils import key_split

from shmstore.integrations.dask._exchange import Exchange, Loan, Lying, Resident
from shmstore.tickets import Hold

logger = logging.getLogger("shmstore.dask")

WHEN: Final = ("auto", "stored", "sent")

# One of so many results of a task must have been asked for.
_ONE_OF: Final = 4


class _Shared(Resident):
    """A result that lies in the store."""

    __slots__ = ("_demand", "lying")

    def __init__(self, lying: Lying, residents: dict[int, Resident], demand: Demand) -> None:
        super().__init__(lying.obj, residents)
        self.lying = lying
        self._demand = demand

    def hold(self) -> Hold | None:
        """Return what it lies on."""
        self._demand.asked += 1
        return self.lying.hold


class _Waiting(Resident):
    """A result that goes into the store when it is first sent."""

    __slots__ = ("_data", "_demand", "_exchange", "_loan")

    def __init__(self, obj: Any, data: SharedData, exchange: Exchange, demand: Demand) -> None:
        super().__init__(obj, exchange.residents)
        self._data = data
        self._exchange = exchange
        self._demand = demand
        self._loan: Loan | None = None

    def hold(self) -> Hold | None:
        """Put it, and let the worker keep what was put instead."""
        obj = self._obj()
        if obj is None:
            return None
        self._demand.asked += 1
        if self._loan is None:
            self._loan = self._exchange.lend(obj)
            if self._loan is not None:
                self._data.later(self._data.adopt, self, self._loan)
        return None if self._loan is None else self._loan.lying.hold


class Demand:
    """How often results of a task were asked for by others."""

    __slots__ = ("asked", "made")

    def __init__(self) -> None:
        self.asked = self.made = 0

    def is_likely(self) -> bool:
        """Return whether the next one will be, as it seems."""
        return self.asked * _ONE_OF >= self.made


class SharedData(MutableMapping[Hashable, Any]):
    """The results of a worker, by their keys.

    Parameters
    ----------
    inner
        Holds what is not shared; by default a dict.

    Attributes
    ----------
    exchange
        None: nothing is shared (yet).
    later
        Calls a function with its arguments in the event loop of the worker, from any thread.

    Notes
    -----
    Concurrency: used by the event loop of the worker alone, as any ``Worker.data``. Results may be
    sent by other threads.
    """

    def __init__(self, inner: MutableMapping[Hashable, Any] | None = None) -> None:
        self.inner: MutableMapping[Hashable, Any] = {} if inner is None else inner
        self.exchange: Exchange | None = None
        self.later: Callable[..., Any] = lambda function, *args: function(*args)
        self._shared: dict[Hashable, _Shared] = {}
        self._waiting: dict[Hashable, _Waiting] = {}
        self._demand: dict[str, Demand] = {}

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self._release(key)
        if not self._share(key, value):
            self.inner[key] = value

    def _share(self, key: Hashable, value: Any) -> bool:
        """Keep a value in the store; False: it is to be kept elsewhere."""
        exchange = self.exchange
        if exchange is None:
            return False
        hold = exchange.arrived(value)
        if hold is not None:
            return self._keep(key, Lying(value, hold))
        if not exchange.is_shareable(value):
            return False
        demand = self._demand_for(key)
        demand.made += 1
        when = exchange.settings.when
        if when == "stored" or (when == "auto" and demand.is_likely()):
            lying = exchange.deposit(value)
            return lying is not None and self._keep(key, lying)
        self._wait(key, value)
        return False

    def _demand_for(self, key: Hashable) -> Demand:
        name = key_split(key)
        found = self._demand.get(name)
        if found is None:
            found = self._demand[name] = Demand()
        return found

    def _keep(self, key: Hashable, lying: Lying) -> bool:
        exchange = self.exchange
        if exchange is None:
            return False
        if key in self.inner:
            del self.inner[key]
        self._shared[key] = _Shared(lying, exchange.residents, self._demand_for(key))
        exchange.held_nbytes += lying.hold.nbytes
        return True

    def _wait(self, key: Hashable, value: Any) -> None:
        if self.exchange is not None:
            self._waiting[key] = _Waiting(value, self, self.exchange, self._demand_for(key))

    def adopt(self, waiting: Resident, loan: Loan) -> None:
        """Keep what was put when a result was sent, instead of the result."""
        for key, found in self._waiting.items():
            if found is waiting:
                del self._waiting[key]
                loan.adopted = self._keep(key, loan.lying)
                return

    def _release(self, key: Hashable) -> None:
        self._waiting.pop(key, None)
        shared = self._shared.pop(key, None)
        if shared is not None:
            self._let_go(shared.lying)

    def _let_go(self, lying: Lying) -> None:
        exchange = self.exchange
        if exchange is not None:
            exchange.residents.pop(id(lying.obj), None)
            exchange.held_nbytes -= lying.hold.nbytes
            if lying.hold.own:
                exchange.delete(lying.hold)

    def __getitem__(self, key: Hashable) -> Any:
        shared = self._shared.get(key)
        if shared is None:
            value = self.inner[key]
            waiting = self._waiting.get(key)
            if waiting is not None and not waiting.is_for(value):  # it had been spilled
                self._wait(key, value)
            return value
        self._shared[key] = self._shared.pop(key)  # the last one is what was used last
        return shared.lying.obj

    def __delitem__(self, key: Hashable) -> None:
        shared = key in self._shared
        self._release(key)
        if not shared:
            del self.inner[key]

    def __contains__(self, key: object) -> bool:
        return key in self._shared or key in self.inner

    def __iter__(self) -> Iterator[Hashable]:
        return chain(list(self._shared), self.inner)

    def __len__(self) -> int:
        return len(self._shared) + len(self.inner)

    def __repr__(self) -> str:
        return f"<SharedData {len(self._shared)} in the store, {len(self.inner)} beside it>"

    # --- spilling --------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Be what the inner mapping is; dask asks it by its attributes whether it can spill."""
        if name.startswith("_") or name == "inner":
            raise AttributeError(name)
        found = getattr(self.inner, name)
        if name == "fast":
            return found or self._shared
        return self._evict if name == "evict" else found

    def _evict(self) -> int:
        """Write the oldest value to disk; return its bytes in memory, -1: it could not be."""
        inner: Any = self.inner
        if inner.fast:
            return int(inner.evict())
        if not self._shared:
            return -1
        key, shared = next(iter(self._shared.items()))
        obj, hold = shared.lying
        try:
            inner.slow[key] = obj
        except Exception as error:  # noqa: BLE001 - as of the inner mapping, which never raises
            logger.error("%r could not be spilled: %r", key, str(error))  # noqa: TRY400 - keeps nothing alive
            return -1
        self._release(key)
        self._wait(key, obj)
        return hold.nbytes

    def clear(self) -> None:
        """Let go of everything."""
        for key in list(self._shared):
            self._release(key)
        self._waiting.clear()
        for key in list(self.inner):
            del self.inner[key]

    def unshare(self) -> None:
        """Share nothing any more; what is in the store stays as it is while it is used here."""
        for key, shared in list(self._shared.items()):
            self.inner[key] = shared.lying.obj
            self._let_go(shared.lying)
        self._shared.clear()
        self._waiting.clear()
        self.exchange = None
