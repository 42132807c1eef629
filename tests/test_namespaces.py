"""Neither process ids, namespaces nor clocks decide who lives, who owns, and what is kept."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import psutil
import pytest
from stores import WAIT_S, Child, MakeStore, StartPython, command_for, lock_free_only, wait_until

import shmstore
from shmstore import LockTimeoutError, Store

PIDS = ("--pid", "--fork", "--mount-proc", "--kill-child")
CLOCKS = ("--time", "--monotonic", "500000", "--boottime", "1000000", "--fork", "--kill-child")

# Other users than root may have namespaces inside of one of their own.
AS_ROOT = () if os.getuid() == 0 else ("--user", "--map-root-user")

StartApart = Callable[..., "Apart"]


@functools.cache
def allowed(*ways: str) -> bool:
    """Return whether this user may make namespaces of these kinds."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", *AS_ROOT, *ways, "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Apart(Child):
    """A Python process in a namespace of its own, in dialogue over its pipes."""

    def __init__(self, ways: tuple[str, ...], code: str, values: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            ["unshare", *AS_ROOT, *ways, *command_for(code, values)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    def kill_inside(self) -> None:
        """Kill the Python process, from outside."""
        [inside] = psutil.Process(self.pid).children()
        inside.kill()
        self.process.communicate(timeout=WAIT_S)


@pytest.fixture
def start_apart() -> Iterator[StartApart]:
    """Give a function that starts code in namespaces; the test is skipped where there are none."""
    with ExitStack() as children:

        def start(code: str, *, ways: tuple[str, ...] = PIDS, **values: Any) -> Apart:
            if not allowed(*ways):
                pytest.skip(f"this user may not make namespaces: unshare {' '.join(ways)}")
            child = Apart(ways, code, values)
            children.enter_context(child.process)
            children.callback(child.process.kill)
            return child

        yield start


# --- pid namespaces -------------------------------------------------------------------------------

HALF_A_PUT = """
import os, numpy as np, shmstore
store = shmstore.Store.attach(path)
view = store["k"]
block = store.allocate(100_000, "u1", key="half")
block.__enter__()
store["from inside"] = np.arange(500)
print(os.getpid(), int(view.sum()), flush=True)
for line in iter(input, "end"):
    print(store.recover().clients, sorted(store), flush=True)
block.__exit__(None, None, None)
del view, block
store.close()
"""


@lock_free_only
def test_client_in_another_pid_namespace_is_a_client_like_others(
    make_store: MakeStore, start_apart: StartApart
) -> None:
    """Both see what the other puts, and neither takes the other for dead."""
    store = make_store()
    store["k"] = np.arange(1000)
    inside = start_apart(HALF_A_PUT, path=store.path)
    assert inside.hear() == "1 499500"
    assert store["from inside"].tolist() == list(range(500))
    assert [client.alive for client in store.clients()] == [True, True]
    assert store.recover() == shmstore.Recovered(0, 0, 0)
    assert inside.ask() == "0 ['from inside', 'k']"
    inside.say("end")
    inside.end()
    assert [client.pid for client in store.clients()] == [os.getpid()]


@lock_free_only
def test_views_in_another_pid_namespace_are_told_without_a_name_that_is_anothers(
    make_store: MakeStore, start_apart: StartApart
) -> None:
    """Its pid is 1 there; here that is another process, whose name would mislead."""
    store = make_store()
    store["k"] = np.arange(1000)
    inside = start_apart(HALF_A_PUT, path=store.path)
    inside.hear()
    [pin] = store.who_pins("k")
    assert (pin.pid, pin.name, pin.alive, pin.views) == (1, "not seen from here", True, 1)
    assert 0 <= pin.age < WAIT_S
    assert "pid 1 (not seen from here)" in str(store.why_full())
    inside.kill_inside()
    assert [(pin.name, pin.alive) for pin in store.who_pins("k")] == [("gone", False)]
    store.recover()


@lock_free_only
def test_client_killed_in_another_pid_namespace_is_buried(
    make_store: MakeStore, start_apart: StartApart
) -> None:
    """Its pins, its half-made put and its seat go, although its pid means nothing here."""
    store = make_store()
    store["k"] = np.arange(1000)
    inside = start_apart(HALF_A_PUT, path=store.path)
    inside.hear()
    del store["k"]
    inside.kill_inside()
    recovered = store.recover()
    assert (recovered.clients, recovered.puts) == (1, 1)
    assert [client.pid for client in store.clients()] == [os.getpid()]
    assert store.stats().used == store.info("from inside").stored_nbytes


@lock_free_only
def test_client_in_a_pid_namespace_buries_one_that_was_killed_outside(
    make_store: MakeStore, start_apart: StartApart, start_python: StartPython
) -> None:
    """The other way round: whose death it is that somebody finds does not matter."""
    store = make_store()
    store["k"] = np.arange(1000)
    outside = start_python(HALF_A_PUT, path=store.path)
    outside.hear()
    inside = start_apart(HALF_A_PUT, path=store.path)
    inside.hear()
    outside.kill()
    assert inside.ask() == "1 ['from inside', 'k']"
    assert store.recover().clients == 0
    inside.say("end")
    inside.end()


HOLD_THE_LOCK = """
import shmstore
store = shmstore.Store.attach(path)
store["inside"] = 1
store._session.lock.run(lambda: (print("held", flush=True), input()))
"""


@lock_free_only
def test_lock_held_in_another_pid_namespace_is_waited_for_and_mended(
    make_store: MakeStore, start_apart: StartApart
) -> None:
    """The holder is not mistaken for the process that has its pid here."""
    store = make_store(lock_timeout=0.2)
    inside = start_apart(HOLD_THE_LOCK, path=store.path)
    assert inside.hear() == "held"
    with pytest.raises(LockTimeoutError) as caught:
        store["k"] = 1
    assert caught.value.holder == "pid 1 (not seen from here)"
    [client] = [client for client in store_clients_unlocked(store) if client.pid == 1]
    assert client.started_ns != int(psutil.Process(1).create_time() * 1e9)
    inside.kill_inside()
    store["k"] = 2
    assert store["k"] == 2
    assert store["inside"] == 1


def store_clients_unlocked(store: Store) -> list[Any]:
    """Return the rows of the client table while somebody else holds the lock."""
    return list(store._session.clients.rows())


# --- pids that are used again ---------------------------------------------------------------------

# For scripts that run as the first process of a pid namespace.
REUSE = """
import contextlib, gc, os, signal, subprocess, sys
import numpy as np
import shmstore

# A forked process that ends would wait for the thread that looks at the clock.
faulthandler.cancel_dump_traceback_later()

def fork_with_pid(wanted, function):
    for _ in range(50):
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(wanted - 1))
        pid = os.fork()
        if pid == 0:
            if os.getpid() == wanted:
                function()
            os._exit(0)
        if pid == wanted:
            return pid
        os.waitpid(pid, 0)
    raise SystemExit("no process got the pid")

def fork(function):
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    return pid

def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

def say(fd):
    os.write(fd, b"x")

def wait_for_ever():
    while True:
        signal.pause()
"""

READ_END = """
store = shmstore.Store.create("reuse", capacity="1MiB")
store["k"] = np.arange(1000)
reading, writing = os.pipe()

def hold():
    view = store["k"]
    block = store.allocate(100_000, "u1")
    block.__enter__()
    say(writing)
    wait_for_ever()

first = fork(hold)
os.read(reading, 1)
kill(first)
"""

EXECED = """
def be_another_program():
    os.execvp("sleep", ["sleep", "60"])

second = fork_with_pid(first, be_another_program)
recovered = store.recover()
del store["k"]
# The second was born with a seat, too, which it gives up when it becomes the other program.
buried = recovered.clients in (1, 2)
print(second == first, buried, recovered.puts, store.stats().used, flush=True)
kill(second)
"""

CLIENT_AGAIN = """
def hold_again():
    view = store["k"]
    say(writing)
    wait_for_ever()

second = fork_with_pid(first, hold_again)
os.read(reading, 1)
recovered = store.recover()
del store["k"]
store.recover()
used = store.stats().used
kill(second)
print(second == first, recovered.clients, used, store.recover().clients, store.stats().used)
"""


@pytest.mark.parametrize(
    ("then", "printed"),
    [(EXECED, "True True 1 0"), (CLIENT_AGAIN, "True 1 8000 1 0")],
    ids=["by another program", "by another client"],
)
def test_client_that_is_dead_is_buried_although_its_pid_is_used_again(
    start_apart: StartApart, then: str, printed: str
) -> None:
    """Who lives is told by a lock: the pins of the living stay, those of the dead go."""
    inside = start_apart(REUSE + READ_END + then)
    assert inside.hear().replace("8064", "8000") == printed
    inside.end()


DEAD_OWNER = """
reading, writing = os.pipe()
going_on, go_on = os.pipe()

def own():
    store = shmstore.Store.create("reuse", capacity="1MiB")
    store["k"] = 1

    def be_heir():
        say(writing)
        os.read(going_on, 1)

        def close():
            {end}
        heir = fork_with_pid(owner, close)
        os.waitpid(heir, 0)
        store["k"] += 1
        print(heir == owner, store["k"], flush=True)

    owner = os.getpid()
    fork(be_heir)
    wait_for_ever()

owner = fork(own)
os.read(reading, 1)
kill(owner)
say(go_on)
with contextlib.suppress(ChildProcessError):
    while True:
        os.wait()
print(shmstore.prune())
"""


@pytest.mark.parametrize("end", ["store.close()", "sys.exit()"])
def test_process_with_the_pid_of_a_dead_owner_does_not_own_the_store(
    start_apart: StartApart, end: str
) -> None:
    """What the owner left to its children is theirs, and none of them ends it for the others."""
    inside = start_apart(REUSE + DEAD_OWNER.replace("{end}", end))
    assert inside.hear() == "True 2"
    assert inside.hear() in ("[]", "['reuse']")
    inside.end()


# --- clocks ---------------------------------------------------------------------------------------

OTHER_TIME = """
import time, numpy as np, shmstore
print(int(time.monotonic()), flush=True)
store = shmstore.Store.attach(path, lock_timeout=20)
view = store["k"]
store.put(np.arange(500), key="from inside", ttl=900)
for line in iter(input, "end"):
    print(store.recover().clients, sorted(store), store.check(), flush=True)
store.put(1, key="soon over", ttl=0.001)
del view
store.close()
"""


@lock_free_only
def test_client_whose_monotonic_clock_is_another_is_a_client_like_others(
    make_store: MakeStore, start_apart: StartApart
) -> None:
    """In a time namespace it is later by days: nobody is dead for that, and nothing is over."""
    store = make_store()
    store.put(np.arange(1000), key="k", ttl=900)
    inside = start_apart(OTHER_TIME, ways=CLOCKS, path=store.path)
    assert int(inside.hear()) >= int(time.monotonic()) + 499_000
    assert inside.ask() == "0 ['from inside', 'k'] []"
    assert store.recover() == shmstore.Recovered(0, 0, 0)
    assert all(client.alive for client in store.clients())
    assert 0 <= store.info("from inside").age < WAIT_S
    inside.say("end")
    inside.end()
    wait_until(lambda: "soon over" not in store)
    assert sorted(store) == ["from inside", "k"]


JUMP = """
import time
jump = 0
now = time.time_ns
time.time_ns = lambda: now() + jump
time.time = lambda: time.time_ns() / 1e9
import numpy as np, shmstore
store = shmstore.Store.attach(path)
for years in (-20, 20):
    jump = years * 365 * 86400 * 10**9
    store.put(np.arange(500), key=f"put {years}", ttl=900)
    view = store["k"]
    print(store.recover().clients, sorted(store), store.check(), flush=True)
    input()
"""


@lock_free_only
def test_client_whose_wall_clock_jumps_is_a_client_like_others(
    make_store: MakeStore, start_python: StartPython
) -> None:
    """Twenty years back and forth: times of day are told to people, and decide nothing."""
    store = make_store()
    store.put(np.arange(1000), key="k", ttl=900)
    other = start_python(JUMP, path=store.path)
    assert other.hear() == "0 ['k', 'put -20'] []"
    assert store.recover() == shmstore.Recovered(0, 0, 0)
    assert other.ask() == "0 ['k', 'put -20', 'put 20'] []"
    assert store.recover() == shmstore.Recovered(0, 0, 0)
    assert [info.key for info in store.objects()] == ["k", "put -20", "put 20"]
    other.kill()
    assert store.recover().clients == 1
