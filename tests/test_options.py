"""What can be chosen when a store is created, and what is refused with which words."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore import Options
from shmstore._options import parse_size

MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("4096B", 4096),
        ("64KiB", 64 << 10),
        ("64 kib", 64 << 10),
        ("64KB", 64_000),
        (" 1.5 GiB ", 3 << 29),
        ("8GiB", 8 << 30),
        ("2 TB", 2 * 10**12),
        ("1TiB", 1 << 40),
        ("0", 0),
    ],
)
def test_size_in_any_notation_gives_its_bytes(size: int | str, nbytes: int) -> None:
    """Binary and decimal units, fractions, spaces and any case are understood."""
    assert parse_size(size) == nbytes


@settings(deadline=None)
@given(count=st.integers(0, 1 << 47), unit=st.sampled_from(["", "KiB", "MiB", "GB", "TB"]))
def test_size_of_a_whole_number_is_exact(count: int, unit: str) -> None:
    """No byte is lost by going through a fraction."""
    factor = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GB": 10**9, "TB": 10**12}[unit]
    assert parse_size(f"{count}{unit}") == count * factor


@pytest.mark.parametrize(
    "size", ["", "much", "GiB", "-1", "1e3", "8 GiB GiB", "8XB", "0x10", "1,000", "nan", "1..5"]
)
def test_size_that_makes_no_sense_is_a_value_error_that_shows_it(size: str) -> None:
    """The message quotes what was given."""
    with pytest.raises(ValueError, match="is not a size") as caught:
        parse_size(size)
    assert repr(size) in str(caught.value)


def test_size_of_any_length_is_at_most_too_large() -> None:
    """A number with hundreds of digits is refused like any other beyond the limit."""
    with pytest.raises(ValueError, match="capacity"):
        Options(capacity="9" * 400)


@pytest.mark.parametrize("size", [None, 1.5, True, b"8GiB", [1]])
def test_size_of_another_type_is_a_type_error(size: Any) -> None:
    """A float or a bool is a mistake, not a size."""
    with pytest.raises(TypeError, match=type(size).__name__):
        parse_size(size)


@settings(deadline=None)
@given(text=st.text(max_size=12))
def test_size_from_any_text_is_a_number_or_a_value_error(text: str) -> None:
    """Nothing else comes out of text that users type."""
    try:
        nbytes = parse_size(text)
    except ValueError:
        return
    assert type(nbytes) is int
    assert nbytes >= 0


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("capacity", 1, 1 << 47),
        ("max_objects", 1, 1 << 31),
        ("max_clients", 1, 1 << 16),
    ],
)
def test_option_at_its_limits_is_taken_and_beyond_refused(name: str, low: int, high: int) -> None:
    """The message names the option, the value and the range."""
    choose: Any = Options
    for value in (low, high):
        assert getattr(choose(**{name: value}), name) == value
    for value in (low - 1, high + 1, -(1 << 70), 1 << 70):
        with pytest.raises(ValueError, match=f"{name}={value}.*{low:,} to {high:,}"):
            choose(**{name: value})


@pytest.mark.parametrize("name", ["max_objects", "max_clients"])
@pytest.mark.parametrize("value", ["10", 1.0, True, None])
def test_option_that_is_a_count_takes_only_ints(name: str, value: Any) -> None:
    """A count given as text or float is refused by name."""
    choose: Any = Options
    with pytest.raises(TypeError, match=name):
        choose(**{name: value})


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
def test_lock_timeout_must_be_a_positive_number(value: float) -> None:
    """Waiting for ever, or not at all, would hide a stopped process."""
    with pytest.raises(ValueError, match="lock_timeout"):
        Options(lock_timeout=value)


def test_options_are_frozen_named_and_comparable() -> None:
    """The choices hold for the life of the store, and none is given by position."""
    options = Options(capacity="1MiB")
    assert options == Options(capacity="1MiB") != Options()
    assert hash(options) == hash(Options(capacity="1MiB"))
    assert pickle.loads(pickle.dumps(options)) == options
    assert repr(options).startswith("Options(capacity='1MiB', persist=False, ")
    with pytest.raises(AttributeError, match="capacity"):
        options.capacity = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match="capacity"):
        del options.capacity
    with pytest.raises(TypeError, match=r"^Options\(\) takes its fields by name, not \('1MiB',\)"):
        Options("1MiB")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="capacty"):
        Options(capacty=1)  # type: ignore[call-arg]


@settings(deadline=None)
@given(capacity=st.integers(1, 1 << 47), free=st.integers(0, 1 << 50))
def test_capacity_that_was_chosen_is_rounded_up_to_pages(capacity: int, free: int) -> None:
    """What the file system has free does not change an explicit choice."""
    rounded = Options(capacity=capacity).capacity_within(free)
    assert rounded % 4096 == 0
    assert capacity <= rounded < capacity + 4096


@settings(deadline=None)
@given(free=st.integers(0, 1 << 45))
def test_capacity_by_default_leaves_room_on_the_file_system(free: int) -> None:
    """A fifth stays free for others, but there is always a usable store."""
    capacity = Options().capacity_within(free)
    assert capacity % 4096 == 0
    assert MIB <= capacity <= max(MIB, free * 8 // 10)


def test_root_path_is_the_given_one_or_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An explicit root wins; $SHMSTORE_ROOT is read when it is needed, not at import."""
    monkeypatch.setenv("SHMSTORE_ROOT", str(tmp_path / "from-environment"))
    assert Options().root_path == tmp_path / "from-environment"
    assert Options(root=tmp_path / "given").root_path == tmp_path / "given"
    monkeypatch.chdir(tmp_path)
    assert Options(root="relative").root_path == tmp_path / "relative"


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"on_full": "drop"}, "give one of raise, evict, spill"),
        ({"spill_dir": "/tmp/x"}, "only with on_full='spill'"),
        ({"ttl": 0}, "above 0"),
        ({"ttl": float("nan")}, "above 0"),
        ({"ttl": 1e12}, "up to"),
        ({"mode": 0o660}, "group=None"),
        ({"mode": 0o666, "group": 0}, "0o666"),
        ({"mode": 0o600, "group": 0}, "0o660"),
        ({"group": "no such group"}, "no group of this name"),
        ({"group": -1}, "from 0"),
    ],
)
def test_option_that_makes_no_sense_is_refused_with_its_value(options, wrong):
    """Each refusal names the option, the value and what to give."""
    with pytest.raises(ValueError, match=re.escape(wrong)) as caught:
        Options(**options)
    assert next(iter(options)) in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"ttl": "1"},
        {"ttl": True},
        {"group": 1.5},
        {"lock_timeout": "1"},
        {"lock_timeout": None},
        {"allowed_modules": 3},
        {"allowed_modules": "numpy"},
        {"allowed_modules": b"numpy"},
        {"allowed_modules": ["numpy", 3]},
    ],
)
def test_option_of_another_type_is_refused(options):
    """What is no number, no group, or no names is a TypeError that shows option and value."""
    [(name, value)] = options.items()
    with pytest.raises(TypeError, match=re.escape(f"{name}={value!r}: give")):
        Options(**options)


@pytest.mark.parametrize(("capacity", "error"), [("much", ValueError), (1.5, TypeError)])
def test_capacity_that_is_no_size_is_told_with_its_name(capacity, error):
    """Whoever passes many options sees which of them it is."""
    with pytest.raises(error, match=re.escape(f"capacity={capacity!r}")):
        Options(capacity=capacity)
