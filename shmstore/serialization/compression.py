"""Which frames are worth compressing, by which codec, and how do they come back safely?

Nothing is compressed unless somebody asks for it. Who compresses writes down the codec and the
number of raw bytes; who decompresses first holds that number against what the codec's format can
possibly make of so few bytes, so that a forged header cannot ask for memory that the frame does
not justify.

============  ==============  =========================================================
Codec         At most         Because one unit of the format gives
============  ==============  =========================================================
``"zlib"``    1032 to 1       258 bytes for a length and a distance of one bit each
                              (RFC 1951)
``"lz4"``     255 to 1        255 bytes of a match for each further byte of its length
                              (block format of LZ4)
``"zstd"``    32768 to 1      a block of 128 KiB for a header of 3 bytes and the byte
                              that it repeats (RFC 8878, 3.1.1.2)
``"snappy"``  64 to 3         a copy of 64 bytes for a tag and an offset of 2 bytes
                              (format description of snappy, 2.2.2)
============  ==============  =========================================================

Concurrency: threads. No object of a codec outlives the call that uses it.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from shmstore.errors import CorruptHeaderError, ShmStoreError
from shmstore.serialization.frames import Frame, allocate, ensure_memoryview, nbytes

AUTO = ("lz4", "snappy")
"""What ``compression="auto"`` tries, in this order: codecs that are faster than a fast link."""

_UNLIMITED = 2**63 - 1
_RANDOM = random.Random()  # noqa: S311 - which bytes to sample is no secret


class CodecNotFoundError(ShmStoreError, KeyError, ValueError):
    """The codec is unknown, or the package that it needs is not installed."""


class Codec(NamedTuple):
    """One way to make bytes shorter.

    Attributes
    ----------
    name
        What headers call it; None for the codec that changes nothing.
    compress
        ``compress(frame) -> buffer``.
    decompress
        ``decompress(payload, nbytes=None) -> buffer`` of its own; writable where `name` is not
        None. With `nbytes` exactly so many bytes, or an error.
    stored_size
        How many raw bytes a payload claims, or None where its format does not say.
    expansion
        ``(raw, stored)``: no payload of `stored` bytes decompresses to more than `raw`.
    longest
        Bytes of the longest frame that it can take.
    """

    name: str | None
    compress: Callable[[Frame], Frame]
    decompress: Callable[..., Frame]
    stored_size: Callable[[memoryview], int | None]
    expansion: tuple[int, int]
    longest: int


# --- the codecs --------------------------------------------------------------------------------


def _says_nothing(_payload: memoryview) -> None:
    return None


def _identity(payload: Frame, _nbytes: int | None = None) -> Frame:
    return payload


def _zlib() -> Codec:
    def decompress(payload: Frame, size: int | None = None) -> memoryview:
        if size is None:
            pieces = list(_inflated(ensure_memoryview(payload)))
            return _filled(pieces, sum(map(len, pieces)))
        return _filled(_inflated(ensure_memoryview(payload)), size)

    return Codec("zlib", zlib.compress, decompress, _says_nothing, (1032, 1), _UNLIMITED)


def _inflated(payload: memoryview) -> Iterator[bytes]:
    step = 2**14  # at most 16 MiB come out of it at once
    engine = zlib.decompressobj()
    for start in range(0, payload.nbytes, step):
        if engine.eof:
            break
        yield engine.decompress(payload[start : start + step])
    if not engine.eof:
        raise ValueError("the stream ends too early")
    if engine.unused_data or start + step < payload.nbytes:
        raise ValueError("there are bytes behind the end of the stream")


def _filled(pieces: Any, size: int) -> memoryview:
    out, end = allocate(size), 0
    for piece in pieces:
        start, end = end, end + len(piece)
        if end > size:
            break
        out[start:end] = piece
    return _exactly(out, end, size)


def _exactly(out: memoryview, found: int, size: int) -> memoryview:
    if found != size:
        message = f"{found} bytes or more came out"
        raise ValueError(message)
    return out


def _lz4() -> Codec:
    from lz4 import block  # noqa: PLC0415 - an optional package, when it is asked for

    def decompress(payload: Frame, _size: int | None = None) -> Frame:
        out: Frame = block.decompress(payload, return_bytearray=True)
        return out

    def stored_size(payload: memoryview) -> int:
        if payload.nbytes < 4:
            raise ValueError("too short for its own length")
        return int.from_bytes(payload[:4], "little")

    return Codec("lz4", block.compress, decompress, stored_size, (255, 1), 0x7E000000)


def _zstd() -> Codec:
    import zstandard  # noqa: PLC0415 - an optional package, when it is asked for

    def compress(payload: Frame) -> bytes:
        return zstandard.ZstdCompressor(write_checksum=True).compress(payload)

    def stored_size(payload: memoryview) -> int | None:
        size = zstandard.frame_content_size(payload)
        return None if size < 0 else size

    def decompress(payload: Frame, size: int | None = None) -> memoryview:
        view = ensure_memoryview(payload)
        _check_zstd_frame(view, zstandard.frame_header_size(view))
        size = stored_size(view) if size is None else size
        if size is None:
            raise ValueError("the frame does not say how long its content is")
        out = allocate(size)
        reader = zstandard.ZstdDecompressor().stream_reader(view)
        _exactly(out, reader.readinto(out), size)
        return _exactly(out, size + len(reader.read(1)), size)

    return Codec("zstd", compress, decompress, stored_size, (2**15, 1), _UNLIMITED)


def _check_zstd_frame(payload: memoryview, offset: int) -> None:
    """Prove that the frame ends where the payload ends, which streaming does not look at."""
    last, has_checksum = False, payload[4] & 4
    while not last:
        header = int.from_bytes(payload[offset : offset + 3], "little")
        last, repeats = bool(header & 1), (header >> 1) & 3 == 1
        offset += 3 + (1 if repeats else header >> 3)
        if offset > payload.nbytes:
            raise ValueError("the frame ends too early")
    offset += 4 if has_checksum else 0
    if offset != payload.nbytes:
        message = f"the frame has {offset} bytes of {payload.nbytes}"
        raise ValueError(message)


def _snappy() -> Codec:
    from cramjam import snappy  # noqa: PLC0415 - an optional package, when it is asked for

    def compress(payload: Frame) -> memoryview:
        return memoryview(snappy.compress_raw(payload))

    def stored_size(payload: memoryview) -> int:
        size: int = snappy.decompress_raw_len(payload)
        return size

    def decompress(payload: Frame, size: int | None = None) -> memoryview:
        size = snappy.decompress_raw_len(payload) if size is None else size
        out = allocate(size)
        return _exactly(out, snappy.decompress_raw_into(payload, out), size)

    # The length is a 32-bit number, and so is the room that the compressor asks for at first.
    return Codec("snappy", compress, decompress, stored_size, (64, 3), (2**32 - 33) // 7 * 6)


# --- the table ---------------------------------------------------------------------------------

_IDENTITY = Codec(None, _identity, _identity, nbytes, (1, 1), _UNLIMITED)
_LOADERS: dict[str, Callable[[], Codec]] = {
    "zlib": _zlib,
    "lz4": _lz4,
    "zstd": _zstd,
    "snappy": _snappy,
}
_PACKAGES = {"lz4": "lz4", "zstd": "zstandard", "snappy": "cramjam"}


class _Codecs(Mapping[Any, Codec]):
    """The codecs by name; a package is imported when its codec is first looked up."""

    def __init__(self) -> None:
        self._loaded: dict[Any, Codec] = {None: _IDENTITY, False: _IDENTITY}

    def __getitem__(self, name: Any) -> Codec:
        try:
            return self._loaded[name]
        except (KeyError, TypeError):
            codec = self._loaded[name] = self._load(name)
            return codec

    def __iter__(self) -> Iterator[Any]:
        yield from (None, False)
        for name in _LOADERS:
            if name not in _PACKAGES or find_spec(_PACKAGES[name]) is not None:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _load(self, name: Any) -> Codec:
        loader = _LOADERS.get(name) if isinstance(name, str) else None
        if loader is None:
            raise CodecNotFoundError(
                f"there is no codec {name!r}; known are {', '.join(map(repr, _LOADERS))}, and None "
                "for no compression.",
                codec=name,
            )
        try:
            return loader()
        except ImportError as error:
            package = _PACKAGES[name]
            raise CodecNotFoundError(
                f"the codec {name!r} needs the package {package}, which cannot be imported here "
                f"({error}). Install it: pip install 'shmstore[compression]'.",
                codec=name,
                package=package,
            ) from error


compressions: Mapping[Any, Codec] = _Codecs()
"""The codecs that can be used here, by the names that headers give them."""


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
    return _IDENTITY


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
    starts = sorted(_RANDOM.randint(0, view.nbytes - size) for _ in range(n))
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
        raise _damaged(chosen, view, raw, f"its own header says {claimed!r} bytes")
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
    known = codec in _LOADERS if isinstance(codec, str) else codec is None or codec is False
    if not known:
        raise CorruptHeaderError(
            f"the header names the codec {codec!r:.100}; known are {', '.join(_LOADERS)}.",
            key="compression",
            found=codec,
            expected=tuple(_LOADERS),
        )
    return compressions[codec]


def _damaged(codec: Codec, view: memoryview, raw: Any, reason: Any) -> CorruptHeaderError:
    return CorruptHeaderError(
        f"a frame of {view.nbytes} bytes, compressed by {codec.name!r}, cannot give "
        f"{'its' if raw is None else repr(raw)} raw bytes: {reason}",
        key="compression",
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
    entries = header.get("compression")
    if entries is None:
        return list(frames)
    check_entries(entries, len(frames))
    return [_undone(entry, frame) for entry, frame in zip(entries, frames, strict=True)]


def check_entries(entries: Any, count: int) -> None:
    """Raise CorruptHeaderError unless there is one entry per frame."""
    found = len(entries) if isinstance(entries, list | tuple) else None
    if found != count:
        raise CorruptHeaderError(
            f"the header has the compression entries {entries!r:.200} for {count} frames; it does "
            "not belong to them.",
            key="compression",
            found=found,
            expected=count,
        )


def _undone(entry: Any, frame: Frame) -> Frame:
    if not isinstance(entry, list | tuple):
        return decompress_frame(entry, frame)
    if len(entry) != 2:
        raise CorruptHeaderError(
            f"the compression entry {entry!r:.100} is not a codec and a number of bytes.",
            key="compression",
            found=len(entry),
            expected=2,
        )
    return decompress_frame(entry[0], frame, entry[1])
