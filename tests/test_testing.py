"""Whoever tests code that uses stores has stores that go, and is told what does not."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from stores import RunPython, exit_code, forked

import shmstore
from shmstore import Store
from shmstore.testing import assert_no_leaks, temporary_root, temporary_store

pytest_plugins = ["pytester"]

ARRAY = np.arange(1000)


@pytest.fixture
def locked_reads() -> bool:
    """How objects are read makes no difference here."""
    return False


# --- stores that go -------------------------------------------------------------------------------


def test_temporary_store_is_gone_afterwards() -> None:
    """Its root too, while a view of it stays valid."""
    with temporary_store() as store:
        path = store.path
        store["a"] = ARRAY
        view = store["a"]
        assert store.stats().capacity == 16 << 20
        assert [found.name for found in shmstore.stores(path.parent)] == [store.name]
    assert not path.parent.exists()
    assert view[-1] == 999


def test_temporary_store_takes_options(tmp_path: Path) -> None:
    """Those of `create`, a name and a root among them."""
    root = tmp_path / "stores"
    with temporary_store(name="mine", capacity="1MiB", root=root, persist=True) as store:
        assert (store.name, store.path.parent) == ("mine", root)
        assert store.stats().capacity == 1 << 20
    assert not root.exists() or not any(root.iterdir())


def test_temporary_store_goes_with_an_exception_and_may_go_before() -> None:
    """Whatever the block does."""
    with pytest.raises(ZeroDivisionError), temporary_store() as store:
        raise ZeroDivisionError
    assert not store.path.exists() if not store.closed else True
    with temporary_store(persist=True) as store:
        path = store.path
        store.close()
    with temporary_store() as store:
        store.destroy()
    assert not path.exists()


def test_two_temporary_stores_do_not_meet() -> None:
    """The same name in two roots."""
    with temporary_store(name="one") as first, temporary_store(name="one") as second:
        first["a"] = 1
        assert "a" not in second


# --- what is left ---------------------------------------------------------------------------------


def left_by(block: object) -> list[str]:
    """Return the lines that say what a function leaves behind."""
    assert callable(block)
    kept = []
    with pytest.raises(AssertionError) as caught, assert_no_leaks(grace_s=0):
        kept.append(block())
    first, *lines = str(caught.value).splitlines()
    assert first == "left behind:"
    del kept
    return [line.strip() for line in lines]


def test_block_that_leaves_nothing_passes(store: Store) -> None:
    """Views that came and went, a store that was made and closed, a thread that ended."""
    store["a"] = ARRAY
    before = store["a"]
    with assert_no_leaks():
        assert store["a"].sum() == before.sum()
        with temporary_store() as other:
            other["b"] = ARRAY
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
    with assert_no_leaks():
        del before


def test_view_that_is_left_is_named(store: Store) -> None:
    """By key, type, size and store; how many there are beyond those before."""
    store["a"] = ARRAY
    before = store["a"]
    assert left_by(lambda: [store["a"] for _ in range(3)]) == [
        f"3 views in store {store.path}: 'a' (numpy.ndarray, 8000 bytes) x 3"
    ]
    del before


def test_view_of_a_deleted_object_is_told(store: Store) -> None:
    """It has no name any more."""
    assert left_by(lambda: (store.put(ARRAY, key="a").get(), store.delete("a"))) == [
        f"1 view in store {store.path}: of deleted objects"
    ]


def test_place_where_a_view_was_got_is_told(make_store) -> None:
    """In a store that traces pins."""
    store = make_store(trace_pins=True)
    store["a"] = ARRAY
    [line] = left_by(lambda: store["a"])
    assert "got at" in line
    assert "test_testing.py:" in line


def test_view_that_outlives_its_handle_is_told() -> None:
    """The store was closed: its view still keeps it open."""
    with temporary_store(persist=True) as store:
        store["a"] = ARRAY
        path = store.path

        def attach() -> np.ndarray:
            with Store.attach(path, readonly=True) as reader:
                return reader["a"]

        lines = left_by(attach)
    assert lines[0] == f"1 view in store {path}: 'a' (numpy.ndarray, 8000 bytes)"
    assert any("descriptor" in line for line in lines)
    with temporary_store():  # who next makes a store closes what nobody looks at any more
        pass


def test_store_that_is_left_is_told(root: Path) -> None:
    """With its state: in use, or kept without anybody."""
    made: list[Store] = []
    lines = left_by(lambda: made.append(Store.create("left", capacity="1MiB")))
    assert f"1 store: {root}/left (alive)" in lines
    made.pop().close()


def test_client_that_died_is_told(store: Store) -> None:
    """A child that was killed has left its seat."""
    [line] = left_by(lambda: exit_code(forked(lambda: os.kill(os.getpid(), 9))))
    assert re.fullmatch(rf"1 client that died without leaving: pid \d+ in {store.path}", line)
    store.recover()


def test_descriptor_and_thread_that_are_left_are_told(tmp_path: Path) -> None:
    """By what they are."""
    end = threading.Event()
    path = tmp_path / "left"
    path.touch()

    def leave() -> int:
        threading.Thread(target=end.wait, name="lost").start()
        return os.open(path, os.O_RDONLY)

    lines = left_by(leave)
    end.set()
    assert lines == [f"1 descriptor: {path}", "1 thread: lost"]
    for descriptor in Path("/proc/self/fd").iterdir():
        if descriptor.exists() and descriptor.resolve() == path:
            os.close(int(descriptor.name))
            break


def test_exception_of_the_block_comes_through(store: Store) -> None:
    """Not hidden by what it has left."""
    store["a"] = ARRAY
    kept = []
    with pytest.raises(ZeroDivisionError), assert_no_leaks():  # noqa: PT012 - a block is tested
        kept.append(store["a"])
        raise ZeroDivisionError


def test_what_goes_in_a_moment_is_waited_for() -> None:
    """A thread that is about to end is none that is left."""
    with assert_no_leaks(grace_s=30):
        threading.Timer(0.1, int).start()


def test_temporary_root_takes_away_what_is_left() -> None:
    """A store that persists, without anybody."""
    with temporary_root() as root, Store.create(root=root, capacity="1MiB", persist=True) as store:
        path = store.path
    assert not path.exists()


# --- the plugin -----------------------------------------------------------------------------------


def test_plugin_gives_stores_to_tests_in_many_processes(pytester: pytest.Pytester) -> None:
    """Each test has a root of its own, which its processes find, and which goes."""
    pytest.importorskip("xdist")
    pytester.makepyfile(
        """
        import os, subprocess, sys
        import pytest, shmstore

        @pytest.mark.parametrize("number", range(6))
        def test_store(store, shmstore_root, number):
            assert len(store) == 0
            store["number"] = number
            code = f"import shmstore; print(shmstore.Store.attach({store.name!r})['number'])"
            found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert found.stdout.strip() == str(number), found.stderr
            assert os.environ["SHMSTORE_ROOT"] == str(shmstore_root)
            print("root:", shmstore_root)

        @pytest.mark.parametrize("number", range(4))
        def test_factory(store_factory, number):
            one, two = store_factory("one", capacity="1MiB"), store_factory("two", persist=True)
            assert one.stats().capacity == 1 << 20
            assert {found.name for found in shmstore.stores()} == {"one", "two"}
        """
    )
    done = pytester.runpytest_subprocess("-n", "2", "-rA", "-W", "error")
    done.assert_outcomes(passed=10)
    roots = re.findall(r"^root: (.*)$", done.stdout.str(), re.MULTILINE)
    assert len(set(roots)) == 6
    assert not any(Path(root).exists() for root in roots)


def test_plugin_finds_what_a_test_leaves(pytester: pytest.Pytester) -> None:
    """It is an error of its teardown, which says what is left."""
    pytester.makepyfile(
        """
        import numpy as np
        kept = []

        def test_leaves(shmstore_no_leaks, store):
            store["a"] = np.arange(1000)

        def test_keeps(store, shmstore_no_leaks):
            store["a"] = np.arange(1000)
            kept.append(store["a"])
        """
    )
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    done.assert_outcomes(passed=2, errors=1)
    done.stdout.fnmatch_lines(["*1 view in store *: 'a' (numpy.ndarray, 8000 bytes)"])


def test_plugin_imports_nothing_before_a_fixture_is_used(pytester: pytest.Pytester) -> None:
    """Pytest starts as fast as without it, and the fixtures of others win."""
    pytester.makepyfile(
        """
        import sys
        import pytest

        @pytest.fixture
        def store():
            return "mine"

        def test_one(store):
            assert store == "mine"
            assert "pytest_shmstore" in sys.modules
            assert not {"numpy", "shmstore"} & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess("-p", "no:xdist").assert_outcomes(passed=1)


def test_plugin_can_be_left_out(pytester: pytest.Pytester) -> None:
    """As every other one, by its name."""
    pytester.makepyfile("def test_one(shmstore_root): pass")
    done = pytester.runpytest_subprocess("-p", "no:shmstore")
    done.assert_outcomes(errors=1)


def test_testing_works_without_pytest(run_python: RunPython) -> None:
    """It is a module for any framework."""
    run_python(
        """
        import sys
        import shmstore.testing
        with shmstore.testing.assert_no_leaks(), shmstore.testing.temporary_store() as store:
            store["a"] = 1
        assert "pytest" not in sys.modules
        """
    )
