"""What a store may be called: whatever cannot be taken for a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore._memory import folder


@pytest.mark.parametrize("name", ["a", "training", "A-Z_0.9", "x" * 64, "-", "_", "a.b"])
def test_name_of_allowed_characters_is_taken(name: str) -> None:
    """It comes back as it is."""
    assert folder.check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "/", "a b", "a\n", "a\0", "ü", "x" * 65, "~", "a\\b", "*"],
)
def test_name_that_could_be_a_path_is_refused_and_shown(name: str) -> None:
    """No name leads out of the root, is hidden or too long."""
    with pytest.raises(ValueError, match="1 to 64") as caught:
        folder.check_name(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [None, 3, b"bytes", Path("path")])
def test_name_of_another_type_is_a_type_error(name: Any) -> None:
    """The type is named."""
    with pytest.raises(TypeError, match=type(name).__name__):
        folder.check_name(name)


@settings(deadline=None)
@given(name=st.text())
def test_name_taken_is_always_one_plain_path_component(name: str) -> None:
    """Whatever text it is."""
    try:
        folder.check_name(name)
    except ValueError:
        return
    assert Path(name).parts == (name,)
    assert name.isascii()
    assert not name.startswith(".")


def test_random_names_are_good_names_and_differ() -> None:
    """A store without a name gets one of its own."""
    names = {folder.check_name(folder.random_name()) for _ in range(100)}
    assert len(names) == 100
