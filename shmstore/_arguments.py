"""Is what a user passed of the right type and within the limits? Each refusal says what to pass."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Final

MODES: Final = ("shared", "readonly", "private", "copy")
MAX_KEY_NBYTES: Final = 1024

KEY_OR_REF: Final = "a key (str) or an ObjectRef"


def check_key(key: object, wanted: str = "a key (str)") -> str:
    """Return `key` as an exact str; TypeError or ValueError if it cannot name an object.

    A subclass of str may compare and hash as it likes; keys do not.
    """
    if not isinstance(key, str):
        message = f"expected {wanted}, not {type(key).__name__}: {key!r:.100}"
        raise TypeError(message)
    key = str.__str__(key)
    try:
        nbytes = len(key.encode())
    except UnicodeEncodeError as error:
        message = f"the key {key!r:.100} cannot be encoded as UTF-8: {error.reason}"
        raise ValueError(message) from error
    if nbytes > MAX_KEY_NBYTES:
        message = (
            f"a key of {nbytes:,} bytes is too long (most: {MAX_KEY_NBYTES:,}): {key!r:.60}... "
            "Use a digest of it."
        )
        raise ValueError(message)
    return key


def check_queue_name(name: object) -> str:
    """Return `name` as an exact str; TypeError or ValueError if it cannot name a queue."""
    if not isinstance(name, str):
        message = f"name={name!r:.100}: the name of a queue is a str, not {type(name).__name__}"
        raise TypeError(message)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        message = f"name={name!r:.100}: it cannot be encoded as UTF-8: {error.reason}"
        raise ValueError(message) from error
    return str.__str__(name)


def check_maxsize(maxsize: object) -> int:
    """Return how many objects may wait in a queue, 0: any number; TypeError if it is no int."""
    try:
        return max(0, operator.index(maxsize))  # type: ignore[arg-type]
    except TypeError:
        message = f"maxsize={maxsize!r:.100}: give an int; 0: any number of objects"
        raise TypeError(message) from None


def check_mode(mode: object) -> None:
    """Raise ValueError unless `mode` is one of those of `Store.get`."""
    if mode not in MODES:
        message = f"mode={mode!r}: give one of {', '.join(MODES)}"
        raise ValueError(message)


def check_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return `shape` as a tuple of sizes; TypeError or ValueError if it is none."""
    try:
        sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
        sizes = tuple(operator.index(size) for size in sizes)
    except TypeError:
        message = f"shape={shape!r}: give an int or a sequence of ints"
        raise TypeError(message) from None
    if any(size < 0 for size in sizes):
        message = f"shape={shape!r}: sizes are not negative"
        raise ValueError(message)
    return sizes
