"""How do long frames travel in pieces, and how do they become whole again?

What splitting has done stands in the header, one entry per frame how many pieces it has and which
is its first; ``header["compression"]`` has one entry per piece. Headers that are passed in are
never written to.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import accumulate
from typing import Any, Final

from shmstore.errors import CorruptHeaderError
from shmstore.serialization.compression import decompress, entries_of
from shmstore.serialization.family import deserialize, serialize
from shmstore.serialization.frames import Frame, allocate, ensure_memoryview
from shmstore.serialization.headers import COMPRESSION, COUNTS
from shmstore.serialization.packing import frame_split_size, merge_memoryviews
from shmstore.serialization.wording import shown

Header = dict[str, Any]

OFFSETS: Final = "split-offsets"


def serialize_and_split(
    x: Any,
    serializers: Sequence[str] | None = None,
    on_error: str = "message",
    context: dict[str, Any] | None = None,
    size: int | None = None,
    iterate_collection: bool | None = None,  # noqa: FBT001 - as in serialize
) -> tuple[Header, list[Frame]]:
    """Serialize an object and cut its frames into pieces.

    Parameters
    ----------
    x, serializers, on_error, context, iterate_collection
        As for `serialize`.
    size
        Bytes of the longest piece; None or 0: 64 MiB. Frames that are compressed already, or must
        not be, stay whole.

    Returns
    -------
    header, frames
        For `merge_and_deserialize`.
    """
    header, frames = serialize(x, serializers, on_error, context, iterate_collection)
    return split(header, frames, size)


def merge_and_deserialize(
    header: Header, frames: Sequence[Frame], deserializers: Container[str] | None = None
) -> Any:
    """Undo `serialize_and_split`.

    Parameters
    ----------
    header, frames, deserializers
        As for `deserialize`. Frames that were compressed must have been decompressed. Neither
        header nor frames are changed.

    Raises
    ------
    CorruptHeaderError
        The header tells of other pieces than there are.
    """
    return deserialize(*merge(header, frames), deserializers)


def split(header: Header, frames: Sequence[Frame], size: int | None) -> tuple[Header, list[Frame]]:
    """Return a header of its own and the pieces of the frames.

    What was split before is joined first, unless some of its pieces are compressed: then it stays
    as it is.
    """
    if COUNTS in header:
        if any(map(is_named, entries_of(header, frames))):
            _check_pieces(header, len(frames))
            return dict(header), list(frames)
        header, frames = merge(header, frames)
    entries = entries_of(header, frames)
    pieces = [
        frame_split_size(frame, size) if entry is None else [ensure_memoryview(frame)]
        for entry, frame in zip(entries, frames, strict=True)
    ]
    counts = [len(of_one) for of_one in pieces]
    header = {
        **header,
        COUNTS: counts,
        OFFSETS: _starts(counts),
        COMPRESSION: [
            entry for entry, count in zip(entries, counts, strict=True) for _ in range(count)
        ],
    }
    return header, [piece for of_one in pieces for piece in of_one]


def merge(header: Any, frames: Sequence[Frame]) -> tuple[Any, Sequence[Frame]]:
    """Return the header as it was before `split`, and the frames joined.

    Pieces that lie behind each other in memory are joined without a copy, others in new memory that
    may be written.
    """
    if not isinstance(header, dict) or COUNTS not in header:
        return header, frames
    counts = _check_pieces(header, len(frames))
    entries = entries_of(header, frames)
    header = {
        key: value for key, value in header.items() if key not in (COUNTS, OFFSETS, COMPRESSION)
    }
    starts = _starts(counts)
    whole = [
        entries[start] if count == 1 else None for start, count in zip(starts, counts, strict=True)
    ]
    if any(entry is not None for entry in whole):
        header[COMPRESSION] = whole
    return header, [
        _join(frames[start : start + count]) for start, count in zip(starts, counts, strict=True)
    ]


def restore(header: Header, frames: Sequence[Frame]) -> tuple[Header, Sequence[Frame]]:
    """Undo compressing and splitting: return header and frames as a family made them.

    Without traces of either both are returned as they are.
    """
    if COUNTS not in header and COMPRESSION not in header:
        return header, frames
    frames = decompress(header, frames)
    header, frames = merge(header, frames)
    return {key: value for key, value in header.items() if key != COMPRESSION}, frames


def is_named(entry: Any) -> bool:
    """Return whether an entry says that its frame is compressed."""
    return entry is not None and entry is not False


def _join(pieces: Sequence[Frame]) -> Frame:
    if len(pieces) == 1:
        return pieces[0]
    views = [ensure_memoryview(piece) for piece in pieces]
    try:
        return merge_memoryviews(views)
    except ValueError:
        whole, start = allocate(sum(view.nbytes for view in views)), 0
        for view in views:
            whole[start : start + view.nbytes] = view
            start += view.nbytes
        return whole


def _starts(counts: Sequence[int]) -> list[int]:
    return [0, *accumulate(counts)][: len(counts)]


def _check_pieces(header: Header, found: int) -> Sequence[int]:
    """Return the number of pieces of each frame, if the header and the frames agree on them."""
    counts, starts = header[COUNTS], header.get(OFFSETS)
    if (
        not isinstance(counts, list | tuple)
        or not all(type(count) is int and count > 0 for count in counts)
        or sum(counts) != found
    ):
        raise _wrong(COUNTS, counts, f"counts that sum up to {found}", found)
    checked: Sequence[int] = counts
    expected = _starts(checked)
    if not isinstance(starts, list | tuple) or list(starts) != expected:
        raise _wrong(OFFSETS, starts, "what the counts give", expected)
    return checked


def _wrong(key: str, found: Any, words: str, expected: Any) -> CorruptHeaderError:
    return CorruptHeaderError(
        f"the header has {shown(found, 200)} under {key!r}, expected {words}.",
        key=key,
        found=found,
        expected=expected,
    )
