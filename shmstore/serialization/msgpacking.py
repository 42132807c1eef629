"""How do headers, messages and plain values become msgpack without losing their types?

Packing is strict: only exact types go as msgpack's own. What msgpack would turn into something else
(tuples, bytearrays) and what it lacks (sets, large ints, complex numbers, enum members) is an
extension type; a value can never be mistaken for one. There is one set of options everywhere.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import Any, Final

import msgpack

from shmstore.errors import DeserializationError, ModuleRefusedError
from shmstore.serialization import trust

# Codes of the extension types. They lie in shared memory and in files. They are permanent.
EXT_TUPLE: Final = 1
EXT_SET: Final = 2
EXT_FROZENSET: Final = 3
EXT_BYTEARRAY: Final = 4
EXT_INT: Final = 5
EXT_COMPLEX: Final = 6
EXT_ENUM: Final = 7
EXT_SERIALIZED: Final = 8
EXT_PLACED_SERIALIZED: Final = 9
EXT_PLACED_PICKLED: Final = 10


Hook = Callable[..., Any]

# Names of files may hold lone surrogates (see os.fsdecode).
_TEXT: Final[dict[str, Any]] = {"unicode_errors": "surrogatepass"}


def packb(value: Any, default: Hook | None = None) -> bytes:
    """Pack a value strictly.

    Parameters
    ----------
    value
        Anything built of None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict,
        set, frozenset (the exact types), enum members, and what `add_extension` added.
    default
        Asked about what is none of those; returns an `msgpack.ExtType`, or the value to decline.

    Raises
    ------
    TypeError, ValueError, OverflowError
        Something in it cannot be packed, or it is nested too deeply.
    """
    hook = msgpack_encode_default if default is None else functools.partial(_encode, default)
    return bytes(msgpack.packb(value, default=hook, strict_types=True, use_bin_type=True, **_TEXT))


def unpackb(packed: Any, default: Hook | None = None) -> Any:
    """Unpack what `packb` packed. Lengths are bounded by the bytes that are there.

    Parameters
    ----------
    default
        ``default(code, data)`` is asked about unknown extensions, also inside of known ones.

    Raises
    ------
    Exception
        The bytes are not such a value: ValueError and its subclasses as a rule.
    """
    hook = msgpack_decode_default if default is None else functools.partial(_decode, default)
    limit = len(packed)
    return msgpack.unpackb(
        packed,
        ext_hook=hook,
        raw=False,
        **_TEXT,
        strict_map_key=False,
        max_str_len=limit,
        max_bin_len=limit,
        max_ext_len=limit,
        max_array_len=limit,
        max_map_len=limit,
    )


def msgpack_encode_default(value: Any) -> Any:
    """Return the extension for what msgpack cannot pack; anything else is returned as it is."""
    return _encode(_unchanged, value)


def msgpack_decode_default(code: int, data: bytes) -> Any:
    """Return the value of an extension; `ext_hook` of an unpacker."""
    return _decode(_refuse, code, data)


def add_extension(cls: type, code: int, encode: Hook, decode: Hook) -> None:
    """Pack the exact type `cls` as an extension.

    Parameters
    ----------
    code
        0 to 127; permanent.
    encode, decode
        ``encode(default, value) -> bytes``, or an `msgpack.ExtType` of another code;
        ``decode(default, data) -> value``. `default` goes
        on to `packb` and `unpackb`.
    """
    _ENCODERS[cls] = code, encode
    _DECODERS[code] = decode


def _unchanged(value: Any) -> Any:
    return value


def _refuse(code: int, _: bytes) -> Any:
    raise DeserializationError(f"unknown extension type {code} in packed data", key=code)


def _encode(default: Hook, value: Any) -> Any:
    code, encode = _ENCODERS.get(type(value), (EXT_ENUM, None))
    if encode is not None:
        packed = encode(default, value)
        return packed if type(packed) is msgpack.ExtType else msgpack.ExtType(code, packed)
    if isinstance(value, enum.Enum):
        return msgpack.ExtType(EXT_ENUM, packb(_describe_member(value), default))
    return default(value)


def _decode(default: Hook, code: int, data: bytes) -> Any:
    decode = _DECODERS.get(code)
    return default(code, data) if decode is None else decode(default, data)


# --- containers and numbers ----------------------------------------------------------------------


def _encode_elements(default: Hook, value: Any) -> bytes:
    return packb(list(value), default)


def _decode_elements(build: type, default: Hook, data: bytes) -> Any:
    elements = unpackb(data, default)
    if type(elements) is not list:
        raise DeserializationError(f"the elements of a packed {build.__name__} are no list")
    return build(elements)


def _encode_int(_: Hook, value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)


def _encode_complex(_: Hook, value: complex) -> bytes:
    return packb([value.real, value.imag])


def _decode_complex(_: Hook, data: bytes) -> complex:
    real, imag = unpackb(data)
    return complex(real, imag)


# --- enum members --------------------------------------------------------------------------------


def _describe_member(member: enum.Enum) -> list[Any]:
    """Return module and qualified name of the class, then the name or the value of the member.

    A combination of flags has no name of its own.
    """
    cls = type(member)
    by_name = member.name in cls.__members__
    value = None if by_name else member.value
    return [cls.__module__, cls.__qualname__, member.name if by_name else None, value]


def _decode_member(default: Hook, data: bytes) -> Any:
    module, qualname, name, value = unpackb(data, default)
    found: Any = trust.import_allowed_module(module)
    for part in str(qualname).split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, enum.Enum)):
        raise ModuleRefusedError(
            f"{module}.{qualname} is named as an enum, but it is none here", module=module
        )
    if name is None:
        return found(value)
    try:
        return found[name]
    except KeyError:
        raise DeserializationError(
            f"the enum {module}.{qualname} has no member {name!r} here", key=name
        ) from None


_ENCODERS: Final[dict[type, tuple[int, Hook]]] = {
    tuple: (EXT_TUPLE, _encode_elements),
    set: (EXT_SET, _encode_elements),
    frozenset: (EXT_FROZENSET, _encode_elements),
    bytearray: (EXT_BYTEARRAY, lambda _, value: bytes(value)),
    int: (EXT_INT, _encode_int),  # asked only beyond 64 bits
    complex: (EXT_COMPLEX, _encode_complex),
}

_DECODERS: Final[dict[int, Hook]] = {
    EXT_TUPLE: functools.partial(_decode_elements, tuple),
    EXT_SET: functools.partial(_decode_elements, set),
    EXT_FROZENSET: functools.partial(_decode_elements, frozenset),
    EXT_BYTEARRAY: lambda _, data: bytearray(data),
    EXT_INT: lambda _, data: int.from_bytes(data, "little", signed=True),
    EXT_COMPLEX: _decode_complex,
    EXT_ENUM: _decode_member,
}
