"""By which path is a part of an object reached?

The parts are walked through breadth first, so that the shortest path is found, until all that are
looked for have been met or patience ends. Columns of pandas have their names.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from shmstore.serialization.blame import parts_of

# Of these nothing can be a part that is looked for, unless it is one itself.
_ATOMS: Final[frozenset[type]] = frozenset(
    {int, float, complex, bool, type(None), str, bytes, bytearray}
)
_NAMES_SHOWN: Final = 3
_LOOK_AT_CLOCK: Final = 256


def find_paths(x: Any, wanted: dict[int, Any], patience_s: float) -> dict[int, str]:
    """Return the paths to the wanted objects that were found, by the ids of the objects.

    Parameters
    ----------
    x
        The whole; its path is empty.
    wanted
        Objects by their ids.
    patience_s
        How long to look for them.
    """
    atoms: frozenset[type] = _ATOMS - {type(obj) for obj in wanted.values()}
    missing = set(wanted)
    found: dict[int, str] = {}
    deadline = time.monotonic() + patience_s
    seen: set[int] = set()
    waiting: deque[tuple[str, Any]] = deque()
    turns = 0

    def meet(path: str, part: Any) -> None:
        seen.add(id(part))
        waiting.append((path, part))
        for obj, way in ((part, path), (type(part), f"{path}.__class__")):
            if id(obj) in missing:
                missing.discard(id(obj))
                found[id(obj)] = way

    meet("", x)
    while waiting and missing:
        path, x = waiting.popleft()
        for step, part in _steps(x, atoms):
            if type(part) not in atoms and id(part) not in seen:
                meet(path + step, part)
            turns += 1
            if not missing or (turns % _LOOK_AT_CLOCK == 0 and time.monotonic() > deadline):
                return found
    return found


def _steps(x: Any, atoms: frozenset[type]) -> Iterator[tuple[str, Any]]:
    kind = type(x)
    if kind in (list, tuple, set, frozenset) and atoms.issuperset(map(type, x)):
        return
    if kind is dict and atoms.issuperset(map(type, x.values())) and atoms.issuperset(map(type, x)):
        return
    if kind.__module__.partition(".")[0] == "pandas":
        yield from _parts_of_pandas(x)
    yield from ((step, part) for step, part in parts_of(x) if step != "._mgr")


def _parts_of_pandas(x: Any) -> Iterator[tuple[str, Any]]:
    """Yield what pandas keeps where no attribute shows it."""
    try:
        parts = list(_pandas(x))
    except Exception:  # noqa: BLE001 - the insides of pandas change; a path is then less exact
        return
    yield from parts


def _pandas(x: Any) -> Iterator[tuple[str, Any]]:
    manager = getattr(x, "_mgr", None)
    if manager is None:
        if hasattr(x, "_data"):  # an Index
            yield _values(x._data), x._data  # noqa: SLF001 - no public name gives the array itself
        return
    for block in manager.blocks:
        if x.ndim == 1:
            yield _values(block.values), block.values
        else:
            yield _columns(x.columns[block.mgr_locs.as_array]), block.values
    yield ".index", x.index
    if x.ndim > 1:
        yield ".columns", x.columns


def _values(array: Any) -> str:
    return ".values" if isinstance(array, np.ndarray) else ".array"


def _columns(names: Any) -> str:
    """Return the step to a column, or to the columns that share a block."""
    if len(names) == 1:
        return f"[{names[0]!r:.80}]"
    shown = ", ".join([f"{name!r:.80}" for name in names[:_NAMES_SHOWN]])
    more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"[[{shown}{more}]]"
