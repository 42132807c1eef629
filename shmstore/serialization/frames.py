"""What can be done with frames: look at them, cut and join them, lay them out in one buffer."""

from shmstore.serialization.buffers import (
    ALIGNMENT,
    Frame,
    Pieces,
    Planned,
    allocate,
    conform,
    ensure_memoryview,
    hoist_flags,
    is_readonly,
    nbytes,
    parts_of,
)
from shmstore.serialization.packing import (
    frame_split_size,
    merge_memoryviews,
    pack_frames,
    pack_frames_prelude,
    unpack_frames,
)

__all__ = [
    "ALIGNMENT",
    "Frame",
    "Pieces",
    "Planned",
    "allocate",
    "conform",
    "ensure_memoryview",
    "frame_split_size",
    "hoist_flags",
    "is_readonly",
    "merge_memoryviews",
    "nbytes",
    "pack_frames",
    "pack_frames_prelude",
    "parts_of",
    "unpack_frames",
]
