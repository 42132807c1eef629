"""Who looks at an object, since when, and where in its program did it get the views?"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import rooms
from stores import (
    Flag,
    MakeStore,
    StartPython,
    exit_code,
    forked,
    in_threads,
    lock_free_only,
    wait_until,
)

from shmstore import ObjectNotFoundError, PinInfo, Store
from shmstore._memory import layout as L
from shmstore._sharing import seats

HOLD_VIEWS = """
import shmstore
store = shmstore.Store.attach(name)
views = [store["seen"] for _ in range(3)]
print("looks", flush=True)
input()
"""


@contextmanager
def _between() -> Iterator[list[float]]:
    """Give the times of the wall clock at the beginning and the end of a block."""
    times = [time.time()]
    yield times
    times.append(time.time())


# --- who, how many, since when --------------------------------------------------------------------


def test_object_that_nobody_looks_at_has_no_pins(store: Store) -> None:
    """Neither before the first view, nor after the last, nor for the question itself."""
    ref = store.put(np.zeros(9), key="seen")
    assert store.who_pins(ref) == []
    view = ref.get()
    assert store.who_pins("seen") != []
    del view
    assert store.who_pins("seen") == []


def test_own_views_are_counted_with_the_time_of_the_oldest(store: Store) -> None:
    """Views of the same object add up; those of another do not."""
    ref, other = store.put(np.zeros(9)), store.put(np.ones(9))
    with _between() as times:
        first = ref.get()
    time.sleep(0.05)
    views = [ref.get(), ref.get(), other.get()]
    [pin] = store.who_pins(ref)
    assert (pin.views, pin.alive, pin.own, pin.sites) == (3, True, True, {})
    assert times[0] - 1e-3 <= pin.since <= times[1] + 1e-3
    assert pin.age >= 0.05
    assert first is not views[0]


def test_times_of_all_kinds_of_views_are_those_of_their_get(store: Store) -> None:
    """Arrays, pickles with buffers, private mappings and arrays that are built in place."""
    store["array"] = np.zeros(9)
    store["pickle"] = [np.zeros(9), np.ones(9)]
    store["private"] = np.zeros(1 << 16)
    views = []
    for key, mode in (("array", "shared"), ("pickle", "readonly"), ("private", "private")):
        time.sleep(0.02)
        with _between() as times:
            views.append(store.get(key, mode=mode))
        [pin] = store.who_pins(key)
        assert times[0] - 1e-3 <= pin.since <= times[1] + 1e-3
    with _between() as times, store.allocate(5, key="built") as array:
        views.append(array)
    [pin] = store.who_pins("built")
    assert times[0] - 1e-3 <= pin.since <= times[1] + 1e-3
    del array


def test_cell_that_is_used_again_has_a_new_time(store: Store) -> None:
    """The same cell serves one get after the other."""
    ref = store.put(np.zeros(9))
    view = ref.get()
    first = store.who_pins(ref)[0].since
    del view
    time.sleep(0.05)
    view = ref.get()
    assert store.who_pins(ref)[0].since >= first + 0.04
    del view


def test_many_views_are_counted(store: Store) -> None:
    """More of them than are looked at one by one."""
    ref = store.put(np.zeros(9))
    views = [ref.get() for _ in range(5000)]
    oldest = store.who_pins(ref)[0].since
    del views[::2]
    [pin] = store.who_pins(ref)
    assert pin.views == 2500
    assert oldest <= pin.since <= time.time()


@lock_free_only
def test_views_of_other_processes_are_told_with_their_pid(
    make_store: MakeStore, start_python: StartPython
) -> None:
    """Most views first; a killed process is dead, and its views go with recover()."""
    store = make_store("shared")
    store["seen"] = np.zeros(9)
    mine = store["seen"]
    with _between() as times:
        child = start_python(HOLD_VIEWS, name="shared")
        assert child.hear() == "looks"
    theirs, own = store.who_pins("seen")
    assert (theirs.pid, theirs.views, theirs.alive, theirs.own) == (child.pid, 3, True, False)
    assert times[0] <= theirs.since <= times[1]
    assert "python" in theirs.name
    assert (own.own, own.views) == (True, 1)
    child.kill()
    dead = store.who_pins("seen")[0]
    assert (dead.pid, dead.alive, dead.name, dead.views) == (child.pid, False, "gone", 3)
    store.recover()
    assert [pin.own for pin in store.who_pins("seen")] == [True]
    del mine


@lock_free_only
def test_forked_child_has_the_views_it_was_born_with_and_their_times(store: Store) -> None:
    """Its own seat says so, whatever the parent does with its views."""
    ref = store.put(np.zeros(9))
    views = [ref.get()]
    [before] = store.who_pins(ref)
    time.sleep(0.05)

    def live() -> None:
        wait_until(lambda: store.get("go on", default=None))
        assert views[0].sum() == 0

    child = forked(live)
    wait_until(lambda: len([p for p in store.who_pins(ref) if p.pid == child]) == 1)
    pins = {pin.pid: pin for pin in store.who_pins(ref)}
    assert pins[child].since == pytest.approx(before.since, abs=1e-3)
    views.clear()
    assert [pin.pid for pin in store.who_pins(ref)] == [child]
    store["go on"] = True
    assert exit_code(child) == 0


@lock_free_only
def test_readonly_handle_is_seen_and_sees(make_store: MakeStore, start_python: StartPython) -> None:
    """It writes nothing but its own seat, and that is enough."""
    store = make_store("shared")
    store["seen"] = np.zeros(9)
    child = start_python(
        """
        import shmstore
        with shmstore.Store.attach(name, readonly=True) as store:
            view = store["seen"]
            input()
            print(sorted((pin.own, pin.views) for pin in store.who_pins("seen")), flush=True)
            input()
            del view
        """,
        name="shared",
    )
    mine = [store["seen"], store["seen"]]
    assert child.ask() == "[(False, 2), (True, 1)]"
    assert [(p.pid == child.pid, p.views) for p in store.who_pins("seen") if not p.own] == [
        (True, 1)
    ]
    child.say()
    child.end()
    mine.clear()


def test_deleted_object_tells_who_keeps_its_memory(store: Store) -> None:
    """By its reference, until the memory is free; and never who looks at the next object there."""
    ref = store.put(np.zeros(9))
    view = ref.get()
    ref.delete()
    assert [pin.views for pin in store.who_pins(ref)] == [1]
    del view
    assert store.who_pins(ref) == []
    refs = [store.put(np.ones(9)) for _ in range(3)]
    views = [ref.get() for ref in refs]
    assert store.who_pins(ref) == []
    views.clear()


def test_target_that_is_none_of_the_store_is_refused(store: Store, make_store: MakeStore) -> None:
    """A key that is not there, a reference into another store, a forged one."""
    with pytest.raises(ObjectNotFoundError, match="no object has the key"):
        store.who_pins("nothing")
    ref = make_store().put(np.zeros(9))
    with pytest.raises(ValueError, match="another store"):
        store.who_pins(ref)
    with pytest.raises(TypeError, match="expected a key"):
        store.who_pins(5)  # type: ignore[arg-type]
    mine = pickle.loads(pickle.dumps(store.put(np.zeros(9))))
    mine._slot = 1 << 40
    assert store.who_pins(mine) == []


def test_clients_tell_their_oldest_view(store: Store) -> None:
    """None without views."""
    ref = store.put(np.zeros(9))
    assert [client.oldest_pin for client in store.clients()] == [None]
    with _between() as times:
        views = [ref.get()]
    views.append(ref.get())
    [client] = store.clients()
    assert client.oldest_pin is not None
    assert times[0] - 1e-3 <= client.oldest_pin <= times[1] + 1e-3


@pytest.mark.parametrize("forged", [math.nan, math.inf, -1.0, 1e300])
def test_forged_time_is_now(store: Store, forged: float) -> None:
    """Whatever another process writes into its seat, the answer is a time."""
    ref = store.put(np.zeros(9))
    view = ref.get()
    pins = store._session.pins
    pins.times[pins.seat.pins.tolist().index(1, L.FIRST_CELL)] = forged
    assert store.who_pins(ref)[0].since == pytest.approx(time.time(), abs=10)
    del view


def test_pin_says_in_a_line_what_it_is() -> None:
    """For a log or a terminal; it is a value like any other."""
    who = {"pid": 7, "name": "python", "alive": True, "own": False}
    pin = PinInfo(**who, views=2, since=time.time() - 90, sites={"load.py:3 in load": 2})
    assert str(pin) == "pid 7 (python): 2 views, the oldest for 1 min; 2 from load.py:3 in load"
    assert hash(pin) == hash(pickle.loads(pickle.dumps(pin)))
    dead = PinInfo(**{**who, "alive": False}, views=1, since=time.time())
    assert str(dead) == "pid 7 (dead): 1 view, the oldest for 0 s"


# --- where: stores that trace pins ----------------------------------------------------------------


def _load(store: Store) -> np.ndarray:
    return store["seen"]  # the line of the site


LOADS_AT = _load.__code__.co_firstlineno + 1


@pytest.fixture
def traced(make_store: MakeStore) -> Store:
    """Give a store that traces pins, with one array in it."""
    store = make_store("traced", trace_pins=True)
    store["seen"] = np.zeros(9)
    return store


def test_traced_views_say_in_which_line_they_were_got(traced: Store) -> None:
    """The first line outside of the package, however deep in it the pin is made."""
    views = [_load(traced) for _ in range(4)]
    views += [traced.get("seen", mode="readonly")]
    [pin] = traced.who_pins("seen")
    sites = {site.removeprefix(__file__): count for site, count in pin.sites.items()}
    assert sites.pop(f":{LOADS_AT} in _load") == 4
    [(site, count)] = sites.items()
    assert (site.endswith(" in test_traced_views_say_in_which_line_they_were_got"), count) == (
        True,
        1,
    )
    assert pin.views == 5
    views.clear()
    assert traced.who_pins("seen") == []


def test_traced_views_in_a_comprehension_are_of_the_function_around_it(traced: Store) -> None:
    """As they are since Python 3.12, where a comprehension is no function."""
    views = [traced["seen"] for _ in range(3)]
    [site] = traced.who_pins("seen")[0].sites
    assert site.endswith(" in test_traced_views_in_a_comprehension_are_of_the_function_around_it")
    views.clear()


@pytest.mark.parametrize("value", [[np.zeros(9)], np.ma.masked_array([1, 2]), "x" * (1 << 17)])
def test_traced_views_of_any_type_have_a_site(traced: Store, value: object) -> None:
    """Not only plain arrays, whose get is the shortest."""
    traced["other"] = value
    view = traced.get("other", decode=False) if isinstance(value, str) else traced["other"]
    [pin] = traced.who_pins("other")
    assert sum(pin.sites.values()) == pin.views
    assert all(site.startswith(__file__) for site in pin.sites)
    del view


def test_traced_views_of_threads_have_the_sites_of_their_threads(traced: Store) -> None:
    """A seat is shared by the threads of a process; the way to the get is not."""
    views: list[np.ndarray] = []
    in_threads(*[lambda: views.append(_load(traced))] * 8)
    [pin] = traced.who_pins("seen")
    assert pin.sites == {f"{__file__}:{LOADS_AT} in _load": 8}
    views.clear()


@lock_free_only
def test_traced_views_of_another_process_have_its_sites(
    traced: Store, start_python: StartPython
) -> None:
    """Every process of such a store traces, without being told."""
    child = start_python(HOLD_VIEWS, name="traced")
    assert child.hear() == "looks"
    [pin] = traced.who_pins("seen")
    [site] = pin.sites
    assert pin.sites[site] == 3
    assert site.startswith("<string>:")
    child.kill()
    assert traced.who_pins("seen")[0].sites == pin.sites
    traced.recover()


@lock_free_only
def test_traced_views_of_a_forked_child_keep_their_sites_and_get_new_ones(traced: Store) -> None:
    """The child goes on with a copy of the table."""
    mine = _load(traced)

    def live() -> None:
        own = traced["seen"]
        [pin] = [pin for pin in traced.who_pins("seen") if pin.own]
        names = sorted(site.rpartition(" ")[2] for site in pin.sites)
        assert names == ["_load", "live"]
        del own

    assert exit_code(forked(live)) == 0
    [pin] = [pin for pin in traced.who_pins("seen") if pin.own]
    assert list(pin.sites) == [f"{__file__}:{LOADS_AT} in _load"]
    del mine


def test_site_that_is_too_long_loses_its_beginning(traced: Store) -> None:
    """The end says more: file, line and function."""
    deep = "/" + "d" * 300 + "/é.py"
    scope: dict = {"store": traced}
    exec(compile("def load():\n    return store['seen']\n", deep, "exec"), scope)
    view = scope["load"]()
    [site] = traced.who_pins("seen")[0].sites
    assert site.startswith("...")
    assert site.endswith("d/é.py:2 in load")
    assert len(site.encode()) < L.SITE_NBYTES
    del view


def _load_at_many_lines(store: Store, count: int) -> list[np.ndarray]:
    """Get the same object in as many lines of a module."""
    lines = "".join(f"got.append(store['seen'])  # {n}\n" for n in range(count))
    scope: dict = {"store": store, "got": []}
    exec(compile(lines, "many.py", "exec"), scope)
    return scope["got"]


def test_more_sites_than_a_seat_has_are_not_told(
    traced: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The views are there all the same."""
    used = traced._session.pins.seat.words[L.SEAT_SITES]
    monkeypatch.setattr(L, "MAX_SITES", used + 2)
    views = _load_at_many_lines(traced, 6)
    [pin] = traced.who_pins("seen")
    assert (pin.views, len(pin.sites)) == (6, 2)
    views.clear()


@lock_free_only
def test_sites_that_find_no_page_are_not_told(locked_reads: Flag) -> None:
    """A get does not fail for want of room for its site."""
    with rooms.small_file_system(1 << 20) as folder:
        choices = {"capacity": "64KiB", "max_objects": 64, "locked_reads": locked_reads}
        store = Store.create(root=folder, trace_pins=True, **choices)
        store["seen"] = np.zeros(9)
        ballast = rooms.fill_up(folder)
        views = _load_at_many_lines(store, 2 * 4096 // L.SITE_NBYTES)
        [pin] = store.who_pins("seen")
        assert 0 < len(pin.sites) < pin.views == len(views)
        ballast.unlink()
        views.append(_load(store))
        assert f"{__file__}:{LOADS_AT} in _load" in store.who_pins("seen")[0].sites
        views.clear()
        store.close()


def test_untraced_store_asks_no_frame(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not asked for costs nothing."""
    assert type(store._session.pins) is seats.Pins
    monkeypatch.setattr("sys._getframe", None)
    store["seen"] = np.zeros(9)
    view = store["seen"]
    assert store.who_pins("seen")[0].sites == {}
    del view


def test_damaged_table_of_sites_is_no_error(traced: Store) -> None:
    """An absurd count, a number beyond it, bytes that are no text."""
    view = _load(traced)
    seat = traced._session.pins.seat
    cell = next(at for at, pin in enumerate(seat.pins) if at >= L.FIRST_CELL and pin)
    start = L.SITES_OFFSET + (seat.pins[cell] >> L.PIN_SITE_SHIFT) * L.SITE_NBYTES
    seat.bytes[start : start + L.SITE_NBYTES] = b"\xff" * L.SITE_NBYTES
    assert list(traced.who_pins("seen")[0].sites) == ["\ufffd" * L.SITE_NBYTES]
    seat.words[L.SEAT_SITES] = 0
    assert traced.who_pins("seen")[0].sites == {}
    seat.words[L.SEAT_SITES] = (1 << 64) - 1
    seat.pins[cell] |= 0xFFFF_FFFF << L.PIN_SITE_SHIFT
    assert traced.who_pins("seen")[0].sites == {}
    del view
