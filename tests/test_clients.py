"""The client table: who is attached, who is dead, and who looks at what."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import rooms

from shmstore._memory import layout as L
from shmstore._memory.index import Index
from shmstore._sharing.clients import Client, Clients, process_name, process_start_ns
from shmstore._sharing.seats import Anchor, Pins, Seat
from shmstore.errors import CorruptStoreError

ATTACHING = """
import os, sys
from shmstore._memory.descriptors import open_descriptor
from shmstore._memory.index import Index
from shmstore._sharing.clients import Clients
from shmstore._sharing.seats import Anchor, Pins


folder = sys.argv[1]
index = Index(open_descriptor(folder + "/index", os.O_RDWR), folder)
clients = Clients(index, os.open(folder + "/seats", os.O_RDONLY))
row, seat = clients.register(readonly=True, pid=os.getpid())
pins, anchor = Pins(seat), Anchor()
pins.pin(anchor, 33)
print(row, flush=True)
sys.stdin.readline()
"""


class Table(Clients):
    """A client table, and what the tests want to know beside it."""

    def __init__(self, index: Index, folder: Path, seats_fd: int) -> None:
        super().__init__(index, seats_fd)
        self.index = index
        self.folder = folder
        self.seats: list[Seat] = []

    def join(self, *, pid: int | None = None) -> tuple[int, Seat]:
        """Register a client; its seat is closed at the end of the test."""
        place = self.register(readonly=False, pid=os.getpid() if pid is None else pid)
        assert place is not None
        self.seats.append(place[1])
        return place

    def files(self) -> list[str]:
        """Return the names of the seat files."""
        return sorted(path.name for path in (self.folder / "seats").iterdir())

    def die(self, row: int) -> None:
        """Let a client of this process die: descriptor and mapping of its seat go."""
        client = next(client for client in self.rows() if client.row == row)
        [seat] = [seat for seat in self.seats if seat.serial == client.serial]
        self.seats.remove(seat)
        seat.close()


@pytest.fixture
def table() -> Iterator[Table]:
    """Give a client table with four rows."""
    with (
        rooms.memory_folder() as folder,
        rooms.open_index(folder, rooms.identity(max_clients=4)) as index,
    ):
        (folder / "seats").mkdir()
        seats_fd = os.open(folder / "seats", os.O_RDONLY)
        made = Table(index, folder, seats_fd)
        yield made
        for seat in made.seats:
            seat.close()
        os.close(seats_fd)


def _row(table: Table, row: int) -> Client:
    return next(client for client in table.rows() if client.row == row)


# --- coming and going ----------------------------------------------------------------------------


def test_client_registered_has_a_row_and_a_seat_file(table: Table) -> None:
    """The row says who it is, and the file carries its serial number."""
    before = time.time_ns()
    row, seat = table.join()
    client = _row(table, row)
    assert (client.row, client.serial, client.pid) == (0, 1, os.getpid())
    assert not client.readonly
    assert before <= client.attached_ns <= time.time_ns()
    created_ns = psutil.Process().create_time() * 1e9
    assert client.started_ns == pytest.approx(created_ns, abs=1e9)
    assert table.files() == ["1"]
    assert seat.serial == 1


def test_client_rows_run_out_and_come_back(table: Table) -> None:
    """As many clients as there are rows; one that leaves makes room for one."""
    rows = [table.join()[0] for _ in range(4)]
    assert rows == [0, 1, 2, 3]
    files = table.files()
    assert table.register(readonly=False, pid=1) is None
    assert table.files() == files
    table.remove(2)
    assert table.join()[0] == 2


def test_serial_number_is_never_used_twice(table: Table) -> None:
    """A seat file cannot be taken for that of a former client of the row."""
    serials = []
    for _ in range(5):
        row, seat = table.join()
        serials.append(seat.serial)
        table.remove(row)
    assert serials == [1, 2, 3, 4, 5]
    assert table.files() == []
    assert list(table.rows()) == []


def test_client_removed_takes_its_pins_along(table: Table) -> None:
    """Nobody waits for the views of a client that has left."""
    anchor = Anchor()
    row, seat = table.join()
    Pins(seat).pin(anchor, 5)
    assert table.pinned() == {5}
    table.remove(row)
    assert table.pinned() == set()


def test_client_whose_file_is_gone_can_be_removed(table: Table) -> None:
    """Removing is the same when half of it has been done before."""
    row, _ = table.join()
    (table.folder / "seats" / "1").unlink()
    table.remove(row)
    assert list(table.rows()) == []


def test_seat_without_a_process_is_given_to_one_later(table: Table) -> None:
    """The seat of a child is made before there is a child."""
    row, _ = table.join(pid=0)
    assert (_row(table, row).pid, _row(table, row).started_ns) == (0, 0)
    table.set_pid(row, os.getpid())
    assert _row(table, row).pid == os.getpid()
    assert _row(table, row).started_ns == process_start_ns(os.getpid()) > 0


def test_client_that_finds_no_pages_leaves_the_table_as_it_was() -> None:
    """On a full file system no row is taken and no file is left."""
    with (
        rooms.small_file_system(64 << 10) as folder,
        rooms.open_index(folder, rooms.identity()) as index,
    ):
        (folder / "seats").mkdir()
        seats_fd = os.open(folder / "seats", os.O_RDONLY)
        table = Table(index, folder, seats_fd)
        ballast = rooms.fill_up(folder)
        for _ in range(20):
            with pytest.raises(OSError, match="No space"):
                table.join()
        assert list(table.rows()) == []
        assert table.files() == []
        ballast.unlink()
        table.join()
        table.seats.pop().close()
        os.close(seats_fd)


# --- alive or dead -------------------------------------------------------------------------------


def test_client_of_another_process_is_seen_with_its_pins(table: Table) -> None:
    """Who it is, that it lives, and what it looks at."""
    table.join()
    with rooms.Peer(ATTACHING, table.folder) as peer:
        assert peer.hear() == "1"
        client = _row(table, 1)
        assert (client.pid, client.readonly) == (peer.pid, True)
        assert table.is_alive(client)
        assert table.pinned() == {33}
        assert table.describe(1) == f"pid {peer.pid} ({process_name(peer.pid)})"
        assert table.bury(0) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_client_killed_is_dead_at_once_and_can_be_buried(table: Table, how: int) -> None:
    """The kernel unlocks its seat; row, file and pins go with the burial."""
    table.join()
    with rooms.Peer(ATTACHING, table.folder) as peer:
        assert peer.hear() == "1"
        os.kill(peer.pid, how)
        peer.wait()
    assert not table.is_alive(_row(table, 1))
    assert table.pinned() == {33}
    assert [client.row for client in table.bury(0)] == [1]
    assert [client.row for client in table.rows()] == [0]
    assert table.pinned() == set()
    assert table.files() == ["1"]


def test_client_stopped_is_alive(table: Table) -> None:
    """A process in a debugger keeps what it looks at."""
    with rooms.Peer(ATTACHING, table.folder) as peer:
        assert peer.hear() == "0"
        os.kill(peer.pid, signal.SIGSTOP)
        assert table.is_alive(_row(table, 0))
        assert table.bury(-1) == []


def test_client_lives_by_its_lock_whatever_its_pid_says(table: Table) -> None:
    """Pids are reused and differ between namespaces; a lock does neither."""
    row, _ = table.join()
    table.set_pid(row, 2**22 + 1)
    assert table.is_alive(_row(table, row))
    assert table.describe(row) == f"pid {2**22 + 1} (gone)"
    other = table.join()[0]
    table.die(other)
    assert _row(table, other).pid == os.getpid()
    assert not table.is_alive(_row(table, other))


def test_client_does_not_bury_itself(table: Table) -> None:
    """Its lock is held by itself, and it does not even ask."""
    own, _ = table.join()
    assert table.bury(own) == []
    assert [client.row for client in table.rows()] == [own]


def test_looking_for_the_dead_leaves_no_descriptors(table: Table) -> None:
    """Neither the living nor the dead cost one."""
    rows = [table.join()[0] for _ in range(3)]
    table.die(rows[1])
    before = rooms.descriptors()
    for client in table.rows():
        table.is_alive(client)
    table.pinned()
    table.bury(rows[0])
    assert rooms.descriptors() == before


def test_stray_seat_files_are_removed_and_others_stay(table: Table) -> None:
    """Somebody died between making the file and writing the row."""
    table.join()
    (table.folder / "seats" / "77").write_bytes(b"")
    (table.folder / "seats" / "noise").write_bytes(b"")
    table.remove_strays()
    assert table.files() == ["1"]


# --- pins of all ---------------------------------------------------------------------------------


def test_pins_of_all_clients_are_one_set(table: Table) -> None:
    """A slot that two clients look at is there until both have let go."""
    first, second = (Pins(table.join()[1]) for _ in range(2))
    anchors = [Anchor() for _ in range(3)]
    first.pin(anchors[0], 0)
    first.pin(anchors[1], 10)
    second.pin(anchors[2], 10)
    assert table.pinned() == {0, 10}
    anchors[1] = Anchor()
    assert table.pinned() == {0, 10}
    anchors.pop()
    assert table.pinned() == {0}


def test_pins_of_a_row_used_again_are_those_of_its_new_client(table: Table) -> None:
    """The mapping of a former seat is not mistaken for that of the new one."""
    anchors = [Anchor(), Anchor()]
    row, seat = table.join()
    Pins(seat).pin(anchors[0], 1)
    assert table.pinned() == {1}
    table.remove(row)
    again, seat = table.join()
    assert again == row
    Pins(seat).pin(anchors[1], 2)
    assert table.pinned() == {2}


def test_pins_of_a_row_used_again_by_others_are_those_of_its_new_client(table: Table) -> None:
    """Somebody else has removed the client whose seat is still mapped here."""
    anchors = [Anchor(), Anchor()]
    row, seat = table.join()
    Pins(seat).pin(anchors[0], 1)
    observer = Clients(table.index, table._seats_fd)
    assert observer.pinned() == {1}
    table.remove(row)
    again, seat = table.join()
    assert again == row
    Pins(seat).pin(anchors[1], 2)
    assert observer.pinned() == {2}


def test_pins_that_cannot_be_read_are_damage_not_none(table: Table) -> None:
    """Without the seat file nobody could tell what must not be reused."""
    table.join()
    (table.folder / "seats" / "1").unlink()
    with pytest.raises(CorruptStoreError, match=f"pid {os.getpid()}"):
        table.pinned()


def test_rows_beyond_the_table_are_not_read(table: Table) -> None:
    """A count from memory never reaches into the next table."""
    table.join()
    table.index.words[L.W_CLIENT_TOP] = 1 << 40
    assert [client.row for client in table.rows()] == [0]


def test_process_that_attaches_is_described_without_a_row(table: Table) -> None:
    """Until it has a row there is only this to say of it."""
    assert table.describe(4) == "a process that is attaching"
