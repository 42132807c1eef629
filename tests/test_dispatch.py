"""Which handler serves a type: registered, inherited, or loaded when it is first needed?"""

from __future__ import annotations

import decimal
import fractions
import gc
import numbers
import weakref
from typing import Any

import numpy as np
import pytest
import rooms

from shmstore.serialization import (
    Dispatch,
    deserialize,
    serialize,
    typename,
)
from shmstore.serialization.dispatch import Loader


class Base:
    """A type with a handler."""


class Derived(Base):
    """A type without one."""


# --- dispatch -----------------------------------------------------------------------------------


@pytest.mark.row("S20")
def test_dispatch_walks_from_the_type_to_its_bases() -> None:
    """The nearest registered one serves; the arguments behind the first are passed on."""
    dispatch = Dispatch("walk")

    @dispatch.register((Base, int))
    def serve(*args: Any, **kwargs: Any) -> Any:
        return args[1:], kwargs

    assert dispatch(Derived(), 1, a=2) == ((1,), {"a": 2})
    flag = True
    assert dispatch(flag) == ((), {})
    assert dispatch.dispatch(Derived) is serve
    dispatch.register(Derived, repr)
    assert dispatch.dispatch(Derived) is repr
    assert dispatch.dispatch(Base) is serve


@pytest.mark.row("S20")
def test_dispatch_without_a_handler_is_a_type_error() -> None:
    """It names the type and the dispatch."""
    dispatch = Dispatch("nothing")
    with pytest.raises(TypeError, match=r"No dispatch for test_dispatch\.Base in nothing"):
        dispatch(Base())
    assert dispatch.find(Base) is None


@pytest.mark.row("S20")
def test_dispatch_does_not_ask_abstract_classes_about_strangers() -> None:
    """A virtual subclass has no such base in its order."""
    dispatch = Dispatch("virtual")
    dispatch.register(numbers.Number, repr)
    assert isinstance(decimal.Decimal(1), numbers.Number)
    assert dispatch.find(decimal.Decimal) is None


@pytest.mark.row("S20")
def test_dispatch_has_the_docstring_of_its_handler_for_object() -> None:
    """It explains what the dispatch does."""
    dispatch = Dispatch("documented")

    @dispatch.register(object)
    def serve(_: Any) -> None:
        """Serve anything."""

    assert dispatch.__doc__ == "Serve anything."
    assert dispatch(3) is None


@pytest.mark.row("S21")
def test_lazy_handlers_are_loaded_when_their_library_appears() -> None:
    """By type, by subclass or by name, once, and not for other libraries."""
    for appear in (
        lambda d: d.dispatch(decimal.Decimal),
        lambda d: d.dispatch(type("Money", (decimal.Decimal,), {})),
        lambda d: d.type_of("decimal.Decimal"),
    ):
        dispatch = Dispatch("lazy")
        loaded: list[int] = []

        @dispatch.register_lazy("decimal")
        def load(dispatch: Any = dispatch, loaded: Any = loaded) -> None:
            loaded.append(1)
            dispatch.register(decimal.Decimal, str)

        assert dispatch.find(fractions.Fraction) is None
        assert dispatch.type_of("fractions.Fraction") is None
        assert loaded == []
        appear(dispatch)
        assert dispatch.dispatch(decimal.Decimal) is str
        assert loaded == [1]


@pytest.mark.row("S21")
def test_loader_that_several_dispatches_share_is_called_once() -> None:
    """Not by itself while it runs, and not again after it has succeeded."""
    calls = []
    dispatches = [Dispatch(name) for name in "abc"]

    def load() -> None:
        calls.append(1)
        for dispatch in dispatches:
            assert dispatch.find(decimal.Decimal) is None
            dispatch.register(decimal.Decimal, str)

    loader = Loader(load)
    for dispatch in dispatches:
        dispatch.register_lazy("decimal", loader)
    assert [dispatch.find(decimal.Decimal) for dispatch in dispatches] == [str, str, str]
    assert calls == [1]


@pytest.mark.row("S21")
def test_lazy_handlers_that_fail_to_load_are_asked_again() -> None:
    """An import that failed once is not forgotten."""
    dispatch = Dispatch("test")
    tries = []

    def load() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ImportError("not yet")
        dispatch.register(decimal.Decimal, str)

    dispatch.register_lazy("decimal", load)
    with pytest.raises(ImportError):
        dispatch.dispatch(decimal.Decimal)
    assert dispatch.dispatch(decimal.Decimal) is str


@pytest.mark.row("S21", "F31")
def test_lazy_handlers_are_asked_before_registered_bases() -> None:
    """A library knows its own types better than what serves any number."""
    dispatch = Dispatch("order")
    dispatch.register(decimal.Decimal.__mro__[1], repr)
    dispatch.register_lazy("decimal", lambda: dispatch.register(decimal.Decimal, str))
    assert dispatch.dispatch(decimal.Decimal) is str


@pytest.mark.row("S21")
def test_lazy_handlers_overlook_a_class_whose_module_is_no_text() -> None:
    """Any object may stand there."""
    dispatch = Dispatch("odd")
    dispatch.register_lazy("odd", lambda: 1 // 0)
    dispatch.register(Base, str)
    odd = type("Odd", (Base,), {"__module__": 3})
    assert dispatch.dispatch(odd) is str
    assert deserialize(*serialize([odd.__name__])) == ["Odd"]


@pytest.mark.row("S22", "F31")
def test_handler_registered_after_a_look_is_found() -> None:
    """For the type, and for subclasses that were looked up before."""
    dispatch = Dispatch("late")
    assert dispatch.find(Derived) is None
    dispatch.register(Base, str)
    assert dispatch.find(Derived) is str
    dispatch.register(Base, repr)
    assert dispatch.find(Derived) is repr
    dispatch.register_lazy(__name__, lambda: dispatch.register(Derived, ascii))
    assert dispatch.find(Derived) is ascii


@pytest.mark.row("S20", "S22")
def test_types_that_were_looked_up_may_be_collected() -> None:
    """A program that makes types for ever does not keep all of them."""
    dispatch = Dispatch("many")
    first = weakref.ref(type("First", (), {}))
    dispatch.find(first())  # type: ignore[arg-type]
    for number in range(5000):
        dispatch.find(type(f"T{number}", (), {}))
    gc.collect()
    assert first() is None


@pytest.mark.row("F05")
def test_handler_serves_its_type_alone_unless_it_says_otherwise() -> None:
    """A subclass would lose what it adds."""
    dispatch = Dispatch("test", exact=True)
    dispatch.register(Base, print)
    assert dispatch.find(Base) is print
    assert dispatch.find(Derived) is None
    dispatch.register(Base, repr, subclasses=True)
    assert dispatch.find(Derived) is repr
    dispatch.register(Derived, str)
    assert dispatch.find(Derived) is str
    assert dispatch.find(Base) is repr
    assert dispatch.type_of(f"{__name__}.Derived") is Derived
    assert dispatch.type_of("nowhere.Thing") is None


# --- names --------------------------------------------------------------------------------------


@pytest.mark.row("S28")
def test_type_name_is_qualified_but_for_builtins() -> None:
    """As the header of an object names its class; of an object it is that of its type."""
    assert typename(dict) == "dict"
    assert typename(np.ndarray) == "numpy.ndarray"
    assert typename(np.zeros(1)) == "numpy.ndarray"
    assert typename(Base) == f"{__name__}.Base"
    assert typename(rooms.Path, short=True) == "pathlib.Path"
    assert typename(np.ma.MaskedArray, short=True) == "numpy.MaskedArray"
    assert typename(type("Odd", (), {"__module__": 3})) == "Odd"
    assert typename(Base.__init__) == "wrapper_descriptor"


@pytest.mark.row("S28")
def test_type_name_of_a_nested_class_tells_its_way() -> None:
    """Two classes of one name in two others are not mixed up."""
    assert typename(Outer.Inner) == f"{__name__}.Outer.Inner"


class Outer:
    """Holds a class."""

    class Inner:
        """Held."""
