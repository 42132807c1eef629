"""What is seen of the serialization of an object by who looks on?

`watch` runs the real thing. Each object that a family took is a `Leaf`: what was asked as a whole,
and below it what its handler asked for in turn. Of a pickle there are notes: each object that gave
a buffer, or that puts much into the stream, is a `Note`; notes know the object around them.
"""

from __future__ import annotations

import functools
import pickle
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from shmstore.serialization import interfaces, pickling, reductions
from shmstore.serialization.family import watcher
from shmstore.serialization.frames import Frame
from shmstore.serialization.pickler import Pickler
from shmstore.serialization.registry import Header, custom_serialize

# The C pickler hands longer values to the file as they are, and writes about so much at a time.
LARGE_NBYTES: Final = 64 << 10

# How the opcode and the length before a large value look: opcode, bytes of the length, its type.
_VALUES: Final = (
    (pickle.BINBYTES[0], 4, bytes),
    (pickle.BINBYTES8[0], 8, bytes),
    (pickle.BYTEARRAY8[0], 8, bytearray),
    (pickle.BINUNICODE[0], 4, str),
    (pickle.BINUNICODE8[0], 8, str),
)

# The opcodes of a stream are walked through if they have no more bytes than this.
_SHORT_NBYTES: Final = 128 << 10

# Where so many objects of a type have given nothing, and none has, more are not looked at.
_MANY: Final = 100

# Length of the reductions by which cloudpickle sends functions and classes with their code.
_BY_VALUE: Final = 6

# What a type defines that has its own way to be pickled.
_OWN_WAYS: Final = ("__reduce__", "__reduce_ex__", "__getstate__")

HANDLER, REDUCER, OWN, VALUE, EXPORTED = "handler", "reducer", "own", "value", "exported"
"""How an object was reduced; `VALUE`: a function or class by its code, not by its name."""


class Leaf:
    """An object that one family took as a whole."""

    __slots__ = "children", "declined", "family", "frames", "header", "obj", "record"

    def __init__(self, obj: Any, family: str) -> None:
        self.obj = obj
        self.family = family
        self.header: Header = {}
        self.frames: list[Frame] = []
        self.children: list[Leaf] = []
        self.declined: str | None = None
        self.record: Record | None = None


class Note:
    """What an object inside of a pickle gave.

    Between `start` and `end` lie bytes of the stream that are certainly its. The pickler writes
    when it has about `LARGE_NBYTES`: what is its before and after these is less than that.
    """

    __slots__ = (
        *("children", "declined", "end", "frames", "header", "how", "numbers", "obj", "outer"),
        *("parent", "start"),
    )

    def __init__(self, obj: Any, parent: Note | None, how: str, start: int) -> None:
        self.obj = obj
        self.parent = parent
        self.how = how
        self.numbers: list[int] = []
        """Of its frames, the stream being frame 0."""
        self.frames: list[Frame | None] = []
        """As its handler gave them; None: the buffer is all there is."""
        self.children: list[Leaf] = []
        self.header: Any = None
        self.declined: str | None = None
        self.outer = False
        """Whether there are notes of objects inside of it."""
        self.start = start
        self.end = start


class Watch:
    """Takes part in each call of a family's dumps; see `family.watcher`."""

    def __init__(self) -> None:
        self.levels: list[list[Leaf]] = [[]]
        self._declined: tuple[Any, str] | None = None

    def __call__(self, name: str, dumps: Callable[..., Any]) -> Callable[..., Any]:
        """Return dumps as the family has it, with notes taken."""

        def watched(x: Any, **options: Any) -> Any:
            leaf = Leaf(x, name)
            self.levels.append(leaf.children)
            try:
                if dumps is pickling.pickle_dumps:
                    options["pickler"] = functools.partial(self._make_pickler, leaf)
                leaf.header, leaf.frames = dumps(x, **options)
            except NotImplementedError as error:
                if name != "custom" or custom_serialize.find(type(x)) is not None:
                    self._declined = (x, str(error))
                raise
            finally:
                self.levels.pop()
            if self._declined is not None and self._declined[0] is x:
                leaf.declined = self._declined[1]
            self._declined = None
            self.levels[-1].append(leaf)
            return leaf.header, leaf.frames

        return watched

    def _make_pickler(self, leaf: Leaf, *args: Any) -> TracingPickler:
        leaf.record = Record()
        return TracingPickler(self, leaf.record, *args)


@contextmanager
def watch() -> Iterator[list[Leaf]]:
    """Fill a list with what families take inside the block."""
    looking = Watch()
    token = watcher.set(looking)
    try:
        yield looking.levels[0]
    finally:
        watcher.reset(token)


class _Reduction(tuple[Any, ...]):  # noqa: SLOT001 - an attribute is what it is for
    """A reduction that the pickler holds just as long as it writes the object."""

    end: Callable[[], None]

    def __del__(self) -> None:
        self.end()


class Record:
    """What is noted of one pickle. It knows nothing of the pickler: no cycle keeps buffers alive.

    `notes` are in the order in which their objects were done; `values` are large pieces of text
    and bytes with their types; `memo` tells the numbers of objects in a stream that is not long.
    """

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.values: list[tuple[type, Note]] = []
        self.pieces: list[Any] = []
        self.ends: list[int] = []
        self.nbytes = 0
        self.memo: dict[int, tuple[int, Any]] | None = None
        self.barren: Counter[type] = Counter()
        """Of how many objects of a type there was nothing to be noted."""
        self._current: Note | None = None
        self._count = 0
        self._raw: dict[int, Frame] = {}

    def open(self, obj: Any, how: str, reduction: Any) -> tuple[Note, Any]:
        """Begin the note of an object; it ends when the pickler lets go of the reduction."""
        note = self._current = Note(obj, self._current, how, len(self.pieces))
        watched = _Reduction(reduction)
        watched.end = self._close
        return note, watched

    def _close(self) -> None:
        note = self._current
        assert note is not None
        # The first piece since it was begun may hold what was before it.
        note.start = self.ends[note.start] if note.start < len(self.ends) else self.nbytes
        note.end = self.nbytes
        self._current = note.parent
        if not _is_worth_it(note):
            self.barren[type(note.obj)] += 1
        else:
            self.barren[type(note.obj)] = -sys.maxsize
            self.notes.append(note)
            if note.parent is not None:
                note.parent.outer = True

    def know(self, buffer: pickle.PickleBuffer, frame: Frame) -> None:
        """Remember which frame a buffer stands for."""
        self._raw[id(buffer)] = frame

    def count(self, buffer: pickle.PickleBuffer) -> None:
        """Note a buffer of the object that is being written."""
        self._count += 1
        frame = self._raw.pop(id(buffer), None)
        if self._current is not None:
            self._current.numbers.append(self._count)
            self._current.frames.append(frame)

    def write(self, data: Any) -> None:
        """Note a piece of the stream."""
        if len(data) >= LARGE_NBYTES and self.pieces:
            kind = _kind_of_value(self.pieces[-1], len(data))
            if kind is not None:
                value = Note(data, self._current, OWN, self.nbytes)
                value.end += len(data)
                self.values.append((kind, value))
        self.pieces.append(data)
        self.nbytes += len(data)
        self.ends.append(self.nbytes)

    def is_short(self) -> bool:
        """Return whether its opcodes are few enough to walk through."""
        large = sum([value.end - value.start for _, value in self.values])
        return self.nbytes - large <= _SHORT_NBYTES


class _File:
    """The file of a pickler, and the record of it."""

    def __init__(self, file: Any, record: Record) -> None:
        self._write = file.write
        self._record = record

    def write(self, data: Any) -> None:
        """Take a piece of the stream."""
        self._record.write(data)
        self._write(data)


def _kind_of_value(before: Any, size: int) -> type | None:
    """Return the type of a value that lies in the stream, None if what follows are opcodes."""
    for code, width, kind in _VALUES:
        head = bytes(before[-1 - width :])
        if head[:1] == bytes([code]) and int.from_bytes(head[1:], "little") == size:
            return kind
    return None


class TracingPickler(Pickler):
    """A pickler that notes who gave which frame, and whose bytes lie where in the stream."""

    def __init__(
        self,
        watching: Watch,
        record: Record,
        file: Any,
        protocol: int,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None,
        context: dict[str, Any] | None,
    ) -> None:
        callback = None
        if buffer_callback is not None:

            def callback(buffer: pickle.PickleBuffer) -> Any:
                record.count(buffer)
                return buffer_callback(buffer)

        super().__init__(_File(file, record), protocol, callback, context)
        self._watching = watching
        self._record = record
        self._declined: str | None = None
        self._plain: set[type] = set()
        """Types of which nothing is to be noted."""

    def dump(self, obj: Any) -> None:
        """Pickle an object, and keep the memo if the stream is short."""
        super().dump(obj)
        if self._record.is_short():
            self._record.memo = self.memo.copy()

    def reducer_override(self, obj: Any) -> Any:
        """Return what the pickler does, and note whose reduction it is."""
        kind = type(obj)
        if kind in self._plain:
            return NotImplemented
        level = self._watching.levels[-1]
        known = len(level)
        reduction = self._ask(obj)
        if kind is types.FunctionType or issubclass(kind, type):
            by_value = type(reduction) is tuple and len(reduction) == _BY_VALUE
            return self._record.open(obj, VALUE, reduction)[1] if by_value else reduction
        if reduction is NotImplemented:
            if self._declined is None and _is_plain_instance(kind):
                if kind in self._unhandled:
                    self._plain.add(kind)
                return NotImplemented
            if self._record.barren[kind] >= _MANY and kind in self._unhandled:
                self._plain.add(kind)
            how, reduction = OWN, self._own_reduction(obj, kind)
        else:
            how = _how(reduction) if type(reduction) is tuple else REDUCER
        if type(reduction) is not tuple:
            return reduction
        note, watched = self._record.open(obj, how, reduction)
        note.declined = self._declined
        note.header = reduction[1][1] if how == HANDLER else None
        note.children = level[known:]
        del level[known:]
        return watched

    def _ask(self, obj: Any) -> Any:
        self._declined = None
        return super().reducer_override(obj)

    def _own_reduction(self, obj: Any, kind: type) -> Any:
        """Return what the C pickler would ask for next."""
        reduce = self.dispatch_table.get(kind)
        return obj.__reduce_ex__(self._protocol) if reduce is None else reduce(obj)

    def _decline(self, error: NotImplementedError) -> Any:
        self._declined = str(error)
        return super()._decline(error)

    def _place_buffers(self, reduction: Any) -> Any:
        placed = super()._place_buffers(reduction)
        for before, after in zip(reduction[1], placed[1], strict=True):
            if type(before) is reductions.OutOfBand:
                self._record.know(after, before.frame)
        return placed


def _how(reduction: Any) -> str:
    function: Any = reduction[0]
    if function is reductions._rebuild:  # noqa: SLF001 - who looks on knows
        return HANDLER
    if function is interfaces._itself:  # noqa: SLF001 - as above
        return EXPORTED
    return REDUCER


def _is_plain_instance(kind: Any) -> bool:
    """Return whether objects of a type are pickled as their attributes and nothing else."""
    return all(getattr(kind, name, None) is getattr(object, name) for name in _OWN_WAYS)


def _is_worth_it(note: Note) -> bool:
    return bool(
        note.numbers
        or note.outer
        or note.children
        or note.declined is not None
        or note.how in (VALUE, EXPORTED)
        or isinstance(note.obj, np.ndarray)
        or note.end - note.start >= LARGE_NBYTES
    )
