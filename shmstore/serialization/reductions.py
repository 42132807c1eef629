"""What lies between a pickler and the handlers of the objects that it meets?"""

from __future__ import annotations

from typing import Any, Final

from shmstore.errors import CorruptHeaderError
from shmstore.serialization.dispatch import typename
from shmstore.serialization.frames import Frame, ensure_memoryview
from shmstore.serialization.registry import custom_deserialize, rebuild

PROTOCOL: Final = 5


class OutOfBand:
    """A frame among the arguments of a reduction, to lie beside the stream."""

    __slots__ = ("frame",)

    def __init__(self, frame: Frame) -> None:
        self.frame = frame


def out_of_band(frame: Frame) -> OutOfBand:
    """Mark a frame among the arguments that a reducer returns: it becomes a buffer there."""
    return OutOfBand(frame)


class StandIn(bytearray):
    """An empty buffer that stands for a frame without bytes of its own."""

    frame: Frame


class ReadonlyStandIn(bytes):
    """As `StandIn`, for a frame that readers may not write."""

    frame: Frame


def _rebuild(cls: type, sub_header: Any, *frames: Any) -> Any:
    """Rebuild an object inside of a pickle by its handler. Its name lies in stored pickles."""
    handler = custom_deserialize.find(cls)
    if handler is None:
        raise CorruptHeaderError(
            f"no handler for objects of type {typename(cls)} is registered in this process. Import "
            "what registers it.",
            key="type",
            found=typename(cls),
        )
    return rebuild(handler, cls, sub_header, [ensure_memoryview(frame) for frame in frames])


# Where it was at first: so it is named in stored pickles, for ever.
_rebuild.__module__ = "shmstore.serialization.pickling"
