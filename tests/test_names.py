"""Is each name of serialization where the documentation says, and no module named like it?"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import pytest

from shmstore import serialization

NAMES = {
    "": """
        serialize deserialize register_serialization register_serialization_family register_generic
        Serialize to_serialize Serialized ToPickle Pickled nested_deserialize serialize_and_split
        merge_and_deserialize serialize_bytelist serialize_bytes deserialize_bytes custom_serialize
        custom_deserialize has_custom_handler Dispatch typename has_keyword import_allowed_module
        families msgpack_encode_default msgpack_decode_default dumps loads content_hash
        register_reducer serialize_parts deserialize_parts allowed_modules DEFAULT_SERIALIZERS
    """,
    ".pickling": "dumps loads out_of_band",
    ".compression": "compressions maybe_compress decompress byte_sample",
    ".frames": """
        ensure_memoryview nbytes frame_split_size merge_memoryviews pack_frames_prelude pack_frames
        unpack_frames Frame Planned
    """,
    ".handlers.numpy": "itemsize register",
    ".registry": "custom_serialize register_serialization register_reducer own_way",
}


@pytest.mark.row("S09", "S20", "S23", "S110", "S111")
@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in NAMES.items() for name in names.split()],
)
def test_name_is_there(module: str, name: str) -> None:
    """In the package, or in the module that tests and integrations look in."""
    assert hasattr(importlib.import_module(f"shmstore.serialization{module}"), name)
    if not module:
        assert name in serialization.__all__


@pytest.mark.row("F40")
def test_module_is_never_named_like_what_the_package_exports() -> None:
    """Importing the one would otherwise give the other."""
    modules = {module.name for module in pkgutil.iter_modules(serialization.__path__)}
    assert modules & set(serialization.__all__) == set()
    for name in modules:
        importlib.import_module(f"shmstore.serialization.{name}")
        assert isinstance(getattr(serialization, name), ModuleType)
    for name in serialization.__all__:
        assert not isinstance(getattr(serialization, name), ModuleType)
