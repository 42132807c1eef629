"""A read-only handle cannot change a byte: all files of a store, before and after all it can do.

The reader is a process of its own. What it may write is its seat, and to take one its row of the
client table and the two words that count seats and rows.
"""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strangers
from stores import Child, MakeStore, StartPython

from shmstore import Store
from shmstore._memory import layout as L

CHOICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "locked": {"locked_reads": True},
    "checksum": {"checksum": True, "zero_on_free": True, "trace_pins": True},
    "evict": {"on_full": "evict"},
    "spill": {"on_full": "spill"},
}

READER = """
import contextlib, ctypes, gc, os, pickle, resource, signal
import numpy as np, shmstore
from shmstore import ReadOnlyStoreError
from shmstore._memory.mapping import address_of

store = shmstore.Store.attach(path, readonly=True)
session = store._session
print("attached", flush=True)
input()

def forked(act):
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()
        try:
            act()
        finally:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

# Everything that it may do.
refs = pickle.loads(pickled)
for mode in ("shared", "readonly", "private", "copy"):
    for key in list(store):
        obj = store.get(key, mode=mode)
        if mode in ("private", "copy") and isinstance(obj, np.ndarray) and obj.flags.writeable:
            obj[:] = 99
    for ref in refs:
        ref.get(mode=mode)
        store.get(ref, mode=mode)
store.get_many(list(store)), dict(store.items()), list(store.values()), "array" in store, len(store)
for key in store:
    store.info(key)
store.stats(), list(store.objects()), store.clients(), repr(store), store.name, hash(store)
assert store.check() == []
store.check(deep=True), store.why_full(), store.who_pins("array")
assert store.get("nowhere", None) is None
assert store.get("short", None) is None
for ref in pickle.loads(pickle.dumps(refs)):
    ref.get(), ref.info()
held = [store["array"], store["frozen"]]
twin = pickle.loads(pickle.dumps(store))
assert twin.readonly
twin.close()
assert forked(lambda: [store["array"].sum(), held[0].sum(), os._exit(0)]) == 0

# Everything that it may not.
def enter(block):
    with block:
        pass

def overwrite(view):
    view.setflags(write=True)

changes = [
    lambda: store.put(1), lambda: store.put(np.zeros(100_000), key="array"),
    lambda: store.put_many([1, 2]), lambda: enter(store.allocate(3, "u1")),
    lambda: store.delete("array"), lambda: store.discard("array"),
    lambda: store.delete_many(["array"]), lambda: store.pop("array"), lambda: store.popitem(),
    lambda: store.clear(), lambda: store.update(a=1), lambda: store.setdefault("new", 1),
    lambda: store.__setitem__("array", 1), lambda: store.__delitem__("array"),
    lambda: refs[0].delete(), lambda: enter(refs[0]),
    lambda: store.recover(), lambda: store.trim(), lambda: store.destroy(),
]
for number, change in enumerate(changes):
    try:
        change()
    except ReadOnlyStoreError:
        continue
    print("not refused:", number, flush=True)

views = [*held, store.get("array", mode="readonly"), store["bytes"]]
for view in views[:3]:
    for attempt in (overwrite, lambda v: v.__setitem__(0, 1), lambda v: v.sort()):
        try:
            attempt(view)
        except ValueError:
            continue
        print("a view was written", flush=True)
for memory in (session.memory, session.segment.readonly, session.segment.writeable):
    try:
        memoryview(memory)[0] = 1
    except TypeError:
        continue
    print("a mapping was written", flush=True)

# A wild write faults, whatever it hits.
address = lambda array: array.__array_interface__["data"][0]
targets = [address(view) for view in views[:3]]
targets += [address_of(session.memory), address_of(session.segment.readonly)]
targets += [address_of(session.segment.writeable)]
targets += [address(np.asarray(seat.words)) for seat in session.clients._seen.values()
            if seat is not session.pins.seat]
assert len(targets) > 6, targets
for target in targets:
    code = forked(lambda: ctypes.memset(target, 1, 1))
    if code != -signal.SIGSEGV:
        print("a wild write went through:", code, flush=True)

gc.collect()
own = str(session.pins.seat.serial)
with open("/proc/self/maps") as maps:
    written = [line.split()[-1] for line in maps if " rw-s " in line and "/shmstore-test-" in line]
if [path.partition("/seats/")[2] for path in written] != [own]:
    print("mapped for writing:", written, flush=True)
print("done", flush=True)
input()
del views, view, held, obj, ref, refs
store.close()
"""


def furnish(store: Store) -> list[Any]:
    """Put something of each kind; return references."""
    store["array"] = np.arange(50_000.0)
    store["bytes"] = bytes(200_000)
    store["small"] = {"x": 1}
    store["nested"] = [np.ones(3000), {"a": np.zeros(5000)}]
    store.put(np.arange(30_000), key="frozen", readonly=True)
    store.put(np.arange(40_000), key="short", ttl=0.01)
    store.delete(store.put(np.zeros(20_000)))
    time.sleep(0.02)
    return [store.put(np.arange(2000)), store.put("text"), store.put(np.ones(5), key="short ref")]


def files_of(store: Store) -> dict[str, Any]:
    """Return all that there is of a store, but for the seats of others, their rows, and LINK.

    Who waits for the end of an object clears its LINK: it ends under the lock then.
    """
    geometry = store._session.index.geometry
    first, end = 1, geometry.max_clients
    rows = range(geometry.clients + first * L.CLIENT_WORDS, geometry.clients + end * L.CLIENT_WORDS)
    found: dict[str, Any] = strangers.fingerprint(store.path)
    found = {name: seen for name, seen in found.items() if not name.startswith("seats/")}
    found["seats/1"] = strangers.digest_of(store.path / "seats" / "1")
    counts = {L.W_NEXT_SERIAL, L.W_CLIENT_TOP, L.W_PINS_COPIED}
    left = range(L.W_LEFT, L.W_LEFT + L.LEFT_END - L.SEAT_PUTS)
    end = geometry.slots + geometry.max_objects * L.SLOT_WORDS
    links = range(geometry.slots + L.S_LINK, end, L.SLOT_WORDS)
    found["index"] = strangers.digest_of(store.path / "index", but={*counts, *left, *rows, *links})
    if store._session.spills:
        found |= strangers.fingerprint(store._session.files.path)
    return found


@pytest.mark.parametrize("locked_reads", [False], ids=["lock-free"])
@pytest.mark.parametrize("choice", CHOICES)
def test_readonly_handle_changes_no_byte_of_the_store(
    make_store: MakeStore, start_python: StartPython, root: Path, choice: str
) -> None:
    """Whatever it tries: files keep their bytes, lengths and modes; there is none more or less."""
    options = dict(CHOICES[choice])
    if choice == "spill":
        options["spill_dir"] = root / "files"
    store = make_store(max_objects=500, **options)
    refs = furnish(store)
    if choice == "spill":
        fill_until_spilled(store)
    before = files_of(store)
    reader = attach_reader(start_python, store, refs)
    assert reader.hear() == "attached"
    assert files_of(store) == before
    assert reader.ask() == "done"
    assert files_of(store) == before
    reader.say()
    reader.end()
    assert files_of(store) == before
    store.recover()
    clean_up(store, choice)


def attach_reader(start_python: StartPython, store: Store, refs: list[Any]) -> Child:
    """Start the reader."""
    return start_python(READER, path=str(store.path), pickled=pickle.dumps(refs))


def fill_until_spilled(store: Store) -> None:
    """Put more than there is room for."""
    for number in range(12):
        store[f"more {number}"] = np.full(60_000, number)
    assert store.stats().spilled


def clean_up(store: Store, choice: str) -> None:
    """Remove the folder of spilled files: the test must leave the root empty."""
    if choice == "spill":
        folder = store._session.files.path.parent
        store.destroy()
        folder.rmdir()
