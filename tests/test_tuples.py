"""Named tuples of the package are those of `typing.NamedTuple`, only quicker to define."""

from __future__ import annotations

import pickle
import typing

from shmstore._tuples import NamedTuple


class Ours(NamedTuple):
    """Two fields, one of them with a default."""

    number: int
    text: str | None = "none"

    @property
    def both(self) -> str:
        """Both of them."""
        return f"{self.number} {self.text}"

    @classmethod
    def zero(cls) -> Ours:
        """Return the first one."""
        return cls(0)


class Theirs(typing.NamedTuple):
    """Two fields, one of them with a default."""

    number: int
    text: str | None = "none"


def test_named_tuple_has_what_that_of_typing_has() -> None:
    """Fields, defaults, annotations, names and documentation are the same."""
    for name in ("_fields", "_field_defaults", "__doc__", "__module__"):
        assert getattr(Ours, name) == getattr(Theirs, name), name
    assert Ours.__mro__[1:] == Theirs.__mro__[1:]
    assert typing.get_type_hints(Ours) == typing.get_type_hints(Theirs)
    assert (Ours.__name__, Ours.__qualname__) == ("Ours", "Ours")


def test_named_tuple_behaves_as_a_tuple() -> None:
    """It is made by position and by name, compared, replaced, shown and pickled."""
    made = Ours(1, text="one")
    assert made == (1, "one") == Ours(2, "one")._replace(number=1)
    assert repr(made) == "Ours(number=1, text='one')"
    assert (made.both, Ours.zero()) == ("1 one", (0, "none"))
    copied = pickle.loads(pickle.dumps(made))
    assert type(copied) is Ours
    assert copied == made
