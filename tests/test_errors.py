"""The errors: what they derive from, what they carry, and that they travel."""

from __future__ import annotations

import copy
import inspect
import pickle
import traceback

import pytest

import shmstore
from shmstore import errors

STANDARD_CLASSES = {
    "StoreNotFoundError": FileNotFoundError,
    "StoreExistsError": FileExistsError,
    "NotAStoreError": ValueError,
    "FormatVersionError": ValueError,
    "UnsafePathError": PermissionError,
    "StoreFullError": MemoryError,
    "ObjectTooLargeError": ValueError,
    "KeyExistsError": KeyError,
    "SerializationError": TypeError,
    "ObjectNotFoundError": KeyError,
    "DeserializationError": ValueError,
    "CorruptHeaderError": ValueError,
    "FamilyRefusedError": TypeError,
    "ModuleRefusedError": RuntimeError,
    "CodecNotFoundError": KeyError,
    "WaitTimeoutError": TimeoutError,
    "ChangesLostError": BufferError,
    "LockTimeoutError": TimeoutError,
    "ProcessLimitError": OSError,
    "StoreClosedError": ValueError,
    "ReadOnlyStoreError": PermissionError,
    "CorruptStoreError": RuntimeError,
}
EVERY_ERROR = [*STANDARD_CLASSES, "ShmStoreError"]
FACTS = {"asked": 10, "free": 3, "path": "/somewhere", "pinned_by": ("pid 1 (init)",), "key": None}


@pytest.mark.parametrize("name", STANDARD_CLASSES)
def test_error_is_caught_by_the_clause_that_users_write(name: str) -> None:
    """Each error is one of ours and one of the standard library's."""
    cls = getattr(errors, name)
    with pytest.raises(STANDARD_CLASSES[name]):
        raise cls("what was wrong")
    assert issubclass(cls, errors.ShmStoreError)


def test_errors_are_all_known_public_and_listed() -> None:
    """No error can be added without a place in this file and on the street."""
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert defined == set(EVERY_ERROR) == set(errors.__all__)
    assert {name for name in defined if getattr(shmstore, name, None) is None} == set()
    assert defined <= set(shmstore.__all__)


@pytest.mark.parametrize("name", EVERY_ERROR)
def test_error_message_is_shown_as_it_was_written(name: str) -> None:
    """Also where the standard class would quote it (KeyError) or add a number (OSError)."""
    error = getattr(errors, name)("no object has the key 'x'. Put it first.", key="x")
    assert str(error) == "no object has the key 'x'. Put it first."
    last_line = traceback.format_exception_only(error)[-1].strip()
    assert last_line == f"shmstore.errors.{name}: no object has the key 'x'. Put it first."


@pytest.mark.parametrize("name", EVERY_ERROR)
def test_error_facts_are_attributes(name: str) -> None:
    """A program can ask for numbers instead of reading the message."""
    error = getattr(errors, name)("no room", **FACTS)
    assert {fact: getattr(error, fact) for fact in FACTS} == FACTS
    assert error.facts == FACTS


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", EVERY_ERROR)
def test_error_pickled_comes_back_with_its_facts(name: str, protocol: int) -> None:
    """Process pools send errors home."""
    error = getattr(errors, name)("no room", **FACTS)
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is type(error)
    assert str(back) == "no room"
    assert {fact: getattr(back, fact) for fact in FACTS} == FACTS


@pytest.mark.parametrize("name", EVERY_ERROR)
def test_error_with_a_note_keeps_it_when_pickled_or_copied(name: str) -> None:
    """Notes are part of what the user is told."""
    error = getattr(errors, name)("no room", asked=1)
    error.add_note("while putting 'labels'")
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert back.__notes__ == ["while putting 'labels'"]
        assert back.asked == 1
