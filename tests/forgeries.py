"""Headers as somebody forges them: what the tests of hostile input share."""

from __future__ import annotations

from typing import Any

from shmstore import Store, _writing
from shmstore._packing import lay_out
from shmstore.serialization import msgpacking

SAFE = ("custom", "msgpack")


def custom(kind: str, **sub_header: Any) -> dict[str, Any]:
    """Return the header of an object with a handler."""
    return {"serializer": "custom", "type": kind, "sub-header": sub_header}


def put_packed(store: Store, value: Any, frames: list[bytes] | None = None) -> Any:
    """Put a forged header, packed."""
    packed = value if isinstance(value, bytes) else msgpacking.packb(value)
    frames = frames or []
    end = sum(-(-len(frame) // 64) * 64 for frame in frames)
    placed = [(0, memoryview(frame)) for frame in frames[:1]]
    return _writing.put(store._session, lay_out(packed, placed, end, None), overwrite=True)
