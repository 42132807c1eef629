"""How is a file of a store damaged? As bad memory, a torn copy, or a stray write would do it.

A way takes the files of a store, the path of the one that it damages, and a source of chance; it
changes the files and returns what it did, in words. `Scene` has what ways take wrong parts from.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from damage_templates import PAGE, Files, Image, Template

from shmstore._memory import layout as L

Noise = random.Random
WORD = L.WORD
MOST = 1 << 64

ODD = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 63, 64, 65, 255, 256, 512, 4095, 4096, 1 << 16, 1 << 20, 1 << 31),
    *(1 << 32, 1 << 40, 1 << 47, 1 << 62, MOST // 2 - 1, MOST // 2, MOST // 2 + 1, MOST - 64),
    *(MOST - 256, MOST - 2, MOST - 1),
)
STEPS = (1, -1, 1, -1, 8, -8, 64, -64, 256, -256, 4096, -4096, 1 << 32, -(1 << 32), 1 << 8)
BLOCKS = (8, 64, L.SLOT_NBYTES, L.SLOT_NBYTES, 512, PAGE)


class Scene(NamedTuple):
    """The store that is damaged, and another one of the same geometry."""

    template: Template
    other: Template


Way = Callable[[Files, str, Noise, Scene], str]


# --- where ----------------------------------------------------------------------------------------


def _place(files: Files, path: str, noise: Noise, scene: Scene) -> int:
    """Return the offset of a word, mostly of one that means something."""
    data = files[path].data
    if not data:
        files[path].data = data = bytearray(PAGE)
        files[path].size = max(files[path].size, PAGE)
    if path == "index" and noise.random() < 0.9:
        return noise.choice((_superblock, _superblock, _row, _row, _row, _table))(noise, scene)
    if path.startswith("seats") and noise.random() < 0.7:
        return WORD * noise.choice((*range(L.SEAT_FIRST_CELL + 6), *range(L.SEAT_FIRST_CELL)))
    if path.startswith("segment") and noise.random() < 0.8:
        return _in_extent(noise, scene)
    used = [at for at in range(0, len(data), WORD) if any(data[at : at + WORD])]
    if used and noise.random() < 0.8:
        return noise.choice(used)
    return noise.randrange(len(data)) & -WORD


def _superblock(noise: Noise, _: Scene) -> int:
    words = (*range(L.W_GEOMETRY_CRC + 1), *range(L.W_DIRTY, L.W_NODES_RESERVED + 1))
    words += tuple(range(L.W_DIRTY, L.W_NODES_RESERVED + 1)) * 4
    words += tuple(range(L.W_FIRST_LEVEL, L.W_SECOND_LEVEL + 10)) * 2
    words += tuple(range(L.W_FREE_HEADS, L.W_FREE_HEADS + 128))
    return WORD * noise.choice(words)


def _row(noise: Noise, scene: Scene) -> int:
    """Return a word of a slot that was used."""
    index = memoryview(scene.template.index).cast("Q")
    slot = noise.randrange(index[L.W_SLOT_TOP])
    field = noise.choice((*range(L.S_INLINE), *range(L.S_INLINE), *range(L.SLOT_WORDS)))
    return (scene.template.geometry.slots + slot * L.SLOT_WORDS + field) * WORD


def _table(noise: Noise, scene: Scene) -> int:
    """Return a word of the client table, the key index or the allocator's nodes."""
    geometry = scene.template.geometry
    index = memoryview(scene.template.index).cast("Q")
    start, words = noise.choice(
        (
            (geometry.clients, 3 * L.CLIENT_WORDS),
            (geometry.buckets, index[L.W_BUCKETS]),
            (geometry.nodes, index[L.W_NODE_TOP] * L.NODE_WORDS),
            (geometry.nodes, index[L.W_NODE_TOP] * L.NODE_WORDS),
        )
    )
    return (start + noise.randrange(words)) * WORD


def _in_extent(noise: Noise, scene: Scene) -> int:
    """Return a word of an extent: near its beginning, its end, or anywhere."""
    index = memoryview(scene.template.index).cast("Q")
    for _ in range(20):
        base = scene.template.geometry.slots + noise.randrange(index[L.W_SLOT_TOP]) * L.SLOT_WORDS
        start, nbytes = index[base + L.S_EXTENT] & L.EXTENT_MASK, index[base + L.S_EXTENT_NBYTES]
        if index[base + L.S_NODE] and nbytes:
            near = noise.randrange(min(nbytes, 256)) & -WORD
            return int(start + noise.choice((near, nbytes - WORD - near, noise.randrange(nbytes))))
    return 0


def _word(image: Image, at: int) -> int:
    return int.from_bytes(image.data[at : at + WORD], "little")


def _set_word(image: Image, at: int, value: int) -> None:
    image.data[at : at + WORD] = (value % MOST).to_bytes(WORD, "little")


# --- a few bits -----------------------------------------------------------------------------------


def flip_bits(files: Files, path: str, noise: Noise, scene: Scene) -> str:
    """Flip one or two bits."""
    bits = []
    for _ in range(noise.choice((1, 1, 1, 2))):
        at = _place(files, path, noise, scene)
        bit = noise.choice((noise.randrange(64), noise.randrange(16)))
        _set_word(files[path], at, _word(files[path], at) ^ 1 << bit)
        bits.append((at, bit))
    return f"bits {bits}"


def change_bytes(files: Files, path: str, noise: Noise, scene: Scene) -> str:
    """Write one or two other bytes."""
    places = []
    for _ in range(noise.choice((1, 1, 2))):
        at = _place(files, path, noise, scene) + noise.randrange(WORD)
        at = min(at, len(files[path].data) - 1)
        files[path].data[at] ^= noise.randint(1, 255)
        places.append(at)
    return f"bytes {places}"


def change_word(files: Files, path: str, noise: Noise, scene: Scene) -> str:
    """Write a number that could stand there over a word."""
    image, at = files[path], _place(files, path, noise, scene)
    found = _word(image, at)
    near = WORD * noise.choice((-8, -2, -1, 1, 2, 8, -L.SLOT_WORDS, L.SLOT_WORDS))
    elsewhere = at + near if 0 <= at + near <= len(image.data) - WORD else 0
    row = at + L.SLOT_NBYTES * noise.randint(-20, 20)
    alike = row if 0 <= row <= len(image.data) - WORD else 0
    value = noise.choice(
        (
            noise.choice(ODD),
            noise.choice(ODD),
            found + noise.choice(STEPS),
            found + noise.choice(STEPS),
            _word(image, elsewhere),
            _word(image, alike),
            _word(image, alike),
            noise.randrange(200),
            noise.getrandbits(64),
            found << 1,
            found >> 1,
        )
    )
    _set_word(image, at, value)
    return f"word {at // WORD} (offset {at}): {found} -> {value % MOST}"


# --- a few bytes ----------------------------------------------------------------------------------


def wipe(files: Files, path: str, noise: Noise, scene: Scene) -> str:
    """Fill a block with zeros, ones or noise."""
    image = files[path]
    size = noise.choice(BLOCKS)
    at = _place(files, path, noise, scene) // size * size
    size = min(size, len(image.data) - at)
    filling = noise.choice((bytes(size), bytes(size), b"\xff" * size, noise.randbytes(size)))
    image.data[at : at + size] = filling
    return f"{size} bytes at {at} wiped with {filling[:1]!r}"


def move_block(files: Files, path: str, noise: Noise, scene: Scene) -> str:
    """Write one block over another one of the same file, or swap the two."""
    image = files[path]
    size = noise.choice(BLOCKS)
    origin = 0
    if path == "index" and size == L.SLOT_NBYTES:
        origin = scene.template.geometry.slots * WORD % size
    one, two = (
        (_place(files, path, noise, scene) - origin) // size * size + origin for _ in range(2)
    )
    if min(one, two) < 0 or max(one, two) + size > len(image.data):
        return wipe(files, path, noise, scene)
    skip = noise.choice((0, 0, WORD)) if size == L.SLOT_NBYTES else 0
    kept = bytes(image.data[two + skip : two + size])
    image.data[two + skip : two + size] = image.data[one + skip : one + size]
    if noise.random() < 0.5:
        image.data[one + skip : one + size] = kept
    return f"{size} bytes at {one} and {two} moved, but for {skip}"


def old_page(files: Files, path: str, noise: Noise, scene: Scene) -> str:
    """Take one page from an older copy."""
    found = scene.template.older.get(path)
    return _take_page(files, path, noise, scene, found, "an older one")


def strange_page(files: Files, path: str, noise: Noise, scene: Scene) -> str:
    """Take one page from the same file of the other store."""
    found = scene.other.files.get(path)
    return _take_page(files, path, noise, scene, found, "that of the other store")


def _take_page(
    files: Files, path: str, noise: Noise, scene: Scene, found: Image | None, whose: str
) -> str:
    image = files[path]
    pages = min(len(image.data), len(found.data) if found else 0) // PAGE
    if not pages:
        return wipe(files, path, noise, scene)
    assert found is not None
    at = noise.randrange(pages) * PAGE
    image.data[at : at + PAGE] = found.data[at : at + PAGE]
    return f"page {at} is {whose}"


# --- the file -------------------------------------------------------------------------------------


def cut(files: Files, path: str, noise: Noise, scene: Scene) -> str:
    """Cut the file, anywhere."""
    image, before = files[path], files[path].size
    at = _place(files, path, noise, scene)
    sizes = (0, 1, at, at & -PAGE, PAGE, before - 1, before - 8, before - PAGE, before // 2)
    image.size = max(0, noise.choice(sizes))
    return f"cut from {before} to {image.size}"


def extend(files: Files, path: str, noise: Noise, scene: Scene) -> str:
    """Extend the file, by zeros."""
    before = files[path].size
    files[path].size += noise.choice((1, 8, 64, PAGE, 1 << 20, 1 << 33))
    return f"extended from {before} to {files[path].size}"


def older(files: Files, path: str, noise: Noise, scene: Scene) -> str:
    """Replace the file by an older copy."""
    if path not in scene.template.older:
        return cut(files, path, noise, scene)
    files[path] = scene.template.older[path].copy()
    return "an older copy"


def foreign(files: Files, path: str, noise: Noise, scene: Scene) -> str:
    """Replace the file by that of another store, or by another one of this store."""
    source = noise.choice((scene.other.files, scene.other.files, scene.template.files))
    names = sorted(source)
    name = path if source is scene.other.files and path in source else noise.choice(names)
    files[path] = source[name].copy()
    return f"the {name} of {'another' if source is scene.other.files else 'this'} store"


def remove(files: Files, path: str, noise: Noise, scene: Scene) -> str:
    """Remove the file."""
    del files[path]
    return "removed"


FEW: tuple[Way, ...] = (flip_bits, change_bytes, change_word, change_word, change_word)
SOME: tuple[Way, ...] = (wipe, wipe, move_block, old_page, strange_page)
WHOLE: tuple[Way, ...] = (cut, extend, older, foreign, remove)


def damage(files: Files, path: str, noise: Noise, scene: Scene) -> str:
    """Damage a file, in one way or two."""
    ways = noise.choice((FEW, FEW, FEW, FEW, SOME, SOME, WHOLE))
    count = 1 if ways is WHOLE else noise.choice((1, 1, 1, 2))
    done = [noise.choice(ways)(files, path, noise, scene) for _ in range(count)]
    return f"{path}: {'; '.join(done)}"


def damage_live(data: bytes, noise: Noise, scene: Scene) -> tuple[str, list[tuple[int, bytes]]]:
    """Return what to write into the index of a store that is in use: (offset, bytes)."""
    files = {"index": Image(len(data), bytearray(data))}
    done = noise.choice((*FEW, *FEW, *SOME))(files, "index", noise, scene)
    after = files["index"].data
    changed = [
        at for at in range(0, len(data), WORD) if data[at : at + WORD] != after[at : at + WORD]
    ]
    return done, [(at, bytes(after[at : at + WORD])) for at in changed]
