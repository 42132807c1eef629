"""To frames and back within a process: what the tests of handlers share."""

from __future__ import annotations

from typing import Any

import numpy as np

from shmstore.serialization import deserialize, serialize
from shmstore.serialization.frames import allocate, ensure_memoryview, nbytes

# What a reader accepts that wants no pickles.
SAFE = ("custom", "msgpack")


def frames_of(x: Any) -> tuple[dict[str, Any], list[memoryview]]:
    """Return header and frames, the frames in aligned memory of their own."""
    header, frames = serialize(x, on_error="raise")
    copies = []
    for frame in frames:
        copies.append(allocate(nbytes(frame)))
        copies[-1][:] = ensure_memoryview(frame)
    return header, copies


def round_trip(x: Any, **options: Any) -> Any:
    """Serialize and deserialize over copies of the frames."""
    return deserialize(*frames_of(x), **options)


def forge(header: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the header of a handler's object with some of its own keys replaced."""
    return {**header, "sub-header": {**header["sub-header"], **changes}}


def address(frame: Any) -> int:
    """Return where a frame lies."""
    return np.frombuffer(frame, np.uint8).ctypes.data
