"""What is there, who looks at it, and why is there no room?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from shmstore import _inspection, _reading, _ref
from shmstore._arguments import KEY_OR_REF, check_key
from shmstore._catalog import states
from shmstore._memory import layout as L
from shmstore._options import parse_size
from shmstore._ref import ObjectRef

if TYPE_CHECKING:
    from shmstore._info import ClientInfo, FullReport, ObjectInfo, PinInfo, StoreStats
    from shmstore._metrics import Metrics
    from shmstore._session import Session
    from shmstore._sharing.clients import Client
    from shmstore._surveying import Survey


class Explained(ABC):
    """Calls of `Store` that tell what is there, and why it is so."""

    __slots__ = ()

    @abstractmethod
    def _live(self) -> Session:
        """Return the session of an open handle."""

    def info(self, target: ObjectRef | str) -> ObjectInfo:
        """Return size, type, age and owner of an object, and who looks at it."""
        session = self._live()
        if isinstance(target, ObjectRef):
            _ref.check_owner(session, target)
            return target.info()
        key = check_key(target, KEY_OR_REF)
        plan = _reading.plan_of_key(session, key)
        if plan is None:
            raise _reading.missing_key(session, key)
        return _inspection.describe(plan, _ref.refer(plan), _inspection.pins_by_slot(session))

    def stats(self) -> StoreStats:
        """Return how much is used, free, pinned and waiting, in bytes."""
        return _inspection.stats(self._live())

    def objects(self) -> list[ObjectInfo]:
        """Return what is known of each object, named or not, oldest first."""
        return _inspection.objects(self._live(), _ref.refer)

    def clients(self) -> list[ClientInfo]:
        """Return what is known of each attached process."""
        return _inspection.clients(self._live())

    def why_full(self, asked: int | str | None = None) -> FullReport:
        """Return what holds the memory of the store, and what would free it.

        Parameters
        ----------
        asked
            Bytes that there is no room for, an int or "8MiB": the advice is then for those.

        Returns
        -------
        FullReport
            Facts as attributes; ``print(report)`` gives a page of text.

        Notes
        -----
        Concurrency: the slot table and the pins are copied under the store lock (about 15 ms for
        100,000 objects); the rest is done without it. Objects may come and go meanwhile.

        Examples
        --------
        >>> import numpy as np
        >>> from shmstore import Store, StoreFullError
        >>> with Store.create(capacity="1MiB") as store:
        ...     store["kept"] = np.zeros(100_000)
        ...     view = store.pop("kept")
        ...     try:
        ...         store["more"] = np.zeros(100_000)
        ...     except StoreFullError:
        ...         report = store.why_full(800_000)
        ...     del view
        >>> report.reason
        'Most of it, 781 KiB, is deleted objects that are still looked at.'
        >>> report.remedies[0].startswith("drop views in pid")
        True
        """
        from shmstore import _fullness  # noqa: PLC0415 - takes time that most processes can save

        wanted = None if asked is None else parse_size(asked)
        if wanted is not None and wanted < 0:
            message = f"asked={asked!r}: give a number of bytes"
            raise ValueError(message)
        return _fullness.report(self._live(), wanted)

    def survey(self) -> Survey:
        """Return what lies where: columns with an entry per object, and the attached processes.

        Notes
        -----
        Concurrency: takes no lock, and about 15 ms for 100,000 objects.

        Examples
        --------
        >>> import numpy as np
        >>> from shmstore import Store
        >>> with Store.create(capacity="16MiB") as store:
        ...     refs = [store.put(np.zeros(size), key=str(size)) for size in (1000, 3000, 2000)]
        ...     survey = store.survey()
        ...     largest = np.argsort(-survey.nbytes)[:2]
        ...     [info.key for info in survey.infos(largest)]
        ['3000', '2000']
        """
        from shmstore import _surveying  # noqa: PLC0415 - takes time that most processes can save

        return _surveying.take(self._live())

    def _repr_html_(self) -> str:
        from shmstore import _display, _surveying  # noqa: PLC0415 - only in a notebook

        return _display.of_store(self._live, _surveying.take)

    def metrics(self) -> Metrics:
        """Return what all processes have done with the store so far, and what each of them has.

        Returns
        -------
        Metrics
            Counts of puts, gets, bytes, waits and more; rows for the attached processes.

        Notes
        -----
        All is told at once, except gets of an object that the same process has got before: these
        are told in groups, which grow up to 256 where they come fast. So of other processes a few
        may be missing, about those of the last two seconds, until they leave or ask themselves;
        what was not told is lost when a process is killed. Nothing is counted twice.

        Concurrency: takes the store lock for some microseconds per attached process.

        Examples
        --------
        >>> from shmstore import Store
        >>> with Store.create(capacity="1MiB") as store:
        ...     store["word"] = "kept"
        ...     words = [store["word"] for _ in range(3)]
        ...     metrics = store.metrics()
        >>> metrics.puts, metrics.gets, metrics.clients[0].own
        (1, 3, True)
        """
        from shmstore import _metrics  # noqa: PLC0415 - takes time that most processes can save

        return _metrics.take(self._live())

    def who_pins(self, target: ObjectRef | str) -> list[PinInfo]:
        """Return which processes look at an object, those with most views first.

        Parameters
        ----------
        target
            A key, or a reference: of an object that has been deleted, too, since its memory is kept
            until nobody looks at it.

        Returns
        -------
        list of PinInfo
            Empty when nobody does.

        Raises
        ------
        ObjectNotFoundError
            No object has the key.

        Notes
        -----
        Where in a program a view was got is only noted in a store that was created with
        ``trace_pins=True``.

        Examples
        --------
        >>> import numpy as np
        >>> from shmstore import Store
        >>> with Store.create(capacity="1MiB", trace_pins=True) as store:
        ...     ref = store.put(np.zeros(1000))
        ...     views = [ref.get(), ref.get()]
        ...     [pin] = store.who_pins(ref)
        ...     del views
        ...     pin.views, pin.own, list(pin.sites.values()), store.who_pins(ref)
        (2, True, [2], [])
        """
        session = self._live()
        if isinstance(target, ObjectRef):
            _ref.check_owner(session, target)
            place = target._slot, target._generation  # noqa: SLF001 - ours
        else:
            key = check_key(target, KEY_OR_REF)
            found = _reading.find_key(session, key)
            if found is None:
                raise _reading.missing_key(session, key)
            place = found[0], states.generation_of(found[1])
        return session.lock.run(_pins_on, session, *place)


def _pins_on(session: Session, slot: int, generation: int) -> list[PinInfo]:
    """Return who looks at the object of one put. Requires: the store lock."""
    session.check_alive()
    session.pins.sweep()
    word = session.slots.word(slot) if 0 <= slot < session.words[L.W_SLOT_TOP] else 0
    filled = states.state_of(word) == states.FILLING  # the pin is that of the next put
    if not word or filled or states.generation_of(word) != generation:
        return []
    pins = [_pin_of(session, client, slot) for client in session.clients.rows()]
    return sorted((pin for pin in pins if pin.views), key=lambda pin: -pin.views)


def _pin_of(session: Session, client: Client, slot: int) -> PinInfo:
    from shmstore._info import PinInfo  # noqa: PLC0415 - takes time that most processes can save

    seat = session.clients.seat(client)
    views = seat.views()
    mine = views.slots == slot
    alive = session.clients.is_alive(client)
    sites: dict[str, int] = {}
    for number, count in zip(*np.unique(views.sites[mine], return_counts=True), strict=True):
        if text := seat.site(int(number)):
            sites[text] = sites.get(text, 0) + int(count)
    return PinInfo(
        pid=client.pid,
        name=_inspection.name_of(client, alive=alive),
        alive=alive,
        views=int(mine.sum()),
        since=_inspection.wall_clock(float(views.since[mine].min(initial=np.inf))),
        own=client.row == session.row,
        sites=sites,
    )
