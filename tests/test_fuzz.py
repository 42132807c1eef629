"""Forged and damaged headers, frames, strings, messages: the short run of `make fuzz`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import fuzzing
import pytest
from fuzz_corpus import Encoded, corpus
from fuzz_mutants import forge, places
from fuzz_targets import KINDS, _streams
from mutations import COUNT

from shmstore.serialization import deserialize
from shmstore.serialization.compression import decompress


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoded]:
    """Give the corpus; libraries open descriptors of their own when they are first used."""
    made = corpus(tmp_path_factory.mktemp("files"))
    for name in ("polars", "h5py file"):
        if name in made:
            deserialize(*made[name])
    return made


@pytest.mark.slow
@pytest.mark.row("F21")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_forged_does_more_than_raise(kind: str) -> None:
    """No crash, hang or import, no allocation without a reason, no other error."""
    report = fuzzing.run({kind: COUNT}, seed=COUNT, most_failures=5)
    assert not report.failures
    assert report.tried[kind] == COUNT
    assert report.refused[kind] > COUNT // 2  # most forgeries are noticed


def test_every_seed_can_be_read(seeds: dict[str, Encoded]) -> None:
    """What is forged was an object before."""
    for name, (header, frames) in seeds.items():
        if name != "error":
            assert deserialize(header, decompress(header, frames)) is not None, name


def test_forging_changes_something_and_leaves_the_seed_alone(seeds: dict[str, Encoded]) -> None:
    """All cases start at the same seeds."""
    before = {name: repr(seed) for name, seed in seeds.items()}
    noise = random.Random(1)
    changed = 0
    for _ in range(500):
        name = noise.choice(list(seeds))
        forged = forge(seeds[name], seeds["table" if "table" in seeds else "f8"], noise)
        changed += forged[0] != seeds[name][0] or forged[1] != seeds[name][1]
    assert changed > 400
    assert {name: repr(seed) for name, seed in seeds.items()} == before


def test_places_are_those_at_any_depth() -> None:
    """Of dicts and lists."""
    assert len(places({"a": [1, {"b": 2}], "c": 3})) == 5


def test_streams_of_parts_are_known(seeds: dict[str, Encoded]) -> None:
    """Else the fuzzers would refuse what is intact."""
    assert _streams(seeds["pickle"])
    assert _streams(seeds["apart"])
    assert not _streams(seeds["f8"])


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("while True: pass", "hung"),
        ("import ctypes; ctypes.string_at(0)", "ended with -11"),
        ("raise KeyError(1)", "KeyError"),
        ("bytearray(3 << 30)", "MemoryError"),
        ("import colorsys", "imported"),
    ],
    ids=lambda text: text.split()[0],
)
def test_fuzzer_notices(
    body: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a case does that it must not do; the cases behind it are tried all the same."""
    lines = [
        "class Targets:",
        "    streams = frozenset()",
        "    def __init__(self, folder):",
        "        self.number = 0",
        "        self.kinds = {'odd': self.try_odd}",
        "    def try_odd(self, noise):",
        "        if noise.random() < 0.5:",
        "            return True",
        f"        {body}",
        "        return False",
    ]
    (tmp_path / "fuzz_targets.py").write_text("\n".join(lines))
    (tmp_path / "fuzzing.py").write_text(Path(fuzzing.__file__).read_text())
    monkeypatch.setattr(fuzzing, "__file__", str(tmp_path / "fuzzing.py"))
    monkeypatch.setattr(fuzzing, "HANG_S", 1)
    before = "colorsys" in sys.modules
    report = fuzzing.run({"odd": 6}, seed=1)
    assert report.failures
    assert {what in failure.what for failure in report.failures} == {True}, report.failures
    assert report.tried == {"odd": 6}
    assert ("colorsys" in sys.modules) is before
