"""How are numbers, times and names written, so that they fit a column and nobody is fooled?"""

from __future__ import annotations

import time
from pathlib import Path

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SPANS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))
_KIB = 1024
_LONGEST_COMMAND = 60


def size(nbytes: float) -> str:
    """Return a number of bytes, without a space in it.

    Examples
    --------
    >>> size(0), size(1023), size(1536), size(200 << 20)
    ('0B', '1023B', '1.5KiB', '200MiB')
    """
    count, power = float(nbytes), 0
    while count >= _KIB - 0.5 and power < len(_UNITS) - 1:
        count, power = count / _KIB, power + 1
    text = f"{count:.1f}" if power and count < 100 else f"{count:.0f}"
    return text.removesuffix(".0") + _UNITS[power]


def span(seconds: float) -> str:
    """Return a time span, without a space in it.

    Examples
    --------
    >>> span(0.3), span(59), span(90), span(7300), span(200_000)
    ('0s', '59s', '1min', '2h', '2d')
    """
    for length, unit in _SPANS:
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def duration(seconds: float) -> str:
    """Return how long something took.

    Examples
    --------
    >>> duration(2.5e-6), duration(0.0123), duration(1.5)
    ('2.5us', '12.3ms', '1.5s')
    """
    for scale, unit in ((1e-6, "us"), (1e-3, "ms")):
        if seconds < 1000 * scale:
            return f"{seconds / scale:.3g}{unit}"
    return f"{seconds:.3g}s"


def rate(per_s: float) -> str:
    """Return how often something happens in a second.

    Examples
    --------
    >>> rate(0), rate(0.25), rate(12345), rate(2.5e6)
    ('0', '0.2', '12.3k', '2.5M')
    """
    for scale, unit in ((1e6, "M"), (1e3, "k")):
        if per_s >= scale:
            return f"{per_s / scale:.1f}{unit}"
    return f"{per_s:.0f}" if per_s >= 10 or not per_s else f"{per_s:.1f}"


def moment(seconds: float) -> str:
    """Return a time of the clock on the wall, in seconds since 1970, with its zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def clean(text: str) -> str:
    r"""Return text in which nothing moves the cursor: keys and types come from whoever put them.

    Examples
    --------
    >>> clean("a\x1b[2Jb\n"), clean("größer")
    ('a\\x1b[2Jb\\n', 'größer')
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def command(pid: int, name: str) -> str:
    """Return how a process was called, if its name could be told; else what is told instead.

    Examples
    --------
    >>> command(1 << 30, "gone")
    'gone'
    """
    if name in ("gone", "not seen from here"):
        return name
    try:
        parts = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return name
    text = " ".join(" ".join([Path(parts[0]).name, *parts[1:]]).split()) or name
    return text if len(text) <= _LONGEST_COMMAND else text[: _LONGEST_COMMAND - 3] + "..."


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun.

    Examples
    --------
    >>> plural(1, "store"), plural(2000, "object"), plural(2, "process", "processes")
    ('1 store', '2,000 objects', '2 processes')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
