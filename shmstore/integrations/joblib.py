"""How do `joblib.Parallel` and scikit-learn work on large data without sending it?

>>> import numpy as np
>>> from joblib import Parallel, delayed, parallel_config
>>> from shmstore.integrations.joblib import register
>>> register()
>>> with parallel_config("shmstore", n_jobs=1):
...     Parallel()(delayed(abs)(number) for number in (-1, -2))
[1, 2]
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.context import BaseContext
from typing import Any

from joblib import cpu_count, register_parallel_backend
from joblib.parallel import ParallelBackendBase

import shmstore


class Backend(ParallelBackendBase):  # type: ignore[misc]
    """The backend "shmstore": a pool per `Parallel` whose arguments and results lie in a store.

    Parameters
    ----------
    mp_context, store, capacity, threshold, mode
        As in `shmstore.ProcessPoolExecutor`; given to ``parallel_config("shmstore", ...)``.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = False

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        *,
        mp_context: BaseContext | None = None,
        **options: Any,
    ) -> None:
        super().__init__(nesting_level, inner_max_num_threads)
        self._options = {"mp_context": mp_context, **options}
        self._pool: shmstore.ProcessPoolExecutor | None = None
        self._n_jobs = 1

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many workers there will be."""
        if n_jobs == 0:
            message = "n_jobs == 0 in Parallel has no meaning"
            raise ValueError(message)
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(1, int(cpu_count()) + 1 + n_jobs)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        **options: Any,
    ) -> int:
        """Make the pool."""
        self.parallel = parallel
        known = {key: options[key] for key in _OPTIONS & options.keys()}
        self._n_jobs = self.effective_n_jobs(n_jobs)
        self._options |= known
        self._open()
        return self._n_jobs

    def _open(self) -> None:
        self._pool = shmstore.ProcessPoolExecutor(self._n_jobs, **self._options)

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None
    ) -> Future[Any]:
        """Let a worker do a batch of calls."""
        assert self._pool is not None
        future = self._pool.submit(_call, func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return what a batch gave."""
        return out.result()

    def terminate(self) -> None:
        """End the pool; results stay valid."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002 - as joblib calls it
        """Forget the batches that wait."""
        self.terminate()
        if ensure_ready:
            self._open()


_OPTIONS = frozenset({"mp_context", "store", "capacity", "threshold", "mode"})


def _call(batch: Callable[[], Any]) -> Any:
    return batch()


def register() -> None:
    """Make "shmstore" a backend of joblib."""
    register_parallel_backend("shmstore", Backend)
