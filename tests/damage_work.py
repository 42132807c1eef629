"""What does somebody do with a store whose files may be damaged, and what must come of it?"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import random
import resource
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import lock_descriptor

from shmstore import ObjectRef, Store
from shmstore.errors import CorruptStoreError, LockTimeoutError, ShmStoreError

if TYPE_CHECKING:
    from damage_files import Case
    from damage_templates import Kept

REFUSED: Any = object()
MODES = ("shared", "shared", "readonly", "private", "copy")
ADVICE = ("recover", "destroy", "create", "end ", "delete", "try again")
MOST_GROWTH_KIB = 128 << 10


class Work:
    """One process at work on one store; it notes what it must not see.

    Parameters
    ----------
    case
        The store, and what its damage concerns.
    verbose
        Print each error that it meets.
    """

    def __init__(self, case: Case, *, verbose: bool = False) -> None:
        self.case = case
        self.verbose = verbose
        self.noise = random.Random(case.seed)
        self.problems: list[tuple[str, str]] = []
        self.refused = 0
        self.gone: set[str] = set()
        self.step = ""
        self.last = ""
        self.foreign = False
        self.held: list[Any] = []

    def run(self) -> None:
        """Do everything."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        neighbour = self._sit_down() if self.case.living else -1
        if self.case.edits:
            self._while_it_is_used()
        else:
            self._from_the_beginning()
        self.held.clear()
        if neighbour >= 0:
            os.close(neighbour)
        self._end()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if grown > MOST_GROWTH_KIB:
            self._problem(f"took {grown} KiB of memory", "memory")

    def _sit_down(self) -> int:
        """Keep the seat of one of the clients locked, as if it lived."""
        try:
            fd = os.open(self.case.path / "seats" / "2", os.O_RDWR | os.O_NONBLOCK)
        except OSError:
            return -1
        lock_descriptor(fd, blocking=False)
        return fd

    # --- two ways to come to a damaged store -----------------------------------------------------

    def _from_the_beginning(self) -> None:
        if self.noise.random() < 0.25:
            self.step = "read-only"
            reader = self._attempt("attach read-only", Store.attach, self.case.path, readonly=True)
            if reader is not REFUSED:
                self._find_out_whose(reader)
                self._look(reader)
                self._ask(reader)
                self._attempt("close", reader.close)
        self.step = "first"
        store = self._insist("attach", Store.attach, self.case.path, lock_timeout=1.0)
        if store is not REFUSED:
            self._use(store)

    def _while_it_is_used(self) -> None:
        self.step = "sound"
        store = Store.attach(self.case.path, lock_timeout=1.0)
        self._look(store, certain=True)
        self.held += [store["frozen"], store["pair"]]
        self.step = "damaged"
        fd = os.open(self.case.path / "index", os.O_RDWR)
        vandal = os.fork() if self.case.racing else 0
        if vandal or not self.case.racing:
            if vandal:
                self._change(store)
                self._look(store)
                os.waitpid(vandal, 0)
            else:
                self._write(fd)
            os.close(fd)
            self._use(store)
            return
        self._write(fd)
        os._exit(0)

    def _write(self, fd: int) -> None:
        for at, word in self.case.edits:
            os.pwrite(fd, word, at)
            if self.case.racing:
                os.sched_yield()

    def _use(self, store: Store) -> None:
        """Look, change, look, recover, look, change, leave."""
        self._find_out_whose(store)
        if self.noise.random() < 0.8:
            self._look(store)
            self._ask(store)
        self._change(store)
        if self.noise.random() < 0.5:
            self._look(store)
        self.step = "recovered"
        recovered = self._insist("recover", store.recover) is not REFUSED
        findings = self._attempt("check", store.check)
        if recovered and not self._is_ended(store):
            self._look(store, certain=True)
            self._judge_findings(findings)
            self._change(store, certain=True)
            self._judge_findings(self._attempt("check", store.check))
        self._look(store)
        self._attempt("close", store.close)

    def _find_out_whose(self, store: Store) -> None:
        """Ask for nothing that belongs to the template if the index is that of another store."""
        if store._session.uuid != self.case.template.uuid:
            self.gone |= self.case.template.objects.keys()
            self.foreign = True

    def _is_ended(self, store: Store) -> bool:
        """Return whether the damage consists in the store saying that it was destroyed."""
        session = store._session
        return session is None or bool(session.words[17])

    # --- what is done ----------------------------------------------------------------------------

    def _ref(self, kept: Kept) -> ObjectRef:
        return ObjectRef(
            self.case.template.uuid,
            str(self.case.path),
            kept.slot,
            kept.generation,
            kept.nbytes,
            kept.key,
        )

    def _look(self, store: Store, *, certain: bool = False) -> None:
        """Get what the damage concerns and some of the rest (all, if it is certain), both ways."""
        left = [name for name in self.case.template.objects if name not in self.gone]
        if not certain:
            few = self.noise.sample(left, min(8, len(left)))
            left = [name for name in left if name in self.case.lost or name in few]
        for name in left:
            kept = self.case.template.objects[name]
            sure = certain and name not in self.case.lost
            got = self._attempt(
                f"get ref {name!r}", store.get, self._ref(kept), mode=self.noise.choice(MODES)
            )
            if not (self.case.older and name in self.case.lost):
                self._judge(f"ref {name!r}", kept, got, name, sure=sure)
            if kept.key is not None and self.noise.random() < 0.6:
                got = self._attempt(f"get key {name!r}", store.get, kept.key)
                if not (self.case.stale and name in self.case.lost):
                    self._judge(f"key {name!r}", kept, got, name, sure=sure)
            del got
        self._attempt("get what is not there", store.get, "not there", None)

    def _ask(self, store: Store) -> None:
        """Ask for everything else that can be known."""
        questions: dict[str, Callable[[], Any]] = {
            "keys": lambda: [key.upper() for key in store],
            "values": lambda: len(list(store.values())),
            "len": lambda: len(store),
            "repr": lambda: repr(store),
        }
        for name in ("stats", "objects", "clients", "check", "why_full"):
            if hasattr(store, name):
                questions[name] = getattr(store, name)
        for name in self.noise.sample(sorted(questions), 4):
            self._attempt(name, questions[name])
        left = sorted(self.case.template.objects.keys() - self.gone)
        for name in self.noise.sample(left, min(2, len(left))):
            self._attempt("info", store.info, self._ref(self.case.template.objects[name]))
            if hasattr(store, "who_pins"):
                self._attempt(
                    "who_pins", store.who_pins, self._ref(self.case.template.objects[name])
                )

    def _change(self, store: Store, *, certain: bool = False) -> None:
        """Put, overwrite and delete; what was put must come back."""
        sizes = (1, 7, 40, 300, 2000, self.noise.randrange(5000))
        for number, size in enumerate(self.noise.sample(sizes, 4)):
            array = np.arange(size) + self.noise.randrange(1000)
            key = self.noise.choice((None, f"new {number}"))
            ref = self._attempt("put", store.put, array, key=key)
            self._compare("put array", array, ref, certain=certain)
            if self.noise.random() < 0.5 and ref is not REFUSED:
                self._attempt("delete new", store.delete, ref)
        ref = self._attempt("put", store.put, {"a": 1}, key="small")
        self._compare("put dict", {"a": 1}, ref, certain=certain)
        many = self._attempt("put_many", store.put_many, [np.arange(9), "x"])
        if many is not REFUSED:
            self._compare("put_many", "x", many[1], certain=certain)
        left = sorted(self.case.template.objects.keys() - self.gone)
        for name in self.noise.sample(left, min(3, len(left))):
            kept = self.case.template.objects[name]
            self.gone.add(name)
            if kept.key is None or self.noise.random() < 0.5:
                self._attempt("delete", store.delete, self._ref(kept))
            else:
                self._attempt("overwrite", store.put, np.arange(50), key=kept.key)
        if hasattr(store, "trim") and self.noise.random() < 0.2:
            self._attempt("trim", store.trim)

    def _end(self) -> None:
        """Destroy the store, or take its name over; nothing of it is left then."""
        self.step = "end"
        gc.collect()
        store = self._insist("attach", Store.attach, self.case.path, lock_timeout=1.0)
        if store is REFUSED or self._insist("destroy", store.destroy) is REFUSED:
            if store is not REFUSED:
                self._attempt("close", store.close)
            store = self._attempt(
                "create",
                Store.create,
                self.case.path.name,
                root=self.case.path.parent,
                capacity=1 << 16,
            )
            if store is REFUSED:
                return
            self._compare("put in the next store", "x", store.put("x"), certain=True)
            store.close()
        base = self.case.path.parents[1]
        left = sorted(str(path) for folder in base.iterdir() for path in folder.rglob("*"))
        if left:
            self._problem(f"left when the store was destroyed: {left}", "left")

    # --- what comes of it ------------------------------------------------------------------------

    def _attempt(self, what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call something; an error of ours is an answer, any other is a problem."""
        try:
            return call(*args, **kwargs)
        except ShmStoreError as error:
            self.refused += 1
            self.last = _where(error)
            if self.verbose:
                print(f"  {self.step}, {what}: {type(error).__name__}: {error}")
            self._judge_error(what, error)
        except MemoryError as error:  # a damaged pickle may ask for anything
            if not self.case.fragile:
                self._problem(f"{what}: {type(error).__name__}", _where(error))
        except Exception as error:
            self._problem(f"{what}: {type(error).__name__}: {error!s:.200}", _where(error))
        return REFUSED

    def _insist(self, what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call something that may fail once, and mends the store then."""
        for _ in range(2):
            answer = self._attempt(what, call, *args, **kwargs)
            if answer is not REFUSED:
                return answer
        if self.case.sound and (self.case.readable or what == "attach"):
            self._problem(f"{what} is refused for ever", self.last)
        return REFUSED

    def _judge(self, what: str, kept: Kept, got: Any, name: str, *, sure: bool) -> None:
        if got is REFUSED:
            if sure:
                self._problem(f"{what} is lost although the damage is elsewhere", "lost")
        elif name not in self.case.fragile and not same(got, kept.value):
            shown = f"{got!r:.80}".replace("\n", " ")
            self._problem(f"{what} is wrong: {shown}", f"wrong {self.step}")

    def _compare(self, what: str, value: Any, ref: Any, *, certain: bool) -> None:
        got = ref if ref is REFUSED else self._attempt(f"get {what}", ref.get)
        if got is REFUSED:
            if certain and self.case.roomy and not self.foreign:
                self._problem(f"{what} is refused although the store was recovered", "refused")
        elif not same(got, value):
            self._problem(f"{what} gives {got!r:.80}", "wrong new")

    def _judge_error(self, what: str, error: ShmStoreError) -> None:
        if isinstance(error, LockTimeoutError):
            self._problem(f"{what}: {error}", _where(error))
        if type(error) is CorruptStoreError:
            facts = error.facts
            lacks = [name for name in ("path", "offset") if name not in facts]
            if not any(word in str(error).lower() for word in ADVICE):
                lacks.append("advice")
            if lacks:
                self._problem(f"{what}: no {lacks} in: {error}", _where(error))
        pickle.loads(pickle.dumps(error))

    def _judge_findings(self, findings: Any) -> None:
        if findings is REFUSED:
            self._problem("check is refused although the store was recovered", "check")
            return
        texts = [str(finding) for finding in findings if not self._is_lasting(finding)]
        if texts:
            self._problem(f"after recover: {texts[:4]}", f"findings {texts[0][:13]}")

    def _is_lasting(self, finding: Any) -> bool:
        """Return whether nobody can mend what was found: a segment is gone, a slot under a view."""
        seen = self.case.living or self.case.edits
        return (
            self.foreign or "segment-0" in finding.message or bool(finding.invariant == 8 and seen)
        )

    def _problem(self, what: str, where: str) -> None:
        self.problems.append((f"{self.step}: {what}", where))
        if self.verbose:
            print(f"  PROBLEM {self.step}: {what}\n{where}")


def _where(error: BaseException) -> str:
    while error.__cause__ is not None and type(error) is not type(error.__cause__):
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    return "\n".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-6:])


def same(a: Any, b: Any) -> bool:
    """Return whether two values are alike, down to their types."""
    if isinstance(b, np.ndarray):
        return (
            isinstance(a, np.ndarray)
            and (a.dtype, a.shape) == (b.dtype, b.shape)
            and (a.tobytes() == b.tobytes())
        )
    if isinstance(b, dict):
        return type(a) is dict and a.keys() == b.keys() and all(same(a[k], b[k]) for k in b)
    return type(a) is type(b) and bool(a == b)


def warm_up() -> None:
    """Import what forked processes need; keep it out of their collections: they would copy it."""
    importlib.import_module("numpy.ma")
    pickle.loads(pickle.dumps(CorruptStoreError("x", path="y")))
    gc.collect()
    gc.freeze()
