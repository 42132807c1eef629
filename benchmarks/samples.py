"""Which objects are put and got?"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One object to measure with.

    Attributes
    ----------
    label : str
        Its name in the tables.
    nbytes : int
        Size of its data, near enough to plan memory by.
    make : callable
        Makes it anew.
    touch : callable
        Reads one element of it.
    """

    label: str
    nbytes: int
    make: Callable[[], object]
    touch: Callable[[Any], object]


def small_dict(number: int = 7) -> dict[str, object]:
    """Return a record such as programs pass around by the thousand."""
    return {"id": number, "name": "sample", "score": 0.5, "tags": ["a", "b"]}


def _array(label: str, nbytes: int) -> Sample:
    """Return the sample that is a float64 array; no page of it is all zeros, so each is real."""
    return Sample(label, nbytes, lambda: np.arange(1, nbytes // 8 + 1, dtype=float), itemgetter(0))


SMALL = Sample("small dict", 128, small_dict, itemgetter("id"))
SAMPLES = (
    SMALL,
    _array("64 KiB array", 64 * KIB),
    _array("1 MiB array", MIB),
    _array("64 MiB array", 64 * MIB),
    _array("512 MiB array", 512 * MIB),
)
QUICK_SAMPLES = SAMPLES[:4]
