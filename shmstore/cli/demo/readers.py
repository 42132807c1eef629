"""Which arrays does a file hold?

Text becomes one long array of bytes and the offsets of its passages, numbers become one array of
rows and columns.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shmstore.cli._errors import UsageError

_PASSAGE_NBYTES = 4096

Array = npt.NDArray[Any]
Table = tuple[Sequence[str], Array]  # the names of the columns, the rows


def read_text(files: Sequence[Path]) -> dict[str, Array]:
    """Read texts as ``text``, all their bytes, and ``starts``, where its passages start and end."""
    joined = b"".join(file.read_bytes() + b"\n" for file in files)
    text = np.frombuffer(joined, np.uint8)
    return {"text": text, "starts": _passage_starts(text)}


def _passage_starts(text: Array) -> Array:
    """Cut a text at the first line end after every 4 KiB; the last offset is where it ends."""
    line_starts = np.flatnonzero(text == ord("\n")) + 1
    wanted = np.arange(0, text.size, _PASSAGE_NBYTES)[1:]
    cuts = line_starts[np.searchsorted(line_starts, wanted)]
    return np.unique(np.concatenate([[0], cuts, [text.size]]))


def read_npy(files: Sequence[Path]) -> Table:
    """Read the numbers of .npy files as one column."""
    arrays = [_npy(file) for file in files]
    column = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return ["values"], column.reshape(-1, 1)


def _npy(file: Path) -> Array:
    """Read one array, flat; neither of the two memory orders needs a copy for that."""
    try:
        array = np.load(file, allow_pickle=False)
    except ValueError as error:
        raise UsageError(f"{file} is no .npy file, or holds Python objects") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise UsageError(f"{file} holds no array of real numbers")
    return array.reshape(-1, order="A")


def read_csv(files: Sequence[Path]) -> Table:
    """Read .csv files that have the same columns of numbers as one table."""
    tables = [_csv(file) for file in files]
    labels = tables[0][0]
    for file, (other_labels, _) in zip(files, tables, strict=True):
        if other_labels != labels:
            raise UsageError(f"{file} has other columns than {files[0]}: give the demo one file")
    return labels, np.concatenate([rows for _, rows in tables])


def _csv(file: Path) -> Table:
    try:
        labels, columns, header_lines = _csv_columns(file)
        return labels, _csv_rows(file, columns, header_lines)
    except (ValueError, csv.Error) as error:
        raise UsageError(f"cannot read {file}: {' '.join(str(error).split())}") from error


def _csv_columns(file: Path) -> tuple[list[str], list[int], int]:
    """Find the columns that are numbers in the second line: names, positions, lines above."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        lines = list(islice(csv.reader(stream), 2))
    first, last = (lines[0], lines[-1]) if lines else ([], [])
    columns = [at for at, cell in enumerate(last) if _is_number(cell)]
    if not columns:
        raise UsageError(f"{file} has no column of numbers in its second line, split at commas")
    if any(_is_number(cell) for cell in first) or len(first) < len(last):
        return [f"column {at + 1}" for at in columns], columns, 0
    return [first[at] for at in columns], columns, 1


def _csv_rows(file: Path, columns: list[int], header_lines: int) -> Array:
    layout: dict[str, Any] = {"delimiter": ",", "usecols": columns, "encoding": "utf-8-sig"}
    try:
        rows = np.loadtxt(file, skiprows=header_lines, comments=None, quotechar='"', **layout)
    except ValueError:  # a cell is empty or no number: the slow way reads it as NaN
        rows = np.genfromtxt(file, skip_header=header_lines, **layout)
    return np.asarray(rows).reshape(-1, len(columns))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
