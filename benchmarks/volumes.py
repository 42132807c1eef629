"""How many bytes does it take to put an object, or to get it?

What lies in the stream of a pickle or in a header is counted as *in band*, what lies beside it as
*beside*: that is what a put writes to shared memory. What it writes to memory of its own before is
seen from outside, the same way for everybody: the most memory that was held at once meanwhile. Of a
large object the kernel's high-water mark tells it: pages that were written, by whatever allocator,
unless that kept them from before. Of a small one `tracemalloc` tells it, which knows the memory of
Python and NumPy, written or not. A buffer that is used again and again counts once.
"""

import ctypes
import pickle
import re
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.samples import MIB
from shmstore.serialization import msgpacking, serialize
from shmstore.serialization.frames import nbytes

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
RESET_HIGH_WATER = "5"


def of_pickle(value: object) -> tuple[int, int] | None:
    """Return the bytes in band and beside of a pickle with buffers; None: pickle refuses."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        stream = pickle.dumps(value, 5, buffer_callback=buffers.append)
    except (TypeError, pickle.PicklingError):
        return None
    return len(stream), sum(buffer.raw().nbytes for buffer in buffers)


def of_serialized(value: object) -> tuple[int, int]:
    """Return the bytes in band and beside of what shmstore makes of a value."""
    header, frames = serialize(value, on_error="raise")
    streams = sum(nbytes(frames[number]) for number in _streams(header, 0, len(frames)))
    return len(msgpacking.packb(header)) + streams, sum(map(nbytes, frames)) - streams


def _streams(header: Any, start: int, stop: int) -> Sequence[int]:
    """Return the numbers of the frames that are streams of pickles, also of parts."""
    if header.get("serializer") == "pickle":
        return range(start, min(start + 1, stop))
    sub_header = header.get("sub-header")
    parts = sub_header.get("parts", {}) if isinstance(sub_header, dict) else {}
    return [
        number
        for part in parts.values()
        for number in _streams(part["header"], start + part["start"], start + part["stop"])
    ]


def private_nbytes(run: Callable[[], object], undo: Callable[[Any], object], payload: int) -> int:
    """Return the most memory that was held at once while something ran, beside what was before.

    The shared memory that it uses must have been touched: its pages count, too.
    """
    held = _held_by_process if payload >= MIB else _held_by_python
    return held(run, undo)


def _held_by_python(run: Callable[[], object], undo: Callable[[Any], object]) -> int:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        result = run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    undo(result)
    return peak - before


def _held_by_process(run: Callable[[], object], undo: Callable[[Any], object]) -> int:
    try:
        ctypes.CDLL(None).malloc_trim(0)
        RESET.write_text(RESET_HIGH_WATER)
    except (AttributeError, OSError):  # another C library, a kernel that does not let us
        return _held_by_python(run, undo)
    before = _status_nbytes("VmRSS")
    result = run()
    peak = _status_nbytes("VmHWM")
    undo(result)
    return max(peak - before, 0)


def _status_nbytes(label: str) -> int:
    found = re.search(rf"^{label}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
