"""Where in a pickle stream does each object lie?

The stream is walked through as an unpickler would, but what lies on the stack are extents: where
the opcodes of an object begin and where they end. Each object that pickle remembers has a number,
counted from 0; by it the pickler's memo tells which object it is.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Sequence
from typing import Any, Final

from shmstore._tuples import NamedTuple

Extent = list[int]
"""Start and end, in bytes from the beginning of the stream; what is added later moves the end."""


class _Opcode(NamedTuple):
    """What one opcode does to the stream and to the stack."""

    fixed: int
    """Bytes of its argument, or of the length of its argument."""
    counted: bool
    """Whether its argument begins with its length."""
    pops: int
    """How many objects it takes, those down to the last mark aside."""
    to_mark: bool
    pushes: int
    changes: bool
    """Whether what it pushes is the object that it took, which now holds more."""


_PREFIXES: Final = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_CHANGING: Final = frozenset(
    {*("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD", "READONLY_BUFFER")}
)


def _read_opcode(info: Any) -> _Opcode:
    nbytes = 0 if info.arg is None else info.arg.n
    before = info.stack_before
    to_mark = pickletools.markobject in before
    pops = before.index(pickletools.markobject) if to_mark else len(before)
    pushes = [kind for kind in info.stack_after if kind is not pickletools.markobject]
    counted = nbytes in _PREFIXES
    fixed = _PREFIXES[nbytes] if counted else nbytes
    return _Opcode(fixed, counted, pops, to_mark, len(pushes), info.name in _CHANGING)


# Opcodes with lines of text as arguments, which no protocol above 0 writes, are left out.
_OPCODES: Final = {
    ord(info.code): _read_opcode(info)
    for info in pickletools.opcodes
    if info.arg is None or info.arg.n != pickletools.UP_TO_NEWLINE
}
_MARK, _MEMOIZE, _POP = pickle.MARK[0], pickle.MEMOIZE[0], pickle.POP[0]


def extents(pieces: Sequence[bytes | bytearray]) -> list[Extent]:
    """Return the extents of the objects that a pickle stream remembers, by their numbers.

    Parameters
    ----------
    pieces
        The stream as a pickler of protocol 4 or higher has written it: the argument of an opcode
        may be a piece of its own.

    Raises
    ------
    LookupError
        It is no such stream.
    """
    walk = _Walk()
    position = skipped = 0
    for piece in pieces:
        at = min(skipped, len(piece))
        skipped -= at
        while at < len(piece):
            start, code = at, piece[at]
            opcode = _OPCODES[code]
            at += 1 + opcode.fixed
            if opcode.counted:
                at += int.from_bytes(piece[at - opcode.fixed : at], "little")
            walk.step(code, opcode, position + start, position + at)
        skipped += at - len(piece)
        position += len(piece)
    return walk.memo


class _Walk:
    """The stack of an unpickler, its marks and its memo."""

    __slots__ = ("marks", "memo", "stack")

    def __init__(self) -> None:
        self.stack: list[Extent] = []
        self.marks: list[int] = []
        self.memo: list[Extent] = []

    def step(self, code: int, opcode: _Opcode, start: int, end: int) -> None:
        """Follow one opcode."""
        stack = self.stack
        if code == _MEMOIZE:
            stack[-1][1] = end
            self.memo.append(stack[-1])
            return
        if code == _MARK:
            self.marks.append(len(stack))
            return
        bottom = (self.marks.pop() if opcode.to_mark else len(stack)) - opcode.pops
        taken = stack[bottom:]
        del stack[bottom:]
        if code == _POP:  # what was called for its effect on the object below
            if stack and taken:
                stack[-1][1] = end
        elif opcode.changes:
            taken[0][1] = end
            stack.append(taken[0])
        elif opcode.pushes:
            stack.append([taken[0][0] if taken else start, end])
