"""What a process keeps of its deleted objects is free, for whoever asks, and stays for its puts."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from stores import MIB, MakeStore

from shmstore import Store, _refilling, _trimming
from shmstore._memory import layout as L

N = 5000
TOGETHER = _refilling._SHARED_SLOTS


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """Give a store of which this process keeps more than half of what it may, of one size."""
    store = make_store(capacity=32 * MIB)
    if not store._session.quick:
        pytest.skip("reads under the lock")
    for ref in [store.put(filled(number)) for number in range(TOGETHER)]:
        ref.delete()
    assert store._session.spares.nbytes > store._session.most_spare // 2
    return store


def filled(number: int) -> np.ndarray[Any, Any]:
    """Return an array that tells by each element which one it is."""
    return np.full(N, number, np.int64)


def test_report_for_a_reader_tells_of_no_memory_that_is_kept(store: Store) -> None:
    """He can take it away from nobody; what is looked at is deleted, as it is for all others."""
    ref = store.put(filled(0))
    view = ref.get()
    ref.delete()
    kept = store._session.spares.nbytes
    with Store.attach(store.name, readonly=True) as reader:
        report = reader.why_full()
    assert store._session.spares.nbytes == kept
    stats = store.stats()
    assert (report.used, report.free, report.pinned_nbytes) == (
        stats.used,
        stats.free,
        stats.pinned,
    )
    assert (report.deleted, report.deleted_nbytes) == (1, view.nbytes)
    [keeper] = [client for client in report.clients if client.views]
    assert (keeper.views, keeper.deleted_nbytes) == (1, view.nbytes)


def test_put_that_fills_what_is_kept_is_no_view(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a pin, so that nobody closes the store meanwhile, and is told as half made."""
    store = make_store(capacity=256 * MIB)
    if not store._session.quick:
        pytest.skip("reads under the lock")
    before = [store.put([filled(number)] * 2) for number in range(TOGETHER)]
    for ref in before:
        ref.delete()
    segment, reports, pins = store._session.segment, [], []
    write = segment.write

    def look(*args: Any, **options: Any) -> None:
        pins.extend([store.who_pins(ref) for ref in before])
        reports.append(store.why_full())
        write(*args, **options)

    monkeypatch.setattr(segment, "write", look)
    ref = store.put([filled(1)] * 2)
    assert ref._slot in {old._slot for old in before}
    assert not any(pins)
    [report] = reports
    assert (report.half_made, report.deleted) == (1, 0)
    assert [(client.views, client.half_made) for client in report.clients] == [(0, 1)]
    assert (ref.get()[1] == 1).all()


@pytest.mark.parametrize("length", [1, 500, N, 20 * N], ids=str)
def test_object_that_expires_ends_under_the_lock(store: Store, length: int) -> None:
    """Anybody ends it when its time is over, so its owner may not take it back by himself."""
    ref = store.put(np.zeros(length), ttl=0.02)
    time.sleep(0.05)
    assert not store.discard(ref)
    assert not store.check()


def test_array_that_nobody_may_write_has_its_checksum_in_memory_filled_anew(
    make_store: MakeStore,
) -> None:
    """Also where a writeable one of the same size, which has none, lay before."""
    store = make_store(capacity=64 * MIB, checksum=True)
    if not store._session.quick:
        pytest.skip("reads under the lock")
    for _ in range(2 * TOGETHER):
        store.put(filled(1)).delete()
    sealed = filled(2)
    sealed.flags.writeable = False
    for _ in range(2 * TOGETHER):
        ref = store.put(sealed)
        at = store._session.slots.state_index(ref._slot)
        assert store._session.words[at + L.S_KIND] & L.KIND_DATA_CRC
        ref.delete()


def test_generation_that_another_thread_has_given_is_not_given_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one of those that this process may give may go while an array is packed."""
    spares, pack = store._session.spares, _refilling.pack_array
    ends = []

    def come_late(*args: Any) -> Any:
        spares.following = spares.end
        ends.append(spares.end)
        return pack(*args)

    store.put(filled(1)).delete()
    monkeypatch.setattr(_refilling, "pack_array", come_late)
    ref = store.put(filled(1))
    assert ends
    assert ref._generation < spares.end
    assert not store.check()


def test_delete_by_key_leaves_what_is_kept(store: Store) -> None:
    """Only who can take nothing back any more makes room: others have a use for what there is."""
    kept = store._session.spares.nbytes
    store["key"] = filled(0)
    assert store.discard("key")
    assert store._session.spares.nbytes == kept


def test_memory_that_goes_back_by_itself_is_not_what_is_kept(store: Store) -> None:
    """It is in use, for the next puts; `trim` gives it back, too."""
    kept = store._session.spares.nbytes
    store["key"] = np.ones(2 * MIB, np.uint8)
    del store["key"]
    history = _trimming.deque(maxlen=3)
    for _ in range(5):
        _trimming.tidy(store._session, history)
    assert _trimming.idle_nbytes(store._session) < MIB
    assert store._session.spares.nbytes == kept
    assert store.trim() >= kept
    assert store._session.spares.nbytes == 0


def test_delete_that_finds_no_room_to_keep_more_makes_some(store: Store) -> None:
    """Memory of a size that comes no more does not stay in the way of one that does."""
    store.put(filled(0).repeat(18)).delete()
    assert store._session.spares.nbytes == 0
    store.put(filled(0).repeat(18)).delete()
    assert store._session.spares.nbytes > 0
