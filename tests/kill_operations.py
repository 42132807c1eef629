"""What is a process doing when it is killed? The operations of the kill matrix.

Each operation begins in a scene: a folder of stores that a template has made (in a process of its
own, that has gone), maybe a bystander (another process that lives on), and the actor. `before` is
what the actor does in peace, `run` what it is killed in.

To add an operation, add it to `OPERATIONS`. What the store may hold afterwards follows from two
runs without a kill, one that ends before `run` and one that ends after it: each object is as in the
first or as in the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from kill_queues import (
    attach_with_room,
    break_the_counts,
    destroy_queue,
    evicting_queued,
    filed_queued,
    join_after_a_death,
    make_queue,
    mend,
    put_filed,
    put_large,
    put_many,
    put_one,
    queued,
    take_all,
    take_and_do,
    take_one,
    take_without_a_slot,
    taken_by_the_dead,
    wait_for_one,
    wait_with_a_file,
    without_slots,
)
from kill_scenes import (
    IN_PIECES,
    LARGE,
    LONG_KEY,
    NEW,
    OLD,
    Bystander,
    Scene,
    attach_and_damage,
    attach_to_die_among,
    backed,
    create_spilling,
    crowded,
    cut_short,
    dirty,
    dirty_seats,
    empty,
    evicting,
    full,
    furnished,
    inhabited,
    let_one_die_in_a_change,
    locked,
    looks,
    looks_at_deleted,
    nothing,
    one_seat,
    owned,
    sits,
    spilling,
    spilling_dirty,
    spilling_owned,
    spilling_summed,
    summed,
    timed,
    traced,
    two_owned,
    zeroed,
)
from kill_spares import (
    attach_and_look,
    attach_to_be_robbed,
    attach_to_be_robbed_of_parts,
    attach_with_extents,
    attach_with_extents_to_die_among,
    attach_with_large,
    attach_with_many,
    attach_with_nothing_held,
    attach_with_parts,
    attach_with_some_sound,
    attach_with_spares,
    attach_with_spares_to_die_among,
    delete_in_vain,
    delete_of_others,
    delete_own,
    give_up,
    in_parts,
    keeps_extents,
    keeps_one_for_long,
    roomy,
    spacious,
    takes_back_for_long,
    wait_for_end,
)
from kill_steps import (
    attach_and_delete,
    attach_and_delete_few,
    attach_and_make_room,
    attach_to_die_among_spilling,
    attach_twice,
    break_a_change,
    build,
    build_half,
    build_large,
    build_large_half,
    build_sealed,
    change_mapping,
    clear_and_put,
    close_before_views,
    create_and_furnish,
    create_spilling_and_fill,
    create_too_large,
    end,
    fork,
    fork_while_others_look,
    fork_without_a_seat,
    free_the_top,
    free_the_top_in_part,
    hold_views,
    idle,
    leave_half_a_root,
    look,
    look_at_few,
    make,
    open_and_furnish,
    put_if_absent,
    putting,
    putting_many_small,
    remove_root,
    reopen,
    try_to_put,
)
from kill_tickets import attach_and_lend, delete_orphans, lend, take_back
from kill_waiting import (
    attach_and_fill_a_bell,
    attach_and_let_sleep,
    attach_and_wait,
    attach_readonly,
    sleeps,
    wait_for_very_many,
    wait_in_vain,
    waited_for,
    watches,
)

# --- operations -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """One row of the matrix.

    Attributes
    ----------
    run, before
        What the actor does.
    template
        What it finds.
    bystander
        Who else is there.
    child
        A child that the actor forks is killed instead of the actor.
    may_miss
        There may be no store in between.
    keeps
        Afterwards the store holds what it held before.
    spills
        There is a folder for objects that there is no memory for.
    group
        The store is shared by a group.
    damaged
        Its index was overwritten.
    """

    run: Callable[[Scene], object]
    before: Callable[[Scene], object] = Scene.attach
    template: Callable[[Scene], None] = furnished
    bystander: Bystander | None = None
    child: bool = False
    may_miss: bool = False
    keeps: bool = False
    spills: bool = False
    group: bool = False
    damaged: bool = False

    @property
    def alone(self) -> bool:
        """Whether others know where the store lies, so that it cannot be moved to be judged."""
        return self.spills or self.group or self.bystander is not None


OPERATIONS: Final[dict[str, Operation]] = {
    "put in a slot": Operation(putting({"n": 1})),
    "put in a slot, named": Operation(putting({"n": 1}, key="n")),
    "put in used memory": Operation(putting(NEW, key="n")),
    "put in fresh memory": Operation(putting(LARGE, key="n")),
    "put the first object": Operation(putting(NEW, key="n"), template=empty),
    "put, large in used memory": Operation(putting(LARGE[:190_000])),
    "put, large where the top is free": Operation(putting(LARGE[:300_000]), free_the_top),
    "put, large in part fresh memory": Operation(putting(LARGE[:300_000]), free_the_top_in_part),
    "put, large header": Operation(putting(NEW, key=LONG_KEY + "!")),
    "put, large pickle": Operation(putting({"a": LARGE[:100_000], "b": NEW}, key="n")),
    "put, made in place": Operation(putting(IN_PIECES, key="n")),
    "put, compressed": Operation(putting(b"ab" * 9000, key="n", compression="zlib")),
    "put, tables grow": Operation(putting([1], key="n"), template=crowded),
    "put into a full store": Operation(try_to_put, template=full),
    "put if absent": Operation(put_if_absent),
    "put many": Operation(lambda s: s.store.put_many([NEW, [1], OLD])),
    "put many, named": Operation(lambda s: s.store.put_many({"k": NEW, "n": LARGE, "p": [2]})),
    "put many, in slots": Operation(lambda s: s.store.put_many([(7,), (8,), (9,)])),
    "put many, in a batch": Operation(
        lambda s: s.store.put_many([(n,) for n in range(26)]), attach_and_delete_few
    ),
    "put many, in slots, named": Operation(
        lambda s: s.store.put_many({"n": (7,), "k": (8,), "p": (9,)}), attach_and_delete_few
    ),
    "put after deletes, pinned": Operation(putting(NEW, key="n"), bystander=looks_at_deleted),
    "overwrite": Operation(putting(NEW, key="k")),
    "overwrite, large": Operation(putting(LARGE, key="k")),
    "overwrite, in a slot": Operation(putting([2], key="p")),
    "overwrite, looked at": Operation(putting(NEW, key="k"), bystander=looks),
    "delete": Operation(lambda s: s.store.delete("k")),
    "delete, in a slot": Operation(lambda s: s.store.delete("p")),
    "delete by reference": Operation(lambda s: s.store.delete(s.refs[0])),
    "delete many, looked at": Operation(
        lambda s: s.store.delete_many(["k", "p", "kept", *s.refs]), bystander=looks
    ),
    "clear": Operation(lambda s: s.store.clear()),
    "update, pop, setdefault": Operation(change_mapping),
    **{
        f"{name}, with spare slots": Operation(run, before, roomy, keeps=keeps)
        for name, run, before, keeps in (
            ("put the first", putting((1,)), Scene.attach, False),
            ("put", putting((1,)), attach_with_spares, False),
            ("delete one's own", delete_own, attach_with_spares, False),
            ("delete very many", delete_own, attach_with_many, False),
            ("delete another's", delete_of_others, attach_with_spares, False),
            ("wait for an end", wait_for_end, attach_with_spares, True),
            ("close", lambda s: s.store.close(), attach_with_spares, True),
            ("fork", fork, attach_with_nothing_held, False),
            ("recover", lambda s: s.store.recover(), attach_with_spares_to_die_among, True),
            ("destroy", lambda s: s.store.destroy(), attach_with_spares, False),
        )
    },
    **{
        f"{name}, with spare extents": Operation(run, before, spacious, keeps=keeps)
        for name, run, before, keeps in (
            ("put", putting(OLD), attach_with_extents, False),
            ("put again", putting(OLD), attach_with_some_sound, False),
            ("put, one looked at", putting(OLD), attach_and_look, False),
            ("put in parts", putting(in_parts(1)), attach_with_parts, False),
            ("put, fail", give_up, attach_with_large, True),
            ("put, seized", putting(OLD), attach_to_be_robbed, False),
            ("put in parts, seized", putting(in_parts(1)), attach_to_be_robbed_of_parts, False),
            ("put in a slot, seized", putting((1,)), attach_to_be_robbed, False),
            ("delete one's own", delete_own, attach_with_some_sound, False),
            ("trim", lambda s: s.store.trim(), attach_with_extents, True),
            ("close", lambda s: s.store.close(), attach_with_extents, True),
            ("fork", fork, attach_with_extents, False),
            ("recover", lambda s: s.store.recover(), attach_with_extents_to_die_among, True),
            ("destroy", lambda s: s.store.destroy(), attach_with_some_sound, False),
        )
    },
    "seize": Operation(
        lambda s: s.store.trim(), template=spacious, bystander=keeps_extents, keeps=True
    ),
    "seize in vain": Operation(
        lambda s: s.store.trim(), template=spacious, bystander=keeps_one_for_long, keeps=True
    ),
    "delete in vain, with spare slots": Operation(
        delete_in_vain, template=roomy, bystander=takes_back_for_long, keeps=True
    ),
    "lend": Operation(lend),
    "take back": Operation(take_back, attach_and_lend),
    "delete what the dead owned": Operation(delete_orphans),
    "build in place": Operation(build),
    "build in place, give up": Operation(build_half, keeps=True),
    "get and let go": Operation(look, keeps=True),
    "get under the lock": Operation(look, template=locked, keeps=True),
    "put, zeroing": Operation(putting(NEW, key="k"), hold_views, template=zeroed),
    "clear, zeroing": Operation(clear_and_put, template=zeroed),
    "recover, zeroing": Operation(
        lambda s: s.store.recover(), attach_to_die_among, zeroed, keeps=True
    ),
    "put, checksums": Operation(putting(LARGE, key="n", readonly=True), template=summed),
    "put, made in place, checksums": Operation(putting(IN_PIECES, key="k"), template=summed),
    "build in place, checksums": Operation(build_sealed, template=summed),
    "put with its time": Operation(putting(NEW, key="n", ttl=1000)),
    "put where times are over": Operation(putting(LARGE, key="n"), template=timed),
    "put where all times are over": Operation(
        putting(np.full(750_000, 4, np.uint8), key="n"), template=timed
    ),
    "put if absent, its time is over": Operation(
        putting(NEW, key="over", overwrite=False), template=timed
    ),
    "recover, damaged": Operation(
        lambda s: s.store.recover(), attach_and_damage, keeps=True, damaged=True
    ),
    "recover where times are over": Operation(
        lambda s: s.store.recover(), template=timed, keeps=True
    ),
    "put, evict": Operation(putting(NEW, key="n"), template=evicting),
    "put, evict many": Operation(putting(LARGE[:30_000], key="n"), template=evicting),
    "put in a slot, evict": Operation(putting_many_small, template=evicting),
    "put, evict, looked at": Operation(
        putting(LARGE[:30_000], key="n"), template=evicting, bystander=looks
    ),
    "get where others evict": Operation(look_at_few, template=evicting, keeps=True),
    "trim": Operation(lambda s: s.store.trim(), attach_and_delete, keeps=True),
    "trim, reserved at creation": Operation(
        lambda s: s.store.trim(), attach_and_delete, backed, keeps=True
    ),
    "trim where times are over": Operation(lambda s: s.store.trim(), template=timed, keeps=True),
    "get, traced": Operation(look, template=traced, keeps=True),
    "exception in a change": Operation(break_a_change),
    "wait": Operation(wait_in_vain, keeps=True),
    "wait for many keys": Operation(wait_for_very_many, keeps=True),
    "wait, read-only": Operation(wait_in_vain, attach_readonly, keeps=True),
    "wait where others died": Operation(wait_in_vain, template=waited_for, keeps=True),
    "close after waits": Operation(lambda s: s.store.close(), attach_and_wait, keeps=True),
    "close, a thread waits": Operation(
        lambda s: s.store.close(), attach_and_let_sleep, bystander=sits, template=owned, keeps=True
    ),
    "put, a bell is full": Operation(putting(NEW, key="n"), attach_and_fill_a_bell),
    "fork after waits": Operation(fork, attach_and_wait),
    "put, waited for": Operation(putting(NEW, key="n"), bystander=sleeps),
    "put, watched": Operation(putting(NEW, key="n"), bystander=watches),
    "delete, watched": Operation(lambda s: s.store.delete("k"), bystander=watches),
    "put where waiters died": Operation(putting(NEW, key="n"), template=waited_for),
    "delete, waited for": Operation(lambda s: s.store.delete(s.refs[0]), bystander=sleeps),
    "destroy, waited for": Operation(lambda s: s.store.destroy(), bystander=sleeps),
    "recover, waited for": Operation(
        lambda s: s.store.recover(), attach_to_die_among, bystander=sleeps, keeps=True
    ),
    "recover, waiters died": Operation(
        lambda s: s.store.recover(), template=waited_for, keeps=True
    ),
    "check": Operation(lambda s: s.store.check(), attach_to_die_among, keeps=True),
    "recover": Operation(lambda s: s.store.recover(), attach_to_die_among, keeps=True),
    "recover, looked at": Operation(
        lambda s: s.store.recover(), attach_to_die_among, bystander=looks, keeps=True
    ),
    "put where others died": Operation(putting(LARGE, key="n"), attach_to_die_among),
    "attach": Operation(Scene.attach, idle, keeps=True),
    "attach twice": Operation(attach_twice, keeps=True),
    "attach, read-only": Operation(lambda s: s.attach(readonly=True), idle, keeps=True),
    "attach after deaths": Operation(Scene.attach, idle, dirty, keeps=True),
    "attach after a death in attach": Operation(Scene.attach, idle, dirty_seats, keeps=True),
    "attach after deaths, looked at": Operation(
        Scene.attach, let_one_die_in_a_change, inhabited, looks_at_deleted, keeps=True
    ),
    "close": Operation(lambda s: s.store.close(), bystander=sits, template=owned, keeps=True),
    "close, read-only": Operation(
        lambda s: s.store.close(), lambda s: s.attach(readonly=True), bystander=sits, keeps=True
    ),
    "close, owner": Operation(lambda s: s.store.close(), create_and_furnish, nothing),
    "close, last client": Operation(lambda s: s.store.close(), open_and_furnish, nothing),
    "close before views": Operation(close_before_views, hold_views, keeps=True),
    "exit": Operation(end, bystander=sits, keeps=True),
    "exit, views alive": Operation(end, hold_views, template=owned),
    "exit, owner": Operation(end, create_and_furnish, nothing),
    "fork, parent": Operation(fork, hold_views),
    "fork, child": Operation(fork, hold_views, child=True),
    "fork, others look": Operation(fork_while_others_look, hold_views),
    "fork, traced": Operation(fork, hold_views, template=traced),
    "fork, no seat, parent": Operation(fork_without_a_seat, template=one_seat, keeps=True),
    "fork, no seat, child": Operation(
        fork_without_a_seat, template=one_seat, child=True, keeps=True
    ),
    "create": Operation(make(), idle, nothing),
    "create, with its root": Operation(make(), remove_root, nothing),
    "create, for a group": Operation(make(), remove_root, nothing, group=True),
    "create, for a group, again": Operation(make(), leave_half_a_root, nothing, group=True),
    "create, all memory at once": Operation(make(prefault=True, persist=True), idle, nothing),
    "create, too large": Operation(create_too_large, idle, nothing, keeps=True),
    "create over a dead store": Operation(make(), idle, owned, may_miss=True),
    "create over leftovers": Operation(make(), idle, cut_short),
    "open, make": Operation(reopen, idle, nothing),
    "open, join": Operation(reopen, idle, keeps=True),
    "destroy": Operation(lambda s: s.store.destroy()),
    "destroy, looked at": Operation(lambda s: s.store.destroy(), bystander=looks),
    "prune": Operation(lambda s: s.prune(), idle, two_owned),
    "put, spill": Operation(putting(NEW, key="n"), template=spilling, spills=True),
    "put, spill many": Operation(putting(LARGE[:30_000], key="n"), template=spilling, spills=True),
    "put many, spill": Operation(
        lambda s: s.store.put_many({"n": NEW, "m": LARGE[:20_000]}), template=spilling, spills=True
    ),
    "put into a file": Operation(putting(LARGE, key="n"), template=spilling, spills=True),
    "put many, into files": Operation(
        lambda s: s.store.put_many({"n": NEW, "m": LARGE, "k": [2]}), template=spilling, spills=True
    ),
    "build in a file": Operation(build_large, template=spilling, spills=True),
    "build in a file, checksums": Operation(build_large, template=spilling_summed, spills=True),
    "build in a file, give up": Operation(
        build_large_half, template=spilling, spills=True, keeps=True
    ),
    "overwrite, in a file": Operation(putting(NEW, key="k"), template=spilling, spills=True),
    "delete, in a file": Operation(lambda s: s.store.delete("k"), template=spilling, spills=True),
    "clear, with files": Operation(clear_and_put, template=spilling, spills=True),
    "get, back into memory": Operation(
        look_at_few, attach_and_make_room, template=spilling, spills=True, keeps=True
    ),
    "get, mapped from a file": Operation(look_at_few, template=spilling, spills=True, keeps=True),
    "recover, who died spilling": Operation(
        lambda s: s.store.recover(), attach_to_die_among_spilling, spilling, spills=True, keeps=True
    ),
    "attach after deaths in spilling": Operation(
        Scene.attach, idle, spilling_dirty, spills=True, keeps=True
    ),
    "create, that spills": Operation(create_spilling, idle, nothing, spills=True),
    "create over dead, with files": Operation(
        make(), idle, spilling_owned, spills=True, may_miss=True
    ),
    "close, owner, with files": Operation(
        lambda s: s.store.close(), create_spilling_and_fill, nothing, spills=True
    ),
    "destroy, with files": Operation(lambda s: s.store.destroy(), template=spilling, spills=True),
    "prune, with files": Operation(lambda s: s.prune(), idle, spilling_owned, spills=True),
    "queue, make": Operation(make_queue),
    "queue, make the first": Operation(make_queue, template=empty),
    "queue, put": Operation(put_one, template=queued),
    "queue, put large": Operation(put_large, template=queued),
    "queue, put many": Operation(put_many, template=queued),
    "queue, take": Operation(take_one, template=queued),
    "queue, take all": Operation(take_all, template=queued),
    "queue, take and do": Operation(take_and_do, template=queued),
    "queue, take where others died": Operation(take_one, template=taken_by_the_dead),
    "queue, take without a slot": Operation(take_without_a_slot, template=without_slots),
    "queue, wait": Operation(wait_for_one, template=queued),
    "queue, join after a death": Operation(join_after_a_death, template=taken_by_the_dead),
    "queue, destroy": Operation(destroy_queue, template=queued),
    "queue, put where others are evicted": Operation(put_one, template=evicting_queued),
    "queue, put into a file": Operation(put_filed, template=filed_queued, spills=True),
    "queue, put into a file, in vain": Operation(
        wait_with_a_file, template=filed_queued, spills=True
    ),
    "queue, take from a file": Operation(take_one, template=filed_queued, spills=True),
    "queue, take from a file to memory": Operation(
        take_one, attach_with_room, filed_queued, spills=True
    ),
    "queue, mend": Operation(mend, break_the_counts, queued, keeps=True, damaged=True),
    "queue, attach where others died": Operation(Scene.attach, idle, taken_by_the_dead, keeps=True),
}
