"""What is one figure, and how is it written?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

# Units of figures.
NS, PER_SECOND, NBYTES, TIMES = "ns", "/s", "bytes", "x"


@dataclass(frozen=True, slots=True)
class Figure:
    """Something that was measured several times.

    Attributes
    ----------
    median, low, high : float
        The middle, and the quartiles around it.
    rounds : int
        How often it was measured.
    unit : str
        One of the above.
    """

    median: float
    low: float
    high: float
    rounds: int
    unit: str = NS


@dataclass(frozen=True, slots=True)
class Volume:
    """The bytes of one operation.

    Attributes
    ----------
    payload : int
        Size of the object.
    in_band, beside : int
        Written to shared memory; none by a get.
    private : int
        Held in memory of the process at once.
    """

    payload: int
    in_band: int
    beside: int
    private: int

    @property
    def copies(self) -> float:
        """How often the payload was written."""
        return (self.in_band + self.beside + self.private) / self.payload


@dataclass(frozen=True, slots=True)
class Result:
    """One line of a table.

    Attributes
    ----------
    workload, measure : str
        What was measured; a workload may have several measures.
    sample, peer : str
        With which object, and whose.
    figure : Figure
        What came out.
    volume : Volume, optional
        How many bytes it took.
    """

    workload: str
    measure: str
    sample: str
    peer: str
    figure: Figure
    volume: Volume | None = None


def summary(values: Sequence[float], unit: str = NS) -> Figure:
    """Return the middle and the spread of some values."""
    if len(values) == 1:
        return Figure(values[0], values[0], values[0], 1, unit)
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Figure(median(values), low, high, len(values), unit)


def collect(
    workload: str, sample: str, values: Mapping[tuple[str, str], Sequence[float]], unit: str = NS
) -> Iterator[Result]:
    """Give the results of one sample from values by measure and peer."""
    for (measure, peer), each in values.items():
        if each:
            yield Result(workload, measure, sample, peer, summary(each, unit))


def number(value: float) -> str:
    """Return it with three digits, and all those before the point."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def written(value: float, unit: str) -> str:
    """Return it as a cell of a table: times in microseconds."""
    return number(value / 1000 if unit == NS else value)
