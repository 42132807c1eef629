"""What expiry at need costs: slots are looked at in groups, only those where a time is over."""

from __future__ import annotations

import time
from typing import Any

import pytest
from stores import MakeStore, wait_until

from shmstore import Store, _recovery, _room
from shmstore._memory import layout as L

GROUP = 20
OBJECTS = GROUP * L.EXPIRY_GROUPS


def _ends(store: Store) -> list[int]:
    session: Any = store._session
    return session.words[L.W_EXPIRIES : L.W_EXPIRIES + L.EXPIRY_GROUPS].tolist()


@pytest.fixture
def looked_at(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, list[int]]:
    """Give a full store, three objects of which are over soon, and how many slots are looked at."""
    store = make_store(max_objects=OBJECTS)
    store.put_many(range(OBJECTS - 3 - GROUP), ttl=1000)
    for number in range(3):
        store.put(number, key=f"short-{number}", ttl=0.05)
    store.put_many({f"late-{number}": number for number in range(GROUP)}, ttl=2000)
    session: Any = store._session
    real, looked = type(session.slots).due, []

    def due(self: Any, now: int) -> Any:
        for group, rows in real(self, now):
            looked.append(len(rows))
            yield group, rows

    monkeypatch.setattr(type(session.slots), "due", due)
    wait_until(lambda: "short-2" not in store)
    return store, looked


def test_put_into_a_full_store_looks_at_the_groups_that_are_due(
    looked_at: tuple[Store, list[int]],
) -> None:
    """Of 128 groups one or two have an object whose time is over; then none has."""
    store, looked = looked_at
    session: Any = store._session
    assert session.lock.run(_room.expire, session) == 3
    assert sum(looked) <= 2 * GROUP
    looked.clear()
    assert session.lock.run(_room.expire, session) == 0
    assert looked == []
    for number in range(3):
        store.put(number)
    assert store.check() == []


def test_len_looks_at_the_groups_that_are_due(looked_at: tuple[Store, list[int]]) -> None:
    """What is over counts no more, although nobody has taken it away yet."""
    store, looked = looked_at
    assert len(store) == GROUP
    assert sum(looked) <= 2 * GROUP


def test_ends_are_found_anew_when_the_store_is_mended(
    looked_at: tuple[Store, list[int]],
) -> None:
    """They are derived from the slots, and never later than the first end of a group."""
    store, _ = looked_at
    session: Any = store._session
    session.lock.run(_room.expire, session)
    known = _ends(store)
    session.words[L.W_EXPIRIES] = session.words[L.W_NEXT_EXPIRY_NS] = 1 << 63
    session.lock.run(_recovery.mend, session)
    assert _ends(store) == known
    assert session.words[L.W_NEXT_EXPIRY_NS] == min(end for end in known if end)
    assert time.clock_gettime_ns(time.CLOCK_BOOTTIME) < min(known)
