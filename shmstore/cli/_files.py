"""Which format has a file, and what object does it hold?

==========  ===============================  ===================================================
format      becomes                          is written from
==========  ===============================  ===================================================
npy         a NumPy array                    arrays of anything but objects of Python
npz         a dict of arrays                 a dict of arrays, or an array
csv         a pandas DataFrame               frames, Arrow tables, arrays of one or two dimensions
parquet     a pyarrow Table                  frames of pandas or polars, Arrow tables
arrow       a pyarrow Table                  as parquet
json        dicts, lists, numbers, text      the same, and arrays as lists
text        str                              str
raw         bytes                            what is one buffer: bytes, arrays; text as UTF-8
pickle      anything, by running its code    anything
==========  ===============================  ===================================================
"""

from __future__ import annotations

import importlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from shmstore.cli._errors import CommandError, UsageError

SUFFIXES: Final = {
    ".npy": "npy",
    ".npz": "npz",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".json": "json",
    ".txt": "text",
    ".raw": "raw",
    ".bin": "raw",
    ".pickle": "pickle",
    ".pkl": "pickle",
}
TEXTS: Final = ("csv", "json", "text")

Source = Path | BinaryIO


class Stream(NamedTuple):
    """Bytes that are written as they are."""

    data: Any


def format_of(path: Path) -> str | None:
    """Return the format that the suffix of a file tells, or None."""
    return SUFFIXES.get(path.suffix.lower())


def natural_format(value: Any) -> str:
    """Return the format for the standard output, when none was asked for."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "raw"
    if isinstance(value, (dict, list, tuple, int, float, bool, type(None))):
        return "json"
    raise UsageError(f"a {type(value).__name__} has no natural form as text: give a FILE, or --as")


def check_reading(form: str, *, unsafe: bool) -> None:
    """Raise unless a file of this format may be read."""
    if form == "pickle" and not unsafe:
        raise UsageError(
            "reading a pickle runs the code that it names. If you trust where the file comes "
            "from, give --unsafe-pickle."
        )


# --- reading -------------------------------------------------------------------------------------


def read(source: Source, form: str) -> Any:
    """Return the object in a file, or in a stream."""
    return _READERS[form](source)


def _bytes_of(source: Source) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else source.read()


def _seekable(source: Source) -> Any:
    return source if isinstance(source, Path) else io.BytesIO(source.read())


def _read_npy(source: Source) -> Any:
    # Mapped, the data goes straight from the file into the store; "c" is writeable, as others are.
    mapped = "c" if isinstance(source, Path) else None
    array = np.load(_seekable(source), mmap_mode=mapped, allow_pickle=False)  # type: ignore[arg-type]
    if not isinstance(array, np.ndarray):
        raise UsageError("the file holds several arrays: give --as npz")
    return np.asarray(array) if array.nbytes else np.array(array)


def _read_npz(source: Source) -> dict[str, Any]:
    # Of a damaged file that NumPy opens itself it leaves the descriptor open.
    with source.open("rb") if isinstance(source, Path) else _seekable(source) as stream:
        arrays = np.load(stream, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise UsageError("the file holds one array: give --as npy")
        with arrays:
            return dict(arrays)


def _read_csv(source: Source) -> Any:
    return _needed("pandas", "csv").read_csv(_seekable(source))


def _read_parquet(source: Source) -> Any:
    return _needed("pyarrow.parquet", "parquet").read_table(_seekable(source))


def _read_arrow(source: Source) -> Any:
    arrow = _needed("pyarrow", "arrow")
    opened = arrow.memory_map(str(source)) if isinstance(source, Path) else _bytes_of(source)
    try:
        return arrow.ipc.open_file(opened).read_all()
    except arrow.ArrowInvalid:
        opened = arrow.memory_map(str(source)) if isinstance(source, Path) else opened
        return arrow.ipc.open_stream(opened).read_all()


def _read_json(source: Source) -> Any:
    return json.loads(_bytes_of(source))


def _read_text(source: Source) -> str:
    return _bytes_of(source).decode()


def _read_pickle(source: Source) -> Any:
    try:
        return pickle.loads(_bytes_of(source))
    except Exception as error:  # a stream that is no pickle raises anything
        raise UsageError(f"the pickle cannot be read: {error}") from error


_READERS: Final[dict[str, Callable[[Source], Any]]] = {
    "npy": _read_npy,
    "npz": _read_npz,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "json": _read_json,
    "text": _read_text,
    "raw": _bytes_of,
    "pickle": _read_pickle,
}


# --- writing -------------------------------------------------------------------------------------


def write(stream: BinaryIO, value: Any, form: str) -> None:
    """Write an object to a stream. TypeError or ValueError: it has no such form."""
    if isinstance(value, Stream):
        stream.write(value.data)
    else:
        _WRITERS[form](stream, value)


def _write_npy(stream: BinaryIO, value: Any) -> None:
    np.lib.format.write_array(stream, np.asanyarray(value), allow_pickle=False)


def _write_npz(stream: BinaryIO, value: Any) -> None:
    arrays = value if isinstance(value, dict) else {"arr_0": value}
    found = {str(key): np.asarray(array) for key, array in arrays.items()}
    if any(array.dtype.hasobject for array in found.values()):
        message = "it holds objects of Python"
        raise TypeError(message)
    np.savez(stream, **found)  # type: ignore[arg-type]


def _write_csv(stream: BinaryIO, value: Any) -> None:
    if _is_frame(value):
        index = type(value.index).__name__ != "RangeIndex"
        stream.write(value.to_csv(index=index).encode())
    elif hasattr(value, "write_csv"):  # of polars
        value.write_csv(stream)
    elif isinstance(value, np.ndarray):
        names = ",".join(value.dtype.names or ())
        form: Any = "%s" if value.dtype.names else "%.18g"
        np.savetxt(stream, value, delimiter=",", header=names, comments="", fmt=form)
    else:
        table = _as_arrow(value)
        _needed("pyarrow.csv", "csv").write_csv(table, stream)


def _write_parquet(stream: BinaryIO, value: Any) -> None:
    table = _as_arrow(value)
    _needed("pyarrow.parquet", "parquet").write_table(table, stream)


def _write_arrow(stream: BinaryIO, value: Any) -> None:
    table = _as_arrow(value)
    arrow = _needed("pyarrow", "arrow")
    with arrow.ipc.new_file(stream, table.schema) as file:
        file.write_table(table)


def _is_frame(value: Any) -> bool:
    return hasattr(value, "to_csv") and hasattr(value, "index")


def _as_arrow(value: Any) -> Any:
    """Return a frame of pandas or polars, or columns of a dict, as an Arrow table."""
    columns = hasattr(value, "columns") or hasattr(value, "to_arrow")
    if not (columns or isinstance(value, dict)):
        message = "it is no table"
        raise TypeError(message)
    arrow = _needed("pyarrow", "arrow")
    if isinstance(value, arrow.RecordBatch):
        return arrow.Table.from_batches([value])
    if isinstance(value, arrow.Table):
        return value
    if hasattr(value, "to_arrow"):
        return value.to_arrow()
    return arrow.Table.from_pandas(value) if _is_frame(value) else arrow.table(value)


def _write_json(stream: BinaryIO, value: Any) -> None:
    text = json.dumps(value, default=_listed, ensure_ascii=False, indent=2)
    stream.write(f"{text}\n".encode())


def _listed(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "to_pylist"):
        return value.to_pylist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    message = f"JSON has no form for a {type(value).__name__}"
    raise TypeError(message)


def _write_text(stream: BinaryIO, value: Any) -> None:
    if not isinstance(value, str):
        message = "it is no text"
        raise TypeError(message)
    stream.write(value.encode())


def _write_raw(stream: BinaryIO, value: Any) -> None:
    if isinstance(value, str):
        stream.write(value.encode())
        return
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        message = "it holds objects of Python"
        raise TypeError(message)
    stream.write(memoryview(value if not isinstance(value, np.ndarray) else value.tobytes()))


def _write_pickle(stream: BinaryIO, value: Any) -> None:
    pickle.dump(value, stream, pickle.HIGHEST_PROTOCOL)


_WRITERS: Final[dict[str, Callable[[BinaryIO, Any], None]]] = {
    "npy": _write_npy,
    "npz": _write_npz,
    "csv": _write_csv,
    "parquet": _write_parquet,
    "arrow": _write_arrow,
    "json": _write_json,
    "text": _write_text,
    "raw": _write_raw,
    "pickle": _write_pickle,
}


def _needed(module: str, form: str) -> Any:
    """Import what a format needs, which most users have and nobody must."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise CommandError(f"{form} needs {package}: pip install {package}") from error
