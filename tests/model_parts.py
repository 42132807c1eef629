"""What does the model of a store put, hold and expect, here and in another process?"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

CAPACITY = 128 << 10

# The other process: each line is a call, as code over what it holds.
HELPER = """
import gc
import numpy as np, shmstore
store, views = None, {}
while True:
    faulthandler.dump_traceback_later(60, exit=True)
    try:
        call, arguments = pickle.loads(bytes.fromhex(input()))
    except EOFError:
        break
    try:
        if call == "attach":
            store = shmstore.Store.attach(*arguments)
            answer = None
        elif call == "close":
            views.clear()
            gc.collect()
            answer = store.close()
        elif call == "hold":
            number, target, mode = arguments
            answer = views[number] = store.get(target, mode=mode)
        elif call == "look":
            answer = views[arguments[0]]
        elif call == "drop":
            answer = views.pop(arguments[0], None) is not None
        else:
            answer = getattr(store, call)(*arguments[0], **arguments[1])
    except shmstore.ShmStoreError as error:
        answer = error
    line = pickle.dumps(answer, 5).hex()
    del answer
    print(line, flush=True)
"""


class Other:
    """The store as the other process has it: its calls go over a pipe.

    Parameters
    ----------
    child
        The process that runs `HELPER`.
    """

    def __init__(self, child: Any) -> None:
        self._child = child

    def tell(self, call: str, *arguments: Any) -> Any:
        """Let the other process do something; return or raise what it answers."""
        answer = pickle.loads(
            bytes.fromhex(self._child.ask(pickle.dumps((call, arguments), 5).hex()))
        )
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments, **options: self.tell(name, arguments, options)


# --- values ---------------------------------------------------------------------------------------


class Value:
    """What is put, and what every look at it must show from then on.

    Parameters
    ----------
    kind
        "plain" (no buffers), "array", "frozen" (a read-only array) or "dict" (of two arrays).
    seed
        From which its numbers are made.
    nbytes
        Size of its array.
    """

    def __init__(self, kind: str, seed: int, nbytes: int) -> None:
        self.kind = kind
        self.seed = seed
        self.data = np.resize(np.arange(seed, seed + 251, dtype=np.uint8), nbytes)

    def made(self) -> Any:
        """Return a new object to be put."""
        if self.kind == "plain":
            return {"seed": self.seed, "text": "x" * (len(self.data) % 3000)}
        array = self.data.copy()
        array.flags.writeable = self.kind != "frozen"
        return {"array": array, "seed": np.array([self.seed])} if self.kind == "dict" else array

    def array_of(self, got: Any) -> np.ndarray | None:
        """Return the array in an object that was got, or None."""
        if self.kind == "plain":
            return None
        return got["array"] if self.kind == "dict" else got

    def check(self, got: Any, data: np.ndarray | None = None) -> None:
        """Fail unless an object is this value, with `data` in place of the array."""
        array = self.array_of(got)
        if array is None:
            assert got == self.made()
            return
        np.testing.assert_array_equal(array, self.data if data is None else data)
        if self.kind == "dict":
            assert got["seed"].tolist() == [self.seed]


class View:
    """An object that was got and is still looked at."""

    def __init__(self, value: Value, mode: str, got: Any) -> None:
        self.value = value
        self.got = got
        self.own = value.data.copy() if mode in {"private", "copy"} else None
        array = value.array_of(got)
        self.writeable = array is not None and array.flags.writeable and bool(array.size)

    def check(self) -> None:
        """Fail unless it still shows what it must."""
        self.value.check(self.got, self.own)

    def write(self, number: int) -> None:
        """Change the first byte, for those who share it."""
        self.value.array_of(self.got)[0] = number
        (self.value.data if self.own is None else self.own)[0] = number


keys = st.sampled_from(["a", "b", "c", "d", "e/f", "ä"])
values = st.builds(
    Value,
    st.sampled_from(["plain", "array", "frozen", "dict"]),
    st.integers(0, 250),
    st.one_of(st.integers(0, 300), st.integers(0, CAPACITY // 3), st.just(CAPACITY)),
)
modes = st.sampled_from(["shared", "readonly", "private", "copy"])
numbers = st.integers(0, 1 << 30)
