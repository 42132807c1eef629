"""How is a header with its frames forged? By steps that a forger, or an accident, would take."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

from fuzz_corpus import Encoded
from mutations import WAYS

NUMBERS = (
    -1,
    0,
    1,
    2,
    7,
    64,
    (1 << 31) - 2,
    1 << 31,
    1 << 40,
    1 << 60,
    (1 << 63) - 1,
    1 << 63,
    1 << 64,
    -(1 << 63),
)
TEXTS = ("", "x", "\ud800", "O", "T", "V0", "U0", "f8", ">c16", "(2,3)i4", "i4,O", "M8[ns]", "P")
TEXTS += ("S2147483647,S2147483647,S6", "S2147483647,i4")
TEXTS += ("a." * 30, "x" * 9000, "custom", "pickle", "msgpack", "error", "list", "dict", "set", "C")
VALUES = (None, True, 1.5, float("nan"), b"", b"\0\0\0\0\0\0\0\0", (), [], {}, [[]], {1: 2}, {"a"})
VALUES += (1 << 20_000, 2j, bytearray(b"x"), frozenset(), [0] * 3000, ["x"], [0], {"header": {}})
# What names classes, families and dtypes.
NAMES = ("type", "serializer", "dtype", "type-serialized")

Noise = random.Random
Container = dict[Any, Any] | list[Any]


def forge(seed: Encoded, other: Encoded, noise: Noise) -> tuple[Any, list[bytes]]:
    """Return a forged copy of a header and its frames; some parts are those of another seed."""
    header, frames = _thawed(seed[0]), list(seed[1])
    for _ in range(noise.choice((1, 1, 1, 2, 2, 4))):
        if not frames or noise.random() < 0.75:
            header = _forge_header(header, other[0], noise)
        else:
            noise.choice(FRAME_WAYS)(frames, other[1], noise)
    return header, frames


def _thawed(x: Any) -> Any:
    """Return a copy in which tuples are lists, so that all of it can be changed."""
    if isinstance(x, dict):
        return {key: _thawed(value) for key, value in x.items()}
    if type(x) in (list, tuple):
        return [_thawed(value) for value in x]
    return copy.copy(x)


# --- headers --------------------------------------------------------------------------------------


def places(x: Any) -> list[tuple[Container, Any]]:
    """Return each container with each of its keys, at any depth."""
    found: list[tuple[Container, Any]] = []
    waiting = [x]
    while waiting:
        part = waiting.pop()
        if isinstance(part, (dict, list)):
            pairs = list(part.items() if isinstance(part, dict) else enumerate(part))
            found += [(part, key) for key, _ in pairs]
            waiting += [value for _, value in pairs]
    return found


def _forge_header(header: Any, other: Any, noise: Noise) -> Any:
    found = places(header)
    if not found or noise.random() < 0.005:
        return copy.deepcopy(noise.choice((*VALUES, *NUMBERS, *TEXTS)))
    noise.choice(HEADER_WAYS)(*noise.choice(found), other, noise)
    return header


def _drop(part: Container, key: Any, _other: Any, _noise: Noise) -> None:
    del part[key]


def _rename(part: Container, key: Any, _other: Any, noise: Noise) -> None:
    if isinstance(part, dict):
        part[noise.choice((f"{key}x", *NAMES, 5, None))] = part.pop(key)


def _repeat(part: Container, key: Any, _other: Any, noise: Noise) -> None:
    if isinstance(part, list):
        part[key:key] = [part[key]] * noise.choice((1, 2, 70))


def _swap(part: Container, key: Any, _other: Any, noise: Noise) -> None:
    second = noise.choice(list(part if isinstance(part, dict) else range(len(part))))
    part[key], part[second] = part[second], part[key]


def _value(part: Container, key: Any, _other: Any, noise: Noise) -> None:
    part[key] = copy.deepcopy(noise.choice((*VALUES, *NUMBERS, *TEXTS)))


def _same_type(part: Container, key: Any, _other: Any, noise: Noise) -> None:
    """Put another value of the type that is expected."""
    value = part[key]
    if type(value) is int:
        part[key] = noise.choice((value + 1, value - 1, -value, value * 2, *NUMBERS))
    elif type(value) is str:
        part[key] = noise.choice((value[:-1], value + "x", value.upper(), *TEXTS))
    elif type(value) is bytes:
        part[key] = bytes(noise.choice(WAYS)(bytearray(value or b"\0"), b"other", noise))
    elif type(value) is bool:
        part[key] = not value
    elif type(value) is list:
        part[key] = noise.choice((value[:-1], value[::-1], value * 2, [*value, 0]))
    else:
        _value(part, key, _other, noise)


def _from_other(part: Container, key: Any, other: Any, noise: Noise) -> None:
    """Put what another header has under this key, or anywhere."""
    found = places(other)
    alike = [place for place in found if place[1] == key]
    if found:
        source, where = noise.choice(alike or found)
        part[key] = _thawed(source[where])


def _nest(part: Container, key: Any, _other: Any, noise: Noise) -> None:
    wrap: Callable[[Any], Any] = noise.choice(
        (lambda x: [x], lambda x: {"header": x}, lambda x: (x,))
    )
    for _ in range(noise.choice((1, 2, 30, 100, 400))):
        part[key] = wrap(part[key])


def _wide(part: Container, key: Any, _other: Any, noise: Noise) -> None:
    """Claim an axis that no memory backs."""
    sizes = [p for p in (part, part[key]) if isinstance(p, list) and set(map(type, p)) <= {int}]
    if sizes:
        size = noise.choice((1 << 24, 1 << 31, 1 << 40, 1 << 60))
        sizes[-1][:] = noise.choice(([size], [size, *sizes[-1]], [size for _ in sizes[-1]]))
    if isinstance(part, dict) and "dtype" in part and isinstance(part.get("shape"), list):
        part["shape"], part["strides"] = [noise.choice((1 << 31, 1 << 40))], [0]


HEADER_WAYS = (_drop, _rename, _repeat, _swap, _value, _same_type, _from_other, _nest, _wide)
HEADER_WAYS += (_same_type, _from_other)


# --- frames ---------------------------------------------------------------------------------------


def _change(frames: list[bytes], other: Sequence[bytes], noise: Noise) -> None:
    number = noise.randrange(len(frames))
    if frames[number]:
        spare = other[0] if other else b"other"
        frames[number] = bytes(noise.choice(WAYS)(bytearray(frames[number]), spare, noise))


def _cut(frames: list[bytes], _other: Sequence[bytes], noise: Noise) -> None:
    number = noise.randrange(len(frames))
    frames[number] = frames[number][: noise.choice((0, -1, -8, len(frames[number]) // 2))]


def _extend(frames: list[bytes], _other: Sequence[bytes], noise: Noise) -> None:
    number = noise.randrange(len(frames))
    frames[number] += bytes(noise.choice((1, 8, 64)))


def _lose(frames: list[bytes], _other: Sequence[bytes], noise: Noise) -> None:
    del frames[noise.randrange(len(frames))]


def _double(frames: list[bytes], _other: Sequence[bytes], noise: Noise) -> None:
    number = noise.randrange(len(frames))
    frames.insert(number, frames[number])


def _reorder(frames: list[bytes], _other: Sequence[bytes], noise: Noise) -> None:
    noise.shuffle(frames)


def _foreign(frames: list[bytes], other: Sequence[bytes], noise: Noise) -> None:
    if other:
        frames[noise.randrange(len(frames))] = noise.choice(other)


FRAME_WAYS: tuple[Callable[[list[bytes], Sequence[bytes], Noise], None], ...]
FRAME_WAYS = (_change, _change, _cut, _extend, _lose, _double, _reorder, _foreign)
