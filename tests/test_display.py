"""A notebook shows stores and what is told of them: compact, safe, and whatever their state is."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from stores import MIB, MakeStore, RunPython, StartPython

from shmstore import ObjectRef, Store, StoreFullError
from shmstore._memory import layout as L
from shmstore.serialization import explain, hypertext

# What must not come out as it went in.
HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"&'\n\x00\u202e$x$ `y`"

ALLOWED = ["div", "span", "strong", "table", "tr", "th", "td", "svg", "rect", "ol", "li"]
ATTRIBUTES = [
    *("class", "style", "role", "aria-label", "xmlns", "viewbox"),
    *("width", "height", "x", "rx", "fill", "fill-opacity"),
]


class Page(HTMLParser):
    """Reads HTML as a browser does, and fails for what has no place in it."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.patches: list[tuple[float, float]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at names and values."""
        assert tag in ALLOWED
        for name, value in attrs:
            assert name in ATTRIBUTES
            assert value is not None
            assert "url(" not in value
            assert name == "xmlns" or "://" not in value
        if tag == "rect":
            values = dict(attrs)
            self.patches.append((float(values.get("x") or 0), float(values["width"] or 0)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """As a tag that is closed at once."""
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        """Each tag is closed where it should be."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep the text, in which nothing changes lines or directions."""
        assert data.isprintable()
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        """There is none."""
        pytest.fail(f"a comment: {data}")


def shown(thing: Any) -> str:
    """Return the text that a notebook shows."""
    return " | ".join(Page(thing._repr_html_()).text)


@pytest.fixture
def locked_reads() -> bool:
    """How objects are read makes no difference here."""
    return False


# --- what is shown --------------------------------------------------------------------------------


def test_store_shows_its_largest_objects_and_what_is_used(store: Store) -> None:
    """Name, sizes, keys, types, and who looks at what."""
    store["labels"] = np.zeros(100_000)
    store["word"] = "small"
    for _ in range(9):
        store.put(np.zeros(10))
    view = store["labels"]
    text = shown(store)
    assert store.name in text
    assert "11 objects, 782 KiB of 4 MiB used, 1 process" in text
    assert "labels | numpy.ndarray | 781 KiB | 1 |" in text
    assert "looked at 781 KiB" in text
    assert "and 5 more" in text
    del view


def test_picture_shows_where_something_lies(store: Store) -> None:
    """An object in the second quarter, and nothing else."""
    refs = [store.put(np.zeros(MIB, np.uint8)) for _ in range(3)]
    store.delete_many([refs[0], refs[2]])
    store.stats()
    _, *patches = Page(store._repr_html_()).patches
    assert min(x for x, _ in patches) == pytest.approx(120, abs=3)
    assert max(x + width for x, width in patches) == pytest.approx(240, abs=3)


def test_empty_store_is_shown(store: Store) -> None:
    """Without a table."""
    assert "0 objects, 0 B of 4 MiB used" in shown(store)
    assert "<table" not in store._repr_html_()


def test_reference_shows_its_object(store: Store) -> None:
    """While it is there, and that it is not."""
    ref = store.put({"a": np.zeros(1000)}, key="batch/7")
    text = shown(ref)
    for said in (
        "ObjectRef",
        "'batch/7'",
        "dict",
        "KiB",
        "pickle, 2 frames",
        "in memory",
        "nobody",
    ):
        assert said in text
    store.delete(ref)
    assert "deleted or overwritten" in shown(ref)


def test_reference_of_a_store_that_is_not_open_does_not_attach_it(store: Store) -> None:
    """Looking at it opens nothing."""
    ref = store.put(1)
    path = str(store.path)
    foreign = ObjectRef(b"0" * 16, path, 0, 1, 5, "key")
    assert "not open in this process" in shown(foreign)
    assert len(store.clients()) == 1
    assert "int" in shown(ref)


def test_stats_report_and_metrics_are_shown(store: Store) -> None:
    """The numbers that they have, and the advice."""
    store["a"] = np.zeros(200_000)
    deleted = store.pop("a")
    with pytest.raises(StoreFullError):
        store["b"] = np.zeros(400_000)
    assert "capacity | 4 MiB" in shown(store.stats())
    assert "deleted 1.5 MiB" in shown(store.stats())
    report = shown(store.why_full(3_200_000))
    assert "deleted objects that are still looked at" in report
    assert "drop views in pid" in report
    metrics = shown(store.metrics())
    assert "puts | 1 | 1" in metrics
    assert "put_nbytes | 1.5 MiB" in metrics
    del deleted


def test_metrics_of_nothing_say_so(store: Store) -> None:
    """No empty table."""
    assert "nothing was done yet" in shown(store.metrics())


def test_explanation_is_shown() -> None:
    """With its parts; what cannot be serialized says why."""
    text = shown(explain({"data": np.zeros(1000), "name": "x"}))
    assert "out-of-band 7.8 KiB" in text
    assert "obj['data']" in text
    assert "cannot be serialized" in shown(explain({"lock": __import__("threading").Lock()}))


# --- what is hostile ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "show",
    [
        lambda store: store,
        lambda store: store.info(HOSTILE).ref,
        lambda store: store.why_full(),
        lambda _: explain({HOSTILE: np.zeros(1000)}),
    ],
    ids=["store", "reference", "report", "explanation"],
)
def test_hostile_names_are_shown_and_do_nothing(show: Callable[[Store], Any], store: Store) -> None:
    """Keys and names of classes come out as text."""
    name = HOSTILE.replace("\0", "")
    store["typed"] = type(name, (dict,), {"__qualname__": name, "__module__": name})()
    store[HOSTILE] = np.zeros(1000)
    assert store.info("typed").type == f"{name}.{name}"
    html = show(store)._repr_html_()
    Page(html)
    assert "<script" not in html
    assert "<img" not in html
    assert "\u202e" not in html
    assert "\x00" not in html


def test_text_is_cut_and_in_one_line() -> None:
    """However long it is."""
    assert len(hypertext.text("&" * 10_000)) <= 60 * len("&amp;") + 1
    assert "\n" not in hypertext.text("a\nb\r\x85\u2028")
    assert hypertext.text("\\") == "&#92;"


def test_html_is_small(store: Store) -> None:
    """Also of many objects: a notebook keeps it."""
    store.put_many({f"key {number}": np.zeros(number) for number in range(700)})
    assert len(store._repr_html_()) < 64_000


# --- what is closed, damaged or busy --------------------------------------------------------------


def test_closed_and_destroyed_stores_are_shown(make_store: MakeStore) -> None:
    """They say so, instead of raising."""
    store = make_store()
    ref = store.put(1)
    other = Store.attach(store.path)
    store.destroy()
    other.close()
    for thing in (store, other):
        assert "closed" in shown(thing)
    assert "not open in this process" in shown(ref)


@pytest.mark.parametrize("field", [L.S_STATE, L.S_EXTENT, L.S_KIND, L.S_OWNER, L.S_EXTENT_NBYTES])
@pytest.mark.parametrize("value", [0, 1, (1 << 64) - 1, 0x8181818181818181])
def test_damaged_store_is_shown(field: int, value: int, make_store: MakeStore) -> None:
    """Whatever its slots say."""
    store = make_store()
    ref = store.put(np.zeros(1000), key="a")
    session: Any = store._session
    at = session.slots.state_index(0) + field
    kept = session.words[at]
    session.words[at] = value
    shown(store)
    shown(ref)
    session.words[at] = kept


def test_store_whose_lock_is_held_is_shown(store: Store, start_python: StartPython) -> None:
    """Nothing that is shown waits for it."""
    ref = store.put(np.zeros(1000), key="a")
    other = start_python(
        """
        import shmstore
        store = shmstore.Store.attach(name)
        def hold():
            print("held", flush=True)
            input()
        input()
        store._session.lock.run(hold)
        """,
        name=store.name,
    )
    assert other.ask() == "held"
    assert "numpy.ndarray" in shown(store)
    assert "numpy.ndarray" in shown(ref)
    other.say()
    other.end()


def test_forms_are_not_loaded_before_they_are_shown(run_python: RunPython) -> None:
    """A program that shows nothing does not pay for them."""
    run_python(
        """
        import sys, shmstore
        with shmstore.Store.create(capacity="1MiB") as store:
            store.stats(), repr(store)
            assert "shmstore._display" not in sys.modules
            assert store._repr_html_().startswith("<div")
        """
    )


def test_regular_expression_finds_no_resource(store: Store) -> None:
    """No link, no script, nothing that is loaded."""
    html = store._repr_html_() + store.stats()._repr_html_()
    assert re.findall(r"(?:href|src|@import|url\(|<link|<style|<script)", html) == []
