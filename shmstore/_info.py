"""What can be asked about a store, its objects and its clients?"""

from __future__ import annotations

import dataclasses
import time


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
        Bytes of the segment that it occupies; 0 when it lies in the index.
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
    """

    key: str | None
    type: str
    serializer: str
    nbytes: int
    stored_nbytes: int
    frames: int
    created: float
    owner_pid: int
    pinned_by: tuple[int, ...]
    slot: int
    generation: int

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
        The largest extent that a put could get now.
    objects, named
        Number of objects, and of those that have a key.
    max_objects
        How many objects there may be.
    clients
        Number of attached processes.
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


@dataclasses.dataclass(frozen=True)
class ClientInfo:
    """One attached process.

    Parameters
    ----------
    pid, name
        Of the process, in its own pid namespace; "gone" when it cannot be seen from here.
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
    own: bool


@dataclasses.dataclass(frozen=True)
class Finding:
    """A broken invariant: its number in ``docs/format.md``, and what was found."""

    invariant: int
    message: str

    def __str__(self) -> str:
        return f"invariant {self.invariant}: {self.message}"


@dataclasses.dataclass(frozen=True)
class Recovered:
    """What `recover` gave back: clients found dead, puts left half done, bytes."""

    clients: int
    puts: int
    nbytes: int
