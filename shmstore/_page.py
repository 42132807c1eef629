"""How are the facts about a store told to people?"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from shmstore._info import ClientUse, FullReport, ObjectsUse, PinInfo

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_KIB: Final = 1024
_SPANS: Final = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))

# How much of each list is told; together with the facts above them they fill a screen.
_MOST_CLIENTS: Final = 6
_MOST_TYPES: Final = 6
_MOST_REMEDIES: Final = 6


def nbytes(count: int) -> str:
    """Return a number of bytes as people say it.

    Examples
    --------
    >>> nbytes(0), nbytes(1023), nbytes(1536), nbytes(200 << 20), nbytes(3 << 42)
    ('0 B', '1023 B', '1.5 KiB', '200 MiB', '12 TiB')
    """
    power = min(max(count.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    scaled = count / _KIB**power
    text = f"{scaled:.1f}" if power and scaled < 100 else f"{scaled:.0f}"
    return f"{text.removesuffix('.0')} {_UNITS[power]}"


def span(seconds: float) -> str:
    """Return a time span as people say it.

    Examples
    --------
    >>> span(0.3), span(59), span(90), span(7300), span(200_000)
    ('0 s', '59 s', '1 min', '2 h', '2 d')
    """
    for size, unit in _SPANS:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun.

    Examples
    --------
    >>> plural(1, "object"), plural(2000, "object"), plural(2, "process", "processes")
    ('1 object', '2,000 objects', '2 processes')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def process(pid: int, name: str, *, own: bool = False, alive: bool = True) -> str:
    """Return how a process is named.

    Examples
    --------
    >>> process(7, "python"), process(8, "gone", alive=False), process(9, "python", own=True)
    ('pid 7 (python)', 'pid 8 (dead)', 'pid 9 (python, this process)')
    """
    if not pid:
        return name
    if not alive:
        return f"pid {pid} (dead)"
    return f"pid {pid} ({name}{', this process' if own else ''})"


def pin_line(pin: PinInfo) -> str:
    """Return a `PinInfo` as one sentence."""
    who = process(pin.pid, pin.name, own=pin.own, alive=pin.alive)
    sites = sorted(pin.sites.items(), key=lambda item: -item[1])
    places = "".join(f"; {count:,} from {site}" for site, count in sites)
    return f"{who}: {plural(pin.views, 'view')}, the oldest for {span(pin.age)}{places}"


# --- the page of why_full ------------------------------------------------------------------------


def full_page(report: FullReport) -> str:
    """Return a `FullReport` as a page of text."""
    used = f"{nbytes(report.used)} of {nbytes(report.capacity)} used"
    remedies = [f"{n}. {text}" for n, text in enumerate(report.remedies[:_MOST_REMEDIES], 1)]
    lines = [
        f"{report.path}: {used} ({report.used / report.capacity:.0%})",
        report.reason,
        "",
        *(f"{name:<13}{text}" for name, text in _facts(report)),
        *_table("processes", _CLIENT_HEAD, _client_rows(report.clients)),
        *_table("age", _OBJECTS_HEAD, _object_rows(report.ages, len(report.ages))),
        *_table("type", _OBJECTS_HEAD, _object_rows(report.types, _MOST_TYPES)),
        *(("", "what helps", *remedies) if remedies else ()),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _facts(report: FullReport) -> Iterator[tuple[str, str]]:
    pieces = f"in {plural(report.free_extents, 'piece')}, the largest has"
    share = f"(fragmentation {report.fragmentation:.0%})"
    free = f"{nbytes(report.free)} {pieces} {nbytes(report.largest_free)} {share}"
    yield "free", free if report.free else "nothing"
    slots = f"{report.slots_used:,} of {report.max_objects:,} slots taken"
    yield "objects", f"{report.objects:,}, {report.named:,} of them with a key; {slots}"
    if report.pinned_nbytes:
        yield "looked at", f"{nbytes(report.pinned_nbytes)} by views in the processes below"
    for name, count, size, text in (
        ("deleted", report.deleted, report.deleted_nbytes, "kept by views of them"),
        ("half-made", report.half_made, report.half_made_nbytes, "by puts that have not ended"),
        ("expired", report.expired, report.expired_nbytes, "given back when room is needed"),
        ("spilled", report.spilled, report.spilled_nbytes, "on disk"),
    ):
        if count:
            yield name, f"{plural(count, 'object')}, {nbytes(size)}, {text}"
    if report.set_aside:
        yield "set aside", f"{plural(report.set_aside, 'slot')}, for the next small objects"
    disk = report.file_system
    users = f"this store has {nbytes(disk.own)}, others {nbytes(disk.others)}"
    yield "file system", f"{disk.path}: {nbytes(disk.free)} of {nbytes(disk.size)} free; {users}"


_CLIENT_HEAD: Final = ("has put", "looks at", "keeps deleted", "half-made", "oldest view")
_OBJECTS_HEAD: Final = ("objects", "bytes")


def _client_rows(clients: Sequence[ClientUse]) -> Iterator[tuple[str, ...]]:
    for client in clients[:_MOST_CLIENTS]:
        yield (
            process(client.pid, client.name, own=client.own, alive=client.alive),
            f"{nbytes(client.nbytes)} in {client.objects:,}",
            f"{nbytes(client.pinned_nbytes)} in {client.views:,}" if client.views else "",
            nbytes(client.deleted_nbytes) if client.deleted_nbytes else "",
            nbytes(client.half_made_nbytes) if client.half_made else "",
            "" if client.oldest_view is None else span(time.time() - client.oldest_view),
        )
    if len(clients) > _MOST_CLIENTS:
        rest = clients[_MOST_CLIENTS:]
        size = sum(client.nbytes for client in rest)
        objects = sum(client.objects for client in rest)
        views = sum(client.views for client in rest)
        looked_at = f"in {views:,}" if views else ""
        yield f"{len(rest):,} more", f"{nbytes(size)} in {objects:,}", looked_at, "", "", ""


def _object_rows(groups: Sequence[ObjectsUse], most: int) -> Iterator[tuple[str, ...]]:
    shown = [group for group in groups if group.objects]
    for group in shown[:most]:
        yield group.name, f"{group.objects:,}", nbytes(group.nbytes)
    if rest := shown[most:]:
        objects, size = sum(g.objects for g in rest), sum(g.nbytes for g in rest)
        yield f"{len(rest):,} more", f"{objects:,}", nbytes(size)


def _table(title: str, head: Sequence[str], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table; columns in which nothing stands are left out."""
    body = list(rows)
    if not body:
        return []
    table = [(title, *head), *body]
    kept = [at for at in range(len(table[0])) if at == 0 or any(row[at] for row in body)]
    widths = [max(len(row[at]) for row in table) for at in kept]
    return [
        "",
        *(
            "  ".join(
                row[at].rjust(width) if at else row[at].ljust(width)
                for at, width in zip(kept, widths, strict=True)
            )
            for row in table
        ),
    ]
