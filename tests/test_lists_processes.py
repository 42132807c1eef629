"""Is a list in a store one data set for all processes, however they were started?"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
from stores import MakeStore, RunPython, exit_code, forked, lock_free_only

from shmstore import SharedList, Store

pytestmark = [lock_free_only, pytest.mark.usefixtures("process_helpers")]


def samples(count: int) -> Iterator[dict[str, Any]]:
    """Yield records such as data sets have, some of them large."""
    for number in range(count):
        yield {"tokens": np.arange(number, number + 50), "label": number % 10, "text": f"{number}"}


def sum_up(part: SharedList[Any]) -> tuple[int, int]:
    """Return what a worker finds in its part."""
    return len(part), sum(int(record["tokens"][0]) for record in part)


@pytest.mark.parametrize(
    "method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_get_slices_by_reference(store: Store, method: str) -> None:
    """Each worker is sent a few bytes and reads its own part of the records."""
    found: SharedList[Any] = store.get(store.put_list(samples(1000)))
    parts = [found[start::4] for start in range(4)]
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        results = list(pool.map(sum_up, parts))
    assert results == [(250, sum(range(start, 1000, 4))) for start in range(4)]


def test_unrelated_process_reads_and_puts_lists(store: Store, run_python: RunPython) -> None:
    """The key is all that it has to know; what it puts outlives it."""
    store.put_list(["zero", "one"], key="words")
    code = """
    import numpy as np, shmstore
    store = shmstore.Store.attach(path)
    words = store["words"]
    store.put_list((np.full(3, n) for n in range(len(words))), key="arrays")
    print(words[-1])
    """
    assert run_python(code, path=str(store.path)) == "one"
    assert [array.tolist() for array in store["arrays"]] == [[0, 0, 0], [1, 1, 1]]


def test_forked_child_uses_the_list_of_its_parent(store: Store) -> None:
    """Also after the parent has deleted the object."""
    found = store.get(store.put_list(samples(100)))
    found.ref.delete()

    def look() -> None:
        assert sum_up(found) == (100, 4950)

    assert exit_code(forked(look)) == 0


def test_writes_to_a_record_are_seen_by_other_processes(
    store: Store, run_python: RunPython
) -> None:
    """Arrays that were writeable are the same memory everywhere."""
    found = store.get(store.put_list([np.zeros(4), np.zeros(4)], key="list"))
    code = "import shmstore\nshmstore.Store.attach(path)['list'][1][2] = 5"
    run_python(code, path=str(store.path))
    assert found[1].tolist() == [0, 0, 5, 0]


# --- the loaders of torch -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_torch_loader_reads_a_list_in_its_workers(make_store: MakeStore, method: str) -> None:
    """A SharedList is a data set as it is: shuffled, in batches, by any number of workers."""
    torch = pytest.importorskip("torch")
    store = make_store(capacity="4MiB")
    items = [(np.full(8, n, "f4"), n) for n in range(64)]
    data = store.get(store.put_list(items))
    torch.manual_seed(1)
    loader = torch.utils.data.DataLoader(
        data, batch_size=8, shuffle=True, num_workers=2, multiprocessing_context=method
    )
    seen: list[int] = []
    for values, labels in loader:
        assert values.shape == (8, 8)
        assert (values[:, 0] == labels).all()
        seen += labels.tolist()
    assert sorted(seen) == list(range(64))
    assert seen != sorted(seen)


def test_torch_tensors_come_back_as_records(store: Store) -> None:
    """A tensor is a view on the shared memory, as one that was put alone."""
    torch = pytest.importorskip("torch")
    items = [torch.arange(n) for n in range(5)]
    found = store.get(store.put_list(items))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, items, strict=True))
    found[4][0] = 9
    assert pickle.loads(pickle.dumps(found))[4].tolist() == [9, 1, 2, 3]
