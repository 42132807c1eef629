"""How does a view of a stored object travel to another process without its data?

As a reference of about 100 bytes: which object, and where in it the view begins. `multiprocessing`
(its queues, pipes and pools, and those of `concurrent.futures`) lets libraries say how a
type is pickled for another process of this machine; arrays are asked there whether they lie in a
store. Plain `pickle` is left alone: its bytes may go to a file, or to another machine.

An array is followed through its bases down to the mapping that it lies on; the anchor before it has
the pin that names the object (see `_lease`). What leads elsewhere travels as before.

Concurrency: a view is pinned by whoever sends it, so the object stays what it is meanwhile. What
was sent keeps its pin for `KEEP_S` seconds, as long as no more than `_MOST_KEPT` messages follow
and the sender has the store open: the receiver finds the object even if it is deleted in that time.

How a deleted object gets a pin: (1) the reference names the pin of the sender, by seat, cell and
time. (2) Under the store lock the receiver stores its own pin. (3) It finds that of the sender
where it was, so the object has been pinned ever since it was deleted, and nobody can have seen it
without. A reclaimer that holds the same lock finds one of the two; for the owner, who does not, see
`_claiming.hold_deleted`. (4) The view gets the pin of (2), and none that comes later.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from time import monotonic
from types import ModuleType
from typing import Any, Final

import numpy as np

from shmstore import _claiming, _lifecycle, _ref
from shmstore._catalog import states
from shmstore._ref import ObjectRef
from shmstore._session import Session
from shmstore._tuples import NamedTuple
from shmstore.errors import ObjectNotFoundError

KEEP_S: Final = 30.0
_MOST_KEPT: Final = 256

# That of multiprocessing: arrays that lie elsewhere are pickled as it would.
_PROTOCOL: Final = 4

_Array = np.ndarray[Any, Any]


class Found(NamedTuple):
    """The object that a view lies in, and where its extent begins in this process."""

    session: Session
    slot: int
    word: int
    start: int
    anchor: Any
    pin: tuple[int, float]


class _Sent:
    """What was sent a short while ago, and until when it is kept for that."""

    def __init__(self) -> None:
        self.kept: deque[tuple[float, Any, Session]] = deque(maxlen=_MOST_KEPT)

    def keep(self, found: Found) -> None:
        """Keep the anchor of a view that is on its way."""
        self.sweep()
        self.kept.append((monotonic() + KEEP_S, found.anchor, found.session))

    def sweep(self) -> None:
        """Let go of what was sent long enough ago."""
        now = monotonic()
        while self.kept and self.kept[0][0] < now:
            with contextlib.suppress(IndexError):  # another thread was quicker
                self.kept.popleft()

    def forget(self, session: Session | None = None) -> None:
        """Let go of what belongs to a session that ends; None: of everything."""
        left = [each for each in self.kept if session is not None and each[2] is not session]
        self.kept = deque(left, maxlen=_MOST_KEPT)


sent = _Sent()


# --- where does a view lie? ----------------------------------------------------------------------


def find(view: Any) -> Found | None:
    """Return the object that an array or memoryview lies in; None: it lies elsewhere."""
    anchor = None
    base = view
    while True:
        kind = type(base)
        if kind is memoryview:
            anchor, base = base, base.obj
        elif isinstance(base, np.ndarray):
            anchor, base = base, base.base
        else:
            break
    if base is None or anchor is None:
        return None
    for session in list(_lifecycle.sessions.values()):
        segment = session.segment
        if not session.closed and (base is segment.readonly or base is segment.writeable):
            return _object_of(session, anchor, base)
    return None


def _object_of(session: Session, anchor: Any, mapping: Any) -> Found | None:
    pin = session.pins.pin_of(anchor)
    if pin is None or not anchor.size:
        return None
    slot, cell, since = pin
    word = session.slots.word(slot)
    record = session.slots.read(slot)
    start = np.frombuffer(mapping, np.uint8, 1).__array_interface__["data"][0] + record.extent
    return Found(session, slot, word, start, anchor, (cell, since))


def is_deleted(found: Found) -> bool:
    """Return whether nobody can get the object of a view any more who has no view of it."""
    return not states.is_present(found.word)


# --- sending -------------------------------------------------------------------------------------


def reduce_array(array: _Array) -> Any:
    """Return how `multiprocessing` pickles an array: as a reference, or as it always did."""
    if array.base is not None:
        reference = refer(array)
        if reference is not None:
            return reference
    return array.__reduce_ex__(_PROTOCOL)


def reduce_memoryview(view: memoryview) -> Any:
    """Return how `multiprocessing` pickles a memoryview: as a reference, or not at all."""
    reference = refer(np.asarray(view)) if view.nbytes else None
    if reference is None:
        message = "cannot pickle 'memoryview' object"
        raise TypeError(message)
    return memoryview, (_Later(*reference),)


def refer(
    array: _Array, *, private: bool = False, keep: bool = True
) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """Return the reduction of a view of a stored object; None: it is no such.

    Parameters
    ----------
    private
        What the receiver writes is its own.
    keep
        Keep the object for a while: the view may die before it has arrived.
    """
    found = find(array) if array.size else None
    if found is None:
        return None
    session = found.session
    generation = states.generation_of(found.word)
    offset = array.__array_interface__["data"][0] - found.start
    dtype: Any = array.dtype
    if dtype.isbuiltin == 1 and dtype.metadata is None:
        dtype = dtype.str
    if keep:
        sent.keep(found)
    return arrive, (
        (session.uuid, session.path_text, session.gid, found.slot, generation),
        (session.row, session.pins.seat.serial, *found.pin),
        offset,
        dtype,
        array.shape,
        None if array.flags.c_contiguous else array.strides,
        "private" if private else "shared" if array.flags.writeable else "readonly",
    )


class _Later:
    """An array that is pickled by a reduction at hand."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._reduction = function, arguments

    def __reduce__(self) -> Any:
        return self._reduction


# --- arriving ------------------------------------------------------------------------------------


def arrive(
    place: tuple[bytes, str, int | None, int, int],
    pin: tuple[int, int, int, float],
    offset: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    mode: str,
) -> _Array:
    """Make the view in the process that gets the reference. Its name lies in pickles.

    Raises
    ------
    ObjectNotFoundError
        The object has been deleted, and nobody keeps it any more.
    StoreNotFoundError
        Its store is gone.
    """
    uuid, path, gid, slot, generation = place
    ref = ObjectRef(uuid, path, slot, generation, 0, None, gid)
    session = _lifecycle.session_of(uuid, path, gid)
    try:
        _, lease = _ref.secure(session, ref)
        frame = lease.anchor(mode)
    except ObjectNotFoundError:
        held = session.lock.run(_hold_deleted, session, (slot, generation), pin, mode)
        if held is None:
            raise
        frame = held
    return np.ndarray(shape, dtype, frame, offset, strides)


def _hold_deleted(
    session: Session, place: tuple[int, int], pin: tuple[int, int, int, float], mode: str
) -> memoryview | None:
    """Pin an object that was deleted and that the sender still pins. Requires: the store lock."""
    slot, generation = place
    held = _claiming.hold_deleted(session, slot, generation, pin)
    if held is None:
        return None
    record, segment = session.slots.read(slot), session.segment
    if mode == "private":
        exporter, start = segment.map_private(record.extent, record.extent_nbytes)
    else:
        exporter = segment.writeable if mode == "shared" else segment.readonly
        start = record.extent
    anchor: _Array = np.ndarray(record.extent_nbytes, np.uint8, exporter, start)
    (cell,) = held.cells
    session.pins.pass_on(cell, anchor)
    return anchor.data


# --- who is told ---------------------------------------------------------------------------------


def dumps_by_reference(obj: Any) -> bytes:
    """Pickle an object for another process of this machine: views of stored objects by reference.

    As `multiprocessing` does it. `pickle.loads` makes the views again, as long as the object is
    there or its sender keeps it; see `ObjectNotFoundError`.

    Examples
    --------
    >>> import numpy as np, pickle, shmstore
    >>> with shmstore.Store.create(capacity="16MiB") as store:
    ...     array = store.put(np.arange(1_000_000)).get()
    ...     sent = shmstore.dumps_by_reference(array[::2])
    ...     len(sent) < 300, int(pickle.loads(sent)[-1])
    (True, 999998)
    """
    from multiprocessing.reduction import ForkingPickler  # noqa: PLC0415 - takes time

    _register()
    return bytes(ForkingPickler.dumps(obj))


def install() -> None:
    """Tell multiprocessing how views travel: now, or as soon as it is imported."""
    os.register_at_fork(after_in_child=sent.forget)
    _lifecycle.last_steps.append(sent.forget)
    if _AWAITED in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Watcher())


def _register() -> None:
    from multiprocessing.reduction import ForkingPickler  # noqa: PLC0415 - takes time

    for kind, reduce in REDUCTIONS.items():
        ForkingPickler.register(kind, reduce)


REDUCTIONS: Final[dict[type, Callable[[Any], Any]]] = {
    np.ndarray: reduce_array,
    memoryview: reduce_memoryview,
}
_AWAITED: Final = "multiprocessing.reduction"


class _Watcher:
    """Waits in `sys.meta_path` for multiprocessing, which most processes that wait never import."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Let the module be found as always, and act when it is there."""
        if name != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register()

            loader.exec_module = exec_module
        return spec
