"""Handles of h5py and netCDF4: they travel as names of files, and open nothing else."""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from roundtrips import SAFE, forge, frames_of, round_trip
from stores import RunPython, lock_free_only

from shmstore import Store
from shmstore.errors import CorruptHeaderError, DeserializationError, SerializationError
from shmstore.serialization import deserialize

h5py = pytest.importorskip("h5py")
netCDF4 = pytest.importorskip("netCDF4")  # noqa: N816 - its name

VALUES = np.arange(6).reshape(2, 3)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close the files that a test leaves to the collector."""
    yield
    gc.collect()


@pytest.fixture
def h5_path(tmp_path: Path) -> Path:
    """Give a file of HDF5 with two groups and a dataset."""
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file["outer/inner/values"] = VALUES
    return path


@pytest.fixture
def nc_path(tmp_path: Path) -> Path:
    """Give a file of netCDF with a variable in its root and one in a group."""
    path = tmp_path / "data.nc"
    with netCDF4.Dataset(path, "w") as dataset:
        for group in (dataset, dataset.createGroup("outer").createGroup("inner")):
            group.createDimension("x", 2)
            group.createDimension("y", 3)
            group.createVariable("values", "i4", ("x", "y"))[:] = VALUES
    return path


# What is put, made of an open file; and what it says of itself.
H5: dict[str, tuple[Callable[[Any], Any], str]] = {
    "file": (lambda file: file, "/"),
    "root": (lambda file: file["/"], "/"),
    "group": (lambda file: file["outer/inner"], "/outer/inner"),
    "dataset": (lambda file: file["outer/inner/values"], "/outer/inner/values"),
}
NC: dict[str, tuple[Callable[[Any], Any], str]] = {
    "dataset": (lambda dataset: dataset, "/"),
    "group": (lambda dataset: dataset["outer"], "/outer"),
    "inner group": (lambda dataset: dataset["outer/inner"], "/outer/inner"),
    "variable": (lambda dataset: dataset["values"], "values"),
    "inner variable": (lambda dataset: dataset["outer/inner/values"], "values"),
}


# --- h5py ----------------------------------------------------------------------------------------


@pytest.mark.row("S107")
@pytest.mark.parametrize("name", H5)
def test_h5py_handle_opens_its_file_for_reading(h5_path: Path, name: str) -> None:
    """No frames, no pickle; the same place in the same file."""
    choose, where = H5[name]
    with h5py.File(h5_path) as file:
        x = choose(file)
        header, frames = frames_of(x)
        assert frames == []
        got = deserialize(header, frames, deserializers=SAFE)
    assert type(got) is type(x)
    assert (got.name, got.file.filename, got.file.mode) == (where, str(h5_path), "r")
    assert np.array_equal(got.file["outer/inner/values"], VALUES)
    got.file.close()


@pytest.mark.row("F42")
@pytest.mark.parametrize("name", H5)
def test_h5py_handle_travels_inside_of_other_objects(h5_path: Path, name: str) -> None:
    """Though it refuses to be pickled."""
    choose, where = H5[name]
    with h5py.File(h5_path) as file:
        got = round_trip({"data": [choose(file)], "other": VALUES})
    assert got["data"][0].name == where
    assert np.array_equal(got["other"], VALUES)
    got["data"][0].file.close()


def test_h5py_dataset_keeps_its_file_open(h5_path: Path) -> None:
    """Nobody else has it."""
    with h5py.File(h5_path) as file:
        got = round_trip(file["outer/inner/values"])
    gc.collect()
    assert np.array_equal(got[:], VALUES)


def test_h5py_file_that_can_be_written_is_refused(h5_path: Path) -> None:
    """With its name and what would be accepted."""
    with (
        h5py.File(h5_path, "a") as file,
        pytest.raises(SerializationError, match=r"data\.h5.*open for writing.*mode 'r'"),
    ):
        frames_of(file["outer"])


def test_h5py_handle_that_is_closed_is_refused(h5_path: Path) -> None:
    """It does not know its file anymore."""
    file = h5py.File(h5_path)
    group = file["outer"]
    file.close()
    for x in (file, group):
        with pytest.raises(SerializationError, match="closed"):
            frames_of(x)


def test_h5py_file_that_is_no_file_is_refused(h5_path: Path) -> None:
    """What lies in the memory of a process has no name elsewhere."""
    with (
        h5py.File(io.BytesIO(h5_path.read_bytes()), "r") as file,
        pytest.raises(SerializationError, match="driver 'fileobj'"),
    ):
        frames_of(file)


def test_h5py_core_driver_reads_a_file_and_so_travels(h5_path: Path) -> None:
    """The reader opens the file in its own way."""
    with h5py.File(h5_path, driver="core") as file:
        got = round_trip(file["outer/inner/values"])
    assert np.array_equal(got, VALUES)


def test_h5py_anonymous_dataset_is_refused(h5_path: Path) -> None:
    """It has no path."""
    with h5py.File(h5_path) as file:
        elsewhere = h5py.Dataset(file["outer/inner/values"].id)
        assert round_trip(elsewhere).name == "/outer/inner/values"
    with h5py.File(h5_path, "a") as file:
        nameless = file.create_dataset(None, data=VALUES)
        with pytest.raises(SerializationError, match="no name"):
            frames_of(nameless)


def test_h5py_relative_name_is_that_of_the_writer(
    h5_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader may be in another directory."""
    monkeypatch.chdir(h5_path.parent)
    with h5py.File("data.h5") as file:
        header, frames = frames_of(file)
    monkeypatch.chdir("/")
    with deserialize(header, frames) as got:
        assert got.filename == str(h5_path)


def test_h5py_name_that_is_no_text_travels(h5_path: Path) -> None:
    """Names of files are bytes."""
    odd = os.fsdecode(os.fsencode(h5_path.parent) + b"/\xff.h5")
    h5_path.rename(odd)
    with h5py.File(odd) as file, round_trip(file) as got:
        assert np.array_equal(got["outer/inner/values"], VALUES)


def test_h5py_place_that_is_gone_or_another_thing_is_an_error(h5_path: Path) -> None:
    """The file was changed after the put."""
    with h5py.File(h5_path) as file:
        header, frames = frames_of(file["outer/inner/values"])
    with h5py.File(h5_path, "a") as file:
        del file["outer/inner/values"]
        file.create_group("outer/inner/values")
    with pytest.raises(DeserializationError, match=r"values' in .* is a Group by now; a Dataset"):
        deserialize(header, frames)
    with h5py.File(h5_path, "a") as file:
        del file["outer/inner"]
    with pytest.raises(DeserializationError, match=r"data\.h5.*cannot be read"):
        deserialize(header, frames)


# --- netCDF4 -------------------------------------------------------------------------------------


@pytest.mark.row("S107")
@pytest.mark.parametrize("name", NC)
def test_netcdf4_handle_opens_its_file_for_reading(nc_path: Path, name: str) -> None:
    """No frames, no pickle; the same place in the same file."""
    choose, where = NC[name]
    with netCDF4.Dataset(nc_path) as dataset:
        x = choose(dataset)
        header, frames = frames_of(x)
        assert frames == []
        got = deserialize(header, frames, deserializers=SAFE)
    assert type(got) is type(x)
    assert (got.name if "variable" in name else got.path) == where
    if "variable" in name:
        assert np.array_equal(got[:], VALUES)
        with pytest.raises(RuntimeError, match="NetCDF"):
            got[:] = 0
        assert got.group().path == ("/outer/inner" if "inner" in name else "/")


@pytest.mark.row("F42")
@pytest.mark.parametrize("name", NC)
def test_netcdf4_handle_travels_inside_of_other_objects(nc_path: Path, name: str) -> None:
    """Though it refuses to be pickled."""
    choose, where = NC[name]
    with netCDF4.Dataset(nc_path) as dataset:
        x = choose(dataset)
        got = round_trip({"data": [x]})["data"][0]
    assert type(got) is type(x)
    assert (got.name if "variable" in name else got.path) == where


def test_netcdf4_variable_keeps_how_it_converts(nc_path: Path) -> None:
    """Masks and scales are choices of its user."""
    with netCDF4.Dataset(nc_path, "a") as dataset:
        dataset["values"].missing_value = np.int32(3)
        dataset["values"].scale_factor = 2.0
    with netCDF4.Dataset(nc_path) as dataset:
        x = dataset["values"]
        assert np.ma.is_masked(round_trip(x)[:])
        x.set_auto_maskandscale(False)
        got = round_trip(x)
    assert type(got[:]) is np.ndarray
    assert np.array_equal(got[:], VALUES)


def test_netcdf4_handle_that_is_closed_or_in_memory_is_refused(nc_path: Path) -> None:
    """It has no file that others could open."""
    dataset = netCDF4.Dataset(nc_path)
    dataset.close()
    with pytest.raises(SerializationError, match="closed"):
        frames_of(dataset)
    with (
        netCDF4.Dataset("nowhere.nc", memory=nc_path.read_bytes()) as dataset,
        pytest.raises(SerializationError, match=r"there is no file .*nowhere\.nc"),
    ):
        frames_of(dataset)


def test_netcdf4_place_that_is_another_thing_is_an_error(nc_path: Path) -> None:
    """The file was written anew after the put."""
    with netCDF4.Dataset(nc_path) as dataset:
        header, frames = frames_of(dataset["values"])
    with netCDF4.Dataset(nc_path, "w") as dataset:
        dataset.createGroup("values")
    with pytest.raises(DeserializationError, match=r"is a Group by now; a Variable was put"):
        deserialize(header, frames)
    with netCDF4.Dataset(nc_path, "w"):
        pass
    with pytest.raises(DeserializationError, match=r"data\.nc.*cannot be read"):
        deserialize(header, frames)


# --- both ----------------------------------------------------------------------------------------


@pytest.fixture(params=["h5py", "netCDF4"])
def header(request: pytest.FixtureRequest, h5_path: Path, nc_path: Path) -> dict[str, Any]:
    """Give the header of an open file of each library."""
    if request.param == "h5py":
        with h5py.File(h5_path) as file:
            return frames_of(file)[0]
    with netCDF4.Dataset(nc_path) as dataset:
        return frames_of(dataset)[0]


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"data.h5",
        b"../data.nc",
        b"http://127.0.0.1:9/data",
        b"file:///tmp/data.nc#mode=zarr",
        b"/data\0.h5",
        "/as/text",
        None,
        7,
    ],
)
def test_header_may_name_files_by_absolute_paths_only(header: dict[str, Any], name: Any) -> None:
    """No network, nothing that depends on where the reader is."""
    with pytest.raises(CorruptHeaderError, match="absolute path"):
        deserialize(forge(header, file=name), [])


def test_file_that_is_missing_or_no_file_is_named(header: dict[str, Any], tmp_path: Path) -> None:
    """A pipe would block whoever opens it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, tmp_path / "missing", pipe):
        with pytest.raises(DeserializationError, match=f"{path}.* no such file"):
            deserialize(forge(header, file=os.fsencode(path)), [])


def test_file_of_another_kind_is_named(header: dict[str, Any], tmp_path: Path) -> None:
    """The library's own error is told along."""
    other = tmp_path / "other"
    other.write_text("neither of them")
    with pytest.raises(DeserializationError, match=f"{other}.*cannot be read"):
        deserialize(forge(header, file=os.fsencode(other)), [])


def test_forged_place_or_setting_is_an_error(h5_path: Path, nc_path: Path) -> None:
    """Nothing but what the handles have is set or called."""
    with h5py.File(h5_path) as file, netCDF4.Dataset(nc_path) as dataset:
        dataset_header = frames_of(file["outer/inner/values"])[0]
        variable_header = frames_of(dataset["values"])[0]
    for name in (None, 7, ["values"]):
        for one in (dataset_header, variable_header):
            with pytest.raises(CorruptHeaderError, match="name"):
                deserialize(forge(one, name=name), [])
    for settings in ({"__class__": True}, {"mask": 7}, None):
        with pytest.raises(DeserializationError):
            deserialize(forge(variable_header, settings=settings), [])


@lock_free_only
def test_handles_go_to_another_process(
    store: Store, run_python: RunPython, h5_path: Path, nc_path: Path
) -> None:
    """By themselves and inside of other objects."""
    with h5py.File(h5_path) as file, netCDF4.Dataset(nc_path) as dataset:
        values = (file["outer/inner/values"], dataset["outer/inner/values"])
        refs = [store.put(x) for x in values]
        both = store.put({"values": values})
    printed = run_python(
        """
        for x in (*[ref.get() for ref in refs], *both.get()["values"]):
            print(type(x).__name__, x[:].sum())
        """,
        refs=refs,
        both=both,
    )
    assert printed.split() == ["Dataset", "15", "Variable", "15"] * 2
