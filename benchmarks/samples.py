"""Which objects are put and got?"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Sample:
    """One object to measure with. It pickles: each process makes its own.

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
    package : str
        What it needs.
    """

    label: str
    nbytes: int
    make: Callable[[], Any]
    touch: Callable[[Any], object]
    package: str = "numpy"


def small_dict(number: int = 7) -> dict[str, object]:
    """Return a record such as programs pass around by the thousand."""
    return {"id": number, "name": "sample", "score": 0.5, "tags": ["a", "b"]}


def _kibibyte() -> bytes:
    return bytes(range(256)) * 4


def _numbers(nbytes: int) -> np.ndarray:
    """Return an array no page of which is all zeros, so each is real."""
    return np.arange(1, nbytes // 8 + 1, dtype=float)


def _frame(label: str, nbytes: int) -> object:
    from benchmarks import kinds

    return next(kind for kind in kinds.KINDS if kind.label == label).of(nbytes)


def array(label: str, nbytes: int) -> Sample:
    """Return the sample that is a float64 array."""
    return Sample(f"{label} array", nbytes, partial(_numbers, nbytes), itemgetter(0))


def _pandas(label: str, package: str = "pandas") -> Sample:
    return Sample(
        f"64 MiB frame, {label}",
        80 * MIB,  # with what a pickle says of each string
        partial(_frame, f"pandas, {label}", 64 * MIB),
        len,
        package,
    )


SMALL = Sample("small dict", 128, small_dict, itemgetter("id"))
BYTES = Sample("1 KiB bytes", KIB, _kibibyte, itemgetter(0))
ARRAY_64K = array("64 KiB", 64 * KIB)
ARRAY_1M = array("1 MiB", MIB)
ARRAY_64M = array("64 MiB", 64 * MIB)
ARRAY_512M = array("512 MiB", 512 * MIB)
ARRAY_1G = array("1 GiB", GIB)
FRAMES = (_pandas("object strings"), _pandas("arrow strings", "pyarrow"))
SAMPLES = (SMALL, BYTES, ARRAY_64K, ARRAY_1M, ARRAY_64M, ARRAY_512M, ARRAY_1G, *FRAMES)
QUICK_SAMPLES = (SMALL, BYTES, ARRAY_64K, ARRAY_1M, ARRAY_64M)
