"""What has changed in a store between two looks at it?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

import shmstore
from shmstore.cli import _words
from shmstore.cli._looking import described

# What is counted, and what is shown of it per second.
COUNTED: Final = (
    "puts",
    "put_nbytes",
    "gets",
    "got_nbytes",
    "deletes",
    "waits",
    "lock_waits",
    "lock_wait_s",
    "evictions",
    "expirations",
    "spills",
    "restores",
)
_PRESENT: Final = ("object", "spilled")
_SORTS: Final = ("size", "age", "views")


class Sample(NamedTuple):
    """A store at one moment; `counts` are None when its lock could not be had."""

    at: float
    survey: shmstore.Survey
    counts: Mapping[str, float] | None
    by_client: Mapping[tuple[int, float], Mapping[str, float]]
    trouble: str


def take(store: shmstore.Store) -> Sample:
    """Look at a store."""
    survey = store.survey()
    try:
        metrics = store.metrics()
    except shmstore.LockTimeoutError as error:
        return Sample(time.monotonic(), survey, None, {}, str(error))
    counts = _counts(metrics)
    by_client = {}
    for client in metrics.clients:
        by_client[client.pid, client.attached] = _counts(client)
    trouble = "; ".join(survey.problems)
    return Sample(time.monotonic(), survey, counts, by_client, trouble)


def _counts(found: Any) -> dict[str, float]:
    return {name: getattr(found, name) for name in COUNTED}


def rates(before: Sample | None, after: Sample) -> dict[str, float | None]:
    """Return what was done per second between two samples; None where it cannot be told."""
    if before is None or before.counts is None or after.counts is None:
        return dict.fromkeys(COUNTED)
    return _per_second(before.counts, after.counts, after.at - before.at)


def _per_second(
    before: Mapping[str, float], after: Mapping[str, float], seconds: float
) -> dict[str, float | None]:
    return {name: max(0.0, (after[name] - before[name]) / seconds) for name in COUNTED}


def memory(sample: Sample) -> dict[str, int]:
    """Return how many bytes of the segment are used, looked at, deleted and free."""
    survey = sample.survey
    deleted = survey.state == "deleted"
    used = int(survey.nbytes.sum())
    return {
        "capacity": survey.capacity,
        "used": used,
        "pinned": int(survey.nbytes[survey.views > 0].sum()),
        "deleted": int(survey.nbytes[deleted].sum()),
        "free": max(0, survey.capacity - used),
        "objects": int(np.isin(survey.state, _PRESENT).sum()),
        "spilled": int((survey.state == "spilled").sum()),
    }


def clients(before: Sample | None, after: Sample) -> list[dict[str, Any]]:
    """Return a row for each attached process, the busiest first."""
    rows = []
    for client in after.survey.clients:
        key = client.pid, client.attached
        row = dataclasses.asdict(client)
        row["command"] = _words.command(client.pid, client.name)
        row["state"] = "alive" if client.alive else "dead"
        row |= dict.fromkeys(COUNTED)
        now = after.by_client.get(key)
        then = None if before is None else before.by_client.get(key, dict.fromkeys(COUNTED, 0.0))
        if now is not None and then is not None and before is not None:
            row |= _per_second(then, now, after.at - before.at)
        rows.append(row)
    return sorted(rows, key=lambda row: -((row["puts"] or 0) + (row["gets"] or 0)))


def objects(sample: Sample, sort: str, count: int) -> list[dict[str, Any]]:
    """Return rows for the first objects in an order: the largest, youngest, or most looked at."""
    survey = sample.survey
    rows = np.flatnonzero(np.isin(survey.state, (*_PRESENT, "deleted")) & ~survey.expired)
    keys = {"size": survey.data_nbytes, "age": survey.generation, "views": survey.views}[sort]
    # Some have gone until they are described, where much is put.
    first = rows[np.argsort(-keys[rows], kind="stable")[: 2 * count]]
    found = {row["id"]: row for row in described(survey, first)}
    order = [f"@{survey.slot[at]}.{survey.generation[at]}" for at in first]
    return [found[name] for name in order if name in found][:count]


def next_sort(sort: str) -> str:
    """Return the order after this one."""
    return _SORTS[(_SORTS.index(sort) + 1) % len(_SORTS)]
