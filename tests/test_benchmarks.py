"""The benchmarks run, judge and tell; what they measure is not looked at here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rooms import memory_folder

TOP = Path(__file__).parent.parent
sys.path.insert(0, str(TOP))

from benchmarks import actor, catalogue, clock, peers, render, report, samples, targets  # noqa: E402
from benchmarks.arena import Arena  # noqa: E402 - they lie beside the tests, not among them
from benchmarks.results import PER_SECOND, Result, summary  # noqa: E402
from benchmarks.targets import BEST, BY_REF, Target  # noqa: E402

FOUND = [each for each in peers.find()[0] if each.python == sys.executable]
KEEPING = [each for each in FOUND if each.kind.gets and each.kind.puts]
FEW = (peers.FLOOR, BY_REF, "mp.Pipe")
SAMPLES = (samples.SMALL, samples.BYTES, samples.ARRAY_64K)


@pytest.fixture
def arena(root: Path) -> Iterator[Arena]:
    """Give what a workload needs, with little time for it and few peers."""
    plan = clock.Plan(0.01, 2, 2, 20_000, quick=True)
    few = [each for each in FOUND if each.label in FEW]
    with memory_folder() as folder:
        yield Arena(folder, plan, few, list(SAMPLES[::2]), {}, [])


def result(peer: str, value: float, *, measure: str = "put", unit: str = "ns") -> Result:
    """Return a result as a run could have given it."""
    return Result("put", measure, "small dict", peer, summary([value, value, value], unit))


@pytest.mark.parametrize("found", KEEPING, ids=lambda each: each.label)
def test_peer_gives_another_process_what_was_put(found, arena):
    """What is timed is the same for all: the reader has an equal object."""
    with arena.crew([found]) as crew, crew.set_up(1 << 20) as teams:
        team = teams[found.label]
        for number, sample in enumerate(SAMPLES):
            handle = team.owner.call(actor.put, sample.make, f"key-{number}")
            np.testing.assert_equal(team.reader.call(actor.get, handle), sample.make())
    assert arena.notes == []


def test_peers_have_labels_of_their_own():
    """Results are told apart by them."""
    labels = [each.label for each in peers.every()]
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize("name", catalogue.WORKLOADS)
def test_workload_says_what_it_measures(name):
    """Its module begins with that, and can be run."""
    module = importlib.import_module(f"benchmarks.workloads.{name}")
    assert module.__doc__.partition("\n")[0].endswith("?")
    assert callable(module.run)


@pytest.mark.parametrize("name", ["queue", "pool"])
def test_programs_of_their_own_are_measured(name, arena):
    """Each way is told with a figure above zero, ours beside that of the standard library."""
    results = list(catalogue.load(name)(arena))
    assert {"shmstore", "mp.Queue" if name == "queue" else "concurrent.futures"} <= {
        each.peer for each in results
    }
    assert all(each.figure.median > 0 for each in results)


@pytest.mark.parametrize("name", ["put", "get", "many", "handoff", "fork"])
def test_workload_gives_a_figure_for_each_peer(name, arena):
    """Everybody who takes part is measured with every object, floors and shmstore among them."""
    results = list(catalogue.load(name)(arena))
    by_peer = {each.peer: set() for each in results}
    for each in results:
        by_peer[each.peer].add(each.sample)
        assert each.figure.low <= each.figure.median <= each.figure.high
    assert {peers.FLOOR, BY_REF} <= set(by_peer)
    assert by_peer[peers.FLOOR] == by_peer[BY_REF]
    assert arena.notes == []


def test_run_writes_figures_page_and_verdicts(tmp_path):
    """One command does it all; what it wrote can be read again and tells the same."""
    told = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "many", "--quick", "--peers", "none"]
    command += ["--json", str(told), "--render", str(tmp_path / "docs")]
    ran = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=100, check=True)
    assert "put_many" in ran.stdout
    page = (tmp_path / "docs" / render.PAGE).read_text()
    assert f"| **{BY_REF}** |" in page
    context, results = render.read([told])
    again = tmp_path / "again.json"
    report.write_json(again, context, results)
    first, second = (json.loads(path.read_text()) for path in (told, again))
    for each in [*first["results"], *second["results"]]:
        del each["over_floor"]  # of numbers that have been rounded, the second time
    assert first == second


def test_peer_that_fails_is_left_out_and_noted(arena):
    """It does not end the run; shmstore and the floors would."""
    pipe = next(each for each in arena.found if each.label == "mp.Pipe")
    with arena.crew([pipe]) as crew:
        assert crew.attempt(pipe.label, crew.teams[pipe.label].owner.call, actor.get, b"?") is None
        assert crew.teams == {}
    assert arena.notes == ["mp.Pipe: call raised AttributeError"]


# --- judging --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "met"), [(90.0, True), (110.0, False)])
def test_target_is_judged_by_the_other_of_the_same_run(ours, met, monkeypatch):
    """At most as long as the other one takes."""
    target = Target(measure="put", sample="small dict", other="LMDB", at_most=1.0)
    monkeypatch.setattr(targets, "TARGETS", (target,))
    (judged,) = targets.judge([result(BY_REF, ours), result("LMDB", 100.0)])
    assert (judged.value, judged.met) == (ours / 100, met)


def test_best_peer_is_the_fastest_that_is_no_floor(monkeypatch):
    """Of throughputs the highest is the best; floors and shmstore itself do not count."""
    target = Target(measure="put", sample="small dict", other=BEST, at_least=1.0)
    monkeypatch.setattr(targets, "TARGETS", (target,))
    peers_of_it = [result(peer, value) for peer, value in [("a", 9), ("b", 5), (peers.FLOOR, 1)]]
    (judged,) = targets.judge([result(BY_REF, 10), *peers_of_it])
    assert judged.beside == "b (best)"
    rates = [result(peer, value, unit=PER_SECOND) for peer, value in [("a", 9), ("b", 5)]]
    (judged,) = targets.judge([result(BY_REF, 10, unit=PER_SECOND), *rates])
    assert judged.beside == "a (best)"


def test_target_without_figures_is_not_judged():
    """A run of few workloads says nothing of the others."""
    assert list(targets.judge([result("LMDB", 1.0)])) == []


# --- timing ---------------------------------------------------------------------------------------


def test_slow_operation_is_told_from_a_fast_one():
    """Both are timed by turns, in as many rounds as there are to be."""
    slow = clock.Operation(lambda: time.sleep(0.002))
    fast = clock.Operation(lambda: None)
    timers = {"slow": partial(clock.time_batch, slow), "fast": partial(clock.time_batch, fast)}
    plan = clock.Plan(seconds=0.02, fewest_rounds=3, most_rounds=5, batch_ns=100_000)
    times = clock.interleave(timers, plan)
    assert len(times["slow"]) >= 3
    assert min(times["slow"]) > 5 * max(times["fast"])


def test_clock_stands_still_before_and_after_an_operation():
    """What is prepared and taken back is no part of it, what it gave is dropped outside."""
    pause = partial(time.sleep, 0.002)
    around = clock.Operation(list, undo=lambda _: pause(), before=pause)
    assert clock.time_batch(around, 5) * 5 < clock.time_batch(clock.Operation(pause), 5)


def test_single_operation_runs_twice_before_it_is_timed():
    """Memory comes back at the first, is met at the second; what begins anew is run once before."""
    runs = []
    clock.time_batch(clock.Operation(lambda: runs.append("again")), 1)
    clock.time_batch(clock.Operation(lambda: runs.append("anew"), before=lambda: None), 1)
    assert runs == ["again"] * 3 + ["anew"] * 2


def test_what_fails_while_it_is_timed_is_left_out(capsys):
    """The others are measured, and it is said what was not."""

    def fail(batch):
        raise clock.TimerError("no such luck")

    timers = {("put", "one"): fail, ("put", "other"): lambda batch: 1000.0 * batch}
    times = clock.interleave(timers, clock.Plan(0.001, 2, 2, 20_000, quick=True))
    assert list(times) == [("put", "other")]
    assert "no such luck" in capsys.readouterr().err
