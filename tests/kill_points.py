"""Where does shmstore change what others see, and how is a process killed exactly there?

A kill point is a place in the code that changes shared state: a store into mapped memory, or a call
that makes, fills, cuts, renames, removes, locks or unlocks a file. `install` lets shmstore be
imported with a look at each of these places; the statements are the same, so what runs is the code
that users run. The points are found by reading the code, not listed by hand, and are named by
module, function, and place in the function: ``slots.Slots.publish:3``.

A process that is armed with a point and a number n kills itself before the n-th time that it does
what stands there. Where one call changes much (several words, a range of bytes, a range of pages),
there is a second point, ``slots.Slots.publish:3~``: half of it is done.

That no change is missed is watched as well: a store into shared memory that is no point, and a
change of files outside of the calls that are points, are kept in `unlisted`.
"""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import importlib.util
import mmap
import operator
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

import numpy as np

PACKAGE: Final = "shmstore"

# What serializes, and what only shows, has nothing to do with shared state.
_ELSEWHERE: Final = ("serialization", "cli", "integrations", "testing")

# The last names of what is stored into, where that lies in shared memory.
_STORED_INTO = """
    words _words bytes _bytes cells _cells pins times table memory seat column columns nodes rows
    target heads counted told
"""
_SHARED: Final = frozenset(_STORED_INTO.split())

# Calls that change what others see: of `os`, and of anything.
_OF_OS = """
    chmod chown close fchmod fchown ftruncate link mkdir mkfifo open posix_fallocate preadv pwrite
    pwritev remove rename replace rmdir setxattr symlink truncate unlink write
"""
_OF_ANY = """
    _close copyto fallocate lock_descriptor madvise open_descriptor pack_into _renameat2 rmdir
    unlink unlock_descriptor write_into
"""
_OS_CALLS: Final = frozenset(_OF_OS.split())
_CALLS: Final = frozenset(_OF_ANY.split())

# What Python itself reports of changes of files, see the table of audit events.
_REPORTED = """
    os.chmod os.chown os.link os.mkdir os.remove os.rename os.rmdir os.symlink os.truncate
"""
_AUDITED: Final = frozenset(_REPORTED.split())

# Deaths before and after all that counts.
BEGIN: Final = "begin"
END: Final = "end"


# --- which points there are -----------------------------------------------------------------------


class _Finder(ast.NodeTransformer):
    """Puts a look at each point of a module.

    Parameters
    ----------
    module
        How the names of its points begin.
    """

    def __init__(self, module: str) -> None:
        self.places = [module]
        self.counts: Counter[str] = Counter()
        self.points: dict[str, str] = {}

    def _named(self, node: ast.AST) -> ast.Constant:
        place = ".".join(self.places)
        self.counts[place] += 1
        name = f"{place}:{self.counts[place]}"
        self.points[name] = ast.unparse(node)
        return ast.Constant(name)

    def _inside(self, node: ast.AST) -> ast.AST:
        self.places.append(node.name)  # type: ignore[attr-defined]
        node = self.generic_visit(node)
        self.places.pop()
        return node

    visit_FunctionDef = visit_ClassDef = visit_AsyncFunctionDef = _inside  # noqa: N815

    def visit_Assign(self, node: ast.Assign) -> Any:
        """Split a chain of targets, or a tuple of them: each store is a step of its own."""
        parts = [part for target in node.targets for part in _parts(target)]
        if not any(isinstance(part, ast.Subscript) for part in parts):
            return self.generic_visit(node)
        value = self.visit(node.value)
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Subscript):
            return self._store(node, node.targets[0], value)
        kept = ast.Name("_value_of_the_chain", ast.Load())
        steps: list[ast.stmt] = [ast.Assign([ast.Name(kept.id, ast.Store())], value)]
        for target in node.targets:
            for at, part in enumerate(_parts(target)):
                whole = part is target
                one = kept if whole else ast.Subscript(kept, ast.Constant(at), ast.Load())
                if isinstance(part, ast.Subscript):
                    steps.append(self._store(node, part, one))
                else:
                    steps.append(ast.Assign([part], one))
        steps.append(ast.Delete([ast.Name(kept.id, ast.Del())]))
        return [ast.fix_missing_locations(ast.copy_location(step, node)) for step in steps]

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        """Make ``words[at] += 1`` a load and a store."""
        if not isinstance(node.target, ast.Subscript):
            return self.generic_visit(node)
        old = ast.Subscript(node.target.value, node.target.slice, ast.Load())
        return self._store(node, node.target, ast.BinOp(old, node.op, self.visit(node.value)))

    def _store(self, node: ast.stmt, target: ast.expr, value: ast.expr) -> ast.stmt:
        assert isinstance(target, ast.Subscript)
        shared = _may_be_shared(target.value)
        name = self._named(target) if shared else ast.Constant(None)
        at = _index(self.visit(target.slice))
        call = ast.Call(
            ast.Name("__kill_store__", ast.Load()), [name, value, self.visit(target.value), at], []
        )
        return ast.fix_missing_locations(ast.copy_location(ast.Expr(call), node))

    def visit_Call(self, node: ast.Call) -> Any:
        """Let a call that changes files go through the look."""
        found = _changes_something(node)
        name = self._named(node) if found else None
        node = self.generic_visit(node)  # type: ignore[assignment]
        if name is None:
            return node
        call = ast.Call(
            ast.Name("__kill_call__", ast.Load()), [name, node.func, *node.args], node.keywords
        )
        return ast.fix_missing_locations(ast.copy_location(call, node))


def _parts(target: ast.expr) -> list[ast.expr]:
    """Return what is assigned to: the parts of a tuple, or the target itself."""
    return target.elts if isinstance(target, ast.Tuple) else [target]


def _may_be_shared(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return _last_name(node.func) in {"frombuffer", "memoryview", "ndarray"}
    return _last_name(node) in _SHARED


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _index(node: ast.expr) -> ast.expr:
    """Return an index as an expression that can be passed on."""
    if isinstance(node, ast.Slice):
        bounds = [part or ast.Constant(None) for part in (node.lower, node.upper, node.step)]
        return ast.Call(ast.Name("slice", ast.Load()), bounds, [])
    if isinstance(node, ast.Tuple):
        return ast.Tuple([_index(part) for part in node.elts], ast.Load())
    return node


def _changes_something(node: ast.Call) -> bool:
    name = _last_name(node.func)
    if isinstance(node.func, ast.Attribute) and _last_name(node.func.value) == "os":
        return name in _OS_CALLS
    return name in _CALLS


def _read(path: Path) -> tuple[ast.Module, dict[str, str]]:
    finder = _Finder(path.stem.strip("_"))
    tree = finder.visit(ast.parse(path.read_bytes(), str(path)))
    return tree, finder.points


def _modules(package: Path) -> Iterator[Path]:
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0].removesuffix(".py") not in _ELSEWHERE:
            yield path


def all_points() -> dict[str, str]:
    """Return the names of all points of the package, with what is called or stored to there."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    found: dict[str, str] = {}
    for path in _modules(Path(spec.origin).parent):
        points = _read(path)[1]
        assert not points.keys() & found.keys(), "two modules have the same name"
        found |= points
    return found


# --- what happens at a point ----------------------------------------------------------------------


class Machine:
    """What this process does at the points that it comes to.

    Attributes
    ----------
    hits
        How often it came to each point since it was armed.
    order
        The hits in their order: which point, and how often by then.
    unlisted
        Changes of shared state that are no points.
    in_fork
        Called in the middle of a fork, as another thread may run then.
    """

    def __init__(self) -> None:
        self.armed = False
        self.target: tuple[str, int] | None = None
        self.child = False
        self.in_child = False
        self.hits: Counter[str] = Counter()
        self.order: list[tuple[str, int]] = []
        self.unlisted: set[str] = set()
        self.in_fork: Callable[[], object] | None = None
        self._hits_of_place = 0
        self._inside = 0
        self._audited = False

    def arm(self, target: tuple[str, int] | None = None, *, child: bool = False) -> None:
        """Count from now on, and die at the target.

        Parameters
        ----------
        target
            A point, and at which hit of it; or a function, and at which hit of its points.
        child
            Whether a child that this process forks counts and dies instead of it.
        """
        if not self._audited:
            self._audited = True
            sys.addaudithook(self._watch)
        self.hits.clear()
        self.order.clear()
        self._hits_of_place = 0
        self.target, self.child, self.in_child, self.armed = target, child, False, True

    def disarm(self) -> None:
        """Live on."""
        self.armed = False

    def fork(self) -> None:
        """Do what another thread may do while this one forks."""
        if self.in_fork is not None:
            self.in_fork()

    def be_child(self) -> None:
        """Go on in a child."""
        self.in_child = True

    def _counts(self) -> bool:
        return self.armed and self.child == self.in_child

    def reach(self, point: str) -> bool:
        """Count a hit; return whether it is the last one."""
        self.hits[point] += 1
        self.order.append((point, self.hits[point]))
        if self.target is None:
            return False
        wanted, hit = self.target
        if wanted == point.partition(":")[0]:
            self._hits_of_place += 1
            return self._hits_of_place == hit
        return wanted == point and self.hits[point] == hit

    def store(self, point: str | None, value: Any, container: Any, at: Any) -> None:
        """Do ``container[at] = value``, unless that is where this process dies."""
        if self._counts() and _is_shared(container):
            if point is None:
                frame = sys._getframe(1)
                self.unlisted.add(f"store in {frame.f_code.co_qualname}: {frame.f_lineno}")
            else:
                if self.reach(point):
                    die()
                half = _half_a_store(value, container, at)
                if half is not None and self.reach(point + "~"):
                    half()
                    die()
        container[at] = value

    def call(self, point: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, unless that is where this process dies."""
        if self._counts() and not _only_looks(function, args):
            if self.reach(point):
                die()
            half = _half_a_call(function, args)
            if half is not None and self.reach(point + "~"):
                half()
                die()
        self._inside += 1
        try:
            return function(*args, **kwargs)
        finally:
            self._inside -= 1

    def _watch(self, event: str, args: tuple[Any, ...]) -> None:
        if self._inside or not self._counts():
            return
        if event in _AUDITED or (event == "open" and args[2] & os.O_CREAT):
            self.unlisted.add(f"{event} {args}")


def die() -> None:
    """End as by the kernel's hand: no handler, no finalizer, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


def _only_looks(function: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Return whether a call opens what is there already."""
    opens = function is os.open or getattr(function, "__name__", "") == "open_descriptor"
    return opens and not args[1] & os.O_CREAT


def _is_shared(container: Any) -> bool:
    if isinstance(container, memoryview):
        return isinstance(container.obj, mmap.mmap)
    while isinstance(container, np.ndarray):
        container = container.base
    return isinstance(container, mmap.mmap) or (
        isinstance(container, memoryview) and isinstance(container.obj, mmap.mmap)
    )


def _half_a_store(value: Any, container: Any, at: Any) -> Callable[[], None] | None:
    """Return what does the first half of a store of many, or None."""
    if isinstance(container, memoryview):
        if not isinstance(at, slice):
            return None
        start, stop, _ = at.indices(len(container))
        half = (stop - start) // 2
        if not half:
            return None
        return lambda: operator.setitem(
            container, slice(start, start + half), memoryview(value)[:half]
        )
    old = container[at]
    if np.size(old) < 2:
        return None
    mixed = np.array(old)
    half = mixed.size // 2
    mixed.reshape(-1)[:half] = np.broadcast_to(value, mixed.shape).reshape(-1)[:half]
    return lambda: operator.setitem(container, at, mixed)


def _half_a_call(function: Callable[..., Any], args: Sequence[Any]) -> Callable[[], Any] | None:
    """Return what does the first half of a call that writes much, or None."""
    name = getattr(function, "__name__", "")
    if name == "pack_into":
        target, offset, *values = args
        half = len(values) // 2 * 8
        raw = function.__self__.pack(*values)[:half]  # type: ignore[attr-defined]
        return lambda: operator.setitem(target, slice(offset, offset + half), raw)
    if name == "pwrite":
        fd, data, offset = args
        return lambda: function(fd, memoryview(data)[: len(data) // 2], offset)
    if name == "posix_fallocate" and args[2] > 1:
        fd, offset, nbytes = args
        return lambda: function(fd, offset, nbytes // 2)
    if name == "copyto":
        target, source = args
        return lambda: function(target[: len(target) // 2], source[: len(target) // 2])
    return None


# --- shmstore, with a look at each point ----------------------------------------------------------

machine = Machine()


class _Loader(SourceFileLoader):
    """Compiles a module with a look at each of its points."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile from the source, never from a cached file."""
        path = Path(self.get_filename(fullname))
        tree, _ = _read(path)
        code: CodeType = compile(tree, str(path), "exec", dont_inherit=True)
        return code


class _Importer(MetaPathFinder):
    """Finds the modules that have points."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how a module of the package is loaded."""
        package, *parts = fullname.split(".")
        if package != PACKAGE or (parts and parts[0] in _ELSEWHERE):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Let shmstore, which must not be imported yet, be imported with its points."""
    assert PACKAGE not in sys.modules
    vars(builtins).update(__kill_store__=machine.store, __kill_call__=machine.call)
    # Registered first, they run after what shmstore does before a fork, and before what it does
    # after it.
    os.register_at_fork(before=machine.fork, after_in_child=machine.be_child)
    sys.meta_path.insert(0, _Importer())


def look_away() -> None:
    """Do in this process what stands at the points and nothing else: it is not to be killed."""
    vars(builtins).update(__kill_store__=_store, __kill_call__=_call)


def _store(_: str | None, value: Any, container: Any, at: Any) -> None:
    container[at] = value


def _call(_: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)
