"""Which weakened variants of what owners do without the lock must the explorer find out?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from interleave_memory import running
from interleave_mutants import Mutant, no_barrier
from interleave_world import World
from interleave_wrappers import Words

from shmstore import _claiming, _puts, _ref
from shmstore._catalog import states
from shmstore._memory import layout as L


class Weak:
    """The words of one session, of which some stores are done differently.

    Parameters
    ----------
    words
        The real ones.
    store
        Called with what really stores, where, and what.
    """

    def __init__(self, words: Words, store: Callable[..., None]) -> None:
        self._words, self._store = words, store

    def __getitem__(self, at: Any) -> Any:
        return self._words[at]

    def __setitem__(self, at: int, value: int) -> None:
        self._store(self._words.__setitem__, at, value)


def weaken_stores(world: World, number: int, store: Callable[..., None]) -> None:
    """Let a process store differently into the words that its session has."""
    session = world.sessions[number]
    session.words = Weak(session.words, store)


def _ending_word(world: World) -> int:
    return int(world.sessions[0].spares.row) + L.C_ENDING


def end_not_told(world: World) -> None:
    """An owner does not say what it takes back."""
    ending = _ending_word(world)

    def store(real: Callable[..., None], at: int, value: int) -> None:
        if at != ending:
            real(at, value)

    weaken_stores(world, 0, store)


def end_told_late(world: World) -> None:
    """An owner says what it takes back after it has looked whether it may."""
    ending = _ending_word(world)
    told: list[int] = []

    def store(real: Callable[..., None], at: int, value: int) -> None:
        if at == ending and value:
            told[:] = [value]
            return
        if told and at != ending:
            real(ending, told.pop())
        real(at, value)

    weaken_stores(world, 0, store)


def end_over_early(world: World) -> None:
    """An owner says that it has taken something back before it has."""
    ending, session = _ending_word(world), world.sessions[0]
    first = session.index.geometry.slots

    def store(real: Callable[..., None], at: int, value: int) -> None:
        state = at >= first and (at - first) % L.SLOT_WORDS == L.S_STATE
        if state and states.state_of(value) == states.SPARE:
            real(ending, 0)
        real(at, value)

    weaken_stores(world, 0, store)


def right_left(world: World) -> None:
    """Who ends an object of another leaves it the right to take it back."""
    first = world.sessions[1].index.geometry.slots

    def store(real: Callable[..., None], at: int, value: int) -> None:
        if at < first or (at - first) % L.SLOT_WORDS != L.S_LINK:
            real(at, value)

    weaken_stores(world, 1, store)


def end_not_waited_for(world: World) -> None:
    """Who takes the right away does not wait for an owner in the midst of it."""
    world.patch(_claiming, "_ending", lambda *_: None)


def not_looked_again(world: World) -> None:
    """Who has taken the right away believes that the object is still there."""
    claim = _claiming.claim
    first_look = _ref.find

    def claim_and_believe(session: Any, slot: int, *rest: Any) -> None:
        world.remembered[session.row] = slot
        claim(session, slot, *rest)

    def find(session: Any, target: Any) -> int:
        slot = world.remembered.pop(session.row, -1)
        return slot if slot >= 0 else first_look(session, target)

    world.patch(_claiming, "claim", claim_and_believe)
    world.patch(_ref, "find", find)


def right_kept_from_waiters(world: World) -> None:
    """Who waits for the end of an object does not take the right away."""
    world.patch(_claiming, "is_own", lambda *_: False)


class Hopeful:
    """Words of who does not see that the store has ended, after the first look."""

    def __init__(self, words: Words) -> None:
        self._words, self._looked = words, False

    def __getitem__(self, at: Any) -> Any:
        if at == L.W_DESTROYED:
            self._looked = not self._looked
            return self._words[at] if self._looked else 0
        return self._words[at]

    def __setitem__(self, at: int, value: int) -> None:
        self._words[at] = value


def end_of_store_not_seen(world: World) -> None:
    """A put does not look again whether the store has ended."""
    put_spare = _puts.put_spare

    def put_hopefully(session: Any, *content: Any) -> Any:
        words = session.words
        session.words = Hopeful(words)
        try:
            return put_spare(session, *content)
        finally:
            session.words = words

    world.patch(_puts, "put_spare", put_hopefully)


def state_before_content(world: World) -> None:
    """A put without the lock stores the state word before the rest."""
    put_spare = _puts.put_spare

    def put_hastily(session: Any, *content: Any) -> Any:
        process = running()
        begin = 0 if process is None else len(process.buffer)
        ref = put_spare(session, *content)
        if ref is not None and process is not None:
            at = session.slots.state_index(ref._slot)
            buffer = process.buffer
            found = [
                n for n in range(min(begin, len(buffer)), len(buffer)) if buffer[n].address == at
            ]
            if found:
                buffer.insert(begin, buffer.pop(found[0]))
        return ref

    world.patch(_puts, "put_spare", put_hastily)


def all_are_dead(world: World) -> None:
    """Who gives the slots of the dead back takes everybody for dead."""
    give_back = _claiming.give_back_of_dead
    world.patch(
        _claiming, "give_back_of_dead", lambda session, table, _: give_back(session, table, ())
    )


def counted_in_many_looks(world: World) -> None:
    """The states of slots are counted one by one, as if they did not change."""

    def are_counted(words: Any) -> Any:
        found = states.states_of(words) == states.READY
        found |= states.states_of(words) == states.SPILLED
        return found | (states.states_of(words) == states.SPARE)

    world.patch(states, "are_counted", are_counted)


_BOTH: Final = "own object deleted by both"
MUTANTS: Final[dict[str, Mutant]] = {
    "own object, no barrier": Mutant(no_barrier, _BOTH),
    "own object, its end is not told": Mutant(end_not_told, _BOTH),
    "own object, its end is told late": Mutant(end_told_late, _BOTH),
    "own object, its end is over early": Mutant(end_over_early, _BOTH),
    "own object, the right is left": Mutant(right_left, _BOTH),
    "own object, its end is not waited for": Mutant(end_not_waited_for, _BOTH),
    "own object, not looked again": Mutant(not_looked_again, _BOTH),
    "own object, waited for without a word": Mutant(
        right_kept_from_waiters, "own object whose end is waited for"
    ),
    "own object, waited for without a barrier": Mutant(
        no_barrier, "own object whose end is waited for"
    ),
    "own slot, state before content": Mutant(state_before_content, "own slot filled again"),
    "own slots, the end of the store not seen": Mutant(
        end_of_store_not_seen, "own slots, destroyed in put"
    ),
    "own slots, no barrier before the end": Mutant(no_barrier, "own slots, destroyed in put"),
    "own slots, all are dead": Mutant(all_are_dead, "own slots beside those of the dead"),
    "own slots, counted in many looks": Mutant(
        counted_in_many_looks, "own slots, mended in delete, put"
    ),
}
