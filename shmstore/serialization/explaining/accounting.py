"""Which frames, and which bytes of a pickle stream, belong to which part of an object?

Every frame and every byte is counted once. What cannot be told apart belongs to the next object
around it that has a path, in the end to the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from shmstore._tuples import NamedTuple
from shmstore.serialization.dispatch import typename
from shmstore.serialization.explaining import reasons
from shmstore.serialization.explaining.extents import Extent, extents
from shmstore.serialization.explaining.naming import find_paths
from shmstore.serialization.explaining.tracing import Leaf, Note, Record
from shmstore.serialization.frames import Frame, nbytes
from shmstore.serialization.markers import Serialize, Serialized
from shmstore.serialization.pickling import is_plain
from shmstore.serialization.registry import Header
from shmstore.serialization.wording import shown

# Text and bytes inside of others are told apart from this size on, the largest of them.
_VALUE_NBYTES: Final = 1 << 10
_MOST_VALUES: Final = 50


class Row:
    """One part: its own frames by their numbers, and its bytes in a stream."""

    __slots__ = "family", "in_band", "numbers", "path", "reason", "type"

    def __init__(self, path: str, kind: str, family: str, reason: str = "") -> None:
        self.path = path
        self.type = kind
        self.family = family
        self.reason = reason
        self.numbers: list[int] = []
        self.in_band = 0


class Ledger:
    """The rows of an object, and which of its frames are streams."""

    def __init__(self, frames: Sequence[Frame], leaves: Iterable[Leaf], patience_s: float) -> None:
        self.rows: list[Row] = []
        self.streams: set[int] = set()
        self.frames = frames
        self._leaves: Iterator[Leaf] = iter(leaves)
        self._patience_s = patience_s

    def enter(self, header: Header, x: Any, path: str, numbers: Sequence[int]) -> None:
        """Enter an object, or each element of one that was taken apart."""
        while isinstance(x, Serialize):
            x = x.data
        if isinstance(x, Serialized):
            row = self._add(path, str(header.get("type", "unknown")), header, reasons.DONE)
            row.numbers += numbers
        elif header.get("is-collection"):
            start = 0
            pairs = x.items() if type(x) is dict else enumerate(x)
            each = zip(pairs, header["sub-headers"], header["frame-lengths"], strict=True)
            for (key, element), sub_header, length in each:
                step = "{...}" if type(x) is set else f"[{shown(key)}]"
                self.enter(sub_header, element, path + step, numbers[start : start + length])
                start += length
        else:
            self._enter_leaf(next(self._leaves), path, numbers)

    def _add(self, path: str, kind: str, header: Header, reason: str) -> Row:
        family = "several" if header.get("is-collection") else header.get("serializer")
        self.rows.append(Row(path, kind, str(family), reason))
        return self.rows[-1]

    def _enter_leaf(self, leaf: Leaf, path: str, numbers: Sequence[int]) -> None:
        if leaf.record is not None:
            self._enter_pickle(leaf, leaf.record, path, numbers)
            return
        plain = leaf.family == "pickle" and is_plain(leaf.obj)
        told = reasons.of_leaf(leaf.obj, leaf.family, leaf.frames, plain=plain)
        children, own = _claim(leaf.children, leaf.frames, numbers)
        if own or not children:
            told = reasons.join(reasons.declined_by_handler(leaf.declined), told)
            row = Row(path, typename(type(leaf.obj)), leaf.family, told)
            row.numbers += own
            if plain or leaf.family == "msgpack":
                self.streams.update(own)
                row.in_band = sum([nbytes(self.frames[number]) for number in own])
            self.rows.append(row)
        names = _names(leaf.header.get("sub-header"), len(children))
        for name, (child, taken) in zip(names, children, strict=True):
            self._enter_leaf(child, path + name, taken)

    # --- pickles ---------------------------------------------------------------------------------

    def _enter_pickle(self, leaf: Leaf, record: Record, path: str, numbers: Sequence[int]) -> None:
        self.streams.add(numbers[0])
        spans = _spans(record)
        wanted = {id(span.obj): span.obj for span in spans}
        for span in spans:
            wanted |= {id(note.obj): note.obj for note in _around(span.note)}
        steps = find_paths(leaf.obj, wanted, self._patience_s)
        steps[id(leaf.obj)] = ""
        page = _Page(leaf, steps, path)
        for span in spans:
            page.take(span)
        page.share(record.nbytes)
        unclaimed = set(numbers)
        for entry in sorted(page.entries.values(), key=lambda entry: entry.start):
            unclaimed.difference_update([numbers[number] for number in entry.numbers])
            entry.row.reason = page.tell(entry)
            self._enter_entry(entry, numbers)
        page.root.row.numbers[:0] = sorted(unclaimed)

    def _enter_entry(self, entry: _Entry, numbers: Sequence[int]) -> None:
        """Enter a part of a pickle, and the parts that its handler asked for."""
        self.rows.append(entry.row)
        note = entry.note
        given = [numbers[number] for number in entry.numbers]
        children, own = _claim(note.children if note else [], entry.frames, given)
        entry.row.numbers += own
        names = _names(note.header if note else None, len(children))
        for name, (child, taken) in zip(names, children, strict=True):
            self._enter_leaf(child, entry.row.path + name, taken)


class _Span(NamedTuple):
    """An object in a stream, from where to where; its note, or that of the object around it."""

    obj: Any
    note: Note | None
    start: int
    end: int
    value: type | None
    """Of text and bytes that no note is about: their type."""
    exact: bool = False


class _Entry:
    """What becomes a row: a part of a pickle that has a path, and all inside that has none."""

    __slots__ = "frames", "note", "numbers", "obj", "row", "start", "value"

    def __init__(self, obj: Any, row: Row, start: int) -> None:
        self.obj = obj
        self.row = row
        self.start = start
        self.value: type | None = None
        self.note: Note | None = None
        self.numbers: list[int] = []
        self.frames: list[Frame | None] = []


def _around(note: Note | None) -> Iterator[Note]:
    """Walk a note and those of the objects around it."""
    while note is not None:
        yield note
        note = note.parent


def _spans(record: Record) -> list[_Span]:
    """Return what is known of the objects in a stream, the exact places of a short one."""
    spans = [_Span(note.obj, note, note.start, note.end, None) for note in record.notes]
    values = [_Span(n.obj, n.parent, n.start, n.end, kind) for kind, n in record.values]
    found = _places(record)
    if found is not None:
        memo = record.memo or {}
        spans = [_placed(span, memo, found) for span in spans]
        values = list(_remembered_values(memo, found))
    values.sort(key=lambda span: span.start - span.end)
    return spans + values[:_MOST_VALUES]


def _places(record: Record) -> list[Extent] | None:
    if record.memo is None:
        return None
    try:
        return extents(record.pieces)
    except LookupError:
        return None


def _placed(span: _Span, memo: dict[int, Any], found: list[Extent]) -> _Span:
    number, _ = memo.get(id(span.obj), (None, None))
    if number is None:
        return span
    start, end = found[number]
    return span._replace(start=start, end=end)


def _remembered_values(memo: dict[int, Any], found: list[Extent]) -> Iterator[_Span]:
    for number, obj in memo.values():
        start, end = found[number]
        if type(obj) in (str, bytes, bytearray) and end - start >= _VALUE_NBYTES:
            yield _Span(obj, None, start, end, type(obj), exact=True)


class _Page:
    """The entries of one pickle."""

    def __init__(self, leaf: Leaf, steps: dict[int, str], path: str) -> None:
        self._steps = steps
        self._path = path
        self._declined = leaf.declined
        self.root = _Entry(leaf.obj, Row(path, typename(type(leaf.obj)), "pickle"), -1)
        self.entries: dict[Any, _Entry] = {id(leaf.obj): self.root}
        self._intervals: list[tuple[int, int, int, Row]] = []

    def take(self, span: _Span) -> None:
        """Enter an object by its own path, or with the object around it."""
        if span.value is not None:
            self._take_value(span)
            return
        note = span.note
        assert note is not None
        entry = self._around(note, span.start)
        entry.numbers += note.numbers
        entry.frames += note.frames
        if entry.obj is note.obj:
            entry.note = note
            self._note_interval(span, entry.row)

    def _around(self, note: Note, start: int) -> _Entry:
        for around in _around(note):
            step = self._steps.get(id(around.obj))
            if step is not None:
                return self._entry(id(around.obj), around.obj, step, start)
        return self.root

    def _entry(self, key: Any, obj: Any, step: str, start: int) -> _Entry:
        entry = self.entries.get(key)
        if entry is None:
            row = Row(self._path + step, typename(type(obj)), "pickle")
            entry = self.entries[key] = _Entry(obj, row, start)
        entry.start = min(entry.start, start)
        return entry

    def _take_value(self, span: _Span) -> None:
        """Enter text or bytes; what has no path was made by the object around it, if there is one.

        Which that is tell the exact places, or the note.
        """
        step = self._steps.get(id(span.obj))
        if step is not None:
            entry = self._entry(id(span.obj), span.obj, step, span.start)
        elif span.note is None and not span.exact:
            entry = self._entry(span.value, span.obj, "[...]", span.start)
        else:
            return
        entry.value = span.value
        entry.row.type = typename(span.value)
        self._note_interval(span, entry.row)

    def _note_interval(self, span: _Span, row: Row) -> None:
        """Keep an interval so that outer ones sort first: in the same place what was done later."""
        self._intervals.append((span.start, -span.end, -len(self._intervals), row))

    def tell(self, entry: _Entry) -> str:
        """Return the reason for a row."""
        if entry.value is not None:
            return reasons.in_stream(entry.value, entry.row.in_band)
        note = entry.note
        declined = self._declined if entry is self.root else None
        if note is None:
            return reasons.join(reasons.declined_by_handler(declined), reasons.REST)
        return reasons.join(
            reasons.declined_by_handler(note.declined if declined is None else declined),
            reasons.of_part(entry.obj, note.how, entry.frames, outer=note.outer),
        )

    def share(self, total: int) -> None:
        """Give each row the bytes of its interval that lie in no other inside of it."""
        open_: list[tuple[int, Row]] = [(total, self.root.row)]
        self.root.row.in_band = total
        for start, minus_end, _, row in sorted(self._intervals, key=lambda i: i[:3]):
            while len(open_) > 1 and open_[-1][0] <= start:
                open_.pop()
            outer_end, outer = open_[-1]
            size = min(-minus_end, outer_end) - start
            if row is not outer and size > 0:
                outer.in_band -= size
                row.in_band += size
                open_.append((start + size, row))


def _claim(
    children: Sequence[Leaf], frames: Sequence[Frame | None], numbers: Sequence[int]
) -> tuple[list[tuple[Leaf, list[int]]], list[int]]:
    """Return for each child the numbers of its frames, and the numbers that are no child's."""
    waiting: dict[int, list[int]] = {}
    for frame, number in zip(frames, numbers, strict=True):
        waiting.setdefault(id(frame), []).append(number)
    claimed = []
    for child in children:
        places = [waiting.get(id(frame)) for frame in child.frames]
        if all(places):
            claimed.append((child, [place.pop(0) for place in places if place]))
    taken = {number for _, of_child in claimed for number in of_child}
    return claimed, [number for number in numbers if number not in taken]


def _names(sub_header: Any, count: int) -> list[str]:
    """Return the steps to the parts that a handler asked for."""
    parts = sub_header.get("parts") if isinstance(sub_header, dict) else None
    if isinstance(parts, dict) and len(parts) == count:
        return [f".{name}" for name in parts]
    return [f".part({number})" for number in range(count)]
