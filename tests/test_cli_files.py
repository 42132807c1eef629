"""Files become objects and objects files: put, get, rm, show."""

from __future__ import annotations

import datetime as dt
import errno
import io
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Shell, run_command

from shmstore import Store
from shmstore.cli import _files

MARK: list[str] = []


def leave_a_mark() -> str:
    """Show that a pickle was read."""
    MARK.append("run")
    return "marked"


class Evil:
    """An object whose pickle calls something."""

    def __reduce__(self) -> Any:
        return leave_a_mark, ()


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """Give the command line."""
    return Shell(capsys)


@pytest.fixture
def it() -> Iterator[Store]:
    """Give a store."""
    with Store.create("it", capacity="16MiB") as store:
        yield store


def _round(shell: Shell, name: str, path: Path, *options: str) -> Path:
    """Put a file, get it again as another."""
    back = path.with_name(f"back-{path.name}")
    assert shell("put", "it", name, path, *options).code == 0
    assert shell("get", "it", name, back, *options).code == 0
    return back


# --- every format --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i4", "f8", "c16", "S5", "M8[s]", "i4,f8", ">u2", "bool"])
def test_npy_comes_back_as_it_was(shell: Shell, it: Store, tmp_path: Path, dtype: str) -> None:
    """Of any dtype but objects."""
    array = np.zeros((3, 4), dtype)
    np.save(tmp_path / "a.npy", array)
    back = np.load(_round(shell, "a", tmp_path / "a.npy"))
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert np.array_equal(it["a"], array)


def test_npz_becomes_a_dict_of_arrays(shell: Shell, it: Store, tmp_path: Path) -> None:
    """By the names in the file."""
    np.savez(tmp_path / "a.npz", one=np.arange(3), two=np.eye(2))
    back = np.load(_round(shell, "a", tmp_path / "a.npz"))
    assert sorted(back) == sorted(it["a"]) == ["one", "two"]
    assert back["two"].tolist() == [[1, 0], [0, 1]]


def test_csv_becomes_a_frame_of_pandas(shell: Shell, it: Store, tmp_path: Path) -> None:
    """Text and numbers; without the numbers of the rows."""
    pytest.importorskip("pandas")
    (tmp_path / "t.csv").write_text("a,b\n1,x\n2,y\n")
    back = _round(shell, "t", tmp_path / "t.csv")
    assert back.read_text() == "a,b\n1,x\n2,y\n"
    assert it["t"]["b"].tolist() == ["x", "y"]


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather"])
def test_tables_of_arrow_come_back(shell: Shell, it: Store, tmp_path: Path, suffix: str) -> None:
    """From one format and as another, frames of pandas too."""
    arrow = pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    it["frame"] = pandas.DataFrame({"n": [1, 2, 3], "t": ["a", "b", None]})
    path = tmp_path / f"t.{suffix}"
    assert shell("get", "it", "frame", path).code == 0
    assert shell("put", "it", "table", path).code == 0
    assert isinstance(it["table"], arrow.Table)
    assert it["table"].to_pydict() == {"n": [1, 2, 3], "t": ["a", "b", None]}
    assert shell("get", "it", "table", tmp_path / "t.csv").code == 0
    assert (tmp_path / "t.csv").read_text().splitlines()[1].endswith('1,"a"')


def test_json_text_and_raw_bytes_come_back(shell: Shell, it: Store, tmp_path: Path) -> None:
    """Each as what it is."""
    (tmp_path / "v.json").write_text('{"a": [1, 2.5, null], "ü": true}')
    (tmp_path / "v.txt").write_text("größer\n")
    (tmp_path / "v.bin").write_bytes(bytes(range(256)) * 100)
    back = _round(shell, "json", tmp_path / "v.json")
    assert json.loads(back.read_text()) == it["json"] == {"a": [1, 2.5, None], "ü": True}
    assert _round(shell, "text", tmp_path / "v.txt").read_text() == it["text"] == "größer\n"
    raw = _round(shell, "raw", tmp_path / "v.bin").read_bytes()
    assert raw == bytes(it["raw"]) == bytes(range(256)) * 100


def test_get_without_a_file_writes_what_has_a_natural_form(it: Store) -> None:
    """Text as text, values as JSON, bytes as they are; an array has none."""
    it["text"], it["values"], it["bytes"] = "hello", {"a": [1]}, b"\x00\xff" * 3000
    it["array"] = np.arange(3)
    assert run_command("get", "it", "text").out == "hello"
    assert run_command("get", "it", "values").json == {"a": [1]}
    assert run_command("get", "it", "array").code == 2
    assert run_command("get", "it", "array", "--as", "csv").out.split() == ["0", "1", "2"]
    assert run_command("get", "it", "array", "--as", "json").json == [0, 1, 2]


def test_put_reads_the_standard_input(it: Store) -> None:
    """With --as, since there is no suffix."""
    stream = io.BytesIO()
    np.save(stream, np.arange(5))
    assert run_command("put", "it", "a", "-", "--as", "npy", stdin=stream.getvalue()).code == 0
    assert run_command("put", "it", "j", "-", "--as", "json", stdin=b"[1, 2]").code == 0
    assert run_command("put", "it", "j", "-", stdin=b"[1, 2]").code == 2
    assert (it["a"].tolist(), it["j"]) == ([0, 1, 2, 3, 4], [1, 2])


def test_options_of_put_are_those_of_the_store(shell: Shell, it: Store, tmp_path: Path) -> None:
    """Time to live, read-only, compression, no overwriting."""
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(10_000))
    done = shell("put", "it", "a", path, "--ttl", "1h", "--readonly", "--compression", "zlib")
    assert done.code == 0
    info = it.info("a")
    assert info.expires is not None
    assert info.stored_nbytes < 10_000
    assert not it["a"].flags.writeable
    done = shell("put", "it", "a", path, "--no-overwrite")
    assert (done.code, "'a'" in done.err) == (1, True)
    assert shell("put", "it", "b", path, "--compression", "nonsense").code == 1


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_arrays_of_a_file_are_writeable_unless_they_are_put_readonly(
    shell: Shell, it: Store, tmp_path: Path, name: str
) -> None:
    """One array as well as several."""
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, np.arange(10_000))
    for key, options in (("a", []), ("b", ["--readonly"])):
        assert shell("put", "it", key, tmp_path / name, *options).code == 0
        got = it[key] if name == "a.npy" else it[key]["arr_0"]
        assert got.flags.writeable == (not options)


def test_mapped_file_may_change_after_it_was_put(shell: Shell, it: Store, tmp_path: Path) -> None:
    """What is in the store is a copy, though the file is mapped for it."""
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(1000))
    shell("put", "it", "a", path)
    np.save(path, np.ones(1000))
    assert it["a"].sum() == 0


# --- what is refused -----------------------------------------------------------------------------


def test_file_that_is_there_is_replaced_only_with_force(
    shell: Shell, it: Store, tmp_path: Path
) -> None:
    """And never left half written."""
    it["a"], path = np.arange(3), tmp_path / "a.npy"
    path.write_text("mine")
    assert shell("get", "it", "a", path).code == 2
    assert path.read_text() == "mine"
    it["object"] = np.array([None, object], dtype=object)
    assert shell("get", "it", "a", path, "--force").code == 0
    assert shell("get", "it", "object", path, "--force", "--unsafe-pickle").code == 1
    assert np.load(path).tolist() == [0, 1, 2]
    assert [found.name for found in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", b"no array"),
        ("empty.npy", b""),
        ("a.npz", b"PK no archive"),
        ("empty.npz", b""),
        ("cut.npz", b"PK\x03\x04" + bytes(100)),
        ("a.json", b"{"),
        ("deep.json", b"[" * 100_000),
        ("a.txt", b"\xff\xfe\xff"),
        ("a.parquet", b"no table"),
        ("a.arrow", b"no table"),
        ("a.xyz", b"who knows"),
        ("none.npy", None),
    ],
)
def test_file_that_cannot_be_read_ends_with_2(
    shell: Shell, it: Store, tmp_path: Path, name: str, content: bytes | None
) -> None:
    """One line that names it, and nothing was put."""
    if name in ("a.parquet", "a.arrow"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = shell("put", "it", "a", tmp_path / name)
    assert done.code == 2, done.err
    assert done.err.count("\n") == 1
    assert name in done.err
    assert len(it) == 0


def test_file_of_the_other_format_of_numpy_says_how_to_read_it(
    shell: Shell, it: Store, tmp_path: Path
) -> None:
    """One array for several, and several for one."""
    np.save(tmp_path / "a.npy", np.arange(3))
    np.savez(tmp_path / "a.npz", np.arange(3))
    for name, other in (("a.npy", "npz"), ("a.npz", "npy")):
        done = shell("put", "it", "a", tmp_path / name, "--as", other)
        assert (done.code, len(it)) == (2, 0)
        assert f"give --as {name[2:]}" in done.err


def test_standard_input_that_holds_no_array_ends_with_2(it: Store) -> None:
    """As a file does."""
    done = run_command("put", "it", "a", "-", "--as", "npy")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("shmstore: cannot read - as npy: ")


@pytest.mark.parametrize("form", ["npy", "npz", "csv", "parquet", "arrow", "text", "json"])
def test_object_that_has_no_such_form_ends_with_1(
    shell: Shell, it: Store, tmp_path: Path, form: str
) -> None:
    """The message says what it is."""
    it["a"] = {1, "x", None, dt.date(2020, 1, 1)}
    done = shell("get", "it", "a", tmp_path / "x", "--as", form)
    assert done.code == 1
    assert "set" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["none/a.npy", "file/a.npy", "folder.npy"])
def test_file_that_cannot_be_written_is_named_as_it_was_given(
    shell: Shell, it: Store, tmp_path: Path, place: str
) -> None:
    """Whether its folder is missing or is a file, or it is a folder itself."""
    it["a"] = np.arange(3)
    (tmp_path / "file").touch()
    (tmp_path / "folder.npy").mkdir()
    done = shell("get", "it", "a", tmp_path / place, "--force")
    assert done.code == 1
    assert done.err.startswith(f"shmstore: {tmp_path / place}: ")
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["file", "folder.npy"]


def test_full_device_names_the_file(shell: Shell, it: Store, monkeypatch: Any) -> None:
    """Though the error of a write names none."""

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    it["a"] = "text"
    monkeypatch.setattr(_files, "write", fail)
    done = shell("get", "it", "a", "a.txt")
    assert (done.code, done.err) == (1, "shmstore: a.txt: No space left on device\n")


# --- pickles -------------------------------------------------------------------------------------


def test_pickle_that_calls_something_is_refused_unless_it_is_trusted(
    shell: Shell, it: Store, tmp_path: Path
) -> None:
    """Neither show nor get nor put runs it; said to be safe, it is read."""
    MARK.clear()
    it["evil"] = Evil()
    (tmp_path / "e.pkl").write_bytes(pickle.dumps(Evil()))
    assert "not shown" in shell("show", "it", "evil").out
    for command in (
        ["get", "it", "evil", "--as", "json"],
        ["get", "it", "evil", tmp_path / "e.npy"],
        ["put", "it", "more", tmp_path / "e.pkl"],
    ):
        done = shell(*command)
        assert done.code in (1, 2)
        assert "--unsafe-pickle" in done.err
    assert MARK == []
    assert shell("get", "it", "evil", "--as", "text", "--unsafe-pickle").out == "marked"
    assert shell("put", "it", "more", tmp_path / "e.pkl", "--unsafe-pickle").code == 0
    assert it["more"] == "marked"
    assert len(MARK) == 2


def test_pickle_in_a_store_is_written_out_without_being_read(
    shell: Shell, it: Store, tmp_path: Path
) -> None:
    """Its stream is what pickle reads."""
    MARK.clear()
    it["evil"], it["dict"] = Evil(), {"a": 1}
    assert shell("get", "it", "evil", tmp_path / "e.pkl").code == 0
    assert MARK == []
    assert shell("get", "it", "dict", tmp_path / "d.pkl").code == 0
    assert pickle.loads((tmp_path / "d.pkl").read_bytes()) == {"a": 1}


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, (2.5, None)], "b": {"c": b"x"}},
        {1, 2},
        complex(1, 2),
        dt.datetime(2020, 1, 2, tzinfo=dt.UTC),
        Path("/x"),
        np.float32(1.5),
        np.array(["a", None], dtype=object),
        {"arrays": [np.arange(3), np.ones(2)]},
    ],
    ids=str,
)
def test_values_of_the_standard_library_and_numpy_need_no_trust(
    shell: Shell, it: Store, value: Any
) -> None:
    """Their pickles only make values."""
    it["value"] = value
    assert "not shown" not in shell("show", "it", "value").out


def test_frames_of_pandas_need_no_trust(shell: Shell, it: Store) -> None:
    """With an index of times, categories, and missing values."""
    pandas = pytest.importorskip("pandas")
    times = pandas.date_range("2020", periods=3, tz="UTC")
    it["frame"] = pandas.DataFrame(
        {"c": pandas.Categorical(["a", "b", "a"]), "n": pandas.array([1, None, 3], dtype="Int64")},
        index=times,
    )
    out = shell("show", "it", "frame").out
    assert "DataFrame of shape (3, 2)" in out
    assert "2020-01-02" in out


@pytest.mark.parametrize("name", ["eval", "DataFrame.eval", "read_pickle", "load", "system"])
def test_names_that_do_more_are_refused(shell: Shell, it: Store, name: str) -> None:
    """Also of packages whose values are read."""
    for module in ("builtins", "numpy", "pandas", "os"):
        stream = b"\x80\x04" + b"".join(
            b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)
        )
        it["evil"] = 0
        found = it.get("evil", decode=False)
        found.frames[0] = stream + b"\x93."
        it["evil"] = found
        assert f"names {module}.{name}" in shell("show", "it", "evil").out


# --- show ----------------------------------------------------------------------------------------


def test_show_tells_header_frames_and_a_preview(shell: Shell, it: Store) -> None:
    """As text and as JSON, by key and by id."""
    it["a"] = np.arange(100_000).reshape(100, 1000)
    out = shell("show", "it", "a").out
    for text in ("numpy.ndarray", '"shape": [100, 1000]', "781KiB", "array of int64", "99999"):
        assert text in out
    document = shell("show", "it", "a", "--json").json
    assert document["header"]["sub-header"]["shape"] == [100, 1000]
    assert [frame["nbytes"] for frame in document["frames"]] == [800_000]
    assert shell("show", "it", document["id"]).code == 0
    assert shell("show", "it", "@5.77").code == 1
    assert shell("show", "it", "none").code == 1


def test_show_cuts_what_is_long(shell: Shell, it: Store) -> None:
    """A screen, however large the value is."""
    it["list"] = [["x" * 1000] * 50 for _ in range(1000)]
    it["text"] = "line\n" * 10_000
    it["bytes"] = bytes(100_000)
    it["many"] = [np.zeros(1000) for _ in range(100)]
    for name in ("list", "text", "bytes", "many"):
        lines = shell("show", "it", name).out.splitlines()
        assert len(lines) < 120
        assert max(map(len, lines)) < 5000


# --- rm ------------------------------------------------------------------------------------------


def test_rm_deletes_by_key_id_and_pattern(shell: Shell, it: Store) -> None:
    """With a look before; what is not there is an error, unless that is no matter."""
    it.put_many({f"e-{number}": number for number in range(5)})
    it["kept"] = 1
    [row] = [row for row in shell("objects", "it", "--json").json if row["key"] == "e-4"]
    assert shell("rm", "it", "--match", "e-*", "--dry-run").rows == [[f"e-{n}"] for n in range(5)]
    assert len(it) == 6
    assert shell("rm", "it", "e-0", row["id"]).code == 0
    assert shell("rm", "it", "e-0").code == 1
    assert shell("rm", "it", "e-0", "--force").code == 0
    assert shell("rm", "it", "--match", "e-*").code == 0
    assert list(it) == ["kept"]


# --- create, rm-store ----------------------------------------------------------------------------


def test_store_is_made_filled_and_removed_by_commands_alone(shell: Shell, tmp_path: Path) -> None:
    """It stays between them."""
    (tmp_path / "v.json").write_text("[1]")
    assert shell("create", "new", "--capacity", "1MiB", "--on-full", "evict").code == 0
    assert shell("create", "new").code == 1
    assert shell("put", "new", "v", tmp_path / "v.json").code == 0
    assert shell("get", "new", "v").json == [1]
    assert shell("rm-store", "new").rows == [["new", "removed"]]
    assert shell("rm-store", "new").code == 1


def test_store_in_use_is_removed_only_with_force(shell: Shell) -> None:
    """Views of it stay valid."""
    with Store.create("used", capacity="1MiB", persist=True) as store:
        store["a"] = np.arange(10)
        view = store["a"]
        done = shell("rm-store", "used")
        assert (done.code, "--force" in done.err) == (1, True)
        assert shell("rm-store", "used", "--force").code == 0
        assert view.sum() == 45
        assert shell("ls").rows == []
