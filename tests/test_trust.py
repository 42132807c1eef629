"""What may reading do: which enums are built, which modules are imported, which families run?"""

from __future__ import annotations

import enum
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import rooms
from family_helpers import own_handlers, same
from roundtrips import SAFE

from shmstore import Store
from shmstore.errors import (
    DeserializationError,
    FamilyRefusedError,
    ModuleRefusedError,
)
from shmstore.serialization import (
    allowed_modules,
    deserialize,
    deserialize_parts,
    import_allowed_module,
    pickling,
    register_serialization,
    serialize,
    serialize_parts,
)
from shmstore.serialization.msgpacking import EXT_ENUM, packb

GIB = 1 << 30


class Colour(enum.Enum):
    """Its members have values of several types, and an alias."""

    RED = 1
    GREEN = "g"
    BLUE = (1, 2)
    CRIMSON = 1  # noqa: PIE796 - an alias is meant


class Number(enum.IntEnum):
    """Its members are ints."""

    ONE = 1


class Word(enum.StrEnum):
    """Its members are text."""

    YES = "yes"


class Access(enum.Flag):
    """Its members can be combined."""

    READ = 1
    WRITE = 2


class Mode(enum.IntFlag):
    """Its members can be combined, also with bits that have no name."""

    A = 1
    B = 2


class Outer:
    """Holds an enum."""

    class Inner(enum.Enum):
        """Held."""

        X = 1


class NotAnEnum:
    """A class that a header could name instead of one."""

    X = 1

    def __init__(self, *_: Any) -> None:
        pytest.fail("a header made an object of a class that is no enum")


MEMBERS = [
    Colour.RED,
    Colour.GREEN,
    Colour.BLUE,
    Colour.CRIMSON,
    Number.ONE,
    Word.YES,
    Access.READ,
    Access.READ | Access.WRITE,
    Access(0),
    Mode.A | Mode.B,
    Mode(0),
    Mode(8),
    Outer.Inner.X,
]


class Text(str):
    """A subclass of text."""

    __slots__ = ()


@pytest.fixture
def allowed() -> Iterator[set[str]]:
    """Give the allowed modules, this one among them; they are as before afterwards."""
    before = set(allowed_modules)
    allowed_modules.add(__name__)
    yield allowed_modules
    allowed_modules.clear()
    allowed_modules.update(before)


def travel(x: Any) -> Any:
    """Serialize by the family and back, over bytes."""
    header, frames = serialize(x, ["msgpack"], on_error="raise")
    return deserialize(header, [bytes(frame) for frame in frames], ("msgpack",))


# --- enums --------------------------------------------------------------------------------------


@pytest.mark.row("S54", "S55", "F13")
@pytest.mark.parametrize("member", MEMBERS, ids=repr)
def test_enum_member_comes_back_as_itself(member: Any, allowed: set[str]) -> None:
    """Of each kind, as value, element and key; also combined, aliased, and of a nested class."""
    for x in (member, [member], (1, member), {member: member}, {(member,): 1}, {member}):
        back = travel(x)
        assert same(back, x)
    assert travel([member])[0] is member or member not in list(type(member))
    header, frames = serialize({member: 1}, ["custom", "msgpack"], on_error="raise")
    assert same(deserialize(header, frames), {member: 1})


@pytest.mark.row("S54", "S57")
@pytest.mark.parametrize("member", MEMBERS, ids=repr)
def test_enum_member_of_a_module_that_is_not_allowed_is_refused(member: Any) -> None:
    """The error says which setting would allow it."""
    header, frames = serialize([member], ["msgpack"], on_error="raise")
    with pytest.raises(ModuleRefusedError, match=f"{__name__}.*allowed_modules") as caught:
        deserialize(header, frames)
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.row("S58", "F32")
@pytest.mark.parametrize(
    "description",
    [
        [__name__, "NotAnEnum", "X", None],
        [__name__, "NotAnEnum", None, 1],
        [__name__, "Outer", "Inner", None],
        [__name__, "pytest", "X", None],
        [__name__, "nothing", "X", None],
        [__name__, "Colour.RED", "X", None],
        [__name__, "", "X", None],
        [__name__, "__builtins__", "X", None],
        [__name__, None, "X", None],
        [__name__, "Colour", "PINK", None],
        [__name__, "Colour", "mro", None],
        [__name__, "Colour", None, 77],
        [__name__, "Colour", None, None],
        [__name__, "Colour", 1, None],
        [__name__, "enum.Enum", None, "X"],
        [__name__, "Colour", "RED"],
        [__name__],
        "Colour",
        None,
    ],
    ids=repr,
)
def test_enum_that_is_none_is_refused(description: Any, allowed: set[str]) -> None:
    """After the import it must be an enum, and the member one of its own."""
    packed = msgpack.packb(msgpack.ExtType(EXT_ENUM, packb(description)))
    with pytest.raises(DeserializationError):
        deserialize({"serializer": "msgpack"}, [packed])


# --- the guard ----------------------------------------------------------------------------------


@pytest.mark.row("S57", "F32")
@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        ".os",
        "..shmstore",
        "os",
        "os.path",
        "shmstorex",
        "xshmstore",
        "shm\u0455tore",
        "shmstore\u200b",
        "\uff53hmstore",
        "shmstore ",
        " shmstore",
        "shmstore\0",
        "shmstore/errors",
        "shmstore.",
        "shmstore..errors",
        "shmstore.nothing",
        "shmstore.errors.nothing",
        None,
        3,
        b"shmstore",
        ("shmstore",),
        Text("shmstore"),
    ],
    ids=ascii,
)
def test_module_that_is_not_allowed_or_not_there_is_one_error(
    name: Any, allowed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with the name; neither "" nor odd letters in the list grant anything."""
    for odd in ("", "shm\u0455tore", "\uff53hmstore"):
        allowed.add(odd)
        monkeypatch.setitem(sys.modules, odd, types.ModuleType("odd"))
    with pytest.raises(ModuleRefusedError) as caught:
        import_allowed_module(name)
    assert isinstance(caught.value, DeserializationError)
    assert caught.value.facts["module"] == name


@pytest.mark.row("S57", "F32")
def test_module_allowed_before_is_refused_once_the_list_has_shrunk(allowed: set[str]) -> None:
    """Imported or not: the list is looked at anew each time."""
    allowed.add("json")
    assert import_allowed_module("json").__name__ == "json"
    assert import_allowed_module("json.tool").__name__ == "json.tool"
    allowed.discard("json")
    for name in ("json", "json.tool"):
        with pytest.raises(ModuleRefusedError, match="allowed: test_trust"):
            import_allowed_module(name)


@pytest.mark.row("S57", "S58")
def test_module_of_a_store_option_takes_the_place_of_the_general_list(
    tmp_path: Path, root: Path
) -> None:
    """Each reader chooses; reading imports nothing but what it chose."""
    (tmp_path / "colours_of_a_test.py").write_text(
        "import enum\nclass Colour(enum.Enum):\n    RED = 1\n"
    )
    put = """
import sys, shmstore
sys.path.insert(0, sys.argv[1])
import colours_of_a_test
store = shmstore.Store.attach(sys.argv[2])
store.put([colours_of_a_test.Colour.RED], key="k", serializers=["msgpack"])
"""
    got = """
import sys, shmstore
sys.path.insert(0, sys.argv[1])
for modules in (None, ["numpy"], ["colours_of_a_test"]):
    store = shmstore.Store.attach(sys.argv[2], allowed_modules=modules)
    try:
        print(store["k"], end=" ")
    except shmstore.ModuleRefusedError:
        print("refused", "colours_of_a_test" in sys.modules, end=" ")
    store.close()
"""
    with Store.create(capacity="1MiB") as store:
        rooms.run_python(put, tmp_path, store.path)
        found = rooms.run_python(got, tmp_path, store.path)
    assert found == "refused False refused False [<Colour.RED: 1>] "


# --- without pickle -----------------------------------------------------------------------------


class Bomb:
    """An object whose unpickling is noticed."""

    def __reduce__(self) -> Any:
        """Return a call that a reader must not make."""
        return print, ("unpickled",)


class Holder:
    """Holds something in these tests by a handler with parts."""

    def __init__(self, part: Any) -> None:
        self.part = part


def serialize_holder(x: Holder) -> Any:
    """Return the content as a part."""
    headers, frames = serialize_parts({"part": x.part})
    return {"parts": headers}, frames


def deserialize_holder(header: Any, frames: Any) -> Holder:
    """Return a holder of the part."""
    return Holder(deserialize_parts(header["parts"], frames)["part"])


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every way to unpickle fail the test."""

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("something was unpickled")

    for name in ("loads", "load", "Unpickler", "_Unpickler", "_loads"):
        monkeypatch.setattr(pickle, name, fail)
    monkeypatch.setattr(pickling, "loads", fail)
    monkeypatch.setattr(pickling, "_ThawingUnpickler", fail)


SAFE_OBJECTS = {
    "array": np.arange(3),
    "records": np.zeros(2, [("a", "i4"), ("b", "S3", (2,))]),
    "bytes": b"abc",
    "view": memoryview(b"abc"),
    "masked": np.ma.MaskedArray([1, 2], [True, False], fill_value=7),
    "container": {"a": [np.zeros(2), (1, b"x", {2})]},
    "holder": Holder(np.zeros(2)),
    "text": np.array(["some", None, "text"] * 10_000, object),
}
UNSAFE_OBJECTS = {
    "bomb": Bomb(),
    "bomb in a list": [np.zeros(1), Bomb()],
    "bomb in an array": np.array([Bomb(), None], object),
    "bomb in a part": Holder(Bomb()),
    "bomb in a part of a part": Holder(Holder([Bomb()])),
    "bomb in a masked array": np.ma.MaskedArray(np.array([Bomb()], object), [True]),
}


@pytest.mark.row("F43", "S06", "S98")
@pytest.mark.parametrize("mode", ["shared", "private", "copy"])
@pytest.mark.parametrize(
    "name",
    SAFE_OBJECTS,
)
def test_object_put_without_pickle_is_read_without(
    store: Store, name: str, mode: str, no_pickle: None
) -> None:
    """By those who accept "custom" and "msgpack" only; nothing is unpickled on the way."""
    with own_handlers():
        register_serialization(Holder, serialize_holder, deserialize_holder)
        x = SAFE_OBJECTS[name]
        ref = store.put(x, serializers=SAFE)
        found = ref.get(mode=mode, deserializers=SAFE)
        assert type(found) is type(x)
        del found
        header, frames = serialize(x, SAFE, on_error="raise")
        deserialize(header, frames, SAFE)


@pytest.mark.row("F43", "S06", "S90")
@pytest.mark.parametrize("name", UNSAFE_OBJECTS)
@pytest.mark.parametrize("iterate", [True, None])
def test_object_with_a_pickle_anywhere_is_refused_before_it_is_read(
    name: str, no_pickle: None, *, iterate: Any
) -> None:
    """In elements, parts, and parts of parts."""
    with own_handlers():
        register_serialization(Holder, serialize_holder, deserialize_holder)
        header, frames = serialize(
            UNSAFE_OBJECTS[name], on_error="raise", iterate_collection=iterate
        )
        with pytest.raises(FamilyRefusedError):
            deserialize(header, frames, SAFE)


@pytest.mark.row("F43")
def test_object_of_whom_one_trusts_runs_what_its_pickle_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """That is what trust means here: by default everything is accepted."""
    deserialize(*serialize([Bomb()]))
    assert capsys.readouterr().out == "unpickled\n"
