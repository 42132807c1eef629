"""Which frames are worth compressing, and how do they come back safely?

Nothing is compressed unless somebody asks for it. Who compresses writes down the codec and the
number of raw bytes; who decompresses first holds that number against what the codec's format can
possibly make of so few bytes, so that a forged header cannot ask for memory that the frame does
not justify.

Concurrency: threads. No object of a codec outlives the call that uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from shmstore.errors import CodecNotFoundError, CorruptHeaderError
from shmstore.serialization.codecs import IDENTITY, KNOWN, Codec, compressions
from shmstore.serialization.frames import Frame, ensure_memoryview, nbytes
from shmstore.serialization.headers import COMPRESSION
from shmstore.serialization.wording import shown

__all__ = [
    "AUTO",
    "COMPRESSION",
    "byte_sample",
    "compress_frames",
    "compressions",
    "decompress",
    "decompress_frame",
    "entries_of",
    "maybe_compress",
]

AUTO: Final = ("lz4", "snappy")
"""What ``compression="auto"`` tries, in this order: codecs that are faster than a fast link."""


# --- compressing -------------------------------------------------------------------------------


def maybe_compress(
    payload: Frame,
    min_size: int = 10_000,
    sample_size: int = 10_000,
    nsamples: int = 5,
    compression: str | bool | None = "auto",  # noqa: FBT001 - False is one of the names
) -> tuple[str | None, Frame]:
    """Compress a frame if that takes at least 30 % off it.

    Parameters
    ----------
    payload
        Any buffer.
    min_size
        Shorter frames are left alone.
    sample_size, nsamples
        So many random slices of so many bytes are compressed first; where they do not shrink, the
        whole is not tried.
    compression
        Name of a codec; ``"auto"`` takes the first of lz4 and snappy that is installed, if any;
        None and False: none.

    Returns
    -------
    name : str or None
        The codec that was used.
    frame : buffer
        The compressed frame, or `payload` itself. Note its raw `nbytes` beside the name: see
        `decompress_frame`.

    Raises
    ------
    CodecNotFoundError
        The codec is unknown or not installed.
    """
    codec = _automatic() if compression == "auto" else compressions[compression]
    size = nbytes(payload)
    if codec.name is None or not 0 < size <= codec.longest or size < min_size:
        return None, payload
    view = ensure_memoryview(payload)
    sample = byte_sample(view, min(sample_size, size), nsamples)
    if not _worth_it(codec.compress(sample), sample.nbytes):
        return None, payload
    compressed = codec.compress(view)
    return (codec.name, compressed) if _worth_it(compressed, size) else (None, payload)


def _worth_it(compressed: Frame, size: int) -> bool:
    return nbytes(compressed) * 10 <= size * 7


def _automatic() -> Codec:
    for name in AUTO:
        try:
            return compressions[name]
        except CodecNotFoundError:
            continue
    return IDENTITY


def compress_frames(
    header: dict[str, Any],
    frames: Sequence[Frame],
    compression: str | bool | None,  # noqa: FBT001 - False is one of the names
) -> tuple[dict[str, Any], list[Frame]]:
    """Compress the frames for which the header names no codec yet.

    Parameters
    ----------
    header, frames
        Neither is changed. False in ``header["compression"]`` forbids compressing a frame.
    compression
        As for `maybe_compress`.

    Returns
    -------
    header, frames
        For `decompress`. The header says ``[codec, nbytes]`` of each frame compressed here.
    """
    if compression is None or compression is False:
        return header, list(frames)
    entries, packed = list(entries_of(header, frames)), list(frames)
    for number, frame in enumerate(frames):
        if entries[number] is None:
            codec, packed[number] = maybe_compress(frame, compression=compression)
            entries[number] = None if codec is None else [codec, nbytes(frame)]
    return {**header, COMPRESSION: entries}, packed


def entries_of(header: Mapping[str, Any], frames: Sequence[Frame]) -> Sequence[Any]:
    """Return what the header says about the compression of each frame: one entry per frame."""
    entries = header.get(COMPRESSION)
    if entries is None:
        return [None] * len(frames)
    found = len(entries) if isinstance(entries, list | tuple) else None
    if found != len(frames):
        raise CorruptHeaderError(
            f"the header has the compression entries {shown(entries, 200)} for {len(frames)} "
            "frames; it does not belong to them.",
            key=COMPRESSION,
            found=found,
            expected=len(frames),
        )
    checked: Sequence[Any] = entries
    return checked


def byte_sample(payload: Frame, size: int, n: int) -> memoryview:
    """Return `n` random slices of `size` bytes, joined; those that would overlap are shortened.

    Raises
    ------
    ValueError
        A slice is longer than the payload, or a number is negative.
    """
    view = ensure_memoryview(payload)
    if size < 0 or n < 0 or size > view.nbytes:
        message = f"{n} samples of {size} bytes cannot be taken from {view.nbytes} bytes"
        raise ValueError(message)
    if not size or not n:
        return memoryview(b"")
    from random import Random  # noqa: PLC0415 - takes time that most processes can save

    own = Random()  # noqa: S311 - which bytes to sample is no secret
    starts = sorted(own.randint(0, view.nbytes - size) for _ in range(n))
    ends = [*starts[1:], view.nbytes]
    return memoryview(
        b"".join(
            view[start : min(start + size, end)] for start, end in zip(starts, ends, strict=True)
        )
    )


# --- decompressing -----------------------------------------------------------------------------


def decompress_frame(codec: Any, payload: Frame, raw: int | None = None) -> Frame:
    """Decompress one frame into memory of its own.

    Parameters
    ----------
    codec
        Its name; None and False: the payload is returned as it is.
    payload
        The compressed bytes.
    raw
        How many bytes must come out; None: not known.

    Returns
    -------
    frame : buffer
        Writable, unless `codec` is None or False.

    Raises
    ------
    CorruptHeaderError
        The codec is unknown, its format cannot make so many bytes of so few, or the payload is
        damaged. Nothing has been allocated in the first two cases.
    CodecNotFoundError
        The codec is known but not installed.
    """
    chosen = _named(codec)
    view = ensure_memoryview(payload)
    try:
        claimed = chosen.stored_size(view)
    except Exception as error:
        raise _damaged(chosen, view, raw, error) from error
    if raw is None:
        raw = claimed
    elif type(raw) is not int or raw < 0 or (claimed is not None and claimed != raw):
        raise _damaged(chosen, view, raw, f"its own header says {shown(claimed)} bytes")
    most, stored = chosen.expansion
    if raw is not None and raw * stored > view.nbytes * most:
        raise _damaged(chosen, view, raw, f"no more than {most} can come out of {stored}")
    if chosen.name is None:
        return payload
    try:
        return chosen.decompress(view, raw)
    except (MemoryError, OSError):
        raise
    except Exception as error:
        raise _damaged(chosen, view, raw, error) from error


def _named(codec: Any) -> Codec:
    known = codec in KNOWN if isinstance(codec, str) else codec is None or codec is False
    if not known:
        raise CorruptHeaderError(
            f"the header names the codec {shown(codec)}; known are {', '.join(KNOWN)}.",
            key=COMPRESSION,
            found=codec,
            expected=KNOWN,
        )
    return compressions[codec]


def _damaged(codec: Codec, view: memoryview, raw: Any, reason: Any) -> CorruptHeaderError:
    return CorruptHeaderError(
        f"a frame of {view.nbytes} bytes, compressed by {codec.name!r}, cannot give "
        f"{'its' if raw is None else shown(raw)} raw bytes: {reason}",
        key=COMPRESSION,
        found=view.nbytes,
        expected=raw,
    )


def decompress(header: Mapping[str, Any], frames: Sequence[Frame]) -> list[Frame]:
    """Decompress the frames for which the header names a codec.

    Parameters
    ----------
    header
        ``header["compression"]`` has one entry per frame: ``[codec, nbytes]``, or a codec alone
        where nobody wrote down the raw bytes, or None or False. Without it the frames are taken as
        they are.
    frames
        They are not changed.

    Raises
    ------
    CorruptHeaderError
        There are more entries than frames or fewer, or a frame does not decompress.
    """
    entries = entries_of(header, frames)
    return [_undone(entry, frame) for entry, frame in zip(entries, frames, strict=True)]


def _undone(entry: Any, frame: Frame) -> Frame:
    if not isinstance(entry, list | tuple):
        return decompress_frame(entry, frame)
    if len(entry) != 2:
        raise CorruptHeaderError(
            f"the compression entry {shown(entry)} is not a codec and a number of bytes.",
            key=COMPRESSION,
            found=len(entry),
            expected=2,
        )
    return decompress_frame(entry[0], frame, entry[1])
