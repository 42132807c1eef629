"""How do the records of a list become a few frames, while they come in one by one?

Records are taken in batches, so that a batch of one kind costs little per record. What is small is
joined into chunks at once; large buffers stay where they are until they are written. Which of the
layouts (see `handlers.records`) describes the list is decided at its end.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice
from typing import Any, Final

import numpy as np

from shmstore.errors import SerializationError
from shmstore.serialization import headers
from shmstore.serialization.describing import Arrays, Pickles
from shmstore.serialization.dispatch import typename
from shmstore.serialization.family import DEFAULT_SERIALIZERS, encode, known
from shmstore.serialization.frames import (
    Frame,
    Planned,
    ensure_memoryview,
    hoist_flags,
)
from shmstore.serialization.handlers import records as R
from shmstore.serialization.handlers.numpy import serialize_array
from shmstore.serialization.markers import Serialize, Serialized
from shmstore.serialization.registry import custom_serialize
from shmstore.serialization.splitting import restore
from shmstore.serialization.spools import Spool, grain_of, table_of, word_of

LIST_TYPE: Final = typename(R.Records)

_BATCH: Final = 1024

# What may have fields of its own, how many, and how many kinds of such records a list may have.
_CONTAINERS: Final[dict[type, str]] = {tuple: "tuple", list: "list", dict: "dict"}
_MOST_FIELDS: Final = 32
_MOST_SCHEMAS: Final = 1024


def record(
    items: Iterable[Any], serializers: Sequence[str] | None = None, *, drain: bool = False
) -> tuple[dict[str, Any], list[Frame]]:
    """Return header and frames of a list of records.

    Parameters
    ----------
    items
        They are taken once; what large buffers among them hold must stay until it is written.
    serializers
        Families to ask about what is no number, text, bytes or plain array.
    drain
        Whether the frames are written only once, and what was written may be forgotten.

    Raises
    ------
    SerializationError
        A record cannot be serialized; the message says which.
    """
    recorder = _Recorder(DEFAULT_SERIALIZERS if serializers is None else known(serializers))
    records = iter(items)
    while batch := list(islice(records, _BATCH)):
        recorder.add(batch)
    sub_header, frames = recorder.finish(drain=drain)
    return {"serializer": "custom", "type": LIST_TYPE, "sub-header": sub_header}, frames


class _Recorder:
    """Takes records, and keeps what the frames of the layout "mixed" need."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._ends = array("Q", [0])
        self._kinds = bytearray()
        self._data = Spool()
        self._buffers = Spool(), Spool()
        self._arrays = Arrays(self._buffers)
        self._pickles = Pickles(self._buffers) if tuple(names) == DEFAULT_SERIALIZERS else None
        self._own_arrays = custom_serialize.find(np.ndarray) is serialize_array
        self._schemas: dict[Any, int] = {}

    def add(self, batch: list[Any]) -> None:
        """Take some records."""
        types = set(map(type, batch))
        if types == {str}:
            self._add_texts(batch)
        elif types == {bytes}:
            self._add_joined(R.BYTES, b"".join(batch), list(map(len, batch)))
        else:
            for x in batch:
                code, data = self._encode(x)
                self._data.add(data, len(data))
                self._ends.append(self._data.nbytes)
                self._kinds.append(code)

    def _add_texts(self, batch: list[str]) -> None:
        joined = "".join(batch)
        data = joined.encode("utf-8", "surrogatepass")
        if len(data) == len(joined):
            sizes = list(map(len, batch))
        else:
            sizes = [len(text.encode("utf-8", "surrogatepass")) for text in batch]
        self._add_joined(R.TEXT, data, sizes)

    def _add_joined(self, kind: int, data: bytes, sizes: list[int]) -> None:
        start = self._data.add(data, len(data))
        self._ends.extend(islice(accumulate(sizes, initial=start), 1, None))
        self._kinds += bytes([kind]) * len(sizes)

    def _encode(self, x: Any) -> tuple[int, Any]:
        """Return kind and data of a record."""
        kind = type(x)
        if kind in _CONTAINERS and self._own_arrays:
            found = self._fields(kind, x) or self._value(x)
        else:
            found = self._value(x)
        return found or self._ask_families(x)

    def _value(self, x: Any) -> tuple[int, Any] | None:  # noqa: PLR0911 - one for each kind
        """Return kind and data of what needs no header; None: it does."""
        kind = type(x)
        if kind is str:
            return R.TEXT, x.encode("utf-8", "surrogatepass")
        if kind is bytes:
            return R.BYTES, x
        if kind is int:
            return R.INT, x.to_bytes(x.bit_length() // 8 + 1, "little", signed=True)
        if kind is float:
            return R.FLOAT, R.FLOAT_VALUE.pack(x)
        if kind is np.ndarray and self._own_arrays:
            data = self._arrays.describe(x)
            return None if data is None else (R.ARRAY, data)
        if self._pickles is not None and _is_pickled(kind):
            return self._pickles.describe(x)
        return None

    def _fields(self, kind: type, x: Any) -> tuple[int, Any] | None:
        """Return kind and data of a small container of values, some of which are arrays."""
        values = list(x.values()) if kind is dict else x
        arrays = [id(value) for value in values if type(value) is np.ndarray]
        if not arrays or len(values) > _MOST_FIELDS or len(set(arrays)) < len(arrays):
            return None
        if kind is dict and not all(type(key) is str for key in x):
            return None
        found = [self._value(value) for value in values]
        if None in found:
            return None
        codes, parts = zip(*found, strict=True)
        schema = (_CONTAINERS[kind], tuple(x) if kind is dict else (), codes)
        number = self._schemas.setdefault(schema, len(self._schemas))
        if number >= _MOST_SCHEMAS:
            del self._schemas[schema]
            return None
        sizes = R.fields_head(len(codes)).pack(number, *accumulate(map(len, parts)))
        return R.FIELDS, b"".join([sizes, *parts])

    def _ask_families(self, x: Any) -> tuple[int, Any]:
        """Return kind and data of a record that a family takes."""
        try:
            header, frames = restore(*encode(x, self._names))
            return R.ENCODED, self._described(header, frames)
        except SerializationError as error:
            number = len(self._kinds)
            facts = error.facts | {"path": f"items[{number}]"}
            message = f"record {number} of the list: {error.message}"
            raise SerializationError(message, **facts) from error

    def _described(self, header: dict[str, Any], frames: Sequence[Frame]) -> bytes:
        header, flags = hoist_flags(header, frames)
        header = {key: value for key, value in header.items() if key != "frame-nbytes"}
        table: list[Any] = []
        for frame, flag in zip(frames, flags, strict=True):
            view = frame if type(frame) is Planned else ensure_memoryview(frame)
            start = self._buffers[flag].add(view, view.nbytes, grain_of(view.nbytes))
            table.append([start, view.nbytes, bool(flag), None])
        return headers.pack(header, table)

    def finish(self, *, drain: bool) -> tuple[dict[str, Any], list[Frame]]:
        """Return the sub-header and the frames."""
        kinds, count = set(self._kinds), len(self._kinds)
        data = self._data.frame(writeable=False, drain=drain)
        header: dict[str, Any] = {"count": count, "word": word_of(data.nbytes)}
        for layout, only in (("text", R.TEXT), ("bytes", R.BYTES)):
            if kinds <= {only}:
                return header | {"layout": layout}, [table_of(self._ends, data.nbytes), data]
        buffers = [
            spool.frame(writeable=bool(flag), drain=drain)
            for flag, spool in enumerate(self._buffers)
        ]
        if kinds == {R.ARRAY} and (found := self._arrays.layout(self._data)) is not None:
            described, tables = found
            return header | described, [*tables, buffers[self._arrays.flag]]
        header |= {"layout": "mixed", "dtypes": self._arrays.packed}
        header["schemas"] = [[kind, keys, codes] for kind, keys, codes in self._schemas]
        ends = table_of(self._ends, data.nbytes)
        return header, [ends, bytes(self._kinds), data, *buffers]


def _is_pickled(kind: type) -> bool:
    """Return whether the family "pickle" is the one that takes objects of a type."""
    return custom_serialize.find(kind) is None and kind not in (Serialize, Serialized)
