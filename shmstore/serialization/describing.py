"""What has to be kept of an array, or of an object that is pickled, beside its buffers?"""

from __future__ import annotations

import pickle
import struct
from typing import Any, Final

import numpy as np

from shmstore.serialization.frames import Frame, Pieces, Planned, ensure_memoryview
from shmstore.serialization.handlers import records as R
from shmstore.serialization.handlers.numpy import memory_of, pack_dtype
from shmstore.serialization.pickling import _frame_of, _pickler, _raw, _Sink
from shmstore.serialization.reductions import PROTOCOL
from shmstore.serialization.spools import Spool, grain_of, table_of, word_of

_C_ORDER, _WRITEABLE = 0x1, 0x400  # NPY_ARRAY_C_CONTIGUOUS and NPY_ARRAY_WRITEABLE
_MOST_DTYPES: Final = 1 << 16


class Arrays:
    """Describes arrays in C order, and knows what all of them have in common."""

    def __init__(self, buffers: tuple[Spool, Spool]) -> None:
        self.packed: list[Any] = []
        self.flag = 0
        self._buffers = buffers
        self._numbers: dict[Any, int] = {}
        self._shape: tuple[int, ...] | None = None
        self._same = self._same_tail = True

    def describe(self, x: np.ndarray[Any, Any]) -> bytes | None:
        """Return the data of the record of an array; None: it needs a header of its own."""
        flags = x.flags.num
        number = self._number(x.dtype) if flags & _C_ORDER else None
        if number is None:
            return None
        shape, size = x.shape, x.nbytes
        writeable = 1 if flags & _WRITEABLE else 0
        if self._shape is None:
            self._shape, self.flag = shape, writeable
        elif number or writeable != self.flag:
            self._same = self._same_tail = False
        elif shape != self._shape:
            self._same = False
            self._same_tail = (
                self._same_tail and len(shape) == len(self._shape) and shape[1:] == self._shape[1:]
            )
        start = self._buffers[writeable].add(memory_of(x), size, grain_of(size)) if size else 0
        head = R.ARRAY_HEAD.pack(number, writeable, len(shape), start)
        return head + struct.pack(f"<{len(shape)}Q", *shape)

    def _number(self, dtype: np.dtype[Any]) -> int | None:
        key = (dtype, dtype.isalignedstruct, dtype.metadata is None)
        try:
            return self._numbers[key]
        except KeyError:
            pass
        try:
            packed = pack_dtype(dtype)
        except NotImplementedError:
            return None
        if len(self.packed) == _MOST_DTYPES:
            return None
        self.packed.append(packed)
        self._numbers[key] = len(self.packed) - 1
        return len(self.packed) - 1

    def layout(self, data: Spool) -> tuple[dict[str, Any], list[Frame]] | None:
        """Return header and tables of a list that consists of arrays; None: they differ."""
        shape = self._shape or ()
        if self._same and len(shape) <= R.MOST_ROW_AXES:
            nbytes = int(np.prod(shape, dtype=object)) * np.dtype(self._dtype()).itemsize
            pitch = nbytes + -nbytes % grain_of(nbytes)
            described = {"dtype": self.packed[0], "shape": list(shape), "pitch": pitch}
            return {"layout": "rows", **described}, []
        if not self._same_tail:
            return None
        fields = [("head", "V4"), ("start", "<u8"), ("shape", "<u8", (len(shape),))]
        heads = np.frombuffer(data.join(), np.dtype(fields))
        places = np.stack([heads["start"], heads["shape"][:, 0]], axis=1).reshape(-1)
        most = int(places.max())
        described = {"dtype": self.packed[0], "tail": list(shape[1:]), "word": word_of(most)}
        return {"layout": "ragged", **described}, [table_of(places, most)]

    def _dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = next(iter(self._numbers))[0]
        return dtype


class Pickles:
    """Pickles objects one by one, with one pickler: making a pickler costs more than a record."""

    def __init__(self, buffers: tuple[Spool, Spool]) -> None:
        self._spools = buffers
        self._sink = _Sink()
        self._beside: list[Any] = []
        self._pickler: Any = None

    def describe(self, x: Any) -> tuple[int, Any] | None:
        """Return kind and data of a record; None: it cannot be pickled.

        Flat: each record pays for it.
        """
        pickler, parts = self._pickler, self._sink.parts
        if pickler is None:
            pickler = self._pickler = _pickler()(self._sink, PROTOCOL, self._beside.append)
        try:
            _dump(pickler, x)
            stream = parts[0] if len(parts) == 1 else b"".join(Pieces(parts).views)
            if self._beside:
                return R.PICKLE, self._described(stream)
        except (MemoryError, OSError):
            raise
        except Exception:  # noqa: BLE001 - said by the family, which is asked again
            self._pickler = None
            return None
        finally:
            pickler.clear_memo()
            parts.clear()
            self._beside.clear()
        return R.STREAM, stream

    def _described(self, stream: bytes) -> bytes:
        frames: list[Frame] = [_frame_of(buffer) or _raw(buffer) for buffer in self._beside]
        parts = [R.COUNT_HEAD.pack(len(frames))]
        for frame in frames:
            view = frame if type(frame) is Planned else ensure_memoryview(frame)
            flag, size = not view.readonly, view.nbytes
            start = self._spools[flag].add(view, size, grain_of(size))
            parts.append(R.BUFFER_HEAD.pack(2 * start + flag, size))
        return b"".join([*parts, stream])


# What cloudpickle's pickler calls, but for what it says of objects that are nested too deeply.
_dump: Final = pickle.Pickler.dump
