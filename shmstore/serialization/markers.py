"""What is marked inside of a message: serialize this, pickle this, or already done?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shmstore.serialization import msgpacking
from shmstore.serialization.frames import Frame, ensure_memoryview

_REPR_LENGTH = 200


class _Wrapper:
    """Marks data. Equal to another marker of the same data, and hashed like the data."""

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data

    def __repr__(self) -> str:
        text = repr(self.data)
        if len(text) > _REPR_LENGTH:
            text = f"{text[:_REPR_LENGTH]}..."
        return f"<{type(self).__name__}: {text}>"

    def __hash__(self) -> int:
        return hash(self.data)


class Serialize(_Wrapper):
    """Marks an object inside of a message that is to be serialized by families."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Serialize) and _same(self.data, other.data)

    __hash__ = _Wrapper.__hash__


to_serialize = Serialize


class ToPickle(_Wrapper):
    """Marks an object inside of a message that is to be pickled, and unpickled by every reader."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and _same(self.data, other.data)

    __hash__ = _Wrapper.__hash__


class _Done:
    """An object that is header and frames already. Not hashable."""

    __slots__ = ("frames", "header")

    def __init__(self, header: dict[str, Any], frames: Sequence[Frame]) -> None:
        self.header = header
        self.frames = frames

    def __repr__(self) -> str:
        name = self.header.get("type") if type(self.header) is dict else None
        count = len(self.frames) if isinstance(self.frames, (list, tuple)) else "no"
        return f"<{type(self).__name__}: {name or 'object'} in {count} frames>"


class Serialized(_Done):  # noqa: PLW1641 - the header can change
    """An object as header and frames, e.g. as ``Store.get(..., decode=False)`` returns it."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Serialized)
            and self.header == other.header
            and bool(self.frames == other.frames)
        )

    def content_hash(self) -> str:
        """Return a digest of header and frames; see `content_hash`."""
        return content_hash(self.header, self.frames)


class Pickled(_Done):  # noqa: PLW1641 - as Serialized
    """A pickled object as header and frames."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, type(self))
            and self.header == other.header
            and bool(self.frames == other.frames)
        )


def content_hash(header: dict[str, Any], frames: Sequence[Frame]) -> str:
    """Return a digest of a header and its frames, equal for equal content.

    Parameters
    ----------
    header, frames
        As `serialize` returns them.

    Returns
    -------
    str
        32 hexadecimal digits of BLAKE2b.

    Notes
    -----
    A pickle stream may differ between equal objects; equal digests mean equal objects, not the
    other way round.
    """
    import hashlib  # noqa: PLC0415 - takes time that most processes can save

    digest = hashlib.blake2b(msgpacking.packb(header), digest_size=16)
    for frame in frames:
        view = ensure_memoryview(frame)
        digest.update(view.nbytes.to_bytes(8, "little"))
        digest.update(view)
    return digest.hexdigest()


def _same(one: Any, other: Any) -> bool:
    """Return whether two pieces of data are equal, also where ``==`` gives an array or fails."""
    if one is other:
        return True
    if getattr(one, "shape", None) != getattr(other, "shape", None):
        return False
    try:
        equal = one == other
        return equal if isinstance(equal, bool) else bool(np.asarray(equal).all())
    except Exception:  # noqa: BLE001 - of containers of arrays, or of tables of other columns
        return _same_elements(one, other)


def _same_elements(one: Any, other: Any) -> bool:
    if type(one) is not type(other) or type(one) not in (list, tuple, dict):
        return False
    if len(one) != len(other):
        return False
    if type(one) is dict:
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return all(map(_same, one, other))
