"""Memory or room that runs out inside of a handler is no fault of the object: the caller learns."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rooms
from family_helpers import own_handlers
from stores import used

from shmstore import Store, StoreFullError
from shmstore.serialization import (
    deserialize,
    register_serialization,
    serialize,
    serialize_parts,
)
from shmstore.serialization.frames import Planned

LARGE = 1 << 20


class Spilling:
    """Its handler needs room elsewhere."""

    def __init__(self, act: Callable[[], Any], nbytes: int = 4) -> None:
        self.act = act
        self.nbytes = nbytes


class Outer:
    """Its handler has a part."""

    def __init__(self, part: Any) -> None:
        self.part = part


def act_at_once(x: Spilling) -> Any:
    """Act while the header is made."""
    x.act()
    return {}, []


def act_at_the_destination(x: Spilling) -> Any:
    """Act while the bytes are made."""
    return {}, [Planned(x.nbytes, lambda _: x.act())]


@pytest.fixture(params=[act_at_once, act_at_the_destination], ids=["header", "bytes"])
def handlers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Register the handlers, one that acts at once or one that acts when the bytes are made."""
    with own_handlers():
        register_serialization(Spilling, request.param, lambda *_: None)
        register_serialization(
            Outer,
            lambda x, context: serialize_parts({"part": x.part}, context),
            lambda *_: None,
        )
        yield


def raiser(error: BaseException) -> Callable[[], Any]:
    """Return a function that raises."""

    def act() -> None:
        raise error

    return act


def raised(call: Callable[[], Any]) -> BaseException | None:
    """Return what a call raises, without its traceback, which keeps views alive."""
    try:
        call()
    except Exception as error:
        return error.with_traceback(None)
    return None


def filler(folder: Path) -> Callable[[], Any]:
    """Return a function that writes a file until the file system is full."""

    def act() -> None:
        with (folder / "spilled").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    return act


PLACES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda x: x,
    "in a list": lambda x: [np.zeros(3), x],
    "in a part": Outer,
    "in a part of a part": lambda x: Outer([Outer(x)]),
}


@pytest.mark.row("F18", "S38")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("nbytes", [4, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "error", [MemoryError("m"), OSError(errno.ENOSPC, "full"), OSError(errno.EMFILE, "files")]
)
def test_shortage_inside_of_a_handler_reaches_who_puts(
    store: Store, handlers: None, place: str, nbytes: int, error: Exception
) -> None:
    """The very exception, wherever the object lies; the store is as it was."""
    kept = store.put(np.arange(10), key="k")
    before = used(store)
    x = PLACES[place](Spilling(raiser(error), nbytes))
    for key in (None, "k", "other"):
        assert raised(lambda: store.put(x, key=key)) is error  # noqa: B023 - called at once
    assert raised(lambda: store.put_many([1, x])) is error
    assert used(store) == before
    assert list(store) == ["k"]
    assert kept.get().tolist() == list(range(10))
    for on_error in ("raise", "message"):
        assert raised(lambda: serialize(x, on_error=on_error)) is error  # noqa: B023 - as above


@pytest.mark.row("F18")
@pytest.mark.parametrize("place", PLACES)
def test_file_system_that_is_really_full_inside_of_a_handler_is_told(
    store: Store, handlers: None, place: str
) -> None:
    """By the error of the system; it is not the store that is full."""
    with rooms.small_file_system(64 << 10) as folder:
        with pytest.raises(OSError, match="No space left") as caught:
            store.put(PLACES[place](Spilling(filler(folder))))
        assert caught.value.errno == errno.ENOSPC
        assert not isinstance(caught.value, StoreFullError)
    assert used(store) == 0


@pytest.mark.row("F18")
@pytest.mark.parametrize("place", PLACES)
def test_memory_that_is_really_not_there_inside_of_a_handler_is_told(
    store: Store, handlers: None, place: str
) -> None:
    """As a MemoryError, of which that of NumPy is one."""
    with pytest.raises(MemoryError) as caught:
        store.put(PLACES[place](Spilling(lambda: np.empty(1 << 60, np.uint8))))
    assert not isinstance(caught.value, StoreFullError)
    assert used(store) == 0


@pytest.mark.row("F18")
@pytest.mark.parametrize("error", [MemoryError("m"), OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("place", ["alone", "in a list"])
def test_shortage_while_reading_reaches_who_gets(
    store: Store, error: Exception, place: str
) -> None:
    """It says nothing about the object; the next try may work."""
    tries = []

    def load(*_: Any) -> Any:
        tries.append(1)
        if len(tries) % 2:
            raise error
        return "there"

    with own_handlers():
        register_serialization(Spilling, lambda _: ({}, []), load)
        x = Spilling(print) if place == "alone" else [Spilling(print)]
        header, frames = serialize(x, on_error="raise")
        ref = store.put(x)
        for read in (lambda: deserialize(header, frames), ref.get):
            assert raised(read) is error
            assert read() == ("there" if place == "alone" else ["there"])
