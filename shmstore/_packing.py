"""How is an object laid out for its extent, before any lock is taken?

Its frames lie behind each other, each aligned; the header lies in the slot, or behind the frames if
it is too long. A small pickle without buffers lies in the slot altogether.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np

from shmstore._catalog.batches import Batch
from shmstore._catalog.inserts import Content
from shmstore._catalog.keys import NO_KEY, Digest, digest_of
from shmstore._memory import layout as L
from shmstore._tuples import NamedTuple
from shmstore.errors import SerializationError
from shmstore.serialization import (
    DEFAULT_SERIALIZERS,
    Serialized,
    custom_serialize,
    headers,
)
from shmstore.serialization.family import check_serialized, check_sizes, encode, known
from shmstore.serialization.frames import (
    Frame,
    Planned,
    ensure_memoryview,
    hoist_flags,
    nbytes,
    parts_of,
)
from shmstore.serialization.handlers.builtins import serialize_bytes
from shmstore.serialization.handlers.numpy import array_header, memory_of, serialize_array
from shmstore.serialization.pickling import (
    BYTES,
    SMALL_NBYTES,
    Pickled,
    dump,
    dumps_plain,
    header_and_frames,
)
from shmstore.serialization.plain import BUILTIN, dumps_each

# Frames up to this size are copied while the store lock is held, so they must be ready by then.
COPY_LOCKED_NBYTES: Final = 64 << 10

Placed = tuple[int, memoryview | Planned]
"""What lies at an offset in the extent: bytes, or a plan to make them there."""

PLAIN: Final = L.KIND_PLAIN | L.KIND_INLINE

# Where each put pays for it: what a named tuple does itself, but for its defaults.
_new = tuple.__new__

# Small bytes are pickled like other small values, although they have handlers.
_PLAIN_HANDLERS: Final = (None, serialize_bytes)


class Package(NamedTuple):
    """An object ready to be stored; `sealed` are the places (offset, bytes) no reader may write."""

    content: Content
    frames: Sequence[Placed]
    extent_nbytes: int
    key: str | None
    sealed: Sequence[tuple[int, int]] = ()

    def with_options(self, *, ttl_ns: int, checksum: bool) -> Package:
        """Return it with a time to live, or with a checksum of what is sealed."""
        kind = self.content.kind | (L.KIND_DATA_CRC if checksum and self.sealed else 0)
        return self._replace(content=self.content._replace(kind=kind, ttl_ns=ttl_ns))


def pack(
    obj: Any,
    key: str | None,
    *,
    readonly: bool | None = None,
    serializers: Sequence[str] | None = None,
    compression: str | None = None,
) -> Package:
    """Serialize an object and lay its frames out. Takes no lock, changes nothing.

    Parameters
    ----------
    obj, key, serializers, compression
        As `Store.put` got them.
    readonly
        True: all frames are recorded as read-only. None or False: as they are.
    """
    if serializers is None and compression is None:
        package = _pack_common(obj, key, readonly=readonly)
        if package is not None:
            return package
    names = DEFAULT_SERIALIZERS if serializers is None else known(serializers)
    header, frames = _encoded(obj, names, compression)
    return _lay_out_frames(header, frames, key, readonly=readonly, compression=compression)


def pack_many(
    pairs: Sequence[tuple[str | None, Any]],
    *,
    readonly: bool | None,
    serializers: Sequence[str] | None,
    compression: str | None,
) -> list[Package]:
    """Pack pairs of key and object, see `pack`; SerializationError names the one that it is of."""
    packages: list[Package] = []
    try:
        for key, x in pairs:
            package = pack(
                x, key, readonly=readonly, serializers=serializers, compression=compression
            )
            packages.append(package)
    except SerializationError as error:
        number = len(packages)
        key, _ = pairs[number]
        place, which = (number, f"object {number}") if key is None else (key, f"the object {key!r}")
        path = f"objects[{place!r}]{error.facts.get('path', '').removeprefix('obj')}"
        message = f"{which} of the batch: {error.message}"
        raise SerializationError(message, **error.facts | {"path": path}) from error
    return packages


def _pack_common(obj: Any, key: str | None, *, readonly: bool | None) -> Package | None:
    """Pack an object in one of the ways that most go; None: it needs the general way."""
    kind = type(obj)
    if kind is np.ndarray:
        return _pack_array(obj, key, readonly=readonly)
    if kind not in known_headers() or (kind in BYTES and len(obj) > SMALL_NBYTES):
        return None
    pickled = dump(obj)
    return None if pickled is None else pack_pickled(obj, pickled, key, readonly=readonly)


def pack_pickled(
    obj: Any, pickled: bytes | Pickled, key: str | None, *, readonly: bool | None
) -> Package:
    """Pack an object of a builtin type that has been pickled."""
    if isinstance(pickled, bytes):
        return _pack_plain(type(obj).__name__, pickled, key)
    header, frames = header_and_frames(obj, pickled)
    return _lay_out_frames(header, frames, key, readonly=readonly, compression=None)


def _lay_out_frames(
    header: dict[str, Any],
    frames: Sequence[Frame],
    key: str | None,
    *,
    readonly: bool | None,
    compression: str | None,
) -> Package:
    """Lay out what a family has made of an object."""
    if len(frames) == 1 and header.get("serializer") == "pickle" and compression is None:
        return _pack_plain(header["type"], frames[0], key)
    header, flags = hoist_flags(header, frames)
    if key is not None:
        header = {**header, "key": key}
    table: list[headers.FrameRow | list[Any]] = []
    placed: list[Placed] = []
    offset = 0
    for raw, flag in zip(frames, flags, strict=True):
        codec, frame = (None, raw) if compression is None else _compress(raw, compression)
        if type(frame) is memoryview and frame.format == "B" and frame.c_contiguous:
            size = frame.nbytes
            placed.append((offset, frame if frame.ndim == 1 else ensure_memoryview(frame)))
        else:
            size = nbytes(frame)
            placed += _place(frame, offset, size)
        table.append([offset, size, bool(flag) and not readonly, codec])
        offset = L.align(offset + size)
    sealed = [(place, size) for place, size, flag, _ in table if size and not flag]
    return lay_out(headers.pack(header, table), placed, offset, key, sealed=sealed)


def _pack_array(
    x: np.ndarray[Any, Any], key: str | None, *, readonly: bool | None
) -> Package | None:
    """Lay out an array in C order, as `serialize_array` would; None if it is another one."""
    array = pack_array(x, readonly)
    if array is None:
        return None
    packed, view = array
    size = view.nbytes
    writeable = not (view.readonly or readonly)
    if key is not None:
        packed = _pack_array_header(x.shape, x.dtype, size, writeable, key)
    sealed = () if writeable else ((0, size),)
    return lay_out(packed, [(0, view)], L.align(size), key, sealed=sealed)


def pack_array(x: np.ndarray[Any, Any], readonly: bool | None) -> tuple[bytes, memoryview] | None:  # noqa: FBT001 - a put calls it
    """Return header and memory of an array in C order without key; None if it is another one.

    Flat: the workload "put" of the benchmarks pays for it.
    """
    dtype = x.dtype
    if Headers.known[0] is not custom_serialize.cache:
        known_headers()
    if not (Headers.arrays and x.nbytes and x.flags.c_contiguous):
        return None
    if dtype.kind not in _PLAIN_KINDS or dtype.metadata is not None:
        return None
    view = memory_of(x)
    header = _header_of_array(x.shape, dtype, view.nbytes, not (view.readonly or readonly))
    return (header, view) if len(header) <= L.INLINE_NBYTES else None


# Of dtypes that are told by their text and that buffers have formats for.
_PLAIN_KINDS: Final = frozenset("biufc")


def _pack_array_header(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    size: int,
    writeable: bool,  # noqa: FBT001 - a cache has no keywords
    key: str | None = None,
) -> bytes:
    header = {
        "serializer": "custom",
        "type": "numpy.ndarray",
        "sub-header": array_header(shape, dtype),
    }
    if key is not None:
        header["key"] = key
    return headers.pack(header, [[0, size, writeable, None]])


_header_of_array = functools.lru_cache(maxsize=1024)(_pack_array_header)


def _encoded(
    obj: Any, names: Sequence[str], compression: str | None
) -> tuple[dict[str, Any], Sequence[Frame]]:
    """Return header and frames of an object; the frame table takes the place of some keys."""
    context = {"compression": compression} if compression else None
    header: dict[str, Any]
    frames: Sequence[Frame]
    header, frames = encode(obj, names, context)
    if isinstance(obj, Serialized):
        check_serialized(header, frames)
    # What a transport or a handler cut and compressed is undone: the store does it by itself.
    if headers.COUNTS in header or headers.COMPRESSION in header:
        from shmstore.serialization.splitting import restore  # noqa: PLC0415 - takes time that most processes can save

        header, frames = restore(header, frames)
    if isinstance(obj, Serialized):
        check_sizes(header, frames)
    if "frame-nbytes" in header:
        header = {key: value for key, value in header.items() if key != "frame-nbytes"}
    return header, frames


def _compress(frame: Frame, compression: str) -> tuple[list[Any] | None, Frame]:
    """Return the column "codec" of the frame table, and the frame, shorter if it is worth it."""
    from shmstore.serialization.compression import maybe_compress  # noqa: PLC0415 - takes time that most processes can save

    raw = ensure_memoryview(frame)
    name, payload = maybe_compress(raw, compression=compression)
    return (None, raw) if name is None else ([name, raw.nbytes], payload)


def _place(frame: Frame, offset: int, size: int) -> list[Placed]:
    """Return what is to be written where; what is small is made here, not under the lock."""
    if type(frame) is Planned and size <= COPY_LOCKED_NBYTES:
        return [(offset, frame.materialize())]
    placed: list[Placed] = []
    for part in parts_of(frame):
        placed.append((offset, part))
        offset += part.nbytes
    return placed


class Headers:
    """What packs without asking handlers, as long as nobody has registered another one.

    Attributes
    ----------
    known
        The cache of handlers that this was found with, and the headers of plain types.
    arrays
        Whether arrays are packed as `serialize_array` does it.
    """

    known: ClassVar[tuple[Any, dict[type, bytes]]] = (None, {})
    arrays: ClassVar[bool] = False


def known_headers() -> dict[type, bytes]:
    """Return the headers of the builtin types that have no handlers that others have registered."""
    cache = custom_serialize.cache  # before it is asked: who registers meanwhile begins another
    if Headers.known[0] is cache:
        return Headers.known[1]
    plain = [kind for kind in BUILTIN if custom_serialize.find(kind) in _PLAIN_HANDLERS]
    found = {kind: _header_of_type(kind.__name__) for kind in plain}
    Headers.arrays = custom_serialize.find(np.ndarray) is serialize_array
    Headers.known = cache, found
    return found


def pack_batch(objects: Sequence[Any]) -> Batch | None:
    """Return small values of one builtin type as they enter together; None: they are not such."""
    kinds = set(map(type, objects))
    header = known_headers().get(kinds.pop())
    if kinds or header is None:
        return None
    pickled = dumps_each(objects)
    if pickled is None:
        return None
    fits = max(pickled[1]) + len(header) <= L.INLINE_NBYTES
    return Batch(PLAIN, header, *pickled) if fits else None


def pack_again(batch: Batch) -> list[Package]:
    """Return each object of a batch as it is put by itself."""
    kind, header, streams, sizes = batch
    return [
        Package(Content(kind, header, stream, size, NO_KEY), (), 0, None)
        for stream, size in zip(streams, sizes, strict=True)
    ]


def pack_plain(type_name: str, value: Any, key: str | None = None) -> Package:
    """Lay out a plain value that is to be seen as an object of another type."""
    return _pack_plain(type_name, dumps_plain(value), key)


def _pack_plain(type_name: str, stream: Frame, key: str | None) -> Package:
    """Lay out a pickle without buffers: in the slot itself if it fits."""
    packed = _header_of_type(type_name) if key is None else _plain_header(type_name, key)
    size = len(stream) if type(stream) is bytes else nbytes(stream)
    if size + len(packed) > L.INLINE_NBYTES:
        placed = _place(stream, 0, size)
        sealed = ((0, size),)
        return lay_out(packed, placed, L.align(size), key, L.KIND_PLAIN, sealed=sealed)
    if key is None:
        return _new(
            Package, (_new(Content, (PLAIN, packed, stream, size, NO_KEY, 0)), (), 0, None, ())
        )
    content = Content(PLAIN | L.KIND_NAMED, packed, stream, size, digest_of(key))
    return Package(content, (), 0, key)


def _plain_header(type_name: str, key: str | None) -> bytes:
    header = {"type": type_name} if key is None else {"type": type_name, "key": key}
    return headers.pack(header, ())


@functools.lru_cache(maxsize=256)
def _header_of_type(type_name: str) -> bytes:
    return _plain_header(type_name, None)


def lay_out(
    packed: bytes,
    frames: list[Placed],
    extent_nbytes: int,
    key: str | None,
    kind: int = 0,
    *,
    sealed: Sequence[tuple[int, int]] = (),
) -> Package:
    """Put the header behind the frames if it does not fit into the slot."""
    data_nbytes = sum([view.nbytes for _, view in frames])
    if len(packed) > L.INLINE_NBYTES:
        kind |= L.KIND_HEADER_IN_EXTENT
        frames.append((extent_nbytes, memoryview(packed)))
        extent_nbytes += L.align(len(packed))
    named, digest = _naming(key)
    content = Content(kind | named, packed, b"", data_nbytes, digest)
    return Package(content, frames, extent_nbytes, key, sealed)


def _naming(key: str | None) -> tuple[int, Digest]:
    return (0, NO_KEY) if key is None else (L.KIND_NAMED, digest_of(key))
