"""Where do the results of a worker lie?

`SharedData` is what the worker keeps them in. What is large lies in the store from the moment that
a task has returned it, or stays where it arrived from another worker; everything else, and what
found no room, lies in the mapping that dask would use, which spills.

Nothing here raises what comes from the store: dask closes a worker whose mapping fails.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, MutableMapping
from itertools import chain
from typing import Any

from shmstore.integrations.dask._exchange import Exchange, Lying, is_large

logger = logging.getLogger("shmstore.dask")


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

    Notes
    -----
    Concurrency: used by the event loop of the worker alone, as any ``Worker.data``.
    """

    def __init__(self, inner: MutableMapping[Hashable, Any] | None = None) -> None:
        self.inner: MutableMapping[Hashable, Any] = {} if inner is None else inner
        self.exchange: Exchange | None = None
        self._shared: dict[Hashable, Lying] = {}

    def __setitem__(self, key: Hashable, value: Any) -> None:
        lying = self._share(value)
        self._release(key)
        if lying is None:
            self.inner[key] = value
            return
        if key in self.inner:
            del self.inner[key]
        assert self.exchange is not None
        self._shared[key] = self.exchange.residents[id(lying.obj)] = lying

    def _share(self, value: Any) -> Lying | None:
        exchange = self.exchange
        if exchange is None:
            return None
        hold = exchange.arrived(value)
        if hold is not None:
            return Lying(value, hold)
        if not is_large(value, exchange.settings.threshold):
            return None
        return exchange.deposit(value)

    def _release(self, key: Hashable) -> None:
        lying = self._shared.pop(key, None)
        if lying is not None and self.exchange is not None:
            self.exchange.residents.pop(id(lying.obj), None)
            if lying.hold.own:
                self.exchange.delete(lying.hold)

    def __getitem__(self, key: Hashable) -> Any:
        lying = self._shared.get(key)
        if lying is None:
            return self.inner[key]
        self._shared[key] = self._shared.pop(key)  # the last one is what was used last
        return lying.obj

    def __delitem__(self, key: Hashable) -> None:
        if key in self._shared:
            self._release(key)
        else:
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
        key, lying = next(iter(self._shared.items()))
        try:
            inner.slow[key] = lying.obj
        except Exception as error:  # noqa: BLE001 - as of the inner mapping, which never raises
            logger.error("%r could not be spilled: %r", key, str(error))  # noqa: TRY400 - keeps nothing alive
            return -1
        self._release(key)
        return lying.hold.nbytes

    def clear(self) -> None:
        """Let go of everything."""
        for key in list(self._shared):
            self._release(key)
        for key in list(self.inner):
            del self.inner[key]

    def unshare(self) -> None:
        """Share nothing any more; what is in the store stays as it is while it is used here."""
        exchange, self.exchange = self.exchange, None
        for key, lying in list(self._shared.items()):
            self.inner[key] = lying.obj
            if exchange is not None:
                exchange.residents.pop(id(lying.obj), None)
                if lying.hold.own:
                    exchange.delete(lying.hold)
        self._shared.clear()
