"""Who is killed at any step of any operation leaves a store that is whole.

``make soak`` kills in each operation at each hit of each point that it comes to. Here it is one
hit, and a point that many operations come to is left out in some of them; a few who recover are
killed, too. A failure says how to see it again.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import kill_points
import proofs
import pytest
from kill_matrix import Killer
from kill_operations import OPERATIONS
from kill_processes import Case
from kill_weakenings import WEAKENINGS

# Points that no operation comes to here, by where they stand, with what stands there and why not.
# That nothing is made by an `open` which is no point is watched by `unlisted`; most only look.
NOT_REACHED = {
    # What was made goes when the next step fails: see test_faults.py.
    "folder._make_shared_root": "os.rmdir",
    "folder.create_file": "os.unlink",
    "folder.make_folder": "os.rmdir",
    "fifos.make_fifo": "os.unlink",
    "seats.Seat.create": "os.unlink",
    "spill_files.SpillFiles.write": "os.unlink",
    # A word that is damaged so: see test_damage.py.
    "clients.Clients.recount": "words[L.W_NEXT_SERIAL]",
    # What another member of a group left, before it was the group's.
    "removal._remove_leftover": "os.rmdir",
    # The default root, which is not a test's.
    "folder.remove_root": "root.rmdir",
    # Files of this process have this group already.
    "owners.entrust": "os.fchown",
    # Again and again, while others hold it: see test_lock.py.
    "lock.hold": "lock_descriptor",
    # Where the system has no flock, no posix_fallocate, or no renameat2.
    "flock.lock_descriptor": "filelock.lock_descriptor",
    "flock.unlock_descriptor": "filelock.unlock_descriptor",
    "folder.rename": "os.rename",
    "mapping.reserve": "os.pwrite",
}

# A point is killed at in about so many of the operations that come to it.
ENOUGH_OPERATIONS = 4

# They open what is there; `unlisted` tells when they make something.
OPENING = ("os.open(", "open_descriptor(", "descriptors.open_descriptor(")


@pytest.fixture(scope="session")
def killer() -> Iterator[Killer]:
    """Give the process that forks those who are killed."""
    with Killer() as started:
        yield started


@pytest.fixture(scope="session")
def reached_by(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of all workers: which points each operation came to, as far as it is known."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "reached"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def frequency() -> Counter[str]:
    """Give the number of operations that came to each point in the last full run."""
    known = json.loads(proofs.KNOWN.read_text(encoding="utf-8"))
    return Counter(point for row in proofs.rows_of(known, "kill matrix").values() for point in row)


def left_out(name: str, frequency: Counter[str]) -> set[str]:
    """Return points that enough other operations are killed at."""
    random_ = random.Random(name)
    return {
        point
        for point in sorted(frequency)
        if random_.random() > ENOUGH_OPERATIONS / frequency[point]
    }


@pytest.mark.parametrize("name", OPERATIONS)
def test_store_is_whole_after_a_kill_at_any_point(
    killer: Killer, frequency: Counter[str], reached_by: Path, name: str
) -> None:
    """What was there is there, the object of the operation is whole or not there, all works."""
    without = left_out(name, frequency)
    result = killer.ask(name=name, hits=1, deaths=1, points=2, without=without)
    new = reached_by / f".{name}"
    new.write_text(json.dumps(sorted(result.reached)), encoding="utf-8")
    new.rename(reached_by / name)
    assert result.failures == []
    assert result.unlisted == set()
    assert len(result.missed) <= 1
    assert result.kills.total() + result.second.total() > 0


def test_death_at_a_hit_that_nobody_comes_to_is_at_the_last_one_before(killer: Killer) -> None:
    """How often those who race come to a point is not the same each time."""
    case = Case("waking.Bells.ring:1", 2, ("keys.KeyIndex.rebuild:2~", 9))
    result = killer.ask(name="destroy, waited for", case=case)
    assert (result.failures, result.second.total()) == ([], 1)


def test_point_that_nobody_comes_to_is_told(killer: Killer) -> None:
    """It is a failure unless somebody else was there who may have been faster."""
    case = Case("waiters.Waiters.enter:1", 1)
    result = killer.ask(name="destroy", case=case)
    assert (len(result.failures), len(result.missed), result.kills.total()) == (1, 0, 0)
    result = killer.ask(name="destroy, waited for", case=case)
    assert (len(result.failures), len(result.missed), result.kills.total()) == (0, 1, 0)


def test_every_point_is_reached_by_some_operation(killer: Killer, reached_by: Path) -> None:
    """A store to shared memory that no operation comes to would be a gap in the matrix."""
    points = kill_points.all_points()
    assert len(points) > 150
    reached = set()
    for name in OPERATIONS:
        known = reached_by / name
        if known.exists():  # its deaths are more than those below
            reached |= set(json.loads(known.read_text(encoding="utf-8")))
            continue
        deaths = int(name in {"overwrite", "recover, damaged"})
        reached |= killer.ask(name=name, hits=0, deaths=deaths, points=0).reached
    missed = {
        point: source
        for point, source in points.items()
        if point not in reached
        and not source.startswith(OPENING)
        and not source.startswith(NOT_REACHED.get(point.partition(":")[0], "?"))
    }
    assert missed == {}


@pytest.mark.parametrize("weakening", WEAKENINGS)
def test_store_that_recovers_badly_is_found_out(weakening: str) -> None:
    """The matrix can fail: each thing that recovery does is missed when it is not done."""
    _, operation = WEAKENINGS[weakening]
    with Killer(weakening) as killer:
        assert killer.ask(name=operation, hits=1).failures != []
