"""What does the header of an object say, and does it make sense?"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from shmstore._memory import layout as L
from shmstore.errors import ShmStoreError
from shmstore.serialization import headers, trust

if TYPE_CHECKING:
    from shmstore._catalog.slots import Record
    from shmstore._session import Session

Header = dict[str, Any]
Table = list[headers.FrameRow]

# What a header that somebody has tampered with may raise when it is read.
NONSENSE: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def unpack(session: Session, record: Record, packed: bytes) -> tuple[Header, Table]:
    """Return header and frame table of an object; one of NONSENSE: they cannot be right."""
    modules = session.allowed_modules
    same_for_many = modules is None and not record.kind & L.KIND_NAMED
    if same_for_many and len(packed) <= L.INLINE_NBYTES:
        header, table = _unpack_once(packed, record.extent_nbytes)
    else:
        with trust.reading(trust.Policy(modules=modules)):
            header, table = headers.unpack(packed, record.extent_nbytes)
    if record.kind & L.KIND_PLAIN:
        header = {**header, "serializer": "pickle"}
        table = [headers.FrameRow(0, record.data_nbytes, writeable=False)]
    _check_texts(session, record, header)
    return header, table


def unpack_late(session: Session, record: Record, packed: bytes) -> Header:
    """Return the header of an object that has been got without it.

    Raises
    ------
    CorruptStoreError
        It makes no sense.
    """
    try:
        return unpack(session, record, packed)[0]
    except ShmStoreError:
        raise
    except NONSENSE as error:
        raise session.slots.damaged(record.slot, f"its header makes no sense: {error!r}") from error


@functools.lru_cache(maxsize=1024)
def _unpack_once(packed: bytes, room: int) -> tuple[Header, Table]:
    """Unpack a header as many objects have it, all of one type and shape; nobody changes it."""
    with trust.reading(trust.Policy(modules=None)):
        return headers.unpack(packed, room)


def _check_texts(session: Session, record: Record, header: Header) -> None:
    """Raise unless family, type and, of a named object, the key are text."""
    texts = [header.get("serializer", ""), header["type"]]
    if record.kind & L.KIND_NAMED:
        texts.append(header["key"])
    if not all(isinstance(text, str) for text in texts):
        raise session.slots.damaged(record.slot, f"its header names {texts!r:.100}")
