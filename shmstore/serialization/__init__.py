"""Any object to a msgpack header and frames, and back.

A *frame* is one contiguous buffer; the *header* is a dict that plain msgpack can pack. A *family*
is a named pair of functions that turn objects into the two and back: ``"custom"`` asks the type
registry (NumPy arrays have a handler there), ``"pickle"`` takes everything that pickle 5 or
cloudpickle takes.

Whether a frame may be written is part of it: a read-only memoryview stands for memory that must not
change, and ``header["writeable"]`` repeats the flags for transports that lose them.
"""

from shmstore.serialization.dispatch import Dispatch, typename
from shmstore.serialization.families import (
    DEFAULT_SERIALIZERS,
    custom_deserialize,
    custom_serialize,
    deserialize,
    families,
    register_serialization,
    register_serialization_family,
    serialize,
)

__all__ = [
    "DEFAULT_SERIALIZERS",
    "Dispatch",
    "custom_deserialize",
    "custom_serialize",
    "deserialize",
    "families",
    "register_serialization",
    "register_serialization_family",
    "serialize",
    "typename",
]
