"""How is something shown in a notebook: as HTML that needs nothing else, and is safe?

There is no script, no link and no resource from elsewhere in it. All colours show on a light and on
a dark ground: text has that of the notebook. Whatever comes from a store is escaped here, by
`text`: keys and names of types are whatever somebody has put.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final

from shmstore._tuples import NamedTuple

_MOST_LETTERS: Final = 60

FREE: Final = "rgba(128,128,128,.35)"
"""The colour of what is not drawn: the ground of a bar."""

_GREY: Final = "rgba(128,128,128,.3)"
_BOX: Final = (
    f"border:1px solid {_GREY};border-radius:6px;padding:8px 12px;margin:4px 0;max-width:76em;"
    "display:inline-block;font-size:13px;line-height:1.45"
)
_CELL: Final = (
    f"padding:1px 10px 1px 0;border:0;border-bottom:1px solid {_GREY};vertical-align:top;"
    "text-align:left"
)
_NUMBER: Final = _CELL.removesuffix("left") + "right;white-space:nowrap"
_WIDTH: Final = 480
_HEIGHT: Final = 20


class Share(NamedTuple):
    """A part of a bar: what it is, its colour, which part of the whole, and how that is said."""

    name: str
    colour: str
    part: float
    said: str


class Patch(NamedTuple):
    """A piece of a bar: where it begins and ends, between 0 and 1, its colour, and how strong."""

    start: float
    end: float
    colour: str
    strength: float = 1.0


def text(value: object, most: int = _MOST_LETTERS) -> str:
    """Return something as HTML: in one line, short, escaped, without what changes its direction.

    Examples
    --------
    >>> text("<b>"), text("a" * 100, 5), text(chr(10))
    ('&lt;b&gt;', 'aaaaa…', '&#92;n')
    """
    shown = str(value)
    shown = shown if len(shown) <= most else shown[:most] + "…"
    if not shown.isprintable():
        shown = "".join([c if c.isprintable() else repr(c)[1:-1] for c in shown])
    return html.escape(shown).replace(chr(92), "&#92;")  # nothing that Markdown or TeX would read


def box(title: str, *parts: str) -> str:
    """Return a framed piece with a title; the parts are HTML."""
    below = "".join([f"<div>{part}</div>" for part in parts if part])
    return f'<div class="shmstore" style="{_BOX}"><div><strong>{title}</strong></div>{below}</div>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()
) -> str:
    """Return a table; every cell is escaped. The columns `numbers` are aligned to the right."""
    right = set(numbers)
    named = [("th", head)] if any(head) else []
    lines = []
    for tag, cells in [*named, *[("td", row) for row in rows]]:
        inner = "".join([_cell(tag, cell, right=at in right) for at, cell in enumerate(cells)])
        lines.append(f'<tr style="background:none">{inner}</tr>')
    style = "border-collapse:collapse;border:0;margin:6px 0 2px;font-variant-numeric:tabular-nums"
    return f'<table style="{style}">{"".join(lines)}</table>' if len(lines) > len(named) else ""


def _cell(tag: str, value: object, *, right: bool) -> str:
    return f'<{tag} style="{_NUMBER if right else _CELL}">{text(value, 200)}</{tag}>'


def bar(shares: Sequence[Share], patches: Sequence[Patch] | None = None) -> str:
    """Return a bar with a legend below; without patches the shares follow each other in it."""
    if patches is None:
        patches = []
        start = 0.0
        for share in shares:
            if share.colour != FREE:
                patches.append(Patch(start, start + share.part, share.colour))
            start += share.part
    drawn = "".join([_drawn(patch) for patch in patches if patch.end > patch.start])
    ground = f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="3" fill="#808080" fill-opacity=".2"/>'
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    told = text("; ".join([f"{share.name} {share.said}" for share in shares]), 400)
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{told}" '
        f'style="display:block;max-width:100%;margin:6px 0 3px">{ground}{drawn}</svg>'
    )
    return picture + "".join([_legend(share) for share in shares])


def _drawn(patch: Patch) -> str:
    start, end = (min(max(at, 0.0), 1.0) * _WIDTH for at in (patch.start, patch.end))
    return (
        f'<rect x="{start:.1f}" width="{max(end - start, 0.6):.1f}" height="{_HEIGHT}" '
        f'fill="{patch.colour}" fill-opacity="{patch.strength:.2f}"/>'
    )


def _legend(share: Share) -> str:
    dot = (
        '<span style="display:inline-block;width:9px;height:9px;border-radius:2px;'
        f'margin-right:4px;background:{share.colour}"></span>'
    )
    style = "display:inline-block;margin-right:14px;white-space:nowrap"
    return f'<span style="{style}">{dot}{text(share.name)} {text(share.said)}</span>'
