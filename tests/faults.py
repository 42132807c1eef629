"""What happens when the n-th call of the system fails, for every n and every error it can give?

An operation (see `fault_stores` and `fault_objects`) is done again and again, each time in a fresh
root; the first time the first call of the system that it makes fails, then the second, until it is
done before any call has failed. All other calls are real. Afterwards nothing may have leaked,
nothing that was published may be lost, the store is sound, and the same operation succeeds.

Three kinds of failure: "once"; "from then on" every call of that kind fails (a disk that stays
full); "and again": another call fails after the first, so while the first failure is undone.

``python tests/faults.py`` runs everything; names of operations as arguments choose.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import gc
import itertools
import mmap
import os
import pickle
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

import fault_objects  # noqa: F401 - enters its operations
import fault_room  # noqa: F401 - as above
import fault_sent  # noqa: F401 - as above
import fault_spares  # noqa: F401 - as above
import fault_stores  # noqa: F401 - as above
import proofs
from fault_operations import OPERATIONS, Operation
from stores import DESCRIPTORS

from shmstore._memory import folder, mapping
from shmstore.errors import CorruptStoreError, ShmStoreError

FILES: Final = (errno.EMFILE, errno.ENFILE)
ROOM: Final = (errno.ENOSPC, errno.EFBIG, errno.ENOMEM)
# The calls that give memory: what they lack has to be told in words of our own.
GIVING: Final = ("posix_fallocate", "ftruncate", "pwrite", "mmap", "mmap_fixed")

# What fails, and how it can. A name is a function of `os` unless OWNERS has it.
ERRORS: Final[dict[str, tuple[int, ...]]] = {
    "open": (*FILES, errno.ENOSPC, errno.ENOMEM, errno.EIO),
    "posix_fallocate": (errno.ENOSPC, errno.ENOMEM, errno.EIO),
    "ftruncate": (errno.ENOSPC, errno.EFBIG, errno.EIO),
    "pwrite": (errno.ENOSPC, errno.EFBIG, errno.EIO),
    "write": (errno.ENOSPC, errno.EIO),
    "pread": (errno.EIO,),
    "mmap": (errno.ENOMEM,),
    "mmap_fixed": (errno.ENOMEM,),
    "fallocate": (errno.EIO,),
    "flock": (errno.ENOLCK, errno.EIO),
    "rename": (errno.ENOSPC, errno.EIO),
    "renameat2": (errno.ENOSPC, errno.EIO),
    "mkdir": (errno.ENOSPC, errno.ENOMEM, errno.EIO),
    "rmdir": (errno.EIO,),
    "unlink": (errno.ENOMEM, errno.EIO),
    "fstat": (errno.ENOMEM, errno.EIO),
    "stat": (errno.ENOMEM, errno.EIO),
    "statvfs": (errno.EIO,),
    "listxattr": (errno.EIO,),
    "readlink": (errno.EIO,),
    "listdir": (*FILES, errno.EIO),
    "scandir": (*FILES, errno.EIO),
    "fsync": (errno.ENOSPC, errno.EIO),
    "replace": (errno.ENOSPC, errno.EIO),
    "fchmod": (errno.EPERM, errno.EIO),
    "fchown": (errno.EPERM, errno.EIO),
}
OWNERS: Final[dict[str, tuple[Any, str]]] = {
    "mmap": (mmap, "mmap"),
    "mmap_fixed": (mapping._libc, "mmap"),
    "fallocate": (mapping._libc, "fallocate"),
    "flock": (fcntl, "flock"),
    "renameat2": (folder, "_renameat2"),
}
# Functions of C, which tell an error by what they return.
RETURNED: Final = {"mmap_fixed": ctypes.c_void_p(-1).value, "fallocate": -1, "renameat2": -1}

INTERRUPTED: Final = re.compile(r"/(shmstore|filelock)/[^/]+(/[^/]+)?[.]py$")
TEST_FOLDER: Final = "shmstore-test-"

# How an injection goes on after its first failure.
ONCE, FROM_THEN_ON = 0, -1


class Fault:
    """Lets the n-th call of the system fail while it is armed; counts what it sees.

    Parameters
    ----------
    number
        Which call, from 1; 0: none.
    error
        The number of the error; one that the call cannot give is replaced by one that it can.
    again
        `ONCE`; `FROM_THEN_ON`: every later call of the same kind fails too; k > 0: the k-th call
        after the first failure fails as well.
    """

    def __init__(self, number: int, error: int = 0, again: int = ONCE) -> None:
        self.number = number
        self.error = error
        self.again = again
        self.seen: list[str] = []
        self.hits: list[str] = []
        self.sites: list[str] = []
        self._pid = os.getpid()
        self._armed = False

    def strikes(self, name: str) -> bool:
        """Note a call; return whether it is to fail."""
        self.seen.append(name)
        at = len(self.seen)
        hit = at == self.number
        if self.hits and self.again == FROM_THEN_ON:
            hit = name == self.hits[0]
        elif self.hits and self.again:
            hit = at == self.number + self.again
        if hit:
            self.hits.append(name)
            self.sites.append(site())
        return hit

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Watch the calls of this process; a forked child is spared."""
        originals = [(owner_of(name), getattr(*owner_of(name), None)) for name in ERRORS]
        for name, (place, original) in zip(ERRORS, originals, strict=True):
            if original is not None:
                setattr(*place, self._watched(name, original))
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            for place, original in originals:
                if original is not None:
                    setattr(*place, original)

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            watched = self._armed and self._pid == os.getpid() and not is_unlocking(name, args)
            if not watched or not self.strikes(name):
                return original(*args, **kwargs)
            possible = ERRORS[name]
            number = self.error if self.error in possible else possible[-1 if self.error else 0]
            if name == "open" and number == errno.ENOSPC and not args[1] & os.O_CREAT:
                number = errno.EIO
            if name in RETURNED:
                ctypes.set_errno(number)
                return RETURNED[name]
            path = [x for x in args[:1] if isinstance(x, (str, os.PathLike))]
            raise OSError(number, os.strerror(number), *path)

        return call


class Interrupt(Fault):
    """Lets a signal handler raise KeyboardInterrupt at the n-th point where CPython may run one.

    These points are where a function of Python is entered and where one of C has returned.
    """

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Count the points in our code and in filelock's."""
        sys.setprofile(self._pass)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _pass(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event in {"call", "c_return"} and INTERRUPTED.search(code.co_filename):
            self.number -= 1
            if not self.number:
                sys.setprofile(None)
                self.hits.append(event)
                self.sites.append(
                    f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}"
                )
                raise KeyboardInterrupt


def owner_of(name: str) -> tuple[Any, str]:
    """Return where a function is looked up: the object and its attribute."""
    return OWNERS.get(name, (os, name))


def is_unlocking(name: str, args: tuple[Any, ...]) -> bool:
    """Return whether a call gives a lock back, which cannot fail."""
    return name == "flock" and bool(args[1] & fcntl.LOCK_UN)


def site() -> str:
    """Return from where in shmstore the call of the system comes."""
    frame: Any = sys._getframe()
    while frame is not None and f"{os.sep}shmstore{os.sep}" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return "elsewhere"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_qualname}"


# --- what a process holds -------------------------------------------------------------------------


class World(NamedTuple):
    """What there is of stores: open files, mappings, files."""

    descriptors: Counter[str]
    mappings: Counter[str]
    files: Counter[str]

    def more_than(self, before: World, *, files: bool = True) -> str:
        """Tell what there is now and was not before, or ""."""
        told = [
            f"{what} {name}" + f" x {count}" * (count > 1)
            for what, now, then in zip(self._fields, self, before, strict=True)
            for name, count in (now - then).items()
            if files or what != "files"
        ]
        return "; ".join(told)


def look(root: Path) -> World:
    """Return what this process holds and what lies in a root; names of seats do not matter."""
    gc.collect()
    descriptors: Counter[str] = Counter()
    for entry in DESCRIPTORS.iterdir():
        with contextlib.suppress(FileNotFoundError):
            descriptors[nameless(entry.readlink())] += 1
    with Path("/proc/self/maps").open(encoding="utf-8") as maps:
        lines = [line.split(maxsplit=5)[-1].strip() for line in maps if str(root) in line]
    mappings = Counter(nameless(Path(line)) for line in lines)
    return World(descriptors, mappings, Counter(map(nameless, root.rglob("*"))))


def nameless(path: Path) -> str:
    """Return a path in which seats and what is being made or removed have no numbers."""
    parts = list(path.parts)
    for i, part in enumerate(parts):
        if part.startswith(TEST_FOLDER):
            parts[: i + 1] = [""] * (i + 1)
        elif parts[i - 1] == "seats":
            parts[i] = "*" + part.lstrip("0123456789")
        elif part.startswith((".new-", ".old-")):
            parts[i] = part[:5] + "*"
        elif part.startswith(("pipe:", "socket:")):
            parts[i] = part.partition(":")[0]
    return str(Path(*parts))


# --- one round ------------------------------------------------------------------------------------


def is_well_told(error: BaseException, fault: Fault) -> str:
    """Return what is wrong with an error for the user who meets it, or ""."""
    if isinstance(error, CorruptStoreError):
        return f"a failing call is taken for damage: {error}"
    undoing = len(fault.hits) > 1 and fault.again != FROM_THEN_ON
    if undoing or isinstance(error, (ShmStoreError, KeyboardInterrupt)):
        return ""
    if not isinstance(error, OSError):
        return f"{error!r} is not of the system"
    if error.errno in FILES or (error.errno in ROOM and fault.hits[0] in GIVING):
        return f"{error!r} says not what to do"
    return "" if str(error.filename).startswith(os.sep) else f"{error!r} names no path"


class Report:
    """What the rounds of one operation have shown."""

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []

    def blame(self, fault: Fault, what: str) -> None:
        """Note something that is wrong after a fault."""
        hits = ", ".join(
            f"{name} at {place}" for name, place in zip(fault.hits, fault.sites, strict=True)
        )
        names = errno.errorcode.get(fault.error, "EFIRST")
        self.wrong.append(f"{self.operation}: {names}: {hits}: {what}")


def run_round(operation: type[Operation], fault: Fault, report: Report) -> None:
    """Do an operation once, with a fault; note what is wrong then."""
    parent = tempfile.mkdtemp(prefix=TEST_FOLDER, dir="/dev/shm")
    root = Path(parent) / "root"
    root.mkdir(mode=0o700)
    os.environ["SHMSTORE_ROOT"] = str(root)
    empty = look(root)
    place = operation(root)
    try:
        place.prepare()
        before = look(root)
        failed = attempt(place, fault, report)
        if fault.hits:
            report.counts[fault.hits[0]] += 1
        if failed:
            after = look(root)
            held = place.undone and fault.again == ONCE and not isinstance(fault, Interrupt)
            if place.stays_out and (change := after.more_than(before, files=held)):
                report.blame(fault, f"left behind: {change}")
            if place.undone and (change := before.more_than(after)):
                report.blame(fault, f"gone: {change}")
            for what in place.wrong_after_failure():
                report.blame(fault, what)
            place.again()
        for what in place.wrong():
            report.blame(fault, what)
    except Exception as error:
        report.blame(fault, f"then {type(error).__name__}: {error}")
    with contextlib.suppress(Exception):
        place.finish()
    del place
    if change := look(root).more_than(empty):
        report.blame(fault, f"at the end: {change}")
    shutil.rmtree(parent, ignore_errors=True)


def attempt(place: Operation, fault: Fault, report: Report) -> bool:
    """Do the operation with the fault; return whether it failed."""
    try:
        with fault.armed():
            place.act()
    except BaseException as error:
        if not fault.hits:
            raise
        report.errors[type(error).__name__] += 1
        if what := is_well_told(error, fault):
            report.blame(fault, what)
        return True
    return False


def all_rounds(operation: type[Operation], kinds: tuple[str, ...], report: Report) -> None:
    """Let every call fail with its EFIRST, and in the other ways of `KINDS` that are asked."""
    for number in itertools.count(1):
        probe = Fault(number)
        run_round(operation, probe, report)
        if not probe.hits:
            return
        errors = ERRORS[probe.hits[0]]
        if "once" in kinds:
            for error in errors[1:]:
                run_round(operation, Fault(number, error), report)
        if "from then on" in kinds:
            run_round(operation, Fault(number, errors[0], FROM_THEN_ON), report)
        for again in itertools.count(1) if "and again" in kinds else ():
            fault = Fault(number, errors[0], again)
            run_round(operation, fault, report)
            if len(fault.hits) < 2:
                break


def all_interrupts(operation: type[Operation], step: int, report: Report) -> None:
    """Interrupt at every point, or at every `step`-th."""
    sys.unraisablehook = lambda _: None  # of a finalizer that was interrupted
    for number in itertools.count(1, step):
        interrupt = Interrupt(number)
        run_round(operation, interrupt, report)
        if not interrupt.hits:
            return


KINDS: Final = ("once", "from then on", "and again")


def prove(name: str, kinds: tuple[str, ...], step: int = 0) -> Report:
    """Run one operation through all its faults or interrupts, in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        report = Report(name)
        try:
            gc.collect()
            gc.freeze()
            if step:
                all_interrupts(OPERATIONS[name], step, report)
            else:
                all_rounds(OPERATIONS[name], kinds, report)
        except BaseException as error:
            report.wrong.append(f"{name}: the proof itself failed: {error!r}")
        with open(writer, "wb") as pipe:  # noqa: PTH123 - a descriptor
            pickle.dump(report, pipe)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:  # noqa: PTH123 - a descriptor
        report = pickle.load(pipe)
    os.waitpid(pid, 0)
    subject = "interrupts" if step else "faults"
    proofs.note(f"{subject}: {name}", **dict(sorted(report.counts.items())))
    return report


def main() -> int:
    """Run what the command line asks for; say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("operations", nargs="*")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--quick", action="store_true", help="only the EFIRST of each call")
    parser.add_argument("--interrupts", type=int, metavar="STEP", default=0)
    chosen = parser.parse_args()
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    bad = False
    for name in chosen.operations or OPERATIONS:
        report = prove(name, () if chosen.quick else tuple(chosen.kinds), chosen.interrupts)
        print(f"{name}: {sum(report.counts.values()):,} faults", dict(report.errors), flush=True)
        for line, count in Counter(report.wrong).items():
            print(f"  {count} x {line}")
            bad = True
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
