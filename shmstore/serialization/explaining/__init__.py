"""What does a put copy of an object, in which frames, and why?

`explain` serializes an object just as a put does, copies nothing, and keeps account: see `tracing`
for how it looks on and `accounting` for whose the bytes are.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Final

from shmstore.errors import SerializationError
from shmstore.serialization import headers, pickling
from shmstore.serialization.compression import maybe_compress
from shmstore.serialization.dispatch import typename
from shmstore.serialization.explaining import reasons
from shmstore.serialization.explaining.accounting import Ledger, Row
from shmstore.serialization.explaining.tracing import Leaf, watch
from shmstore.serialization.family import DEFAULT_SERIALIZERS, encode, known
from shmstore.serialization.frames import Frame, ensure_memoryview, nbytes
from shmstore.serialization.handlers.builtins import serialize_bytes
from shmstore.serialization.hypertext import Share, bar, box, table, text
from shmstore.serialization.markers import Serialized
from shmstore.serialization.registry import Header, custom_serialize
from shmstore.serialization.splitting import restore

# Paths are looked for as long as the serialization took, or this long.
_PATIENCE_S: Final = 0.05

_THOUSAND: Final = 1000  # longer numbers go to the next unit
_MOST_LINES: Final = 40
_PATH_LENGTH: Final = 60
_BESIDE: Final = "#4c78a8"
_INSIDE: Final = "#e45756"
_COLUMNS: Final = ("part", "type", "family", "frames", "out-of-band", "in-band", "why")


@dataclasses.dataclass(frozen=True)
class Part:
    """What one part of an object costs.

    Parameters
    ----------
    path
        How it is reached from the object, ``obj``.
    type
        Qualified name of its class.
    family
        The family that serialized it, or the object that it is inside of.
    frames
        How many frames are its own.
    out_of_band
        Bytes of its frames that hold data as it is.
    in_band
        Its bytes in streams of pickle or msgpack, where they are copied once more.
    reason
        Why, in plain words.
    """

    path: str
    type: str
    family: str
    frames: int
    out_of_band: int
    in_band: int
    reason: str

    @property
    def nbytes(self) -> int:
        """All bytes."""
        return self.out_of_band + self.in_band


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """What a put copies of an object; printed, a table.

    Parameters
    ----------
    type
        Qualified name of the class of the object.
    family
        The family that serialized it; "several" where elements were taken one by one.
    parts
        Who the frames and the bytes belong to; they add up to the totals.
    frames
        Number of frames.
    out_of_band, in_band
        Bytes of frames that hold data as it is; bytes in streams of pickle or msgpack.
    stored_nbytes
        Bytes that a put stores: both, after compression.
    compression
        As asked for.
    error
        Why the object cannot be serialized: then `parts` is the part to blame, and the rest is 0.

    Notes
    -----
    In a stream of more than 128 KiB, large text and bytes aside, what is told of a part is in-band
    for certain; less than 128 KiB more may be its and are told of what is around it.
    """

    type: str
    family: str
    parts: tuple[Part, ...]
    frames: int
    out_of_band: int
    in_band: int
    stored_nbytes: int
    compression: str | None = None
    error: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all frames before compression."""
        return self.out_of_band + self.in_band

    @property
    def summary(self) -> str:
        """The totals in one line."""
        if self.error is not None:
            return f"{self.type}: cannot be serialized"
        shorter = f", stored as {_size(self.stored_nbytes)}" if self.compression else ""
        return (
            f"{self.type} by {self.family}: {_count(self.frames, 'frame')}, "
            f"{_size(self.out_of_band)} out-of-band, {_size(self.in_band)} in-band{shorter}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {**dataclasses.asdict(self), "parts": [dataclasses.asdict(p) for p in self.parts]}

    def __repr__(self) -> str:
        return f"<Explanation of {self.summary}>"

    def __str__(self) -> str:
        lines = [_COLUMNS, *self._lines()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
        text = [
            "  ".join(
                [
                    cell.rjust(width) if column in (3, 4, 5) else cell.ljust(width)
                    for column, (cell, width) in enumerate(zip(line, widths, strict=True))
                ]
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*text, *self._left_out(), self.summary])

    def _repr_html_(self) -> str:
        shares = [
            Share("out-of-band", _BESIDE, self.out_of_band / max(1, self.nbytes), ""),
            Share("in-band", _INSIDE, self.in_band / max(1, self.nbytes), ""),
        ]
        sizes = (self.out_of_band, self.in_band)
        told = [s._replace(said=_size(n)) for s, n in zip(shares, sizes, strict=True)]
        return box(
            text(self.summary, 300),
            text(self.error, 600) if self.error else bar(told),
            table(_COLUMNS, self._lines(), numbers=(3, 4, 5)),
            *[text(line, 200) for line in self._left_out()],
        )

    def _shown(self) -> list[Part]:
        """Return the largest parts, in the order of the stream."""
        largest = sorted(range(len(self.parts)), key=lambda n: -self.parts[n].nbytes)
        return [self.parts[number] for number in sorted(largest[:_MOST_LINES])]

    def _lines(self) -> list[tuple[str, ...]]:
        return [
            (
                part.path if len(part.path) <= _PATH_LENGTH else f"{part.path[:_PATH_LENGTH]}...",
                part.type,
                part.family,
                str(part.frames),
                _size(part.out_of_band),
                _size(part.in_band),
                part.reason,
            )
            for part in self._shown()
        ]

    def _left_out(self) -> list[str]:
        left = len(self.parts) - _MOST_LINES
        if left <= 0:
            return []
        rest = self.nbytes - sum([part.nbytes for part in self._shown()])
        return [f"... and {_count(left, 'smaller part')} of {_size(rest)} together"]


def explain(
    obj: Any, serializers: Sequence[str] | None = None, compression: str | None = None
) -> Explanation:
    """Say what a put of an object copies: each part with its frames, bytes, and the reason.

    Parameters
    ----------
    obj, serializers, compression
        As for `Store.put`.

    Returns
    -------
    Explanation
        Also of an object that cannot be serialized: it names the part to blame.

    Raises
    ------
    ValueError, CodecNotFoundError
        A family or the codec is unknown.
    MemoryError, OSError
        As a family raised them.

    Notes
    -----
    The object is really serialized, by the same functions, and takes about as long as a put; what
    a put writes into shared memory is not written anywhere. Only compression makes frames, one at
    a time.

    Examples
    --------
    >>> import numpy as np
    >>> told = explain({"data": np.zeros(1000), "name": "zeros"})
    >>> told.frames, told.out_of_band
    (2, 8000)
    >>> [(part.path, part.reason.partition(":")[0]) for part in told.parts]
    [('obj', 'the rest of the stream'), ("obj['data']", 'contiguous')]
    """
    names = DEFAULT_SERIALIZERS if serializers is None else known(serializers)
    if serializers is None and compression is None and _is_stored_plainly(obj):
        return _of_plain(obj)
    if isinstance(obj, Serialized):
        obj = Serialized(*restore(obj.header, obj.frames))
    started = time.monotonic()
    try:
        header, frames, leaves = _look_on(obj, names, compression)
    except SerializationError as error:
        return _of_failure(obj, error)
    patience_s = max(_PATIENCE_S, time.monotonic() - started)
    ledger = Ledger(frames, leaves, patience_s)
    ledger.enter(header, obj, "obj", range(len(frames)))
    stored = _compress(frames, compression)
    kind = typename(type(obj)) if not isinstance(obj, Serialized) else header.get("type", "unknown")
    family = "several" if header.get("is-collection") else str(header.get("serializer"))
    parts = tuple([_part(row, ledger, stored) for row in ledger.rows])
    return _total(str(kind), family, parts, sum([size for _, size in stored]), compression)


def _is_stored_plainly(obj: Any) -> bool:
    """Return whether a put takes its shortest way: see `_packing.pack`."""
    handler = custom_serialize.find(type(obj))
    return pickling.is_plain(obj) and handler in (None, serialize_bytes)


def _of_plain(obj: Any) -> Explanation:
    size = len(pickling.dumps_plain(obj))
    kind = typename(type(obj))
    part = Part("obj", kind, "pickle", 1, 0, size, reasons.PLAIN)
    return _total(kind, "pickle", (part,), size, None)


def _look_on(
    obj: Any, names: Sequence[str], compression: str | None
) -> tuple[Header, Sequence[Frame], list[Leaf]]:
    with watch() as leaves:
        context = {"compression": compression} if compression else None
        header, frames = encode(obj, names, context)
    headers.pack(header, ())
    return header, frames, leaves


def _of_failure(obj: Any, error: SerializationError) -> Explanation:
    facts = error.facts
    path, family = str(facts.get("path", "obj")), str(facts.get("family", "none"))
    kind = typename(type(obj))
    to_blame = str(facts.get("part_type") or facts.get("type") or kind)
    part = Part(path, to_blame, family, 0, 0, 0, error.message)
    return Explanation(kind, family, (part,), 0, 0, 0, 0, error=error.message)


def _compress(frames: Sequence[Frame], compression: str | None) -> list[tuple[str | None, int]]:
    """Return for each frame the codec that a put uses, and the bytes that it stores."""
    if compression is None:
        return [(None, nbytes(frame)) for frame in frames]
    stored = []
    for frame in frames:
        codec, payload = maybe_compress(ensure_memoryview(frame), compression=compression)
        stored.append((codec, nbytes(payload)))
    return stored


def _part(row: Row, ledger: Ledger, stored: Sequence[tuple[str | None, int]]) -> Part:
    beside = [number for number in row.numbers if number not in ledger.streams]
    reason = row.reason
    shorter = [number for number in row.numbers if stored[number][0] is not None]
    if shorter:
        before = sum([nbytes(ledger.frames[number]) for number in shorter])
        after = sum([stored[number][1] for number in shorter])
        what = "" if set(shorter) <= set(beside) else "the stream "
        reason = reasons.join(
            reason,
            f"{what}compressed by {stored[shorter[0]][0]} from {_size(before)} to {_size(after)}: "
            "every get() decompresses it into memory of its own",
        )
    size = sum([nbytes(ledger.frames[number]) for number in beside])
    return Part(row.path, row.type, row.family, len(row.numbers), size, row.in_band, reason)


def _total(
    kind: str, family: str, parts: tuple[Part, ...], stored: int, compression: str | None
) -> Explanation:
    return Explanation(
        kind,
        family,
        parts,
        frames=sum([part.frames for part in parts]),
        out_of_band=sum([part.out_of_band for part in parts]),
        in_band=sum([part.in_band for part in parts]),
        stored_nbytes=stored,
        compression=compression,
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _size(nbytes: int) -> str:
    """Return a number of bytes as people read it."""
    if nbytes < _THOUSAND:
        return f"{nbytes} B"
    size = float(nbytes)
    units = iter(("KiB", "MiB", "GiB", "TiB"))
    while size >= _THOUSAND:
        size /= 1024
        unit = next(units, "PiB")
    return f"{size:.1f} {unit}"
