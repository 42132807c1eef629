"""What does it cost to let several processes work on the same data?

Both ways run the same code with the same workers. They differ in the parcel that each worker gets:
a reference to an object in a store, or the data themselves, pickled into the worker's pipe.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import shmstore
from shmstore.cli.demo import memory_use
from shmstore.cli.demo.corpus import Corpus
from shmstore.cli.demo.crew import Crew
from shmstore.cli.demo.jobs import Answer, Data

_ROOM_NBYTES = 16 << 20

Parcel = tuple[shmstore.ObjectRef | Data, int]  # what is sent to the workers, bytes copied for it
Way = Callable[[Corpus], AbstractContextManager[Parcel]]


@dataclass(frozen=True)
class Outcome:
    """What did one way cost, in seconds and bytes, and what did the workers find?"""

    handover_s: float
    work_s: float
    memory_nbytes: int
    memory_added_nbytes: int
    copied_nbytes: int
    answers: list[Answer]

    @property
    def total_s(self) -> float:
        """Seconds for both parts."""
        return self.handover_s + self.work_s


@contextmanager
def through_store(corpus: Corpus) -> Iterator[Parcel]:
    """Put the data into a store; the parcel is the reference."""
    with shmstore.Store.create(capacity=corpus.nbytes * 9 // 8 + _ROOM_NBYTES) as store:
        ref = store.put(dict(corpus.data))
        yield ref, ref.nbytes


@contextmanager
def through_pickles(corpus: Corpus) -> Iterator[Parcel]:
    """Send the data as they are: pickled for each worker."""
    yield corpus.data, 0


def run(
    way: Way, corpus: Corpus, *, workers: int, tasks: int, on_done: Callable[[], None]
) -> Outcome:
    """Let new workers do all tasks, with the data handed over in one of the two ways.

    Parameters
    ----------
    way : `through_store` or `through_pickles`
        How the workers get the data.
    corpus : Corpus
        The data and the job.
    workers, tasks : int
        How many processes, and how often the job is done. Starting the processes is not timed.
    on_done : callable
        Called after each task.

    Returns
    -------
    Outcome
        Times, memory and the answers, in the order of the tasks.
    """
    with Crew(workers) as crew:
        processes = [os.getpid(), *crew.pids]
        memory_before = memory_use.measure(processes)
        start = time.perf_counter()
        with way(corpus) as (parcel, put):
            sent = crew.hand_over(parcel)
            handover_s = time.perf_counter() - start
            memory = memory_use.measure(processes)
            crew.settle()
            start = time.perf_counter()
            answers = crew.map(corpus.job.sample, tasks, on_done)
            work_s = time.perf_counter() - start
    added = max(0, memory - memory_before)
    return Outcome(handover_s, work_s, memory, added, put + sent, answers)
