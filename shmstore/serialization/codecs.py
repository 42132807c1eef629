"""Which codecs make bytes shorter, and what can their formats make of how few bytes?

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

import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Final

from shmstore._tuples import NamedTuple
from shmstore.errors import CodecNotFoundError
from shmstore.serialization.frames import Frame, allocate, ensure_memoryview, nbytes

_UNLIMITED: Final = 2**63 - 1


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
        packed: bytes = zstandard.ZstdCompressor(write_checksum=True).compress(payload)
        return packed

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

IDENTITY: Final = Codec(None, _identity, _identity, nbytes, (1, 1), _UNLIMITED)
_LOADERS: Final[dict[str, Callable[[], Codec]]] = {
    "zlib": _zlib,
    "lz4": _lz4,
    "zstd": _zstd,
    "snappy": _snappy,
}
_PACKAGES: Final = {"lz4": "lz4", "zstd": "zstandard", "snappy": "cramjam"}

KNOWN: Final = tuple(_LOADERS)
"""The names of all codecs, installed or not."""


class _Codecs(Mapping[Any, Codec]):
    """The codecs by name; a package is imported when its codec is first looked up."""

    def __init__(self) -> None:
        self._loaded: dict[Any, Codec] = {None: IDENTITY, False: IDENTITY}

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
