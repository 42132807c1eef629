"""What does each command take?"""

from __future__ import annotations

import argparse
import re

Parser = argparse.ArgumentParser

FORMATS = ("npy", "npz", "csv", "parquet", "arrow", "json", "text", "raw", "pickle")
SORTS = ("size", "stored", "age", "views", "pid", "key", "type")

_MAX_WORKERS = 64
_SPANS = {"": 1.0, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZES = {
    "": 1,
    "B": 1,
    **{f"{letter}IB": 1 << 10 * power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}": 1 << 10 * power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
}
_PICKLE = "unpickle what was pickled: this RUNS CODE that the pickle names; only for what you trust"


# --- for several commands ------------------------------------------------------------------------


def nothing(parser: Parser) -> None:
    """Take what every command takes that shows something."""
    group = parser.add_argument_group("where and how")
    group.add_argument("--root", metavar="DIR", help="folder of the stores ($SHMSTORE_ROOT)")
    group.add_argument("--group", type=_group, metavar="G", help="stores shared with this group")
    help_ = "seconds to wait for the store lock (default: 5)"
    group.add_argument("--timeout", type=_seconds, default=5.0, metavar="S", help=help_)
    group.add_argument("--json", action="store_true", help="exact values, for programs")
    group.add_argument("--plain", action="store_true", help="no colours and frames")
    help_ = "numbers of bytes and seconds in full"
    group.add_argument("-b", "--bytes", action="store_true", help=help_)


def only_store(parser: Parser) -> None:
    """Take a store."""
    parser.add_argument("store", metavar="STORE", help="its name, or the path of its folder")
    nothing(parser)


def _key(parser: Parser, nargs: str | None = None) -> None:
    text = "the key of an object, or an id such as @3.17"
    parser.add_argument("key", metavar="KEY", nargs=nargs, help=text)


def _limit(parser: Parser) -> None:
    text = "show at most so many; 0: all (default: 50)"
    parser.add_argument("-n", "--limit", type=_count, default=50, metavar="N", help=text)


def _unsafe(parser: Parser) -> None:
    parser.add_argument("--unsafe-pickle", action="store_true", help=_PICKLE)


# --- looking -------------------------------------------------------------------------------------


def ls(parser: Parser) -> None:
    """Take a pattern of names."""
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="names like 'train*'")
    nothing(parser)


def info(parser: Parser) -> None:
    """Take a store, and whether to tell why it is full."""
    only_store(parser)
    text = "tell what holds its memory and what would free it; for SIZE bytes, if given"
    parser.add_argument("--why", nargs="?", const="", type=_size_text, metavar="SIZE", help=text)


def objects(parser: Parser) -> None:
    """Take a store, and which of its objects to list in which order."""
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("match", nargs="?", metavar="PATTERN", help="keys like 'epoch-*'")
    parser.add_argument("-s", "--sort", choices=SORTS, default="size", help="(default: size)")
    parser.add_argument("-r", "--reverse", action="store_true", help="the other way round")
    _limit(parser)
    parser.add_argument("--type", metavar="TEXT", help="types that have this in their name")
    parser.add_argument("--min-size", type=_size, metavar="SIZE", help="at least so large")
    parser.add_argument("--older-than", type=_span, metavar="SPAN", help="such as 90s, 5min, 2h")
    parser.add_argument("--pinned", action="store_true", help="that somebody looks at")
    parser.add_argument("--pid", type=_count, metavar="PID", help="that this process put")
    text = "deleted, half-made and expired ones, too"
    parser.add_argument("-a", "--all", action="store_true", help=text)
    nothing(parser)


def show(parser: Parser) -> None:
    """Take an object."""
    parser.add_argument("store", metavar="STORE")
    _key(parser)
    text = "rows of a table, elements of an array at each end (default: 10)"
    parser.add_argument("--rows", type=_count, default=10, metavar="N", help=text)
    _unsafe(parser)
    nothing(parser)


def pins(parser: Parser) -> None:
    """Take a store and an object."""
    parser.add_argument("store", metavar="STORE")
    _key(parser, "?")
    _limit(parser)
    nothing(parser)


def map_(parser: Parser) -> None:
    """Take a store and a file for the picture."""
    parser.add_argument("store", metavar="STORE")
    text = "write a picture to FILE.svg or FILE.png (which needs matplotlib)"
    parser.add_argument("-o", "--output", metavar="FILE", help=text)
    text = "lines of the picture in the terminal (default: 16)"
    parser.add_argument("--lines", type=_positive, default=16, metavar="N", help=text)
    nothing(parser)


def top(parser: Parser) -> None:
    """Take a store, and how often to look."""
    parser.add_argument("store", nargs="?", metavar="STORE", help="(default: the only one)")
    text = "seconds between two looks (default: 1)"
    parser.add_argument("-i", "--interval", type=_seconds, default=1.0, metavar="S", help=text)
    text = "look so many times, then end"
    parser.add_argument("-c", "--count", type=_positive, metavar="N", help=text)
    parser.add_argument("-s", "--sort", choices=("size", "age", "views"), default="size")
    nothing(parser)


# --- moving --------------------------------------------------------------------------------------


def get(parser: Parser) -> None:
    """Take an object and a file."""
    parser.add_argument("store", metavar="STORE")
    _key(parser)
    text = "where to write; the suffix tells the format; -: the standard output"
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help=text)
    parser.add_argument("--as", dest="format", choices=FORMATS, help="the format of the file")
    parser.add_argument("-f", "--force", action="store_true", help="replace a file that is there")
    _unsafe(parser)
    nothing(parser)


def put(parser: Parser) -> None:
    """Take a key and a file, and how to put it."""
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("key", metavar="KEY")
    text = "what to read; the suffix tells the format; -: the standard input"
    parser.add_argument("file", metavar="FILE", help=text)
    parser.add_argument("--as", dest="format", choices=FORMATS, help="the format of the file")
    parser.add_argument("--ttl", type=_span, metavar="SPAN", help="expires after so long: 90s, 2h")
    text = "fail if the key is taken"
    parser.add_argument("--no-overwrite", action="store_true", help=text)
    text = "no reader may write to it"
    parser.add_argument("--readonly", action="store_true", help=text)
    text = "lz4, zstd, snappy, zlib or auto"
    parser.add_argument("--compression", metavar="CODEC", help=text)
    _unsafe(parser)
    nothing(parser)


def rm(parser: Parser) -> None:
    """Take objects to delete."""
    parser.add_argument("store", metavar="STORE")
    _key(parser, "*")
    parser.add_argument("--match", metavar="PATTERN", help="all keys like 'epoch-*'")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would go")
    text = "no error for what is not there"
    parser.add_argument("-f", "--force", action="store_true", help=text)
    nothing(parser)


# --- keeping -------------------------------------------------------------------------------------


def check(parser: Parser) -> None:
    """Take stores."""
    parser.add_argument("stores", nargs="*", metavar="STORE")
    text = "read the data as well, and hold it against its checksums"
    parser.add_argument("--deep", action="store_true", help=text)
    nothing(parser)


def prune(parser: Parser) -> None:
    """Take whether only to tell."""
    parser.add_argument("--dry-run", action="store_true", help="only tell what would go")
    nothing(parser)


def create(parser: Parser) -> None:
    """Take a name and options of a new store."""
    parser.add_argument("store", metavar="NAME")
    text = "bytes for objects, such as 8GiB (default: what the machine can give)"
    parser.add_argument("--capacity", type=_size_text, metavar="SIZE", help=text)
    text = "what a put does that finds no room (default: raise)"
    parser.add_argument(
        "--on-full", choices=("raise", "evict", "spill"), default="raise", help=text
    )
    parser.add_argument("--spill-dir", metavar="DIR", help="where spilled objects go")
    parser.add_argument("--max-objects", type=_positive, metavar="N")
    parser.add_argument("--ttl", type=_span, metavar="SPAN", help="objects expire after so long")
    nothing(parser)


def rm_store(parser: Parser) -> None:
    """Take names of stores."""
    parser.add_argument("stores", nargs="+", metavar="STORE")
    text = "even if processes are attached, or nobody can tell"
    parser.add_argument("-f", "--force", action="store_true", help=text)
    nothing(parser)


# --- the rest ------------------------------------------------------------------------------------


def bench(parser: Parser) -> None:
    """Take how long to measure."""
    parser.add_argument("--quick", action="store_true", help="some seconds instead of a minute")
    nothing(parser)


def demo(parser: Parser) -> None:
    """Take a file, and a number of workers."""
    text = "a file or folder of text, .npy or .csv (default: Python's standard library)"
    parser.add_argument("path", nargs="?", metavar="PATH", help=text)
    text = "processes (default: 4)"
    parser.add_argument("--workers", type=_workers, default=4, metavar="N", help=text)


def completion(parser: Parser) -> None:
    """Take a shell."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


# --- values --------------------------------------------------------------------------------------


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if match is None or match[2].upper() not in _SIZES:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give 4096, 64KiB or 8GiB")
    return int(float(match[1]) * _SIZES[match[2].upper()])


def _size_text(text: str) -> str:
    return str(_size(text)) if text else ""


def _span(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text)
    if match is None or match[2] not in _SPANS or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time span; give 90s, 5min, 2h or 1d")
    return float(match[1]) * _SPANS[match[2]]


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.01 on")
    return value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _group(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _workers(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= _MAX_WORKERS):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {_MAX_WORKERS}")
    return int(text)
