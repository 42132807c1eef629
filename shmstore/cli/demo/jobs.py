"""What does a worker compute, and what does it mean?

Each task draws a random sample of the whole corpus and describes it; over many samples the parent
sees each figure and how far chance moves it. The samples are drawn all over the corpus, so every
worker needs the whole of it, and a task's number is its seed, so both ways give the same answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Data = Mapping[str, npt.NDArray[Any]]
Answer = tuple[npt.NDArray[Any], ...]

_SAMPLE_SHARE = 16
_MIN_SAMPLE = 100
_MAX_SAMPLE_NBYTES = 8 << 20
_SHOWN = 10

_LETTERS = np.zeros(256, np.bool_)
_LETTERS[[*b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_", *range(128, 256)]] = True
_WORD_MASKS = np.array([(1 << 8 * length) - 1 for length in range(9)], "<u8")
_NO_WORD = np.zeros(8, np.uint8)


@dataclass(frozen=True)
class Summary:
    """What do the answers say, as a heading, the names of the columns and the rows?"""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Job:
    """A task for the workers and the meaning of its answers."""

    sample: Callable[[Data, int], Answer]
    summarize: Callable[[Sequence[Answer]], Summary]


def sample_words(data: Data, seed: int) -> Answer:
    """Count the words in a random sample of the passages of a text."""
    text, starts = data["text"], data["starts"]
    drawn = _draw(starts.size - 1, text.nbytes, seed)
    return count_words([text[starts[at] : starts[at + 1]] for at in drawn])


def _draw(count: int, nbytes: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw a sixteenth of so many items, with repetition; more if they are few, less if large."""
    affordable = _MAX_SAMPLE_NBYTES * count // nbytes
    size = max(1, min(max(count // _SAMPLE_SHARE, _MIN_SAMPLE), count, affordable))
    return np.random.default_rng(seed).integers(count, size=size)


def count_words(passages: Sequence[npt.NDArray[np.uint8]]) -> Answer:
    """Return the words of two to eight bytes, each packed into one integer, and their counts."""
    text = np.concatenate([_NO_WORD, *passages, _NO_WORD])
    is_letter = _LETTERS[text]
    edges = np.flatnonzero(is_letter[1:] != is_letter[:-1]) + 1
    starts, lengths = edges[0::2], edges[1::2] - edges[0::2]
    kept = (lengths >= 2) & (lengths <= 8)
    windows = np.lib.stride_tricks.sliding_window_view(text, 8)[starts[kept]]
    packed = windows.view("<u8").ravel() & _WORD_MASKS[lengths[kept]]
    return np.unique(packed, return_counts=True)


def summarize_words(answers: Sequence[Answer]) -> Summary:
    """Name the most frequent words and how often they come among a thousand."""
    totals = np.array([counts.sum() for _, counts in answers])
    top = _most_frequent(answers)
    shares = np.array([_counts_of(top, answer) for answer in answers]).T
    shares = 1000 * shares / np.maximum(totals, 1)
    rows = [
        (_spelled(word), f"{share.mean():.2f}", f"{share.std():.2f}")
        for word, share in zip(top, shares, strict=True)
    ]
    heading = "Most frequent words of 2 to 8 bytes"
    return Summary(heading, ("word", "per 1,000 words", "±"), rows)


def _most_frequent(answers: Sequence[Answer]) -> npt.NDArray[Any]:
    words, where = np.unique(np.concatenate([words for words, _ in answers]), return_inverse=True)
    totals = np.bincount(where, np.concatenate([counts for _, counts in answers]))
    return words[np.argsort(-totals, kind="stable")[:_SHOWN]]


def _counts_of(wanted: npt.NDArray[Any], answer: Answer) -> npt.NDArray[Any]:
    words, counts = answer
    return np.array([counts[words == word].sum() for word in wanted])


def _spelled(word: np.uint64) -> str:
    return int(word).to_bytes(8, "little").rstrip(b"\0").decode(errors="replace")


def numbers(labels: Sequence[str]) -> Job:
    """Return the job for rows of numbers whose columns have these names."""
    return Job(sample_rows, partial(summarize_rows, labels))


def sample_rows(data: Data, seed: int) -> Answer:
    """Return mean, standard deviation and quartiles of each column in a random sample of rows."""
    rows = data["rows"]
    sample = rows[_draw(len(rows), rows.nbytes, seed)].astype(np.float64)
    sample[np.isinf(sample)] = np.nan
    with _nan_is_shown():
        quartiles = np.nanpercentile(sample, [25, 50, 75], axis=0)
        return np.nanmean(sample, axis=0), np.nanstd(sample, axis=0), *quartiles


@contextmanager
def _nan_is_shown() -> Iterator[None]:
    """Let a column without a finite number give NaN, and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def summarize_rows(labels: Sequence[str], answers: Sequence[Answer]) -> Summary:
    """Describe the first columns by what the samples say on average."""
    figures: npt.NDArray[np.float64] = np.array(answers).transpose(2, 1, 0)[:_SHOWN]
    with _nan_is_shown():
        averages, varies_by = np.nanmean(figures, axis=2), np.nanstd(figures[:, 0], axis=1)
    rows = [
        (label, f"{mean:.4g}", f"{spread:.2g}", *(f"{other:.4g}" for other in others))
        for label, (mean, *others), spread in zip(labels, averages, varies_by, strict=False)
    ]
    columns = ("column", "mean", "±", "std", "25 %", "median", "75 %")
    return Summary("The finite numbers", columns, rows)


WORDS = Job(sample_words, summarize_words)
