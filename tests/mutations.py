"""Ways in which bytes are damaged, for tests that nothing damaged is believed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

COUNT = int(os.environ.get("SHMSTORE_FUZZ", "2000"))
"""How many mutations a fuzz test tries; raised by the environment for a long run."""


def mutations(data: bytes, other: bytes, *, seed: int, count: int = COUNT) -> Iterator[bytes]:
    """Yield damaged copies of `data`; some have parts of `other`, another string of its kind."""
    noise = random.Random(seed)
    for _ in range(count):
        changed = noise.choice(WAYS)(bytearray(data), other, noise)
        if changed != data:
            yield bytes(changed)


def _place(data, noise):
    return noise.randrange(len(data))


def _range(data, noise):
    start = _place(data, noise)
    return start, min(len(data), start + noise.choice((1, 8, 64, 200)))


def _flip_bit(data, _other, noise):
    data[_place(data, noise)] ^= 1 << noise.randrange(8)
    return data


def _flip_several(data, _other, noise):
    for _ in range(noise.randint(2, 20)):
        data[_place(data, noise)] ^= noise.randint(1, 255)
    return data


def _cut(data, _other, noise):
    return data[: noise.choice((_place(data, noise), -1, -64, -noise.randint(1, 100)))]


def _cut_front(data, _other, noise):
    return data[noise.choice((1, 8, 64, _place(data, noise))) :]


def _extend(data, other, noise):
    return data + noise.choice((b"\0", bytes(64), noise.randbytes(7), data, other))


def _insert(data, _other, noise):
    place = _place(data, noise)
    return data[:place] + noise.choice((b"\0", bytes(64), noise.randbytes(64))) + data[place:]


def _remove(data, _other, noise):
    start, stop = _range(data, noise)
    return data[:start] + data[stop:]


def _swap_blocks(data, _other, noise):
    size = noise.choice((1, 8, 64))
    one, two = (place - place % size for place in (_place(data, noise), _place(data, noise)))
    block = data[one : one + size]
    if max(one, two) + size <= len(data):
        data[one : one + size], data[two : two + size] = data[two : two + size], block
    return data


def _overwrite(data, _other, noise):
    start, stop = _range(data, noise)
    filling = (bytes(stop - start), b"\xff" * (stop - start), noise.randbytes(stop - start))
    data[start:stop] = noise.choice(filling)
    return data


def _splice(data, other, noise):
    start, stop = _range(data, noise)
    part = other[start:stop]
    data[start : start + len(part)] = part
    return data


def _number(data, _other, noise):
    """Write another number over four or eight bytes, as a forger would."""
    width = noise.choice((4, 8))
    place = min(_place(data, noise) & ~3, len(data) - width)
    found = int.from_bytes(data[place : place + width], "little")
    number = noise.choice((found + 1, found - 1, found + 64, 0, 2 ** (8 * width) - 1, 2**31))
    data[place : place + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
    return data


WAYS = (
    _flip_bit,
    _flip_several,
    _cut,
    _cut_front,
    _extend,
    _insert,
    _remove,
    _swap_blocks,
    _overwrite,
    _splice,
    _number,
)
