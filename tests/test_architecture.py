"""The tree shows the architecture, imports go one way, and the parts stay small."""

from __future__ import annotations

import ast
import importlib.util
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

_SPEC = importlib.util.find_spec("shmstore")
assert _SPEC is not None
assert _SPEC.origin is not None
PACKAGE = Path(_SPEC.origin).parent

# Which floor a module stands on; imports go to lower floors or stay on the same one.
FOOTING, CELLAR, GROUND, UPPER, ROOF = range(5)
GROUND_ROOMS = ("serialization", "_catalog", "_sharing")
ROOF_ROOMS = ("cli", "testing", "integrations", "__main__")

# Where a package may be imported: prefixes of module names below shmstore.
ROOMS_OF_PACKAGES = {
    "msgpack": ("serialization",),
    "cloudpickle": ("serialization",),
    "filelock": ("_sharing",),
    "psutil": ("_sharing.clients", "cli"),
    "rich": ("cli",),
    "pickle": ("serialization", "cli", "integrations.dask"),
    "mmap": ("_memory",),
    "ctypes": ("_memory.folder", "_memory.mapping", "_sharing.barrier"),
    "hashlib": ("_catalog.keys", "serialization.fingerprints", "serialization.markers"),
    # Slots write words that belong together in one step, and prove at import that they do.
    "struct": ("_memory.layout", "_catalog.inserts", "serialization"),
}
ANYWHERE = {"numpy"}
# Each is imported by one handler or codec, and only when an object or a caller needs it.
EXTRAS = {
    "cramjam": ("serialization.codecs",),
    "dask": ("integrations.dask",),
    "distributed": ("integrations.dask",),
    "h5py": ("serialization.handlers.h5py",),
    "joblib": ("integrations",),
    "lz4": ("serialization.codecs",),
    "matplotlib": ("cli",),
    "netCDF4": ("serialization.handlers.netcdf4",),
    "polars": ("serialization.handlers.polars",),
    "prometheus_client": ("integrations.prometheus",),
    "pyarrow": ("serialization.handlers",),
    "scipy": ("serialization.handlers.scipy",),
    "sparse": ("serialization.handlers.sparse",),
    "torch": ("serialization.handlers.torch",),
    "tornado": ("integrations.dask",),
    "zstandard": ("serialization.codecs",),
}
ROOMS_OF_PACKAGES.update(EXTRAS)
DEPENDENCIES = {"msgpack", "cloudpickle", "filelock", "psutil", "rich", "numpy", *EXTRAS}

MOST_LINES = 450
MOST_FUNCTION_LINES = 45
MOST_METHODS = 25


class Module(NamedTuple):
    """One source file: its name below shmstore, its text and its tree."""

    name: str
    text: str
    tree: ast.Module


class Import(NamedTuple):
    """One imported module, as far as it can be told without importing it."""

    target: str
    for_types: bool


def _name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _read_modules() -> dict[str, Module]:
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = _name_of(path)
        modules[name] = Module(name, text, ast.parse(text))
    return modules


MODULES = _read_modules()
IN_PACKAGES = sorted(name for name in MODULES if name)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _imports(node: ast.AST, *, for_types: bool = False) -> Iterator[Import]:
    """Walk all imports below a node, those inside functions too."""
    for child in ast.iter_child_nodes(node):
        types = for_types or _is_type_checking(child)
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, types) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            for alias in child.names:
                whole = f"{child.module}.{alias.name}"
                is_module = whole.removeprefix("shmstore.") in MODULES
                yield Import(whole if is_module else str(child.module), types)
        else:
            yield from _imports(child, for_types=types)


def _own_imports(module: Module) -> Iterator[Import]:
    """Walk the imports of modules of shmstore, by their names below it ("" is shmstore itself)."""
    for target, for_types in _imports(module.tree):
        if target == "shmstore" or target.startswith("shmstore."):
            yield Import(target.removeprefix("shmstore").removeprefix("."), for_types)


def _room(name: str) -> str:
    return name.partition(".")[0]


def _floor(name: str) -> int:
    room = _room(name)
    if room in ("errors", "_tuples"):
        return FOOTING
    if room == "_memory":
        return CELLAR
    if room in GROUND_ROOMS:
        return GROUND
    if room in ROOF_ROOMS or name == "":
        return ROOF
    return UPPER


# --- which way imports go ------------------------------------------------------------------------


def test_floors_every_module_stands_on_one() -> None:
    """A new room must be given its floor here before it can be built."""
    upper = {name for name in IN_PACKAGES if _floor(name) == UPPER}
    doors = {"aio", "tickets"}  # public, but no roof: they are built of the same parts as `Store`
    assert {name for name in upper if "." in name or not name.startswith("_")} == doors
    assert {_floor(name) for name in IN_PACKAGES} == {FOOTING, CELLAR, GROUND, UPPER, ROOF}


@pytest.mark.parametrize("name", IN_PACKAGES)
def test_imports_of_a_module_never_go_upward(name: str) -> None:
    """A module asks its own floor and those below it; types count as well."""
    upward = [i.target for i in _own_imports(MODULES[name]) if _floor(i.target) > _floor(name)]
    assert upward == []


@pytest.mark.parametrize("name", [n for n in IN_PACKAGES if _floor(n) == GROUND])
def test_ground_rooms_do_not_know_each_other(name: str) -> None:
    """serialization, _catalog and _sharing can be understood one by one."""
    others = set(GROUND_ROOMS) - {_room(name)}
    assert [i.target for i in _own_imports(MODULES[name]) if _room(i.target) in others] == []


@pytest.mark.parametrize("name", [n for n in IN_PACKAGES if _floor(n) == ROOF])
def test_roof_speaks_public_names_only(name: str) -> None:
    """What stands on the roof could be written by any user of the library."""
    foreign = {i.target for i in _own_imports(MODULES[name]) if _room(i.target) != _room(name)}
    assert foreign <= {"", "errors", "serialization", "tickets", *ROOF_ROOMS}
    private = re.findall(r"\b(?:shmstore|store|ref)\._[a-z]\w+", MODULES[name].text)
    assert private == []


def test_imports_form_no_circle() -> None:
    """Modules can be read in one order; what is imported only for types does not count."""
    arrows = {
        name: {i.target for i in _own_imports(module) if not i.for_types and i.target in MODULES}
        for name, module in MODULES.items()
    }
    while leaves := [name for name, targets in arrows.items() if not targets - {name}]:
        for leaf in leaves:
            del arrows[leaf]
        arrows = {name: targets - set(leaves) for name, targets in arrows.items()}
    assert arrows == {}


# --- which room a package has --------------------------------------------------------------------


@pytest.mark.parametrize("package", sorted(ROOMS_OF_PACKAGES))
def test_package_is_imported_in_its_rooms_only(package: str) -> None:
    """Whoever wants to replace a package finds it in one place; for types it may be named."""
    rooms = ROOMS_OF_PACKAGES[package]
    users = {
        name
        for name, module in MODULES.items()
        for target, for_types in _imports(module.tree)
        if _room(target) == package and not for_types
    }
    strangers = {
        user for user in users if not any(user == r or user.startswith(r + ".") for r in rooms)
    }
    assert strangers == set()


def test_third_party_packages_all_have_a_room() -> None:
    """A new dependency is a decision: it is entered here with its room."""
    targets = {_room(i.target) for m in MODULES.values() for i in _imports(m.tree)}
    foreign = targets - set(sys.stdlib_module_names) - {"shmstore"}
    assert foreign <= DEPENDENCIES
    assert foreign - ANYWHERE <= set(ROOMS_OF_PACKAGES)


# --- who knows numbers of the format -------------------------------------------------------------


def test_offsets_are_defined_in_layout_only() -> None:
    """Names of offsets and sizes of the format are assigned in one module."""
    pattern = re.compile(r"^(W|S|N|C|KIND|FLAG|NODE|SEAT)_[A-Z_]+$")
    found = [
        f"{name}: {target.id}"
        for name, module in MODULES.items()
        if name != "_memory.layout"
        for node in ast.walk(module.tree)
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and pattern.match(target.id)
    ]
    assert found == []


def _literals(node: ast.AST) -> Iterator[int]:
    """Walk the int literals of an index expression, but not those of calls inside it."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        yield node.value
    if not isinstance(node, (ast.Call, ast.Subscript)):
        for child in ast.iter_child_nodes(node):
            yield from _literals(child)


def test_words_are_reached_by_names_of_the_layout() -> None:
    """No offset is spelled as a number; 1 stands for "number + 1, 0: none"."""
    found = [
        f"{name}: {ast.unparse(node)}"
        for name, module in MODULES.items()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Subscript)
        and re.search(r"(^|\.|_)(words|cells)$", ast.unparse(node.value))
        and not set(_literals(node.slice)) <= {1}
    ]
    assert found == []


def test_slot_words_are_taken_apart_by_states_only() -> None:
    """Where generation and state lie in a slot word is known to one module."""
    pattern = r"& (?:np\.uint64\()?0xFF\b|(?:<<|>>) (?:np\.uint64\()?8\b"
    found = {
        name: re.findall(pattern, module.text)
        for name, module in MODULES.items()
        if _floor(name) in (GROUND, UPPER)
        and name != "_catalog.states"
        and _room(name) != "serialization"
    }
    assert {name: texts for name, texts in found.items() if texts} == {}


def test_slot_states_are_stored_by_those_who_ask_states() -> None:
    """Whoever stores a state word lets the transition table make it."""
    stores = [
        (name, ast.unparse(node))
        for name, module in MODULES.items()
        for node in ast.walk(module.tree)
        if isinstance(node, (ast.Assign, ast.AugAssign))
    ]
    pattern = re.compile(r"^[^=]*S_STATE[^=]*= (?!.*\bstates\.)")
    assert [(name, text) for name, text in stores if pattern.match(text)] == []


# --- sizes ---------------------------------------------------------------------------------------


class Function(NamedTuple):
    """A function and the lines that it has without its head and its docstring."""

    name: str
    lines: int


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


def _functions() -> list[Function]:
    return [
        Function(f"{name}.{node.name}", _body_lines(node))
        for name, module in MODULES.items()
        for node in ast.walk(module.tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def test_files_are_read_in_one_sitting() -> None:
    """A file that grows too long answers more than one question."""
    lengths = {name: len(module.text.splitlines()) for name, module in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}
    assert statistics.median(lengths.values()) <= 180


def test_functions_are_short() -> None:
    """Half of them are glimpses, nine of ten are a paragraph, none leaves the screen."""
    functions = _functions()
    lines = sorted(function.lines for function in functions)
    assert [f for f in functions if f.lines > MOST_FUNCTION_LINES] == []
    assert statistics.median(lines) <= 6
    assert lines[len(lines) * 9 // 10] <= 20


def test_classes_have_few_methods() -> None:
    """A class with many methods is two classes."""
    found: dict[str, int] = {}
    for name, module in MODULES.items():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
                found[f"{name}.{node.name}"] = len(methods)
    assert {name: count for name, count in found.items() if count > MOST_METHODS} == {}


# --- words ---------------------------------------------------------------------------------------


def test_modules_say_first_what_they_are_for() -> None:
    """Each file begins with its question or its purpose."""
    first_lines = {
        name: (ast.get_docstring(module.tree) or "").partition("\n")[0]
        for name, module in MODULES.items()
    }
    assert [n for n, line in first_lines.items() if not line.endswith((".", "?", ":", ")"))] == []
