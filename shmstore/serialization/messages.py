"""How does a message travel whose parts are serialized, each in its own way?

Frame 0 is the message itself, packed strictly. Where a marked part was, or a value that msgpack
cannot pack, it has an extension that holds a position in the list of frames: there lies the packed
header of that part, and behind it are its frames. The parts follow each other without gaps.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, Final

import msgpack

from shmstore.errors import (
    CorruptHeaderError,
    FormatVersionError,
    SerializationError,
    ShmStoreError,
)
from shmstore.serialization import msgpacking
from shmstore.serialization.compression import compress_frames, decompress
from shmstore.serialization.frames import Frame, ensure_memoryview
from shmstore.serialization.markers import Pickled, Serialize, Serialized, ToPickle
from shmstore.serialization.msgpacking import EXT_PLACED_PICKLED, EXT_PLACED_SERIALIZED
from shmstore.serialization.splitting import merge_and_deserialize, serialize_and_split, split
from shmstore.serialization.wording import shown

# Lies in what is sent. It is permanent.
VERSION: Final = 1

FRAMES: Final = "num-sub-frames"

_PARTS: Final = {EXT_PLACED_SERIALIZED: Serialized, EXT_PLACED_PICKLED: Pickled}

# How msgpack begins an array of two, and the greatest int that is a byte of its own.
_PAIR: Final = 0x92
_MOST_FIXINT: Final = 0x7F


# --- writing -----------------------------------------------------------------------------------


def dumps(
    msg: Any,
    serializers: Sequence[str] | None = None,
    on_error: str = "message",
    context: dict[str, Any] | None = None,
    frame_split_size: int | None = None,
) -> list[Frame]:
    """Turn a message into frames.

    Parameters
    ----------
    msg
        What `msgpacking.packb` packs. Where it holds a `Serialize`, its data is serialized by
        families; a `Serialized` or `Pickled` goes as it is; the data of a `ToPickle`, and whatever
        else msgpack cannot pack, is pickled.
    serializers, on_error
        As for `serialize`, of marked parts. What is pickled is pickled, or it raises.
    context
        As for `serialize`. ``"compression"`` is the codec for the frames, see `maybe_compress`;
        default none.
    frame_split_size
        Bytes of the longest piece of a frame; default 64 MiB.

    Returns
    -------
    frames : list of buffers
        For `loads`.

    Raises
    ------
    SerializationError
        A part, or the message itself, cannot be serialized.

    Examples
    --------
    >>> from shmstore.serialization import Serialize
    >>> loads(dumps({"op": "put", "data": Serialize([1, 2])}))
    {'op': 'put', 'data': [1, 2]}
    """
    writer = _Writer(serializers, on_error, context, frame_split_size)
    try:
        writer.frames[0] = msgpacking.packb([VERSION, msg], writer.place)
    except SerializationError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SerializationError(
            f"a message of type {type(msg).__name__} cannot be packed: {error}",
            type=type(msg).__name__,
        ) from error
    return writer.frames


class _Writer:
    """The frames of a message, while its parts are found one by one."""

    def __init__(
        self,
        serializers: Sequence[str] | None,
        on_error: str,
        context: dict[str, Any] | None,
        size: int | None,
    ) -> None:
        self.serializers = serializers
        self.on_error = on_error
        self.context = context
        self.size = size
        self.compression = (context or {}).get("compression")
        self.frames: list[Frame] = [b""]

    def place(self, part: Any) -> msgpack.ExtType:
        """Add a part to the frames; return what stands for it in the message."""
        if isinstance(part, Serialize):
            code, made = EXT_PLACED_SERIALIZED, self._serialize(part)
        elif isinstance(part, Serialized):
            code, made = EXT_PLACED_SERIALIZED, split(part.header, part.frames, self.size)
        elif isinstance(part, Pickled):
            code, made = EXT_PLACED_PICKLED, split(part.header, part.frames, self.size)
        else:
            data = part.data if isinstance(part, ToPickle) else part
            code, made = EXT_PLACED_PICKLED, self._pickle(data)
        header, frames = compress_frames(*made, self.compression)
        position = len(self.frames)
        self.frames += [msgpacking.packb({**header, FRAMES: len(frames)}), *frames]
        return msgpack.ExtType(code, msgpacking.packb(position))

    def _serialize(self, part: Serialize) -> tuple[dict[str, Any], list[Frame]]:
        return serialize_and_split(part, self.serializers, self.on_error, self.context, self.size)

    def _pickle(self, data: Any) -> tuple[dict[str, Any], list[Frame]]:
        return serialize_and_split(data, ("pickle",), "raise", self.context, self.size)


# --- reading -----------------------------------------------------------------------------------


def loads(
    frames: Sequence[Frame],
    deserialize: bool = True,  # noqa: FBT001, FBT002 - the order is known so
    deserializers: Container[str] | None = None,
) -> Any:
    """Turn the frames of a message back into the message.

    Parameters
    ----------
    frames
        As `dumps` returned them, or other buffers of the same bytes. They are not changed.
    deserialize
        False: what was serialized stays so. It comes as `Serialized`, its frames still cut and
        compressed, which `dumps` passes on as they are. What was pickled is unpickled, unless
        "pickle" is not accepted: then it comes as `Pickled`.
    deserializers
        Names of the accepted families; default all. Only without "pickle" is it safe to read what
        somebody wrote who is not trusted.

    Raises
    ------
    CorruptHeaderError
        Frames are missing, or too many, or say something else than the message.
    FormatVersionError
        The message was written by another version of this format.
    DeserializationError
        As raised by `serialization.deserialize`.
    """
    reader = _Reader(frames, deserializers, deserialize=deserialize)
    (packed,) = reader.take(1)
    _check_version(ensure_memoryview(packed))
    try:
        _, msg = msgpacking.unpackb(ensure_memoryview(packed), reader.find)
    except (MemoryError, OSError, ShmStoreError):
        raise
    except Exception as error:
        raise CorruptHeaderError(
            f"frame 0 of a message cannot be unpacked: {type(error).__name__}: {str(error)[:200]}",
            key="message",
        ) from error
    reader.take(0, last=True)
    return msg


def _check_version(packed: memoryview) -> None:
    """Look at the version before anything is unpacked: it is the second byte."""
    if packed.nbytes < 2 or packed[0] != _PAIR or packed[1] > _MOST_FIXINT:
        raise CorruptHeaderError("frame 0 is no message", key="message", found=bytes(packed[:2]))
    if packed[1] != VERSION:
        raise FormatVersionError(
            f"the message was written in version {packed[1]} of its format, shmstore reads version "
            f"{VERSION} here.",
            found=packed[1],
            expected=VERSION,
        )


class _Reader:
    """The frames of a message, of which each is taken once and in order."""

    def __init__(
        self, frames: Sequence[Frame], deserializers: Container[str] | None, *, deserialize: bool
    ) -> None:
        self.frames = frames
        self.deserializers = deserializers
        self.deserialize = deserialize
        self.unpickle = deserialize or deserializers is None or "pickle" in deserializers
        self.next = 0

    def take(self, count: Any, *, last: bool = False) -> Sequence[Frame]:
        """Return the next so many frames; none may be left behind the last."""
        left = len(self.frames) - self.next
        if type(count) is not int or not 0 <= count <= left or (last and left):
            raise CorruptHeaderError(
                f"a message of {len(self.frames)} frames needs {shown(count)} of them from frame "
                f"{self.next} on{' and no more' if last else ''}; frames are missing or too many.",
                key=FRAMES,
                found=left,
                expected=count,
            )
        self.next += count
        return self.frames[self.next - count : self.next]

    def find(self, code: int, data: bytes) -> Any:
        """Return the part that an extension stands for."""
        position = msgpacking.unpackb(data) if code in _PARTS else None
        if type(position) is not int or position != self.next:
            raise CorruptHeaderError(
                f"extension {code} of a message stands for frame {shown(position)}; the next part "
                f"is at {self.next}.",
                key="position",
                found=position,
                expected=self.next,
            )
        header, frames = self._part()
        if self.deserialize or (code == EXT_PLACED_PICKLED and self.unpickle):
            return merge_and_deserialize(header, decompress(header, frames), self.deserializers)
        return _PARTS[code](header, list(frames))

    def _part(self) -> tuple[dict[str, Any], Sequence[Frame]]:
        (packed,) = self.take(1)
        header = msgpacking.unpackb(ensure_memoryview(packed))
        if type(header) is not dict or FRAMES not in header:
            raise CorruptHeaderError(
                f"frame {self.next - 1} of a message holds no header of a part", key=FRAMES
            )
        return header, self.take(header.pop(FRAMES))
