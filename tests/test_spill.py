"""A full store that moves objects to files: they are still there, the same for everybody."""

from __future__ import annotations

import gc
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rooms import small_file_system
from spilling import MakeSpilling, block, files, push_out, spill_dir, spilling
from stores import MIB, Flag, MakeStore, StartPython, exit_code, forked, lock_free_only, wait_until

from shmstore import CorruptStoreError, ObjectNotFoundError, ObjectRef, Store, StoreFullError
from shmstore._catalog import clock, states
from shmstore._memory import layout as L

__all__ = ["spill_dir", "spilling"]  # fixtures

VALUES: dict[str, Any] = {
    "array": np.arange(10_000),
    "stream": list(range(20_000)),
    "bytes": b"abc" * 20_000,
    "pickle with buffers": [np.arange(9000), {"a": np.ones(500)}],
    "long header": {"k" * 300: np.arange(5000)},
}
each_value = pytest.mark.parametrize("value", VALUES.values(), ids=list(VALUES))


def in_file(store: Store, ref: ObjectRef) -> bool:
    """Return whether an object lies in a file now."""
    session: Any = store._session
    return bool(states.state_of(session.slots.word(ref._slot)) == states.SPILLED)


def same(a: Any, b: Any) -> bool:
    """Return whether two values of this module are equal."""
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and a and not isinstance(a[0], int):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


# --- out and back ---------------------------------------------------------------------------------


def test_more_objects_than_memory_are_all_there(spilling: MakeSpilling, spill_dir: Path) -> None:
    """Four times as much as the store takes can be put and got, by key and by reference."""
    store = spilling()
    refs = [store.put(block(number), key=str(number)) for number in range(64)]
    stats = store.stats()
    assert (stats.objects, stats.named, stats.used) == (64, 64, stats.capacity)
    assert stats.spilled == len(files(spill_dir)) == 48
    assert stats.spilled_nbytes == 48 << 16
    assert len(store) == 64
    assert sorted(store, key=int) == [str(number) for number in range(64)]
    for _ in range(2):
        for number, ref in enumerate(refs):
            assert (store[str(number)] == number).all()
            assert (ref.get() == number).all()
    stats = store.stats()
    assert sum(info.stored_nbytes for info in store.objects()) == stats.used
    assert store.check(deep=True) == []


@each_value
@pytest.mark.parametrize("known", [False, True], ids=["first get", "got before"])
def test_object_comes_back_as_it_was(
    spilling: MakeSpilling, spill_dir: Path, value: Any, known: Flag
) -> None:
    """Any kind of object returns into memory when there is room, and its file goes."""
    store = spilling()
    ref = store.put(value, key="k")
    if known:
        assert same(ref.get(), value)
        assert same(store["k"], value)
    others = push_out(store)
    assert in_file(store, ref)
    assert "k" in store
    assert ref in store
    store.delete_many(others)
    assert same(ref.get(), value)
    assert not in_file(store, ref)
    assert (store.stats().restores, files(spill_dir)) == (1, [])
    assert same(store["k"], value)


@lock_free_only
@each_value
@pytest.mark.parametrize("mode", ["shared", "readonly", "private", "copy"])
def test_object_is_read_from_its_file_when_there_is_no_room(
    spilling: MakeSpilling, value: Any, mode: str, locked_reads: Flag
) -> None:
    """While memory is full of what is looked at, the object is mapped from its file."""
    store = spilling()
    ref = store.put(value, key="k")
    views = [other.get() for other in push_out(store, count=40)[-13:]]
    got = ref.get(mode=mode)
    assert same(got, value)
    assert same(store.get("k", mode=mode), value)
    assert in_file(store, ref)
    assert all((view == number).all() for number, view in enumerate(views, 27))
    ref.delete()
    assert same(got, value)


def test_views_of_a_file_are_shared_and_writeable(
    spilling: MakeSpilling, start_python: StartPython
) -> None:
    """What one process writes to a view of the file, another sees, and it stays for good."""
    store = spilling()
    ref = store.put(np.zeros(1 << 16, np.uint8))
    others = push_out(store)
    held = [other.get() for other in others]
    mine, private = ref.get(), ref.get(mode="private")
    child = start_python(
        """
        view = ref.get()
        print(view[0], flush=True)
        input()
        print(view[1], flush=True)
        view[2] = 7
        print("written", flush=True)
        input()
        """,
        ref=ref,
    )
    mine[0] = 5
    private[3] = 9
    assert child.hear() in "05"
    mine[1] = 6
    assert child.ask() == "6"
    assert child.hear() == "written"
    assert mine[:4].tolist() == [5, 6, 7, 0]
    child.say()
    child.end()
    del mine, held, private
    gc.collect()
    store.delete_many(others)
    assert ref.get()[:4].tolist() == [5, 6, 7, 0]
    assert store.stats().spilled == 0
    assert store.check(deep=True) == []


def test_what_was_written_to_memory_goes_to_the_file_and_back(spilling: MakeSpilling) -> None:
    """Writes through a shared view are not lost when the object leaves and returns."""
    store = spilling()
    ref = store.put(np.zeros(1 << 16, np.uint8))
    for turn in range(1, 6):
        ref.get()[turn] = turn
        others = push_out(store)
        assert store.stats().spilled == 1
        store.delete_many(others)
    assert ref.get()[:7].tolist() == [0, 1, 2, 3, 4, 5, 0]


# --- who goes, who stays --------------------------------------------------------------------------


def test_what_was_got_last_stays_in_memory(spilling: MakeSpilling) -> None:
    """The least recently used leave first, one for one."""
    store = spilling()
    refs = push_out(store)
    for number in (0, 1, 2):
        refs[number].get()
    push_out(store, count=13)
    stats = store.stats()
    assert (stats.spilled, stats.spills) == (13, 13)
    for number in (0, 1, 2):
        refs[number].get()
    assert store.stats().restores == 0


def test_what_is_looked_at_never_leaves(spilling: MakeSpilling) -> None:
    """Views keep their objects in memory, and new objects become files when nothing can leave."""
    store = spilling()
    refs = push_out(store)
    views = [ref.get() for ref in refs]
    more = push_out(store)
    assert (store.stats().spilled, store.stats().spills) == (16, 0)
    assert all((view == number).all() for number, view in enumerate(views))
    assert all((ref.get() == number).all() for number, ref in enumerate(more))


def test_batch_and_array_in_place_push_others_out(spilling: MakeSpilling) -> None:
    """`put_many` and `allocate` make room as a put does."""
    store = spilling()
    push_out(store)
    store.put_many({"a": block(1), "b": block(2)})
    with store.allocate(1 << 16, np.uint8, key="c") as array:
        array[:] = 3
    del array
    assert store.stats().spilled == 3
    assert [int(store[key][5]) for key in "abc"] == [1, 2, 3]


def test_object_larger_than_the_store_becomes_a_file(
    spilling: MakeSpilling, spill_dir: Path, start_python: StartPython
) -> None:
    """It can be put, got by others, overwritten and deleted like any object."""
    store = spilling()
    big = np.arange(MIB, dtype=np.uint32)
    ref = store.put(big, key="big")
    assert np.array_equal(store["big"], big)
    assert (ref.nbytes, store.info("big").nbytes) == (4 << 20, 4 << 20)
    child = start_python(READ_BIG, ref=ref)
    assert child.hear() == f"{big.sum()} {MIB - 1}"
    child.end()
    view = ref.get()
    store.put(big[::-1], key="big")
    assert (view[0], store["big"][0], len(files(spill_dir))) == (0, MIB - 1, 1)
    del store["big"]
    assert (files(spill_dir), store.stats().objects, int(view[-1])) == ([], 0, MIB - 1)


READ_BIG = """
view = ref.get(mode="readonly")
print(view.sum(), view[-1], flush=True)
"""


# --- files ----------------------------------------------------------------------------------------


def test_files_go_with_their_objects_and_their_store(
    spilling: MakeSpilling, spill_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delete, overwrite and expiry remove a file, destroy removes them all and their folder."""
    store = spilling()
    store.put(block(0), key="deleted")
    store.put(block(0), key="overwritten")
    store.put(block(0), key="expired", ttl=1000)
    store.put(block(0), key="stays")
    push_out(store)
    assert len(files(spill_dir)) == 4
    del store["deleted"]
    store["overwritten"] = 1
    assert len(files(spill_dir)) == 2
    monkeypatch.setattr(clock, "_ahead_ns", [clock._ahead_ns[0] - 1001 * 10**9])
    store.check()
    assert len(files(spill_dir)) == 1
    with pytest.raises(ObjectNotFoundError):
        store["deleted"]
    assert store["overwritten"] == 1
    view = store["stays"]
    store.close()
    assert list(spill_dir.iterdir()) == []
    assert (view == 0).all()


def test_files_are_private_to_the_user(spilling: MakeSpilling, spill_dir: Path) -> None:
    """Folder 0700, files 0600, and nothing in their names but numbers."""
    store = spilling()
    store.put(block(0), key="secret name")
    push_out(store)
    [file] = files(spill_dir)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent, spill_dir)]
    assert modes == [0o600, 0o700, 0o700]
    assert file.name.replace("-", "").isdecimal()


@pytest.mark.parametrize("damage", ["flip", "cut", "extend", "remove", "header", "swap"])
def test_damaged_file_is_an_error_and_hurts_one_object(
    spilling: MakeSpilling, spill_dir: Path, damage: str
) -> None:
    """A file that is not what was written is refused; the object can be deleted, others got."""
    store = spilling()
    refs = [store.put(block(number), key=str(number)) for number in range(2)]
    others = push_out(store)
    file, other = files(spill_dir)
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "swap":
        file.write_bytes(other.read_bytes())
    else:
        place = {"header": 40}.get(damage, 4096 + 30_000)
        content[place] ^= 1
        end = {"cut": -1, "extend": len(content)}.get(damage, len(content))
        if damage in ("cut", "extend"):
            content[place] ^= 1
        file.write_bytes(bytes(content[:end]) + b"x" * (damage == "extend"))
    damaged = int(file.name.partition("-")[0])
    number = next(number for number, ref in enumerate(refs) if ref._slot == damaged)
    for room in (False, True):
        if room:
            store.delete_many(others)
        with pytest.raises(CorruptStoreError):
            store[str(number)]
    assert (refs[1 - number].get() == 1 - number).all()
    assert any(
        f"slot {damaged}" in f.message or file.name in f.message for f in store.check(deep=True)
    )
    refs[number].delete()
    assert store.check(deep=True) == []


@lock_free_only
def test_full_file_system_of_files_is_named(make_store: MakeStore, locked_reads: Flag) -> None:
    """When the files find no room either, the error says where, and nothing is lost or left."""
    with small_file_system(2 * MIB) as path:
        store = make_store(capacity="1MiB", max_objects=500, on_full="spill", spill_dir=path / "s")
        refs = []
        with pytest.raises(StoreFullError, match=rf"{path}.*no room for 65,536 bytes either"):
            refs.extend(store.put(block(number)) for number in range(1000))
        assert 40 < len(refs) < 48
        assert all((ref.get()[:] == number).all() for number, ref in enumerate(refs))
        assert store.check(deep=True) == []
        assert len(files(path)) == store.stats().spilled
        with pytest.raises(StoreFullError):
            store.put(np.zeros(3 * MIB, np.uint8))
        refs[0].delete()
        assert store.put(block(1)).get()[0] == 1
        store.close()
        assert files(path) == []


@lock_free_only
@pytest.mark.parametrize("room", [False, True], ids=["mapped", "brought back"])
def test_data_damaged_in_memory_is_not_made_sound_by_a_file(
    spilling: MakeSpilling,
    room: Flag,
    locked_reads: Flag,
) -> None:
    """The file has a checksum of what was written to it, the object one of what was put."""
    store = spilling(checksum=True)
    ref = store.put(block(1), readonly=True)
    session: Any = store._session
    with (store.path / "segment-00000").open("r+b") as segment:
        segment.seek(session.slots.read(ref._slot).extent + 100)
        segment.write(b"x")
    others = push_out(store)
    assert in_file(store, ref)
    if room:
        store.delete_many(others)
    with pytest.raises(CorruptStoreError, match="checksum of its data"):
        ref.get()


@lock_free_only
@pytest.mark.parametrize("field", [L.S_EXTENT, L.S_EXTENT_NBYTES], ids=["place", "size"])
def test_object_whose_place_was_damaged_does_not_leave(
    spilling: MakeSpilling, field: int, locked_reads: Flag
) -> None:
    """What lies elsewhere is not written to its file."""
    store = spilling()
    ref = store.put(block(1))
    session: Any = store._session
    session.words[session.slots.state_index(ref._slot) + field] = 1 << 62
    with pytest.raises(CorruptStoreError, match="extent"):
        push_out(store)
    assert not in_file(store, ref)
    store.recover()


def test_count_as_large_as_a_word_can_be_keeps_nobody_from_working(
    make_store: MakeStore, tmp_path: Path
) -> None:
    """What is only counted for people may be wrong; objects still go to files and come back."""
    store = make_store(capacity=MIB, on_full="spill", spill_dir=tmp_path)
    words = store._session.index.words
    counts = (L.W_SPILLS, L.W_RESTORES, L.W_EXPIRATIONS, L.W_PINS_COPIED)
    for at in counts:
        words[at] = L.WORD_MASK
    refs = [store.put(np.full(30_000, number)) for number in range(10)]
    assert [int(ref.get()[0]) for ref in refs] == list(range(10))
    store.put("soon over", key="k", ttl=1e-3)
    wait_until(lambda: "k" not in store)
    store.put("instead", key="k", overwrite=False)
    assert exit_code(forked(lambda: store.put("of a child"))) == 0
    assert [words[at] for at in counts] == [L.WORD_MASK] * 3 + [0]
    assert not store.check()
