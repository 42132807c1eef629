"""What can be asked about a store, its objects and its clients?"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from shmstore import _page

if TYPE_CHECKING:
    from shmstore._ref import ObjectRef


@dataclasses.dataclass(frozen=True)
class ObjectInfo:
    """What is known of one object.

    Parameters
    ----------
    key
        Its name, or None.
    type
        Qualified name of its class.
    serializer
        The family that serialized it.
    nbytes
        Bytes of its frames.
    stored_nbytes
        Bytes of the segment that it occupies; 0 when it lies in the index or in a file.
    spilled
        Whether it lies in a file.
    expires
        When it expires, in seconds since 1970; None: never.
    frames
        Number of frames.
    created
        When it was published, in seconds since 1970.
    owner_pid
        The process that put it.
    pinned_by
        The processes that look at it now.
    slot, generation
        Its place in the slot table, and the number of its put.
    ref
        A reference to it, for instance to delete an object that has no key.
    queue
        The name of the queue in which it waits, or that it belongs to; None: it has none.
    """

    key: str | None
    type: str
    serializer: str
    nbytes: int
    stored_nbytes: int
    spilled: bool
    expires: float | None
    frames: int
    created: float
    owner_pid: int
    pinned_by: tuple[int, ...]
    slot: int
    generation: int
    ref: ObjectRef
    queue: str | None = None

    @property
    def age(self) -> float:
        """Seconds since it was published."""
        return time.time() - self.created


@dataclasses.dataclass(frozen=True)
class StoreStats:
    """The state of a store at one moment, all sizes in bytes.

    Parameters
    ----------
    capacity
        Bytes for objects.
    used
        Bytes of the extents that objects, or views of deleted objects, occupy.
    free
        `capacity` minus `used`.
    pinned
        Bytes of extents that some process looks at.
    reclaimable
        Bytes of deleted objects that wait for the death of their last view.
    largest_free
        The largest extent in one piece. It may be more once a put needs what processes keep of
        their deleted objects.
    objects, named
        Number of objects, and of those that have a key.
    max_objects
        How many objects there may be.
    clients
        Number of attached processes.
    spilled, spilled_nbytes
        Number of the objects that lie in files, and bytes of these.
    evictions, expirations, spills, restores
        How many objects were evicted, have expired, went to a file and came back, so far.
    """

    capacity: int
    used: int
    free: int
    pinned: int
    reclaimable: int
    largest_free: int
    objects: int
    named: int
    max_objects: int
    clients: int
    spilled: int
    spilled_nbytes: int
    evictions: int
    expirations: int
    spills: int
    restores: int

    def _repr_html_(self) -> str:
        from shmstore import _display  # noqa: PLC0415 - only in a notebook

        return _display.of_stats(self)


@dataclasses.dataclass(frozen=True)
class ClientInfo:
    """One attached process.

    Parameters
    ----------
    pid, name
        Of the process. The pid is the one that it has in its own pid namespace (its container);
        "gone" when no process that was started at that time has it in ours.
    started, attached
        When the process was started and when it attached, in seconds since 1970.
    alive
        Whether its seat is locked: whether it lives.
    readonly
        Whether it attached read-only.
    pins
        Number of its views.
    pinned_nbytes
        Bytes of the extents under these views.
    oldest_pin
        When the oldest of these views was made, in seconds since 1970; None: there is none.
    own
        Whether it is this process.
    """

    pid: int
    name: str
    started: float
    attached: float
    alive: bool
    readonly: bool
    pins: int
    pinned_nbytes: int
    oldest_pin: float | None
    own: bool


@dataclasses.dataclass(frozen=True)
class PinInfo:
    """A process that looks at an object.

    Parameters
    ----------
    pid, name, alive
        As in `ClientInfo`. The views of a process that is not alive go with the next `recover`, or
        when room is needed.
    views
        How many views of the object it has.
    since
        When the oldest of them was made, in seconds since 1970.
    own
        Whether it is this process.
    sites
        Where they were got, such as ``"train.py:12 in load"``, with how many are from there. Empty
        in a store that was not created with ``trace_pins=True``.
    """

    pid: int
    name: str
    alive: bool
    views: int
    since: float
    own: bool
    sites: dict[str, int] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def age(self) -> float:
        """Seconds since the oldest of the views was made."""
        return time.time() - self.since

    def __str__(self) -> str:
        return _page.pin_line(self)


@dataclasses.dataclass(frozen=True)
class ClientUse:
    """What one process holds of a store; sizes are bytes of its memory.

    Parameters
    ----------
    pid, name, alive
        As in `ClientInfo`; pid 0 stands for several processes together that have left.
    attached
        Whether it has a seat: False for one that has closed the store and left objects.
    own
        Whether it is this process.
    objects, nbytes
        Objects that it put and that are still there.
    views, oldest_view
        Its views, and when the oldest was made, in seconds since 1970.
    pinned_nbytes
        Bytes that it looks at.
    deleted_nbytes
        Bytes of deleted objects that it looks at and so keeps from being used again.
    half_made, half_made_nbytes
        Puts that it has not finished.
    """

    pid: int
    name: str
    alive: bool
    attached: bool
    own: bool
    objects: int = 0
    nbytes: int = 0
    views: int = 0
    oldest_view: float | None = None
    pinned_nbytes: int = 0
    deleted_nbytes: int = 0
    half_made: int = 0
    half_made_nbytes: int = 0


@dataclasses.dataclass(frozen=True)
class ObjectsUse:
    """What a group of objects holds: those of one age, or of one type."""

    name: str
    objects: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class FileSystemUse:
    """The file system under a store, in bytes.

    Parameters
    ----------
    path
        Where it is mounted.
    size, free
        What it has, and what it still gives.
    own, others
        What this store has of it, and what everything else has.
    unbacked
        Bytes that the store may yet ask of it, up to its capacity.
    largest
        Path and size of the largest other things on it, where it is the file system that is full.
    """

    path: str
    size: int
    free: int
    own: int
    others: int
    unbacked: int
    largest: tuple[tuple[str, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class FullReport:
    """What holds the memory of a store, and what would free it; ``str(report)`` is a page of text.

    Parameters
    ----------
    path
        The folder of the store.
    reason
        One sentence: what is short, and why.
    remedies
        What to do about it, best first: sentences, each with what it would give.
    capacity, used, free
        Bytes, as in `StoreStats`.
    largest_free, free_extents
        The largest extent that a put could get now, and in how many pieces the free bytes are.
    fragmentation
        1 - largest_free / free: 0 when the free bytes are in one piece.
    objects, named, max_objects, slots_used
        Published objects, those with a key, how many there may be, and how many slots are taken
        by objects, half-made ones, deleted ones that are still looked at, and by being set aside.
    pinned_nbytes
        Bytes that some process looks at.
    deleted, deleted_nbytes
        Deleted objects that are kept by views of them.
    half_made, half_made_nbytes
        Puts that have not ended.
    expired, expired_nbytes
        Objects whose time to live is over and whose memory nobody has needed yet.
    spilled, spilled_nbytes
        Objects on disk; they hold no memory, but a slot.
    set_aside
        Slots that processes keep for their next small objects, which they put without the lock.
    clients
        What each process holds, the most first.
    ages, types
        The objects by age, and those in memory by type (the ten types with most bytes, and the
        rest), with the bytes that they hold in the segment: what lies in the index has 0.
    file_system
        The file system under the store.
    """

    path: str
    reason: str
    remedies: tuple[str, ...]
    capacity: int
    used: int
    free: int
    largest_free: int
    free_extents: int
    fragmentation: float
    objects: int
    named: int
    max_objects: int
    slots_used: int
    pinned_nbytes: int
    deleted: int
    deleted_nbytes: int
    half_made: int
    half_made_nbytes: int
    expired: int
    expired_nbytes: int
    spilled: int
    spilled_nbytes: int
    set_aside: int
    clients: tuple[ClientUse, ...]
    ages: tuple[ObjectsUse, ...]
    types: tuple[ObjectsUse, ...]
    file_system: FileSystemUse

    def __str__(self) -> str:
        return _page.full_page(self)

    def _repr_html_(self) -> str:
        from shmstore import _display  # noqa: PLC0415 - only in a notebook

        return _display.of_report(self)


@dataclasses.dataclass(frozen=True)
class Finding:
    """A broken invariant: its number (see the page on the format), what was found, and where.

    `offset` is None where the place cannot be told.
    """

    invariant: int
    message: str
    path: str = ""
    offset: int | None = None

    def __str__(self) -> str:
        return f"invariant {self.invariant}: {self.message}"


@dataclasses.dataclass(frozen=True)
class Recovered:
    """What `recover` gave back: clients found dead, puts left half done, bytes.

    And what it gave up: objects that were lost because the files of the store are damaged.
    """

    clients: int
    puts: int
    nbytes: int
    objects: int = 0
