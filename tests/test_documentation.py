"""Does what the documentation shows work as it is shown, and is nothing missing from it?"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from pages import TOP, installed, own_root, read_blocks, run_page, run_program
from site_links import faults

import shmstore
import shmstore.aio
from shmstore import errors, serialization, testing
from shmstore._arguments import MAX_KEY_NBYTES
from shmstore._memory import layout as L
from shmstore._options import LONGEST_TTL_S

DOCS = TOP / "docs"
REFERENCE = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md"))
)


def _pages() -> list[Path]:
    """Return the pages that show code."""
    found = [TOP / "README.md", TOP / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]
    shown = ("python", "sh")
    return [
        path
        for path in found
        if any(block.language in shown for block in read_blocks(path.read_text(encoding="utf-8")))
    ]


def _name(path: Path) -> str:
    return str(path.relative_to(TOP).with_suffix(""))


# --- what runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", _pages(), ids=_name)
def test_code_of_a_page_works_when_pasted(page: Path, tmp_path: Path) -> None:
    """Each block runs, as `pages` says."""
    run_page(page.read_text(encoding="utf-8"), tmp_path)


def test_first_code_of_the_readme_gives_what_is_expected(tmp_path: Path) -> None:
    """The first thing that a newcomer does."""
    first = read_blocks((TOP / "README.md").read_text(encoding="utf-8"))
    program = next(block.code for block in first if block.language == "python")
    with own_root() as root:
        assert run_program(program, tmp_path, root) == "499999500000 {'cat': 0, 'dog': 1}\n"


@pytest.mark.parametrize("example", sorted((TOP / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    """Each example is a program of its own."""
    code = example.read_text(encoding="utf-8")
    missing = [
        name for name in re.findall(r"^from (\w+)", code, re.MULTILINE) if not installed(name)
    ]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    with own_root() as root:
        assert run_program(code, tmp_path, root)


def _modules() -> list[str]:
    found = pkgutil.walk_packages(shmstore.__path__, "shmstore.")
    return ["shmstore", *(module.name for module in found if not module.name.endswith("__main__"))]


@pytest.mark.parametrize("name", _modules())
def test_examples_in_docstrings_give_what_they_say(name: str) -> None:
    """Docstrings are run as doctests; those of a handler need its library."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if ".handlers." not in name and ".integrations." not in name:
            raise
        pytest.skip(f"{error.name} is not installed")
    assert doctest.testmod(module).failed == 0


def test_code_that_fails_is_found_out(tmp_path: Path) -> None:
    """Whatever way it is run, and whatever it leaves."""
    fence = "```"
    for how, code in (
        ("", "raise SystemExit(1)"),
        ("<!-- run: alone -->\n", "import sys; print('!', file=sys.stderr)"),
        ("<!-- run: terminal 1 -->\n", "unknown"),
        ("", "import shmstore; shmstore.Store.create(capacity=1, persist=True)"),
    ):
        with pytest.raises(AssertionError):
            run_page(f"{how}{fence}python\n{code}\n{fence}\n", tmp_path)
    run_page(f"<!-- run: needs no_such -->\n{fence}python\n1 / 0\n{fence}\n", tmp_path)


# --- what is there -------------------------------------------------------------------------------


def _documented() -> set[str]:
    """Return the names whose docstrings are part of the reference."""
    return set(re.findall(r"^::: (\S+)$", REFERENCE, re.MULTILINE))


@pytest.mark.parametrize(
    "module", [shmstore, shmstore.aio, serialization, testing], ids=lambda m: m.__name__
)
def test_public_names_are_all_in_the_reference(module: object) -> None:
    """By their docstrings."""
    public = {f"{module.__name__}.{name}" for name in module.__all__} - {"shmstore.__version__"}
    assert public - _documented() == set()


def test_methods_of_a_store_are_all_in_the_reference() -> None:
    """Each under a heading that says what it is for."""
    public = {f"shmstore.Store.{name}" for name in dir(shmstore.Store) if name[0] != "_"}
    assert public - _documented() == {"shmstore.Store.keys"}  # that of every mapping


def test_errors_all_say_what_to_do() -> None:
    """And are led by their own page."""
    page = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    parts = dict(
        re.findall(r"^::: shmstore\.(\w+)\n(.*?)(?=^:::|\Z)", page, re.DOTALL | re.MULTILINE)
    )
    assert set(parts) == set(errors.__all__)
    for name in set(errors.__all__) - {"ShmStoreError"}:
        assert "**What to do.**" in parts[name], name
        bases = {base.__name__ for base in getattr(errors, name).__bases__} - {"ShmStoreError"}
        row = next(line for line in page.splitlines() if line.startswith(f"| [`{name}`]"))
        assert bases == set(re.findall(r"`(\w+)`", row.split("|")[2])), name


def test_options_all_have_their_limit() -> None:
    """As the code has them."""
    page = (DOCS / "reference" / "limits.md").read_text(encoding="utf-8")
    for name in shmstore.Options.__annotations__:
        assert re.search(rf"^\| [^|]*`{name}`", page, re.MULTILINE), name
    for number in (L.MAX_OBJECTS, L.MAX_CLIENTS, MAX_KEY_NBYTES, LONGEST_TTL_S):
        assert f"{number:,}" in page
    assert f"{L.MAX_CAPACITY >> 40} TiB" in page
    assert f"{L.SLOT_NBYTES} bytes" in page


def test_examples_are_all_shown() -> None:
    """On one page, each under its name."""
    page = (DOCS / "reference" / "examples.md").read_text(encoding="utf-8")
    shown = re.findall(r"^<!-- include: examples/(\S+) -->$", page, re.MULTILINE)
    assert shown == sorted(path.name for path in (TOP / "examples").glob("*.py"))


def test_parts_of_the_house_are_all_on_its_page() -> None:
    """Each module and room of the package stands on one floor."""
    page = (DOCS / "explanation" / "design.md").read_text(encoding="utf-8")
    house = page.partition("## The house")[2].partition("\nImports go")[0]
    parts = {module.name for module in pkgutil.iter_modules(shmstore.__path__)} - {"__main__"}
    assert sorted(re.findall(r"`(\w+)`", house)) == sorted(parts)


def test_pages_are_all_in_the_navigation() -> None:
    """Each of them once, and none that is not there."""
    listed = re.findall(r": (\S+\.md)$", (TOP / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


# --- where links lead ----------------------------------------------------------------------------

_FENCED = re.compile(r"^( *)(`{3,}).*?^\1\2$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)|<img[^>]+src=\"([^\"]+)\"")
_NAME = re.compile(r"\]\[(shmstore\.[\w.]+)\]")
_INCLUDED = re.compile(r"^<!-- include: (\S+\.md) -->$", re.MULTILINE)


def _prose(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return re.sub(r"`[^`\n]*`", "``", _FENCED.sub("", text))


def _anchors(path: Path) -> set[str]:
    """Return what a link can lead to in a page: its headings, as they are named on the site."""
    text = _FENCED.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    found = {re.sub(r"[\s-]+", "-", heading) for heading in plain}
    for name in _INCLUDED.findall(text):
        found |= _anchors(TOP / name)
    return found


@pytest.mark.parametrize(
    "page",
    [*sorted(TOP.glob("*.md")), *sorted(DOCS.rglob("*.md"))],
    ids=_name,
)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    """To files and headings that are there, also when a page has moved."""
    text = _prose(page)
    for link in ("".join(found) for found in _LINK.findall(text)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(TOP), link
        assert not anchor or anchor in _anchors(target), link
    assert set(_NAME.findall(text)) <= _documented()


def test_broken_links_of_the_site_are_found_out(tmp_path: Path) -> None:
    """`make docs` looks at what it has built: where links lead, and what is loaded."""
    (tmp_path / "other.html").write_text('<h1 id="there">There</h1>')
    (tmp_path / "index.html").write_text(
        '<a href="other.html#there">1</a><a href="other.html#gone">2</a><a href="gone.html">3</a>'
        '<script src="https://example.org/x.js"></script><a href="https://example.org">4</a>'
    )
    assert list(faults(tmp_path)) == [
        "index.html loads https://example.org/x.js",
        "index.html: other.html#gone has no such heading",
        "index.html: gone.html leads nowhere",
    ]
