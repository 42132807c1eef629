"""How is code tested that uses stores?

`temporary_store` gives a store that nobody else knows and that is gone afterwards,
`assert_no_leaks` fails when a block of code leaves something behind. Under pytest there are the
fixtures ``store``, ``store_factory``, ``shmstore_root`` and ``shmstore_no_leaks`` as soon as
shmstore is installed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import shmstore

__all__ = ["assert_no_leaks", "temporary_root", "temporary_store"]

DEFAULT_CAPACITY: Final = "16MiB"

_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - a folder of its own is made there
_DESCRIPTORS: Final = Path("/proc/self/fd")
_LOCK: Final = "lock"  # what each open store has open
_OWN_THREAD: Final = "shmstore-housekeeping"  # ends by itself
_PAUSE_S: Final = 0.02
_MOST_OBJECTS: Final = 5


@contextlib.contextmanager
def temporary_root() -> Iterator[Path]:
    """Give an empty folder for stores; at the end it goes, with all that is left in it.

    Examples
    --------
    >>> import shmstore
    >>> with temporary_root() as root, shmstore.Store.create("mine", root=root) as store:
    ...     [found.name for found in shmstore.stores(root)]
    ['mine']
    """
    place = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="shmstore-testing-", dir=place))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def temporary_store(**options: Any) -> Iterator[shmstore.Store]:
    """Give a store in a root of its own; at the end it is destroyed.

    Parameters
    ----------
    **options
        As for `Store.create`. The capacity is 16 MiB unless it is given: memory is taken only for
        what is put.

    Notes
    -----
    Other processes reach it by what is sent to them: a handle, a reference, or its `path`.

    Examples
    --------
    >>> with temporary_store() as store:
    ...     store["answer"] = 42
    ...     store["answer"]
    42
    """
    with temporary_root() as root:
        options = {"capacity": DEFAULT_CAPACITY, "root": root, **options}
        with shmstore.Store.create(options.pop("name", None), **options) as store:
            try:
                yield store
            finally:
                if not store.closed:
                    store.destroy()


# --- what is left ---------------------------------------------------------------------------------


@contextlib.contextmanager
def assert_no_leaks(
    *, root: str | os.PathLike[str] | None = None, grace_s: float = 1.0
) -> Iterator[None]:
    """Fail if the block leaves more behind than there was before it.

    Looked at are the views of this process in every store that it has open, clients that have died
    there without leaving, stores in the root, descriptors and threads.

    Parameters
    ----------
    root
        Of the stores; see `shmstore.Options`. Stores of other living processes do not count.
    grace_s
        For so many seconds what is about to go may still be there.

    Raises
    ------
    AssertionError
        Something is left; the message says what, and of which store. An exception of the block
        itself comes through instead.

    Examples
    --------
    >>> import numpy as np
    >>> with temporary_store() as store:
    ...     store["numbers"] = np.arange(1000)
    ...     with assert_no_leaks(grace_s=0):  # doctest: +ELLIPSIS
    ...         kept = store["numbers"]
    Traceback (most recent call last):
      ...
    AssertionError: left behind:
      1 view in store ...: 'numbers' (numpy.ndarray, 8000 bytes)
    """
    _look(root)  # what is opened once, and then kept, is no leak
    before = _look(root)
    yield
    deadline = time.monotonic() + grace_s
    while left := _beyond(_look(root), before):
        if time.monotonic() >= deadline:
            message = "\n  ".join(["left behind:", *left])
            raise AssertionError(message)
        time.sleep(_PAUSE_S)


# Lines that say what there is, with how many of each.
_Things = Counter[str]


def _look(root: str | os.PathLike[str] | None) -> dict[str, _Things]:
    gc.collect()
    descriptors = _descriptors()
    views: dict[str, _Things] = {}
    dead: _Things = Counter()
    for path in sorted({Path(name).parent for name in descriptors if Path(name).name == _LOCK}):
        with contextlib.suppress(shmstore.ShmStoreError, OSError):
            views[f"view in store {path}"], gone = _of_store(path)
            dead += gone
    return {
        **views,
        "client that died without leaving": dead,
        "store": _stores(root),
        "descriptor": descriptors,
        "thread": Counter(t.name for t in threading.enumerate() if t.name != _OWN_THREAD),
    }


def _beyond(now: dict[str, _Things], before: dict[str, _Things]) -> list[str]:
    """Return a line for each kind of things of which there are more than before."""
    lines = []
    for kind, things in now.items():
        more = things - before.get(kind, Counter())
        if more:
            count = more.total()
            named = sorted(f"{thing} x {n}" if n > 1 else thing for thing, n in more.items())
            rest = ["..."] if len(named) > _MOST_OBJECTS else []
            what = ", ".join(named[:_MOST_OBJECTS] + rest)
            one, _, where = kind.partition(" ")
            noun = one if count == 1 else one + "s"
            lines.append(f"{count} {noun} {where}".rstrip() + f": {what}")
    return lines


def _descriptors() -> _Things:
    """Return what the descriptors of this process lead to."""
    found: _Things = Counter()
    if _DESCRIPTORS.is_dir():
        for descriptor in _DESCRIPTORS.iterdir():
            with contextlib.suppress(OSError):
                found[str(descriptor.readlink())] += 1
    own = str(Path("/proc") / str(os.getpid()) / "fd")  # the look itself
    found.pop(own, None)
    return found


def _of_store(path: Path) -> tuple[_Things, _Things]:
    """Return the views of this process in a store, by object, and the clients that have died."""
    group = path.stat().st_gid if path.stat().st_mode & 0o020 else None
    with shmstore.Store.look(path, group=group) as store:
        dead = Counter(f"pid {c.pid} in {path}" for c in store.clients() if not c.alive)
        count = sum(c.pins for c in store.clients() if c.pid == os.getpid())
        views: _Things = Counter()
        for info in store.objects() if count else ():
            if os.getpid() in info.pinned_by:
                views[_named(store, info)] += _views_of(store, info)
    if count > views.total():
        views["of deleted objects"] = count - views.total()
    return views, dead


def _named(store: shmstore.Store, info: shmstore.ObjectInfo) -> str:
    name = f"slot {info.slot}" if info.key is None else repr(info.key)
    pins = [pin for pin in store.who_pins(info.ref) if pin.own or pin.pid == os.getpid()]
    sites = sorted({site for pin in pins for site in pin.sites})
    got = f", got at {'; '.join(sites)}" if sites else ""
    return f"{name} ({info.type}, {info.nbytes} bytes{got})"


def _views_of(store: shmstore.Store, info: shmstore.ObjectInfo) -> int:
    return sum(pin.views for pin in store.who_pins(info.ref) if pin.pid == os.getpid())


def _stores(root: str | os.PathLike[str] | None) -> _Things:
    """Return the stores that this process has made, or that nobody has any more."""
    with contextlib.suppress(shmstore.ShmStoreError, OSError):
        return Counter(
            f"{found.path} ({found.state})"
            for found in shmstore.stores(root)
            if found.creator_pid == os.getpid() or not found.clients
        )
    return Counter()
