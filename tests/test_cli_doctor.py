"""What the doctor finds, on this machine and on others that are shown to it."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from commands import Shell, run_command
from stores import HOLD_A_STORE, StartPython

import shmstore
from shmstore import Store
from shmstore.cli import _bench, _diagnoses, _doctor, _host, _leftovers, _measuring


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """Give the command line."""
    return Shell(capsys)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Give the folder that stands for the root of another machine."""
    return tmp_path


def _write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _levels(shell: Shell) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in shell("doctor", "--json").json:
        found.setdefault(row["topic"], set()).add(row["level"])
    return found


# --- the machine ---------------------------------------------------------------------------------


def test_limits_of_control_groups_are_those_of_all_that_contain_this_one(machine: Path) -> None:
    """Version 2: the narrowest comes first; "max" is none."""
    _write(machine, "proc/self/cgroup", "0::/pods/mine\n")
    _write(machine, "sys/fs/cgroup/memory.max", "max\n")
    _write(machine, "sys/fs/cgroup/pods/memory.max", "4096000\n")
    _write(machine, "sys/fs/cgroup/pods/memory.current", "1000\n")
    _write(machine, "sys/fs/cgroup/pods/mine/memory.max", "2048000\n")
    _write(machine, "sys/fs/cgroup/pods/mine/memory.current", "500\n")
    limits = _host.memory_limits(machine)
    assert [(limit.nbytes, limit.in_use) for limit in limits] == [(2048000, 500), (4096000, 1000)]


def test_limits_of_the_first_version_are_found(machine: Path) -> None:
    """A limit of nearly all addresses is none."""
    _write(machine, "proc/self/cgroup", "4:cpu:/x\n7:memory:/docker/abc\n")
    _write(machine, "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "1048576\n")
    _write(machine, "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "7\n")
    _write(machine, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert [limit.nbytes for limit in _host.memory_limits(machine)] == [1048576]


def test_file_system_of_a_path_is_the_last_one_mounted_above_it(machine: Path) -> None:
    """Spaces in paths are written as octal numbers."""
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/sda rw",
        "2 1 0:5 / /dev/shm rw,nosuid - tmpfs shm rw,size=65536k",
        "3 1 0:6 / /my\\040disk rw - xfs /dev/sdb rw",
    ]
    _write(machine, "proc/self/mountinfo", "\n".join(lines))
    found = {
        path: _host.mount_of(Path(path), machine) for path in ("/dev/shm/x", "/my disk/a", "/dev")
    }
    assert {path: mount and mount.kind for path, mount in found.items()} == {
        "/dev/shm/x": "tmpfs",
        "/my disk/a": "xfs",
        "/dev": "ext4",
    }


@pytest.mark.parametrize(
    ("files", "removes"),
    [
        ({}, True),
        ({"etc/systemd/logind.conf": "#RemoveIPC=no\n"}, True),
        ({"etc/systemd/logind.conf": "[Login]\nRemoveIPC=no\n"}, False),
        (
            {
                "etc/systemd/logind.conf": "RemoveIPC=no\n",
                "etc/systemd/logind.conf.d/x.conf": "RemoveIPC=yes\n",
            },
            True,
        ),
    ],
)
def test_removal_at_logout_is_as_systemd_reads_it(
    machine: Path, files: dict[str, str], *, removes: bool
) -> None:
    """The default is yes; without systemd nobody does it."""
    assert not _host.removes_ipc(machine)
    (machine / "run/systemd/system").mkdir(parents=True)
    for path, text in files.items():
        _write(machine, path, text)
    assert _host.removes_ipc(machine) is removes


def test_facts_that_are_nowhere_are_unknown(machine: Path) -> None:
    """On other systems there is no /proc."""
    assert _host.memory_limits(machine) == []
    assert _host.mount_of(Path("/x"), machine) is None
    assert (_host.huge_pages(machine), _host.ram(machine)) == ("", 0)
    _write(machine, "sys/kernel/mm/transparent_hugepage/shmem_enabled", "always [advise] never")
    assert _host.huge_pages(machine) == "advise"


# --- the findings --------------------------------------------------------------------------------


def test_doctor_finds_no_problem_where_tests_run(shell: Shell) -> None:
    """It tries a store out, and leaves nothing behind."""
    levels = _levels(shell)
    assert levels["self-test"] <= {"ok", "note"}
    assert "problem" not in set().union(*levels.values())
    assert set(levels) == {topic for topic, _ in _doctor.DIAGNOSES}


def test_every_bad_finding_has_a_remedy_and_makes_the_exit_code_1(
    shell: Shell, start_python: StartPython
) -> None:
    """Here: a dead store and a damaged one."""
    child = start_python(HOLD_A_STORE, name="dead", persist=False)
    child.hear()
    child.kill()
    with Store.create("damaged", capacity="1MiB", persist=True) as store:
        path = store.path
    (path / "index").write_bytes(b"nothing")
    done = shell("doctor", "--json")
    rows = done.json
    assert done.code == 1
    assert {(row["topic"], row["level"]) for row in rows} >= {
        ("stores", "problem"),
        ("leftovers", "warning"),
    }
    assert all(row["remedy"] for row in rows if row["level"] in _doctor.BAD)
    assert "shmstore prune" in shell("doctor").out
    shell("prune")
    assert _levels(shell)["leftovers"] <= {"ok", "note"}
    shmstore.remove("damaged", force=True)


def test_few_files_are_warned_of() -> None:
    """With the command that helps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        [found, *_] = _diagnoses.process_limits(None)  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found.level, "ulimit -n" in found.remedy) == ("warning", True)


def test_root_on_a_disk_is_warned_of(shell: Shell, tmp_path: Path) -> None:
    """It would work, but be no shared memory."""
    if (mount := _host.mount_of(tmp_path)) is None or mount.kind in ("tmpfs", "ramfs"):
        pytest.skip("the folder for temporary files is in memory here")
    rows = shell("doctor", "--json", "--root", tmp_path / "root").json
    [found, *_] = [row for row in rows if row["topic"] == "shared memory"]
    assert (found["level"], "SHMSTORE_ROOT" in found["remedy"]) == ("warning", True)
    assert list(tmp_path.iterdir()) == []


def test_remedies_fit_the_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Docker has another way than Kubernetes."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert "emptyDir" in _diagnoses._how_to_enlarge(tmp_path)
    monkeypatch.setattr(_host, "container", lambda: "docker")
    assert "--shm-size" in _diagnoses._how_to_enlarge(tmp_path)
    monkeypatch.setattr(_host, "container", lambda: "")
    assert "remount" in _diagnoses._how_to_enlarge(tmp_path)


def test_half_made_stores_are_noted(root: Path) -> None:
    """Somebody died while making them."""
    unfinished = root / ".new-0123456789abcdef"
    unfinished.mkdir()
    [found] = _leftovers._unfinished(root)
    assert found.level == "note"
    unfinished.rmdir()


# --- bench ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("process_helpers")
def test_bench_measures_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, shell: Shell) -> None:
    """A line per size, small objects, processes; every time is above 0."""
    monkeypatch.setattr(_bench, "_QUICK", (1 << 10, 1 << 16))
    monkeypatch.setattr(_bench, "_crowds", lambda: [1])
    done = shell("bench", "--quick", "--json")
    assert done.code == 0
    assert [row["nbytes"] for row in done.json["arrays"]] == [1 << 10, 1 << 16]
    times = [row[name] for row in done.json["arrays"] for name in row if name.endswith("_s")]
    assert all(seconds > 0 for seconds in times)
    assert done.json["processes"][0]["gets"] > 0
    assert shell("ls").rows == []


def test_median_is_of_at_least_five_tries() -> None:
    """However short the budget is."""
    tries = []
    assert _measuring.median_s(lambda: tries.append(1), 0) >= 0
    assert len(tries) == 6


def test_bench_without_room_says_so(monkeypatch: pytest.MonkeyPatch, shell: Shell) -> None:
    """Instead of filling what there is."""
    monkeypatch.setattr(_bench, "_QUICK", (1 << 60,))
    done = shell("bench", "--quick")
    assert (done.code, "too little" in done.err) == (1, True)


def test_doctor_by_itself_prints_a_verdict() -> None:
    """In a process of its own, as a user calls it."""
    done = run_command("doctor")
    assert done.out.splitlines()[0].startswith("ok ")
    assert done.out.splitlines()[-1] == "all is well" or done.code == 1
