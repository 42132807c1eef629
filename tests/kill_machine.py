"""How is one process after the other killed?

This module runs in a process of its own that never touches a store. It forks, for each kill, the
actor (which dies), and maybe one who recovers (and dies, too); then one who looks at what several
of them have left. So each is a new client of its store. The folder that they meet in is made anew
each time from a copy of what a template has left.

Started as a program it answers requests on its standard input; kill_matrix.py asks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import pickle
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import kill_points
from kill_points import BEGIN, END, die, machine

kill_points.install()

# ruff: noqa: E402 - from here on shmstore may be imported: it gets its points
import os

from kill_operations import OPERATIONS, Operation
from kill_processes import Case, Copy, Helper, Result, Send, Wait, folder
from kill_scenes import Scene, furnished
from kill_verdicts import Holding, amiss, look, undone, use
from kill_weakenings import WEAKENINGS

from shmstore import StoreNotFoundError
from shmstore._lifecycle import forget, sessions

# Who looks sees to so many deaths: a process is fast only when it has been at it for a while.
_BATCH: Final = 20

# Where processes race, and where garbage is collected, an operation may once take another way than
# when its steps were counted, and come to a point less often, or not at all.
_TRIES: Final = 3


class Outcome(NamedTuple):
    """What the store holds after a case, and what those who died in it had counted before."""

    held: Holding | None
    sent: dict[str, Any]


# --- who dies -------------------------------------------------------------------------------------


def act(operation: Operation, scene: Scene, case: Case) -> Helper:
    """Start the actor; it sends its hits if it comes to the end of its operation."""

    def task(send: Send, _: Wait) -> None:
        operation.before(scene)
        if case.point == BEGIN:
            die()
        machine.arm((case.point, case.hit), child=operation.child)
        operation.run(scene)
        if machine.child == machine.in_child:
            _finish(send, case.point)
        machine.disarm()
        if scene.forked > 0:
            os.waitpid(scene.forked, 0)

    return Helper(task)


def recover(scene: Scene, target: tuple[str, int]) -> Helper:
    """Start one who comes to the store after a death, with all that is done then."""

    def task(send: Send, _: Wait) -> None:
        machine.arm(target)
        try:
            scene.attach().recover()
        except StoreNotFoundError:
            scene.prune()
            scene.create()
        _finish(send, target[0])

    return Helper(task)


def _finish(send: Send, point: str) -> None:
    machine.disarm()
    send({"hits": dict(machine.hits), "order": machine.order, "unlisted": machine.unlisted})
    if point == END:
        die()


def stand_by(operation: Operation, scene: Scene) -> Helper | None:
    """Start the bystander, if there is one, and let it come to its place."""
    bystander = operation.bystander
    if bystander is None:
        return None

    def task(send: Send, wait: Wait) -> None:
        steps = bystander(scene)
        next(steps)
        send({"store": scene.store._session.uuid})
        wait()
        next(steps, None)

    return Helper(task)


# --- one row of the matrix ------------------------------------------------------------------------


class Row:
    """All that is needed to kill a process in one operation, as often as wanted.

    Parameters
    ----------
    name
        The operation.
    place
        An empty folder.
    """

    def __init__(self, name: str, place: Path) -> None:
        self.name = name
        self.operation = OPERATIONS[name]
        self.result = Result(name)
        self._place = place
        self._group = os.getgid() if self.operation.group else None
        self._scene = Scene(place / "root", self._group)
        self._scene.root.mkdir(mode=0o700)
        sent, failures = Helper(self._make_template).end()
        assert not failures, failures
        self._scene.refs = sent["refs"]
        self._copy = Copy(self._scene.root, self._scene.spill_dir)
        self._allowed: list[Holding | None] = []
        [untouched] = self.let([Case(BEGIN, 1)])
        [finished] = self.let([Case(END, 1)])
        self._allowed = [untouched.held, finished.held]
        if (untouched.held == finished.held) is not self.operation.keeps:
            change = "changes" if self.operation.keeps else "does not change"
            self.result.failures.append(f"{name!r} {change} what the store holds")
        self.hits: dict[str, int] = finished.sent.get("hits", {})
        order: list[tuple[str, int]] = finished.sent.get("order", [])
        self._step = {hit: number for number, hit in enumerate(order)}
        self.result.reached |= set(self.hits)

    def _make_template(self, send: Send, _: Wait) -> None:
        self.operation.template(self._scene)
        send({"refs": self._scene.refs})

    def let(self, cases: Sequence[Case]) -> list[Outcome]:
        """Let cases happen, and judge what they leave."""
        if self.operation.alone:
            return [outcome for case in cases for outcome in self._let_some([case])]
        starts = range(0, len(cases), _BATCH)
        return [outcome for at in starts for outcome in self._let_some(cases[at : at + _BATCH])]

    def _let_some(self, cases: Sequence[Case]) -> list[Outcome]:
        roots, performed, counted, faults = [], [], [], []
        bystander = others = None
        for number, wanted in enumerate(cases):
            case, bystander, others, sent, failed = self._perform(wanted)
            performed.append(case)
            counted.append(sent)
            faults.append(failed)
            roots.append(self._scene.root)
            if not self.operation.alone:
                roots[-1] = self._place / str(number)
                with contextlib.suppress(FileNotFoundError):
                    self._scene.root.rename(roots[-1])
        scenes = [Scene(root, self._group) for root in roots]
        damaged = self.operation.damaged
        judge = Helper(lambda send, wait: _judge(scenes, others, damaged, send, wait))
        held = []
        for case, found in zip(performed, faults, strict=True):
            seen = judge.hear() or {"failed": "nobody could look"}
            if bystander is not None:
                bystander.go_on()
                found.extend(bystander.end()[1])
                judge.go_on()
            if "over" in seen:
                used: dict[str, Any] = {}
            else:
                used = judge.hear() or {"failed": "nobody could use it"}
            found.extend(self._verdict(seen, used))
            held.append(seen.get("held"))
            self.result.failures += [f"{case.shown(self.name)}: {fault}" for fault in found]
        judge.end()
        for root in roots:
            shutil.rmtree(root, ignore_errors=True)
        return [Outcome(*both) for both in zip(held, counted, strict=True)]

    def _perform(
        self, case: Case
    ) -> tuple[Case, Helper | None, bytes | None, dict[str, Any], list[str]]:
        """Let a case happen; return it, who stands by, at which store, what was sent, and faults.

        Who lives has said how often he came to the point this time: the next one dies at the last
        of these hits, if that is earlier.
        """
        for left in reversed(range(_TRIES)):
            self._copy.restore()
            bystander = stand_by(self.operation, self._scene)
            others = (bystander.hear() or {})["store"] if bystander else None
            sent, faults, missed = self._die(case)
            if not left or faults or not missed:
                break
            if bystander is not None:
                bystander.go_on()
                bystander.end()
            case = case.within(sent["hits"])
        if not missed:
            self.result.count(case)
        elif bystander is not None:
            self.result.missed.append(case.shown(self.name))
            missed = []
        return case, bystander, others, sent, [*faults, *missed]

    def _die(self, case: Case) -> tuple[dict[str, Any], list[str], list[str]]:
        """Return what the last one sent, what went wrong, and who never came to his point."""
        sent, faults = act(self.operation, self._scene, case).end()
        self.result.unlisted |= sent.get("unlisted", set())
        if case.point == END and "hits" not in sent:
            faults.append("who should have come to the end did not")
        missed = ["who should have died lives"] if "hits" in sent and case.point != END else []
        if case.then is not None and not missed:
            sent, failed = recover(self._scene, case.then).end()
            self.result.unlisted |= sent.get("unlisted", set())
            faults += failed
            missed = [] if sent["killed"] else ["who should have died again lives"]
        return sent, faults, missed

    def _verdict(self, seen: dict[str, Any], used: dict[str, Any]) -> Iterator[str]:
        """Yield what is wrong after a case: as it was seen, and as it was when it was used."""
        for said in (seen, used):
            if "failed" in said:
                yield said["failed"]
            yield from said.get("faults", [])
        if "held" not in seen or not self._allowed:
            return
        held = seen["held"]
        before, after = self._allowed
        if held is not None or before is None or after is None:
            yield from amiss(before, after, held)
        elif not self.operation.may_miss:
            yield "the store is gone"

    def kill(self, cases: Sequence[Case]) -> None:
        """Kill the actor in cases, in the order of its steps."""
        cases = sorted(cases, key=lambda case: self._step.get((case.point, case.hit), 0))
        held = [outcome.held for outcome in self.let(cases)]
        if not self.result.failures:
            self.result.failures += [f"{self.name}: {fault}" for fault in undone(held)]

    def kill_again(self, death: Case, points: Sequence[tuple[str, int]]) -> None:
        """Kill the actor, and then who recovers, at points."""
        self.let([death._replace(then=point) for point in points])

    def recovery_hits(self, death: Case) -> dict[str, int]:
        """Return what one who recovers comes to after a death."""
        [outcome] = self.let([death._replace(then=(END, 1))])
        hits: dict[str, int] = outcome.sent.get("hits", {})
        self.result.reached |= set(hits)
        return hits


def _judge(
    scenes: Sequence[Scene],
    others: bytes | None,
    damaged: bool,  # noqa: FBT001 - see `look`
    send: Send,
    wait: Wait,
) -> None:
    """Look at what each death has left, then use it; send what is wrong.

    `others` is the store that a bystander is attached to.
    """
    kill_points.look_away()
    for scene in scenes:
        try:
            held, faults = look(scene, others, damaged=damaged)
            send({"held": held, "faults": faults})
            if others is not None:
                wait()
            send({"faults": list(use(scene))})
        except Exception:
            send({"failed": traceback.format_exc(), "over": True})
            for session in list(sessions.values()):  # copies of one store pass for one store
                forget(session)


# --- which kills ----------------------------------------------------------------------------------


def chosen(hits: int, most: int, random_: random.Random) -> list[int]:
    """Return which hits of a point to kill at: all, or the last one and some by chance."""
    if hits <= most:
        return list(range(1, hits + 1))
    if most < 2:
        return [random_.randint(1, hits) for _ in range(most)]
    return sorted({hits, *random_.sample(range(1, hits), most - 1)})


def clean(place: Path) -> None:
    """Remove what is in a folder."""
    for path in place.iterdir():
        shutil.rmtree(path)


def run_one(name: str, place: Path, case: Case) -> Result:
    """Let one case happen."""
    clean(place)
    row = Row(name, place)
    if case.then is None:
        row.kill([case])
    else:
        row.kill_again(case, [case.then])
    return row.result


def run(
    name: str,
    place: Path,
    *,
    hits: int,
    deaths: int = 0,
    points: int = 0,
    again: int = 1,
    seed: int = 0,
    without: Container[str] = (),
) -> Result:
    """Kill processes in one operation.

    Parameters
    ----------
    name
        The operation.
    place
        An empty folder.
    hits
        At most so many kills at a point.
    deaths, points
        After so many deaths kill also who recovers, at so many of the points that it comes to.
    again
        At most so many kills at a point of recovery, after one death.
    seed
        For what is chosen by chance.
    without
        Points to leave out.
    """
    random_ = random.Random(f"{seed} {name}")
    clean(place)
    row = Row(name, place)
    counts = [(point, count) for point, count in row.hits.items() if point not in without]
    row.kill([Case(point, n) for point, count in counts for n in chosen(count, hits, random_)])
    first = [Case(point, n) for point, count in row.hits.items() for n in sorted({1, count})]
    for death in random_.sample(first, min(deaths, len(first))):
        found = row.recovery_hits(death)
        some = random_.sample(sorted(found), min(points, len(found)))
        row.kill_again(death, [(p, n) for p in some for n in chosen(found[p], again, random_)])
    return row.result


# --- serving --------------------------------------------------------------------------------------


def warm_up() -> None:
    """Import what a child would import late, once and not in each of them."""

    def task(send: Send, _: Wait) -> None:
        with folder() as place:
            scene = Scene(place)
            furnished(scene)
            look(scene, None)
            list(use(scene))
        send({"modules": list(sys.modules)})

    sent, failures = Helper(task).end()
    assert not failures, failures
    for name in sent["modules"]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def end_cleanly(place: Path) -> None:
    """Let SIGTERM remove the folder, wherever it strikes: hooks of a fork ignore exceptions."""
    own = os.getpid()

    def end(*_: object) -> None:
        if os.getpid() == own:
            shutil.rmtree(place, ignore_errors=True)
        os._exit(1)

    signal.signal(signal.SIGTERM, end)


def main() -> None:
    """Answer requests, pickled arguments of `run` or `run_one`, with pickled results."""
    faulthandler.enable()
    warm_up()
    for name in sys.argv[1:]:
        WEAKENINGS[name][0]()
    with folder() as place:
        end_cleanly(place)
        while True:
            try:
                request = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                one = "case" in request
                answer: Any = (run_one if one else run)(place=place, **request)
            except Exception:
                answer = traceback.format_exc()
            sys.stdout.buffer.write(pickle.dumps(answer))
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
