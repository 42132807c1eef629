"""The codecs: what shrinks comes back as it was, what does not is left alone, lies are refused."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import zlib
from functools import partial

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import in_threads

from shmstore.errors import CodecNotFoundError, CorruptHeaderError, ShmStoreError
from shmstore.serialization import codecs
from shmstore.serialization.compression import (
    byte_sample,
    compressions,
    decompress,
    decompress_frame,
    maybe_compress,
)

PACKAGES = {"zlib": "zlib", "lz4": "lz4", "zstd": "zstandard", "snappy": "cramjam"}
DULL = bytes(range(16)) * 2000
NOISE = random.Random(5).randbytes(32_000)


@pytest.fixture(params=PACKAGES)
def codec(request: pytest.FixtureRequest) -> str:
    """Give the name of every codec that is installed."""
    pytest.importorskip(PACKAGES[request.param])
    return request.param


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.row("S63")
def test_the_table_lists_the_identities_zlib_and_what_is_installed():
    """Iterating the table needs no import of a codec's package."""
    installed = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package)]
    assert list(compressions) == [None, False, *installed]
    assert len(compressions) == 2 + len(installed)
    assert "zlib" in compressions
    assert "rot13" not in compressions
    assert ["zlib"] not in compressions


@pytest.mark.row("S63")
@pytest.mark.parametrize("name", [None, False])
def test_the_identity_returns_the_very_object(name):
    """No compression is no copy, in both directions."""
    frame = bytearray(DULL)
    assert compressions[name].compress(frame) is frame
    assert compressions[name].decompress(frame) is frame
    assert decompress_frame(name, frame, len(frame)) is frame


def test_importing_the_package_imports_no_codec():
    """The packages of the codecs are loaded when one of them is first asked for."""
    code = (
        "import sys, shmstore, shmstore.serialization.compression as c; list(c.compressions);"
        "print(sorted({'lz4', 'zstandard', 'cramjam'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_codec_that_is_not_installed_names_its_package_and_the_extra(monkeypatch):
    """The error says what to install, and is an error of ours, a KeyError and a ValueError."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setattr(compressions, "_loaded", {None: compressions[None]})
    with pytest.raises(CodecNotFoundError, match=r"zstandard.*shmstore\[compression\]") as caught:
        maybe_compress(DULL, compression="zstd")
    assert caught.value.package == "zstandard"
    assert isinstance(caught.value, ShmStoreError)
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.row("S63", "S64")
@pytest.mark.parametrize("name", ["gzip", "", True, 7, ["zlib"]])
def test_an_unknown_name_is_answered_with_the_known_ones(name):
    """Also when the frame would be too short to compress."""
    with pytest.raises(CodecNotFoundError, match="'zlib', 'lz4', 'zstd', 'snappy'"):
        maybe_compress(b"short", compression=name)


# --- compressing ----------------------------------------------------------------------------------


@pytest.mark.row("S63", "S64", "F38")
def test_what_is_dull_shrinks_and_comes_back_writable(codec):
    """The result lies in memory of its own that may be written."""
    name, packed = maybe_compress(DULL, compression=codec)
    assert name == codec
    assert memoryview(packed).nbytes < len(DULL) // 10
    back = memoryview(decompress_frame(name, packed, len(DULL)))
    assert back == DULL
    assert not back.readonly
    assert bytes(decompress_frame(name, packed)) == DULL
    assert bytes(compressions[codec].decompress(packed)) == DULL


@pytest.mark.row("S64")
def test_noise_is_returned_as_it_is(codec):
    """The very object, after a look at a sample."""
    name, frame = maybe_compress(NOISE, compression=codec)
    assert name is None
    assert frame is NOISE


@pytest.mark.row("S64", "F25")
@pytest.mark.parametrize(("size", "expected"), [(9_999, None), (10_000, "zlib")])
def test_frames_below_the_least_size_are_left_alone(size, expected):
    """Exactly 10 000 bytes are tried."""
    assert maybe_compress(bytes(size), compression="zlib")[0] == expected


@pytest.mark.row("S64", "F25")
@pytest.mark.parametrize(("percent", "expected"), [(60, "half"), (70, "half"), (71, None)])
def test_seventy_percent_is_the_limit(monkeypatch, percent, expected):
    """A frame is compressed where at most 70 % are left of the sample and of the whole."""
    half = compressions["zlib"]._replace(
        name="half", compress=lambda frame: bytes(memoryview(frame).nbytes * percent // 100)
    )
    monkeypatch.setitem(compressions._loaded, "half", half)
    assert maybe_compress(bytes(100_000), compression="half")[0] == expected


@pytest.mark.row("S64")
def test_a_whole_that_does_not_shrink_as_its_sample_did_is_left_alone(monkeypatch):
    """The sample alone decides nothing in favour of compressing."""
    sizes = []

    def compress(frame):
        sizes.append(memoryview(frame).nbytes)
        return bytes(sizes[-1] // 2 if len(sizes) == 1 else sizes[-1])

    monkeypatch.setitem(
        compressions._loaded, "odd", compressions["zlib"]._replace(name="odd", compress=compress)
    )
    frame = bytes(200_000)
    assert maybe_compress(frame, compression="odd") == (None, frame)
    assert len(sizes) == 2
    assert sizes[0] <= 50_000
    assert sizes[1] == 200_000


@pytest.mark.row("S63", "S64")
def test_auto_takes_lz4_then_snappy_then_nothing(monkeypatch):
    """The slow codecs are never chosen by themselves."""
    pytest.importorskip("lz4")
    pytest.importorskip("cramjam")
    assert maybe_compress(DULL)[0] == "lz4"
    monkeypatch.setattr(compressions, "_loaded", {None: compressions[None]})
    monkeypatch.setitem(sys.modules, "lz4", None)
    assert maybe_compress(DULL)[0] == "snappy"
    monkeypatch.setattr(compressions, "_loaded", {None: compressions[None]})
    monkeypatch.setitem(sys.modules, "cramjam", None)
    assert maybe_compress(DULL) == (None, DULL)


@pytest.mark.row("S64")
@pytest.mark.parametrize("name", [None, False])
def test_no_compression_is_no_look(name):
    """None and False mean that nothing is compressed."""
    assert maybe_compress(DULL, compression=name) == (None, DULL)


@pytest.mark.row("S64")
@pytest.mark.parametrize(
    "view",
    [
        memoryview(np.arange(40_000, dtype="u1"))[::2],
        np.zeros((100, 100), "f8", order="F"),
        np.zeros((100, 100))[:, 3:50],
        np.zeros(30_000, "i2"),
        bytearray(40_000),
    ],
    ids=["strided", "fortran", "window", "items", "bytearray"],
)
def test_views_of_any_kind_are_compressed(codec, view):
    """Contiguous ones in memory order, others in the order of their elements."""
    name, packed = maybe_compress(view, compression=codec)
    assert name == codec
    assert bytes(decompress_frame(name, packed, memoryview(view).nbytes)) == (
        memoryview(view).tobytes()
    )


@pytest.mark.row("S64")
@settings(deadline=None)
@given(data=st.binary(min_size=1, max_size=500), repeats=st.integers(1, 200))
def test_whatever_is_compressed_comes_back(data, repeats):
    """For every codec, without and with the number of raw bytes."""
    frame = data * repeats
    for name in compressions:
        chosen, packed = maybe_compress(frame, min_size=0, sample_size=100, compression=name)
        assert bytes(decompress_frame(chosen, packed, len(frame))) == frame
        assert bytes(decompress({"compression": [[chosen, len(frame)]]}, [packed])[0]) == frame
        assert bytes(decompress({"compression": (chosen,)}, (packed,))[0]) == frame


@pytest.mark.row("F39")
def test_what_is_too_long_for_the_codec_is_not_tried(monkeypatch):
    """A codec with a 32-bit length declines, and nothing is copied on the way."""
    pytest.importorskip("lz4")
    frame = np.zeros(2**31, np.uint8)
    name, same = maybe_compress(frame, compression="lz4")
    assert name is None
    assert same is frame
    assert compressions["zstd"].longest == compressions["zlib"].longest == 2**63 - 1
    assert compressions["snappy"].longest < 2**32


@pytest.mark.slow
@pytest.mark.row("F39")
@pytest.mark.parametrize("codec", ["zstd", "zlib", "snappy"])
def test_more_than_two_gibibytes_are_compressed(codec):
    """The codecs without a 32-bit limit take frames of any length; snappy up to 3.4 GiB."""
    pytest.importorskip(PACKAGES[codec])
    size = compressions[codec].longest if codec == "snappy" else 2**31 + 12_345
    if psutil.virtual_memory().available < 3 * size:
        pytest.skip("not enough memory")
    frame = np.zeros(size, np.uint8)
    frame[-1] = frame[2**31] = 7
    name, packed = maybe_compress(frame, compression=codec)
    assert name == codec
    back = np.frombuffer(decompress_frame(name, packed, size), np.uint8)
    assert back.nbytes == size
    assert back[-1] == back[2**31] == 7
    assert np.count_nonzero(back) == 2


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.row("S65")
@settings(deadline=None)
@given(length=st.integers(0, 300), size=st.integers(0, 300), n=st.integers(0, 8))
def test_samples_are_slices_in_order_that_do_not_overlap(length, size, n):
    """Bytes that all differ come out in ascending order, none twice."""
    data = np.arange(length, dtype="<u2")
    if size > data.nbytes:
        with pytest.raises(ValueError, match="cannot be taken"):
            byte_sample(data, size, n)
        return
    sample = byte_sample(data, size, n)
    assert isinstance(sample, memoryview)
    assert sample.nbytes <= size * n
    assert sample.nbytes >= min(size, size * n)
    distinct = byte_sample(bytes(range(200)), min(size, 200), n)
    assert list(distinct) == sorted(set(distinct))


@pytest.mark.row("S65")
@pytest.mark.parametrize(("size", "n"), [(-1, 2), (2, -1), (11, 1)])
def test_samples_that_cannot_be_taken_are_refused(size, n):
    """Negative numbers, and slices longer than the data."""
    with pytest.raises(ValueError, match="cannot be taken from 10 bytes"):
        byte_sample(bytes(10), size, n)


def test_samples_leave_the_random_numbers_of_the_caller_alone():
    """A seed that the user has set gives the same numbers as before."""
    random.seed(3)
    expected = random.random()
    random.seed(3)
    maybe_compress(DULL, compression="zlib")
    assert random.random() == expected


# --- decompressing --------------------------------------------------------------------------------


def pack(codec: str, frame: bytes) -> bytes:
    """Compress a frame that may be too short for `maybe_compress`."""
    return bytes(compressions[codec].compress(memoryview(frame)))


@pytest.mark.row("F21")
def test_a_forged_number_of_raw_bytes_allocates_nothing(codec, monkeypatch):
    """What the format cannot possibly make of the payload is refused before memory is asked for."""
    packed = pack(codec, DULL)
    asked = []
    monkeypatch.setattr(codecs, "allocate", asked.append)
    most, stored = compressions[codec].expansion
    for raw in (2**62, len(packed) * most // stored + 1):
        with pytest.raises(CorruptHeaderError, match="raw bytes"):
            decompress_frame(codec, packed, raw)
    assert asked == []


@pytest.mark.row("F21")
@pytest.mark.parametrize("change", [-1, 1, 100])
def test_exactly_the_declared_bytes_must_come_out(codec, change):
    """One byte more or less is an error."""
    with pytest.raises(CorruptHeaderError):
        decompress_frame(codec, pack(codec, DULL), len(DULL) + change)


@pytest.mark.row("F21")
@pytest.mark.parametrize("raw", ["7", 7.0, True, -1, [1]])
def test_a_number_of_raw_bytes_that_is_none_is_refused(codec, raw):
    """Only exact ints of zero and more count bytes."""
    with pytest.raises(CorruptHeaderError):
        decompress_frame(codec, pack(codec, DULL), raw)


@pytest.mark.row("F21")
@pytest.mark.parametrize("tail", [b"\0", b"abc", b"(", b"(\xb5/", bytes(100)])
def test_bytes_behind_the_payload_are_noticed(codec, tail):
    """Also those that look like the beginning of another zstd frame."""
    with pytest.raises(CorruptHeaderError):
        decompress_frame(codec, pack(codec, DULL) + tail, len(DULL))
    with pytest.raises(CorruptHeaderError):
        decompress_frame(codec, pack(codec, DULL) + tail)


@pytest.mark.row("F21")
def test_a_second_payload_behind_the_first_is_noticed(codec):
    """Two payloads are not one, not even if the second is empty."""
    for second in (b"", DULL):
        with pytest.raises(CorruptHeaderError):
            decompress_frame(codec, pack(codec, DULL) + pack(codec, second), len(DULL))


@pytest.mark.row("F21")
def test_every_cut_is_noticed(codec):
    """Wherever the payload ends too early, checksum included."""
    packed = pack(codec, NOISE[:3000] + DULL[:3000])
    for length in [*range(0, len(packed), 37), *range(len(packed) - 10, len(packed))]:
        for raw in (None, 6000):
            with pytest.raises(CorruptHeaderError):
                decompress_frame(codec, packed[:length], raw)


@pytest.mark.row("F21")
@settings(deadline=None)
@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 10**5)))
def test_nonsense_never_does_more_than_raise(payload, raw):
    """Arbitrary bytes decompress to the declared length or give our error."""
    for codec in list(compressions)[2:]:
        try:
            frame = decompress_frame(codec, payload, raw)
        except CorruptHeaderError:
            continue
        assert raw is None or memoryview(frame).nbytes == raw


@pytest.mark.row("F21")
@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_flipped_bits_never_do_more_than_raise(place, flip):
    """Those with a checksum (zlib, zstd) notice; the others keep at least the length."""
    frame = NOISE[:1000] + DULL[:1000]
    for codec in list(compressions)[2:]:
        packed = bytearray(pack(codec, frame))
        packed[place % len(packed)] ^= flip
        try:
            back = bytes(decompress_frame(codec, packed, 2000))
        except CorruptHeaderError:
            continue
        assert len(back) == 2000
        assert codec not in ("zlib", "zstd") or back == frame


@pytest.mark.row("S66", "F21")
@pytest.mark.parametrize("entries", [[], ["zlib"], [None] * 3, ("zlib",), "ab", 2, {}])
def test_one_entry_per_frame(entries):
    """Fewer names do not make frames vanish, more names are no way to add any."""
    with pytest.raises(CorruptHeaderError, match="for 2 frames") as caught:
        decompress({"compression": entries}, [b"a", b"b"])
    assert caught.value.key == "compression"


@pytest.mark.row("S66", "F21")
@pytest.mark.parametrize("entry", ["gzip", 0, True, [], ["zlib"], ["zlib", 1, 2], [None, 2], {}])
def test_an_entry_that_is_none_is_refused(entry):
    """Unknown codecs and pairs that are no pairs."""
    with pytest.raises(CorruptHeaderError):
        decompress({"compression": [entry]}, [b"a"])


@pytest.mark.row("S66", "S62")
def test_entry_by_entry():
    """Names, pairs, None and False side by side; without entries the frames stay what they are."""
    packed = zlib.compress(DULL)
    frames = [packed, packed, DULL, DULL]
    header = {"compression": ("zlib", ["zlib", len(DULL)], None, False)}
    assert [bytes(frame) for frame in decompress(header, frames)] == [DULL] * 4
    assert decompress(header, frames)[2] is DULL
    assert decompress({}, frames) == frames
    assert header == {"compression": ("zlib", ["zlib", len(DULL)], None, False)}


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.row("F24")
def test_four_threads_share_a_codec(codec):
    """2000 round trips in each of four threads, of frames that differ."""
    failures = []

    def work(seed: int) -> None:
        noise = random.Random(seed)
        for turn in range(2000):
            frame = noise.randbytes(8) * noise.randint(20, 400)
            name, packed = maybe_compress(frame, min_size=0, sample_size=50, compression=codec)
            if bytes(decompress_frame(name, packed, len(frame))) != frame:
                failures.append((seed, turn))

    in_threads(*(partial(work, seed) for seed in range(4)))
    assert failures == []
