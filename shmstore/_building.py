"""How is an array built where it will stay, so that publishing it copies nothing?"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from shmstore import _copying, _filing, _no_room, _puts, _spilling, _writing
from shmstore._arguments import check_shape
from shmstore._memory import layout as L
from shmstore._packing import Package, lay_out
from shmstore._ref import ObjectRef
from shmstore._session import Session
from shmstore.errors import ShmStoreError
from shmstore.serialization import headers, typename
from shmstore.serialization.handlers.numpy import array_header

if TYPE_CHECKING:
    import numpy.typing as npt


class Allocation:
    """The array under construction that `Store.allocate` gives, as a context manager.

    The array that the block gets lies in shared memory. Where a store spills and has no room there,
    it lies in a file, mapped. The end of the block publishes it; an exception discards it. Either
    way it stays valid for as long as it or a view of it lives.

    Attributes
    ----------
    ref : ObjectRef or None
        The reference to the object, once the block has ended well.

    Notes
    -----
    Concurrency: one block, one thread. If the process dies in the block, the memory comes back like
    that of any half-made put.
    """

    def __init__(
        self,
        session: Session,
        shape: int | Sequence[int],
        dtype: npt.DTypeLike,
        key: str | None,
        *,
        overwrite: bool,
        readonly: bool,
        ttl: float | None,
    ) -> None:
        self.ref: ObjectRef | None = None
        self._session = session
        self._shape = check_shape(shape)
        self._dtype: np.dtype[Any] = np.dtype(dtype)
        nbytes = math.prod(self._shape) * self._dtype.itemsize
        if not session.spills:
            _no_room.check_size(session, nbytes)
        package = _pack(self._shape, self._dtype, nbytes, key, readonly=readonly)
        self._package = session.with_options(package, ttl)
        self._overwrite = overwrite
        self._place: _copying.Place | None = None
        self._draft: _filing.Draft | None = None
        self._row = -1

    def __enter__(self) -> npt.NDArray[Any]:
        if self._place is not None:
            message = "this block has been entered already; call allocate() for another array"
            raise RuntimeError(message)
        session, package = self._session, self._package
        places: list[_copying.Place] = []
        reserved = session, [package], places, self._overwrite
        try:
            reserve = partial(session.lock.run, _writing.reserve_all, *reserved)
            if session.spills:
                anywhere = partial(session.lock.run, _filing.reserve, *reserved)
                _spilling.spilling(session, lambda: package.extent_nbytes, reserve, anywhere)
            else:
                reserve()
            [place] = places
            self._place, self._row = place, session.row
            if _filing.is_filed(package, place):
                self._draft = _filing.Draft(session, package, place)
                array = self._draft.make_array(self._shape, self._dtype)
            else:
                array = self._make_array(place)
        except BaseException as error:
            self._give_up(places, error)
            raise
        return array

    def _give_up(self, places: list[_copying.Place], error: BaseException | None = None) -> None:
        """Let go of the place, and of the file."""
        draft, self._draft = self._draft, None
        if draft is not None:
            draft.give_up()
        _writing.discard(self._session, [self._package], places, error)

    def _make_array(self, place: _copying.Place) -> npt.NDArray[Any]:
        """Return an array over the extent; like every anchor it holds a pin."""
        if place.extent is None or not self._package.content.data_nbytes:
            return np.ndarray(self._shape, self._dtype)
        segment = self._session.segment
        if place.extent.cold:
            segment.reserve(place.extent.offset, place.extent.nbytes)
        else:
            segment.meet(place.extent.offset, place.extent.nbytes)
        _copying.copy(self._session, self._package, place)
        array: npt.NDArray[Any] = np.ndarray(
            self._shape, self._dtype, segment.writeable, place.extent.offset
        )
        self._session.pins.pin(array, place.slot)
        return array

    def __del__(self) -> None:
        place = getattr(self, "_place", None)
        if place is not None and self._session.row == self._row:
            self._session.abandoned.append((place.slot, place.generation))
            if self._draft is not None:
                with contextlib.suppress(OSError, ShmStoreError):
                    self._draft.give_up()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session, package, place = self._session, self._package, self._place
        if place is None:
            message = "this block is not entered: use allocate() in a with statement"
            raise RuntimeError(message)
        self._place = None
        if session.row != self._row:
            return  # a forked child leaves the block too; the array is its parent's
        if error is not None:
            self._give_up([place])
            return
        try:
            if self._draft is not None:
                self._draft.publish(overwrite=self._overwrite)
            else:
                _copying.seal(session, package, place)
                session.lock.run(_writing.publish_all, session, [package], [place], self._overwrite)
            self.ref = _puts.refer(session, package, place)
            self._draft = None
        except BaseException:
            self._give_up([place])
            raise


def _pack(
    shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int, key: str | None, *, readonly: bool
) -> Package:
    """Describe an array whose frame will be written by its builder."""
    try:
        sub_header = array_header(shape, dtype)
    except NotImplementedError:
        message = f"dtype={dtype!s}: {_refusal(dtype)}"
        raise TypeError(message) from None
    header = {"serializer": "custom", "type": typename(np.ndarray), "sub-header": sub_header}
    if key is not None:
        header["key"] = key
    packed = headers.pack(header, [headers.FrameRow(0, nbytes, not readonly)])
    sealed = ((0, nbytes),) if readonly and nbytes else ()
    package = lay_out(packed, [], L.align(nbytes), key, sealed=sealed)
    return package._replace(content=package.content._replace(data_nbytes=nbytes))


def _refusal(dtype: np.dtype[Any]) -> str:
    """Return why no array of a dtype is built in place."""
    if dtype.hasobject:
        return "elements that are objects of Python cannot be built in place"
    return (
        "what a dtype has beside its fields, such as metadata, cannot be kept for an array that is "
        "built in place. Leave it away, or put() an array."
    )
