"""How do headers, messages and plain values become msgpack without losing their types?

Packing is strict: only exact types go as msgpack's own. What msgpack would turn into something else
(tuples, bytearrays) and what it lacks (sets, large ints, complex numbers, enum members) is an
extension type; a value can never be mistaken for one. There is one set of options everywhere.
"""

from __future__ import annotations

import enum
import functools
import operator
import types
from collections.abc import Callable
from typing import Any, Final

import msgpack

from shmstore.errors import DeserializationError, ModuleRefusedError
from shmstore.serialization import trust
from shmstore.serialization.wording import shown

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


def packb(value: Any, default: Hook | None = None, *, scan: bool = True) -> bytes:
    """Pack a value strictly.

    Parameters
    ----------
    value
        Anything built of None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict,
        set, frozenset (the exact types), enum members, and what `add_extension` added.
    default
        Asked about what is none of those; returns an `msgpack.ExtType`, or the value to decline.
    scan
        Look for what msgpack packs by itself as something else. False: there is nothing such.

    Raises
    ------
    TypeError, ValueError, OverflowError
        Something in it cannot be packed, or it is nested too deeply.
    """
    hook = _TOP if default is None else functools.partial(_encode, _Nested(default))
    if scan:
        value = _strict(value)
    packer = msgpack.Packer(default=hook, strict_types=True, buf_size=_FIRST_NBYTES, **_TEXT)
    packed: bytes = packer.pack(value)
    return packed


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
    nested = _Nested(_refuse if default is None else default)
    limit = len(packed)
    options: dict[str, Any] = {
        "ext_hook": functools.partial(_decode, nested),
        "raw": False,
        "strict_map_key": False,
        "max_str_len": limit,
        "max_bin_len": limit,
        "max_ext_len": limit,
        "max_array_len": limit,
        "max_map_len": limit,
        **_TEXT,
    }
    if nested.depth == 0:
        return msgpack.unpackb(packed, **options)
    # Inside of an extension: `unpackb` has its own stack, 40 KiB, on that of the thread.
    unpacker = msgpack.Unpacker(max_buffer_size=limit, **options)
    unpacker.feed(packed)
    value = unpacker.unpack()
    if unpacker.tell() != limit:
        raise ValueError("bytes are left behind an extension")
    return value


class _Nested:
    """A hook that knows how many extensions it is inside of."""

    __slots__ = ("depth", "hook")

    def __init__(self, hook: Hook) -> None:
        self.depth: int = hook.depth + 1 if isinstance(hook, _Nested) else 0
        self.hook: Hook = hook.hook if isinstance(hook, _Nested) else hook
        if self.depth > _DEEPEST:
            message = f"extensions are nested more than {_DEEPEST} deep"
            raise ValueError(message)

    def __call__(self, *arguments: Any) -> Any:
        return self.hook(*arguments)


def msgpack_encode_default(value: Any) -> Any:
    """Return the extension for what msgpack cannot pack; anything else is returned as it is."""
    return _encode(_Nested(_unchanged), value)


def msgpack_decode_default(code: int, data: bytes) -> Any:
    """Return the value of an extension; `ext_hook` of an unpacker."""
    return _decode(_Nested(_refuse), code, data)


def _strict(value: Any) -> Any:
    """Return a value without what msgpack would pack as something else; TypeError if it cannot be.

    Containers are copied only where a bytearray is inside of them.
    """
    kind = type(value)
    if kind is list:
        elements = [_strict(x) for x in value]
        return value if all(map(operator.is_, elements, value)) else elements
    if kind is dict:
        elements = [_strict(x) for x in value.values()]
        if any(isinstance(key, _NOT_STRICT) for key in value):
            raise TypeError("a key is a buffer or an extension type")
        same = all(map(operator.is_, elements, value.values()))
        return value if same else dict(zip(value, elements, strict=True))
    if kind is bytearray:
        return msgpack.ExtType(EXT_BYTEARRAY, bytes(value))
    if isinstance(value, _NOT_STRICT):
        message = f"msgpack would pack an object of type {kind.__name__} as something else"
        raise TypeError(message)
    return value


_NOT_STRICT: Final = (bytearray, memoryview, msgpack.ExtType, msgpack.Timestamp)

# Tuples in tuples, say. Each level takes a few frames of the C stack.
_DEEPEST: Final = 64


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


def _encode(default: _Nested, value: Any) -> Any:
    code, encode = _ENCODERS.get(type(value), (EXT_ENUM, None))
    if encode is not None:
        packed = encode(default, value)
        return packed if type(packed) is msgpack.ExtType else msgpack.ExtType(code, packed)
    if isinstance(value, enum.Enum):
        return msgpack.ExtType(EXT_ENUM, packb(_describe_member(value), default))
    return default(value)


def _decode(default: _Nested, code: int, data: bytes) -> Any:
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
    cls = _enum_named(module, qualname)
    if name is None:
        return cls(value)
    try:
        return cls[name]
    except KeyError:
        raise DeserializationError(
            f"the enum {module}.{qualname} has no member {shown(name)} here", key=name
        ) from None


def _enum_named(module: Any, qualname: Any) -> type[enum.Enum]:
    """Return an enum of an allowed module; looks into nothing but that module and its classes."""
    found: Any = trust.import_allowed_module(module)
    for part in str(qualname).split("."):
        inside = isinstance(found, (type, types.ModuleType))
        found = found.__dict__.get(part) if inside else None
        if isinstance(found, types.ModuleType):
            found = None
    is_it = isinstance(found, type) and issubclass(found, enum.Enum)
    if not is_it or (found.__module__, found.__qualname__) != (module, qualname):
        raise ModuleRefusedError(
            f"{shown(module)}.{shown(qualname)} is named as an enum, but it is none here",
            module=module,
        )
    return found  # type: ignore[no-any-return]


# What a packer asks for at first; by default it takes 256 KiB, and so it does for each header.
_FIRST_NBYTES: Final = 4096

_TOP: Final = functools.partial(_encode, _Nested(_unchanged))

_ENCODERS: Final[dict[type, tuple[int, Hook]]] = {
    tuple: (EXT_TUPLE, _encode_elements),
    set: (EXT_SET, _encode_elements),
    frozenset: (EXT_FROZENSET, _encode_elements),
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
