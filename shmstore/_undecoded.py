"""How do the bytes of an object leave a store, or enter it, without becoming the object?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from shmstore._ref import ObjectRef
from shmstore.serialization import Serialized, deserialize, trust, typename
from shmstore.serialization.frames import ensure_memoryview

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore] # Python 3.12


class Undecoded(ABC):
    """Calls of `Store` that look at stored objects as header and frames."""

    __slots__ = ()

    @abstractmethod
    def put(self, obj: Any, *, key: str | None = None, overwrite: bool = True) -> ObjectRef:
        """See `Store.put`."""

    @abstractmethod
    def get(self, target: Any, *, mode: str = "shared", decode: bool = True) -> Any:
        """See `Store.get`."""

    def get_view(self, target: ObjectRef | str, *, mode: str = "shared") -> memoryview:
        """Return the bytes of one buffer without copying them, also of objects that own theirs.

        Parameters
        ----------
        target
            A reference or a key of bytes, a bytearray, an array or anything else with one buffer.
        mode
            See `get`.

        Returns
        -------
        memoryview
            Flat, of unsigned bytes, in the order of the memory.

        Raises
        ------
        TypeError
            The object is not one buffer.
        ObjectNotFoundError
            As `get`.

        Notes
        -----
        What lies inside of a pickle (bytes and bytearrays of up to 4 KiB, subclasses of them) has
        to be copied out. In the modes "shared" and "readonly" the view of such a copy is read-only,
        also that of a bytearray, so that no write is lost; in mode "private" it is writeable.
        """
        found: Serialized = self.get(target, mode=mode, decode=False)
        if found.header.get("serializer") == "custom" and len(found.frames) == 1:
            return ensure_memoryview(found.frames[0])
        header = {key: value for key, value in found.header.items() if key != "writeable"}
        with trust.reading(trust.policy.get()._replace(thaw=mode == "private")):
            x = deserialize(header, found.frames)
        try:
            view = ensure_memoryview(x)
        except (TypeError, ValueError):
            message = f"an object of type {typename(x)} is not one buffer; use get() instead"
            raise TypeError(message) from None
        if mode == "private":
            return memoryview(bytearray(view)) if view.readonly else view
        lies_there = mode == "copy" or any(_overlap(view, frame) for frame in found.frames)
        return view if lies_there else view.toreadonly()

    def dump_bytes(self, target: ObjectRef | str, *, compression: str | None = None) -> bytes:
        """Return an object as one string of bytes, checksums included, without decoding it.

        Parameters
        ----------
        target
            A reference or a key.
        compression
            As in `put`.

        See Also
        --------
        load_bytes, shmstore.serialization.deserialize_bytes
        """
        from shmstore.serialization import serialize_bytes  # noqa: PLC0415 - takes time that most processes can save

        return serialize_bytes(self.get(target, decode=False), compression=compression)

    def load_bytes(
        self, data: Buffer, *, key: str | None = None, overwrite: bool = True
    ) -> ObjectRef:
        """Store an object that `dump_bytes` dumped, without decoding it.

        Raises
        ------
        CorruptHeaderError, FormatVersionError
            The bytes are damaged, or were written in another version of the format.

        Examples
        --------
        >>> from shmstore import Store
        >>> with Store.create(capacity="1MiB") as store, Store.create(capacity="1MiB") as other:
        ...     store["letters"] = {"a": 1}
        ...     other.load_bytes(store.dump_bytes("letters")).get()
        {'a': 1}
        """
        from shmstore.serialization.bytestrings import unpack_bytes  # noqa: PLC0415 - takes time that most processes can save

        return self.put(unpack_bytes(data), key=key, overwrite=overwrite)


def _overlap(view: memoryview, frame: Any) -> bool:
    return np.may_share_memory(np.frombuffer(view, np.uint8), np.frombuffer(frame, np.uint8))
