"""How does an object array of text become a few frames, and an array of `str` again?

Pickle spends about 150 ns on each `str`; joining many of them and encoding the whole spends 30. An
array is cut into *runs* (the rows or columns of a table, else one run for all), each encoded by
itself:

========  =====================================================================================
text      UTF-8: the values, each but the last followed by a separator that occurs in none
gaps      only if some values are no text: a byte per value, 0 text, 1 None, 2 NaN
codes     only if values repeat: per element the number of its value, as unsigned integers
========  =====================================================================================

Without codes the values are the elements themselves. With codes equal elements become one `str`
object, which all of them refer to. Everything is done by chunks that stay in the cache of a core.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shmstore._tuples import NamedTuple
from shmstore.errors import CorruptHeaderError
from shmstore.serialization.frames import Frame, Planned, ensure_memoryview

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Words = npt.NDArray[np.uint64]


# Below this many elements the frames cost more than pickle does.
MIN_SIZE: Final = 16384

# Shorter rows or columns than this are not told apart.
_MIN_RUN: Final = 1024

# How many elements are numbered, and how many texts and bytes of text are turned, at once.
_CHUNK: Final = 16 << 10
_CHUNK_TEXTS: Final = 2048
_CHUNK_NBYTES: Final = 256 << 10

# How many elements tell whether values repeat, and how many whether they are text at all.
_SAMPLE: Final = 4096
_GLANCE: Final = 64

# A sample with no more distinct objects than this has probably met all of them.
_FEW: Final = 512

# Repeated: at least so many elements per value.
_REPEATS: Final = 4

# Tried in this order, ASCII first: a wider character would widen the whole joined text.
_SEPARATORS: Final = ("\0", "\x1f", "\x1e", "\x1d", "\x1c", "\ue000", "\U0010fffd")

_TEXT: Final = 0
_NONE: Final = 1
_NAN: Final = 2
_KINDS: Final = frozenset({str, type(None), float})
_ONLY_TEXT: Final = frozenset({str})

# 2**64 divided by the golden ratio: the upper bits of a product with it spread addresses well.
_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)
_TABLE_BITS: Final = 22


class Run(NamedTuple):
    """The values of a run, and the number of the value of each element (None: they are it)."""

    values: Array
    codes: Array | None


# --- to frames ----------------------------------------------------------------------------------


def encode(x: Array) -> tuple[dict[str, Any], list[Frame]]:
    """Turn an object array of `str`, None and NaN into a header and frames.

    Parameters
    ----------
    x
        Of any shape and order.

    Returns
    -------
    header : dict
        Shape and order; per run its separator, how many values it has, whether there are gaps among
        them, and the bytes of a code (0: none). ``"along"`` is the axis that the runs follow each
        other on (None: there is one run).
    frames : list of Planned
        They are as writeable as the array is.

    Raises
    ------
    NotImplementedError
        The array is small, or one of its elements is anything else (a subclass of `str` too), or
        text that UTF-8 cannot express.
    """
    if x.dtype != object or x.dtype.metadata or x.size < MIN_SIZE:
        raise NotImplementedError(f"{x.dtype}, {x.size} elements")
    order = "F" if x.flags.f_contiguous and not x.flags.c_contiguous else "C"
    rows, along = _rows_of(x, order)
    for row in rows:
        _check_kinds(row[:: max(1, row.size // _GLANCE)].tolist())
    frames: list[Frame] = []
    runs = []
    for row in rows:
        run, planned = _encode_run(_analyse(np.ascontiguousarray(row)), bool(x.flags.writeable))
        runs.append(run)
        frames += planned
    return {"shape": list(x.shape), "order": order, "along": along, "runs": runs}, frames


def _rows_of(x: Array, order: Any) -> tuple[list[Array], int | None]:
    """Return the runs of an array, and the axis that tells them apart (None: there is one)."""
    if x.ndim != 2 or min(x.shape) < 2 or max(x.shape) < _MIN_RUN:
        return [x.ravel(order)], None
    along = int(x.shape[0] > x.shape[1])
    return list(x.T if along else x), along


def _check_kinds(values: list[Any]) -> set[type]:
    """Return the types of values; decline what is neither text nor None nor a float."""
    kinds = set(map(type, values))
    if kinds == _ONLY_TEXT or kinds <= _KINDS:
        return kinds
    raise NotImplementedError(f"elements of the types {kinds}")


# --- do values repeat? --------------------------------------------------------------------------


def _analyse(row: Array) -> Run:
    """Find out whether values repeat; if so, number them."""
    sample = row[:: max(4, len(row) // _SAMPLE)].copy()
    known = _distinct(_addresses(sample))
    run = None
    if len(known) <= _FEW:
        run = _number_objects(row, known)
    if run is None and len(known) < len(sample) * 0.998:
        run = _number_objects(row, _distinct(_addresses(row)))
    if run is None and len(set(sample.tolist())) < len(sample) * 0.75:
        run = _number_values(row)
    return run or Run(row, None)


def _addresses(row: Array) -> Words:
    """Return where the objects of a contiguous array lie; equal addresses are one object."""
    return np.frombuffer(row, np.uint64)


def _distinct(addresses: Words) -> Words:
    """Return each address once, in ascending order."""
    in_order = np.sort(addresses)
    first = np.empty(len(in_order), bool)
    first[:1] = True
    np.not_equal(in_order[1:], in_order[:-1], out=first[1:])
    return in_order[first]


def _number_objects(row: Array, known: Words) -> Run | None:
    """Number the objects of a run by their addresses; None: too many, or not all are known.

    A table that addresses are spread over tells most numbers; the few addresses that share a place
    in it are searched for.
    """
    if len(known) * _REPEATS > len(row):
        return None
    shift = np.uint64(64 - min(len(known).bit_length() + 6, _TABLE_BITS))
    table = np.zeros(1 << (64 - int(shift)), np.int32)
    table[known * _SPREAD >> shift] = np.arange(len(known))
    where = np.zeros(len(known), np.intp)
    codes = np.empty(len(row), _code_type(len(known)))
    for start in range(0, len(row), _CHUNK):
        addresses = _addresses(row[start : start + _CHUNK])
        found = table.take((addresses * _SPREAD >> shift).view(np.int64))
        missed = np.flatnonzero(known.take(found) != addresses)
        if len(missed):
            found[missed] = np.searchsorted(known[:-1], addresses[missed])
            if not np.array_equal(known[found[missed]], addresses[missed]):
                return None
        where[found] = np.arange(start, start + len(found))
        codes[start : start + _CHUNK] = found
    return Run(row[where], codes)


def _number_values(row: Array) -> Run | None:
    """Number the values by their equality; None when too few of them repeat."""
    numbers: defaultdict[Any, int] = defaultdict(itertools.count().__next__)
    codes = np.empty(len(row), np.uint32)
    for start in range(0, len(row), _CHUNK):
        elements = row[start : start + _CHUNK].tolist()
        _check_kinds(elements)
        found = np.fromiter(map(numbers.__getitem__, elements), np.uint32, len(elements))
        codes[start : start + _CHUNK] = found
        if len(numbers) * _REPEATS > len(row):
            return None
    values = np.fromiter(numbers, object, len(numbers))
    return Run(values, codes.astype(_code_type(len(values)), copy=False))


def _code_type(count: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if count <= 1 << 8 else np.uint16 if count <= 1 << 16 else np.uint32


# --- values to text -----------------------------------------------------------------------------


def _encode_run(run: Run, writeable: bool) -> tuple[list[Any], list[Planned]]:  # noqa: FBT001 - one use
    """Return the header and the frames of a run."""
    separator, nbytes, gaps = _measure(run.values)

    def write_text(target: memoryview) -> None:
        _write(run.values, separator, gaps, target)

    planned = [Planned(nbytes, write_text, writeable=writeable)]
    planned += [_plan(part, writeable) for part in (gaps, run.codes) if part is not None]
    code_nbytes = 0 if run.codes is None else run.codes.itemsize
    return [separator, len(run.values), gaps is not None, code_nbytes], planned


def _plan(part: Array, writeable: bool) -> Planned:  # noqa: FBT001 - one use
    view = ensure_memoryview(part)

    def write_into(target: memoryview) -> None:
        target[:] = view

    return Planned(view.nbytes, write_into, writeable=writeable)


def _measure(values: Array) -> tuple[str, int, Array | None]:
    """Return a separator that occurs in no value, the bytes of the joined text, and the gaps.

    The text is joined here and once more where it goes (`_write`): to join twice in the cache is
    cheaper than to keep all of it in fresh memory.
    """
    for separator in _SEPARATORS:
        end = separator.encode()
        nbytes = -len(end)
        gaps = None
        for start in range(0, len(values), _CHUNK_TEXTS):
            chunk = values[start : start + _CHUNK_TEXTS]
            texts = chunk.tolist()
            if gaps is None and operator.countOf(map(type, texts), str) != len(texts):
                gaps = np.zeros(len(values), np.uint8)
            if gaps is not None:
                texts = _fill(chunk, gaps[start : start + _CHUNK_TEXTS])
            piece = _to_utf8("".join(texts))
            if end in piece:
                break
            nbytes += len(piece) + len(texts) * len(end)
        else:
            return separator, nbytes, gaps
    raise NotImplementedError("no character is left to separate the texts")


def _write(values: Array, separator: str, gaps: Array | None, target: memoryview) -> None:
    """Write the values, joined, where their text goes."""
    stop = 0
    for first in range(0, len(values), _CHUNK_TEXTS):
        chunk = values[first : first + _CHUNK_TEXTS]
        if gaps is not None:
            chunk = _without(chunk, gaps[first : first + _CHUNK_TEXTS])
        texts = chunk.tolist()
        piece = (separator * (first > 0) + separator.join(texts)).encode()
        start, stop = stop, stop + len(piece)
        if stop > target.nbytes:
            break
        target[start:stop] = piece
    if stop != target.nbytes:
        raise RuntimeError("an array of text was changed while it was stored")


def _to_utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise NotImplementedError("lone surrogates") from error


def _fill(chunk: Array, gaps: Array) -> list[str]:
    """Note which values are None or NaN, and return them with empty text in their place."""
    addresses = _addresses(chunk)
    gaps[(addresses == id(None)) | (addresses == 0)] = _NONE
    gaps[addresses == id(np.nan)] = _NAN
    texts: list[Any] = _without(chunk, gaps).tolist()
    if operator.countOf(map(type, texts), str) == len(texts):
        return texts
    for place, value in enumerate(texts):
        if type(value) is not str:
            if type(value) is not float or value == value:  # noqa: PLR0124 - only NaN differs from itself
                raise NotImplementedError(f"{type(value).__name__} among text")
            gaps[place] = _NAN
            texts[place] = ""
    return texts


def _without(chunk: Array, gaps: Array) -> Array:
    """Return values with empty text in the place of gaps."""
    filled = chunk.copy()
    filled[gaps != _TEXT] = ""
    return filled


# --- and back -----------------------------------------------------------------------------------


def decode(header: dict[str, Any], frames: Sequence[Frame]) -> Array:
    """Build the array again.

    Returns
    -------
    ndarray
        Its elements are new; it may be written to if the first frame may be.

    Raises
    ------
    CorruptHeaderError
        Header and frames do not belong together.
    """
    shape = _shape_of(header)
    along, order, runs = header.get("along"), header.get("order"), header.get("runs")
    if order not in ("C", "F") or not isinstance(runs, (list, tuple)):
        raise _corrupt("order", order, "C or F, and a list of runs")
    views = [ensure_memoryview(frame) for frame in frames]
    if not views or math.prod(shape) > sum(view.nbytes for view in views) + len(runs):
        raise _corrupt("shape", shape, f"what {len(views)} frames can hold")
    x = np.empty(shape, object, order)
    if along is None and len(runs) == 1:
        targets = [x.reshape(-1, order=order)]
    elif type(along) is int and along in (0, 1) and x.ndim == 2 and len(runs) == shape[along]:
        targets = list(x.T if along else x)
    else:
        raise _corrupt("along", f"{along!r} with {len(runs)} runs", f"runs for shape {shape}")
    left = iter(views)
    for run, target in zip(runs, targets, strict=True):
        _decode_run(run, left, target)
    if next(left, None) is not None:
        raise _corrupt("frames", len(views), "as many as the runs need")
    x.flags.writeable = not views[0].readonly
    return x


def _shape_of(header: dict[str, Any]) -> tuple[int, ...]:
    shape = header.get("shape")
    if isinstance(shape, (list, tuple)) and all(type(n) is int and n >= 0 for n in shape):
        return tuple(shape)
    raise _corrupt("shape", shape, "a list of lengths")


def _decode_run(run: Any, views: Iterator[memoryview], target: Array) -> None:
    """Fill an array of one dimension with the elements of a run."""
    if not isinstance(run, (list, tuple)) or list(map(type, run)) != [str, int, bool, int]:
        raise _corrupt("runs", run, "separator, count, gaps, bytes of a code")
    separator, count, has_gaps, code_nbytes = run
    text = _next(views, "text")
    if separator not in _SEPARATORS or not 1 <= count <= text.nbytes + 1:
        raise _corrupt("runs", run, "a known separator and a count")
    if not code_nbytes and count != len(target):
        raise _corrupt("runs", f"{count} elements", len(target))
    values = np.empty(count, object) if code_nbytes else target
    _split(text, separator, values)
    if has_gaps:
        _reopen(values, np.frombuffer(_next(views, "gaps"), np.uint8))
    if code_nbytes:
        _choose(values, _next(views, "codes"), code_nbytes, target)


def _split(view: memoryview, separator: str, target: Array) -> None:
    """Fill an array with the texts between separators; there must be as many as it takes."""
    end = separator.encode()
    filled, start, step = 0, 0, _CHUNK_NBYTES
    while start >= 0:
        piece = bytes(view[start : start + step])
        last = start + len(piece) == view.nbytes
        stop = len(piece) if last else piece.rfind(end)
        if stop < 0:
            step *= 2
            continue
        try:
            texts = str(view[start : start + stop], "utf-8").split(separator)
        except UnicodeDecodeError as error:
            raise _corrupt("frames", f"text with {error.reason}", "UTF-8") from error
        if len(texts) > len(target) - filled:
            break
        target[filled : filled + len(texts)] = texts
        filled += len(texts)
        start = -1 if last else start + stop + len(end)
    if filled != len(target) or start >= 0:
        raise _corrupt("runs", f"{filled} texts or more", len(target))


def _reopen(values: Array, gaps: Array) -> None:
    """Put None and NaN where they were."""
    if len(gaps) != len(values) or gaps.max() > _NAN:
        raise _corrupt("frames", f"{len(gaps)} marks of gaps", f"{len(values)}, each 0, 1 or 2")
    values[gaps == _NONE] = None
    values[gaps == _NAN] = np.nan


def _choose(values: Array, view: memoryview, itemsize: Any, target: Array) -> None:
    """Fill an array with the values that codes tell."""
    if itemsize not in (1, 2, 4) or view.nbytes != len(target) * itemsize:
        raise _corrupt("frames", f"{view.nbytes} bytes by {itemsize!r}", f"{len(target)} codes")
    codes = np.frombuffer(view, f"u{itemsize}")
    if codes.max(initial=0) >= len(values):
        raise _corrupt("frames", f"code {codes.max()}", f"less than {len(values)}")
    values.take(codes, out=target, mode="clip")


def _next(views: Iterator[memoryview], name: str) -> memoryview:
    view = next(views, None)
    if view is None:
        raise _corrupt("frames", "too few", f"a frame of {name}")
    return view


def _corrupt(key: str, found: Any, expected: Any) -> CorruptHeaderError:
    return CorruptHeaderError(
        f"the header of an array of text is damaged at {key!r}: {str(found)[:100]} instead of "
        f"{expected}.",
        key=key,
        found=str(found)[:100],
        expected=expected,
    )
