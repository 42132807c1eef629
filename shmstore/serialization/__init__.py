"""Any object to a msgpack header and frames, and back.

A *frame* is one contiguous buffer; the *header* is a dict that msgpack can pack. A *family* is a
named pair of functions that turn objects into the two and back: ``"custom"`` asks the type registry
(`register_serialization`), ``"pickle"`` takes everything that pickle 5 or cloudpickle takes,
``"msgpack"`` what consists of plain values.

Whether a frame may be written is part of it: a read-only memoryview stands for memory that must not
change, and ``header["writeable"]`` repeats the flags for transports that lose them.

Reading a pickle runs the code that it names. Only ``deserializers=("custom", "msgpack")`` is safe
for what somebody wrote who is not trusted.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from shmstore.serialization.dispatch import Dispatch, has_keyword, typename
from shmstore.serialization.family import (
    DEFAULT_SERIALIZERS,
    deserialize,
    families,
    register_serialization_family,
    serialize,
)
from shmstore.serialization.markers import (
    Pickled,
    Serialize,
    Serialized,
    ToPickle,
    content_hash,
    to_serialize,
)
from shmstore.serialization.msgpacking import msgpack_decode_default, msgpack_encode_default
from shmstore.serialization.registry import (
    custom_deserialize,
    custom_serialize,
    has_custom_handler,
    reducers,
    register_reducer,
    register_serialization,
)
from shmstore.serialization.trust import allowed_modules, import_allowed_module

if TYPE_CHECKING:
    from shmstore.serialization.bytestrings import (
        deserialize_bytes,
        serialize_bytelist,
        serialize_bytes,
    )
    from shmstore.serialization.explaining import Explanation, Part, explain
    from shmstore.serialization.generic import register_generic
    from shmstore.serialization.messages import dumps, loads
    from shmstore.serialization.nesting import nested_deserialize
    from shmstore.serialization.parts import deserialize_parts, serialize_parts
    from shmstore.serialization.splitting import merge_and_deserialize, serialize_and_split

# Names of modules that most processes never need, and that take time to import (see PEP 562).
_LATER = {
    "Explanation": "explaining",
    "Part": "explaining",
    "deserialize_bytes": "bytestrings",
    "deserialize_parts": "parts",
    "dumps": "messages",
    "explain": "explaining",
    "loads": "messages",
    "merge_and_deserialize": "splitting",
    "nested_deserialize": "nesting",
    "register_generic": "generic",
    "serialize_and_split": "splitting",
    "serialize_bytelist": "bytestrings",
    "serialize_bytes": "bytestrings",
    "serialize_parts": "parts",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


# What every process needs is there before the first object.
for _cls in (bytes, np.ndarray):
    custom_serialize.find(_cls)
    custom_deserialize.find(_cls)
    reducers.find(_cls)

__all__ = [
    "DEFAULT_SERIALIZERS",
    "Dispatch",
    "Explanation",
    "Part",
    "Pickled",
    "Serialize",
    "Serialized",
    "ToPickle",
    "allowed_modules",
    "content_hash",
    "custom_deserialize",
    "custom_serialize",
    "deserialize",
    "deserialize_bytes",
    "deserialize_parts",
    "dumps",
    "explain",
    "families",
    "has_custom_handler",
    "has_keyword",
    "import_allowed_module",
    "loads",
    "merge_and_deserialize",
    "msgpack_decode_default",
    "msgpack_encode_default",
    "nested_deserialize",
    "register_generic",
    "register_reducer",
    "register_serialization",
    "register_serialization_family",
    "serialize",
    "serialize_and_split",
    "serialize_bytelist",
    "serialize_bytes",
    "serialize_parts",
    "to_serialize",
    "typename",
]
