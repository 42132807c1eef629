"""What happens in a store right now: `top`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import shmstore
from shmstore.cli import _looking, _sampling, _stores, _words
from shmstore.cli._errors import UsageError
from shmstore.cli._output import Column, Output, aligned, is_terminal, note
from shmstore.cli._sampling import Sample
from shmstore.cli._screen import Screen, whole_screen

CLIENTS: Final = (
    Column("pid", "PID", "number"),
    Column("state", "STATE"),
    Column("puts", "PUT/S", "rate"),
    Column("put_nbytes", "IN/S", "size"),
    Column("gets", "GET/S", "rate"),
    Column("got_nbytes", "OUT/S", "size"),
    Column("lock_waits", "LOCKWAIT/S", "rate"),
    Column("pins", "VIEWS", "count"),
    Column("pinned_nbytes", "PINNED", "size"),
    Column("command", "PROCESS"),
)
OBJECTS: Final = tuple(each for each in _looking.OBJECTS if each.field != "stored_nbytes")
SAMPLES: Final = (
    Column("time", "TIME"),
    Column("used", "USED", "size"),
    Column("pinned", "PINNED", "size"),
    Column("free", "FREE", "size"),
    Column("objects", "OBJECTS", "count"),
    Column("clients", "CLIENTS", "count"),
    Column("puts", "PUT/S", "rate"),
    Column("put_nbytes", "IN/S", "size"),
    Column("gets", "GET/S", "rate"),
    Column("got_nbytes", "OUT/S", "size"),
    Column("deletes", "DEL/S", "rate"),
    Column("evictions", "EVICT/S", "rate"),
    Column("spills", "SPILL/S", "rate"),
)
KEYS: Final = "q quit  s size  a age  v views  n next order  space pause  + slower  - faster"
_WIDTHS: Final = (8, 8, 8, 8, 7, 7, 7, 8, 7, 8, 7, 7, 7)
_LONGEST_WAIT_S: Final = 1.0
_FIRST_WAIT_S: Final = 0.2
_SHORTEST_S: Final = 0.1
_LONGEST_S: Final = 60.0
_MOST_CLIENTS: Final = 8
_MOST_OBJECTS: Final = 20
_LABEL: Final = 9


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Watch a store until the user, or the store, ends."""
    arguments.store = arguments.store or _only_store(arguments)
    arguments.timeout = min(arguments.timeout, _LONGEST_WAIT_S)
    with _stores.looked_at(arguments) as store:
        try:
            if output.as_json:
                return _print(store, arguments, _print_json)
            if is_terminal(sys.stdout) and not arguments.plain:
                return _watch(store, arguments, output)
            return _print(store, arguments, _Rows(output))
        except shmstore.StoreClosedError:
            note(f"the store {arguments.store!r} has ended")
            return 0


def _only_store(arguments: argparse.Namespace) -> str:
    names = [found.name for found in _stores.summaries(arguments) if not found.problem]
    if len(names) != 1:
        there = f"there are {', '.join(names[:10])}" if names else "there is none"
        raise UsageError(f"say which STORE: {there}")
    return str(names[0])


# --- line by line --------------------------------------------------------------------------------


def _print(store: shmstore.Store, arguments: argparse.Namespace, tell: Any) -> int:
    before = _sampling.take(store)
    done = 0
    while arguments.count is None or done < arguments.count:
        time.sleep(arguments.interval)
        after = _sampling.take(store)
        tell(_row(before, after), before, after, arguments.sort)
        sys.stdout.flush()
        before, done = after, done + 1
    return 0


def _row(before: Sample, after: Sample) -> dict[str, Any]:
    living = sum(client.alive for client in after.survey.clients)
    now = time.strftime("%H:%M:%S")
    return {
        "time": now,
        **_sampling.memory(after),
        "clients": living,
        **_sampling.rates(before, after),
    }


def _print_json(row: dict[str, Any], before: Sample, after: Sample, sort: str) -> None:
    document = {
        **row,
        "time": time.time(),
        "trouble": after.trouble,
        "by_client": _sampling.clients(before, after),
        "largest" if sort == "size" else sort: _sampling.objects(after, sort, _MOST_OBJECTS),
    }
    print(json.dumps(document, default=list))  # noqa: T201


class _Rows:
    """Writes a line for each sample, in columns that stay where they are."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._headed = False

    def __call__(self, row: dict[str, Any], _: Sample, after: Sample, __: str) -> None:
        """Write a line."""
        if not self._headed:
            self._output.lines([self._line([column.heading for column in SAMPLES])])
            self._headed = True
        cells = [self._output.write(column.kind, row[column.field]) for column in SAMPLES]
        self._output.lines([self._line(cells)])
        if after.trouble:
            note(f"shmstore: {_words.clean(after.trouble)}")

    @staticmethod
    def _line(cells: list[str]) -> str:
        pairs = zip(cells, _WIDTHS, strict=True)
        return " ".join(cell.rjust(width) for cell, width in pairs)


# --- the whole terminal --------------------------------------------------------------------------


class _View:
    """What the user has chosen with keys."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.sort: str = arguments.sort
        self.interval_s: float = arguments.interval
        self.paused = False
        self.ended = False

    def press(self, key: str) -> None:
        """Do what a key is for."""
        orders = {"s": "size", "a": "age", "v": "views"}
        if key in orders:
            self.sort = orders[key]
        elif key == "n":
            self.sort = _sampling.next_sort(self.sort)
        elif key == " ":
            self.paused = not self.paused
        elif key == "+":
            self.interval_s = min(2 * self.interval_s, _LONGEST_S)
        elif key == "-":
            self.interval_s = max(self.interval_s / 2, _SHORTEST_S)
        elif key in ("q", "Q", "\x1b", "\x04"):
            self.ended = True


def _watch(store: shmstore.Store, arguments: argparse.Namespace, output: Output) -> int:
    view, before, after = _View(arguments), None, _sampling.take(store)
    drawn = 0
    with whole_screen() as screen:
        while not view.ended:
            page = partial(_page, store, view, before, after, output=output)
            screen.draw(list(page(screen.size)))
            drawn += 1
            if arguments.count is not None and drawn > arguments.count:
                break
            _wait(screen, view, page, _FIRST_WAIT_S if before is None else view.interval_s)
            if not (view.paused or view.ended):
                before, after = after, _sampling.take(store)
    return 0


def _wait(screen: Screen, view: _View, page: Any, seconds: float) -> None:
    """Wait for the next look, and do what keys say meanwhile."""
    deadline = time.monotonic() + seconds
    while not view.ended and (left := deadline - time.monotonic()) > 0:
        if keys := screen.keys(left):
            for key in keys:
                view.press(key)
            screen.draw(list(page(screen.size)))
            deadline = min(deadline, time.monotonic() + view.interval_s)


Line = tuple[str, str]


def _page(
    store: shmstore.Store,
    view: _View,
    before: Sample | None,
    after: Sample,
    size: tuple[int, int],
    *,
    output: Output,
) -> Iterator[Line]:
    """Yield the lines of the screen, with their styles."""
    columns, rows = size
    yield from _head(store, view, before, after, columns)
    clients = _sampling.clients(before, after)
    shown = clients[: max(1, min(_MOST_CLIENTS, (rows - 10) // 2))]
    yield from _table(CLIENTS, shown, output)
    if len(clients) > len(shown):
        yield (
            f"... {_words.plural(len(clients) - len(shown), 'more process', 'more processes')}",
            "dim",
        )
    yield "", ""
    left = rows - 10 - len(shown) - (len(clients) > len(shown))
    if left > 0:
        yield from _table(OBJECTS, _sampling.objects(after, view.sort, left), output)
    yield KEYS, "dim"


def _head(
    store: shmstore.Store, view: _View, before: Sample | None, after: Sample, columns: int
) -> Iterator[Line]:
    state = "paused" if view.paused else f"every {view.interval_s:g} s"
    left = f"shmstore top  {store.name}  by {view.sort}  {state}"
    now = time.strftime("%H:%M:%S")
    yield f"{left}{now:>{max(1, columns - len(left))}}", "head"
    memory = _sampling.memory(after)
    share = memory["used"] / memory["capacity"]
    text = f"{_words.size(memory['used'])} of {_words.size(memory['capacity'])} ({share:.0%})"
    width = max(10, min(50, columns - _LABEL - len(text) - 2))
    yield f"{'memory':<{_LABEL}}{_bar(memory, width)}  {text}", "bold"
    parts = [f"{name} {_words.size(memory[field])}" for name, field in _SIZES]
    yield f"{'':<{_LABEL}}{'  '.join(parts)}", ""
    dead = sum(not client.alive for client in after.survey.clients)
    living = len(after.survey.clients) - dead
    told = f"{memory['objects']:,} objects, {memory['spilled']:,} of them in files; "
    told += f"{_words.plural(living, 'process', 'processes')}" + (f", {dead} dead" if dead else "")
    yield f"{'holds':<{_LABEL}}{told}", ""
    yield f"{'per s':<{_LABEL}}{_rates(_sampling.rates(before, after))}", "bold"
    yield (after.trouble, "alarm") if after.trouble else ("", "")


_SIZES: Final = (("looked at", "pinned"), ("deleted", "deleted"), ("free", "free"))


def _bar(memory: dict[str, int], width: int) -> str:
    """Return a bar: looked at, other objects, deleted, free."""
    pinned, deleted = memory["pinned"], memory["deleted"]
    other = max(0, memory["used"] - pinned - deleted)
    scale = width / memory["capacity"]
    parts = [("@", pinned), ("#", other), ("x", min(deleted, memory["used"] - pinned - other))]
    bar = "".join(sign * round(max(0, nbytes) * scale) for sign, nbytes in parts)[:width]
    return f"[{bar:.<{width}}]"


def _rates(rates: dict[str, float | None]) -> str:
    if rates["puts"] is None:
        return "..."
    found = {name: value or 0.0 for name, value in rates.items()}
    parts = [
        f"puts {_words.rate(found['puts'])} ({_words.size(found['put_nbytes'])})",
        f"gets {_words.rate(found['gets'])} ({_words.size(found['got_nbytes'])})",
        f"deletes {_words.rate(found['deletes'])}",
        f"lock waits {_words.rate(found['lock_waits'])} ({found['lock_wait_s']:.0%})",
    ]
    rare = ("waits", "evictions", "expirations", "spills", "restores")
    parts += [f"{name} {_words.rate(found[name])}" for name in rare if found[name]]
    return "  ".join(parts)


def _table(columns: tuple[Column, ...], rows: list[Any], output: Output) -> Iterator[Line]:
    cells = [[output.write(c.kind, row.get(c.field)) for c in columns] for row in rows]
    head, *body = aligned(columns, cells)
    yield head, "bold"
    for line in body:
        yield line, ""
