"""Which files does the demo work on, and what is done with them?"""

from __future__ import annotations

import sysconfig
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shmstore.cli._errors import UsageError
from shmstore.cli.demo import jobs, readers

_KIND_OF_SUFFIX = {".npy": "npy", ".csv": "csv"}
_PROBE_NBYTES = 8192


@dataclass(frozen=True)
class Corpus:
    """What is handed to the workers, and what do they do with it?"""

    title: str
    data: jobs.Data
    job: jobs.Job

    @property
    def nbytes(self) -> int:
        """Bytes of data in all its arrays."""
        return sum(array.nbytes for array in self.data.values())


def load(path: Path | None) -> Corpus:
    """Read a corpus.

    Parameters
    ----------
    path : Path, optional
        A file, or a folder, of which the kind of file that has the most bytes is read. The
        standard library of the running Python by default.

    Returns
    -------
    Corpus
        Its arrays and the job that suits them.

    Raises
    ------
    UsageError
        When nothing can be read there, with the path and the reason.
    """
    try:
        return _standard_library() if path is None else _corpus_at(path)
    except (OSError, EOFError) as error:
        raise UsageError(f"cannot read {path or 'the standard library'}: {error}") from error


def _standard_library() -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    third_party = {"site-packages", "dist-packages"}
    files = [file for file in sorted(root.rglob("*.py")) if third_party.isdisjoint(file.parts)]
    if not files:
        raise UsageError(f"no .py files in {root}: give the demo a PATH")
    return _corpus("the standard library", "text", files)


def _corpus_at(path: Path) -> Corpus:
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}")
    if not (path.is_file() or path.is_dir()):
        raise UsageError(f"neither a file nor a folder: {path}")
    kinds = _files_by_kind(path)
    kinds.pop("binary", None)
    if not kinds:
        raise UsageError(f"no text, .npy or .csv in {path}")
    kind, files = max(kinds.items(), key=lambda item: _total_nbytes(item[1]))
    if _total_nbytes(files) == 0:
        raise UsageError(f"{path} is empty")
    return _corpus(path.resolve().name, kind, files)


def _files_by_kind(path: Path) -> dict[str, list[Path]]:
    kinds: dict[str, list[Path]] = defaultdict(list)
    for file in _visible_files(path) if path.is_dir() else [path]:
        kinds[_kind_of(file)].append(file)
    return kinds


def _visible_files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_file() and not hidden:
            yield file


def _kind_of(file: Path) -> str:
    if file.suffix in _KIND_OF_SUFFIX:
        return _KIND_OF_SUFFIX[file.suffix]
    with file.open("rb") as stream:
        return "binary" if b"\0" in stream.read(_PROBE_NBYTES) else "text"


def _total_nbytes(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _corpus(source: str, kind: str, files: Sequence[Path]) -> Corpus:
    count = "1 file" if len(files) == 1 else f"{len(files):,} files"
    title = f"{source}: {count}, {_total_nbytes(files) / 1e6:,.1f} MB"
    if kind == "text":
        return Corpus(title, readers.read_text(files), jobs.WORDS)
    labels, rows = (readers.read_npy if kind == "npy" else readers.read_csv)(files)
    if rows.size == 0:
        raise UsageError(f"{source} holds no numbers")
    return Corpus(title, {"rows": rows}, jobs.numbers(labels))
