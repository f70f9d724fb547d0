"""The figures by name, what each must reach, and one run over some of them."""

import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from tests.bench.stand import Stand

T = TypeVar("T")
Direction: TypeAlias = Literal["at least", "at most"]
Judged: TypeAlias = Literal["ratio", "vs_peer", "value"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: the value, and what it is held against, both from the same run."""

    value: float
    ceiling: float | None = None
    peer: float | None = None
    vs_peer: float | None = None


class Run:
    """One pass over the wanted figures. What several of them need is measured once."""

    def __init__(self, stand: Stand, recipients: int, note: Callable[[str], None], *, smoke: bool = False) -> None:
        self.stand = stand
        self.recipients = recipients
        self.note = note
        self.smoke = smoke
        """Only to see that it works: repetitions and pauses may be few and short."""
        self._known: dict[str, Any] = {}

    async def once(self, name: str, measure: Callable[[], Awaitable[T]]) -> T:
        """What `measure` gives, measured no more than once."""
        if name not in self._known:
            self._known[name] = await measure()
        known: T = self._known[name]
        return known


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure is judged by."""

    must: float
    aim: float
    judged: Judged = "ratio"
    direction: Direction = "at least"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table. Several may come from the same measurement."""

    name: str
    unit: str
    target: Target
    on_demand: bool = False


@dataclass(slots=True)
class Outcome:
    """What became of a figure: the medians of its samples, or why there are none."""

    figure: Figure
    samples: list[Sample] = field(default_factory=list)
    problem: str = ""

    @property
    def value(self) -> float | None:
        return _median([sample.value for sample in self.samples])

    @property
    def ceiling(self) -> float | None:
        return _median([sample.ceiling for sample in self.samples])

    @property
    def peer(self) -> float | None:
        return _median([sample.peer for sample in self.samples])

    @property
    def ratio(self) -> float | None:
        """Of the pairs, each measured at about the same time: on a busy machine that is steadier."""
        return _median([sample.value / sample.ceiling for sample in self.samples if sample.ceiling])

    @property
    def vs_peer(self) -> float | None:
        of_peer = [sample.value / sample.peer if sample.peer else None for sample in self.samples]
        return _median([sample.vs_peer or other for sample, other in zip(self.samples, of_peer, strict=True)])

    @property
    def judged(self) -> float | None:
        """The number that its target is about."""
        number: float | None = getattr(self, self.figure.target.judged)
        return number

    @property
    def spread(self) -> float | None:
        """How far the values of several runs lie apart, as a share of their median."""
        values = [sample.value for sample in self.samples]
        middle = _median(values)
        return (max(values) - min(values)) / middle if len(values) > 1 and middle else None

    @property
    def reached(self) -> Literal["failed", "missed", "must", "aim"]:
        """Which of its two marks it has reached."""
        number, target = self.judged, self.figure.target
        if number is None:
            return "failed"
        sign = 1 if target.direction == "at least" else -1
        if sign * number >= sign * target.aim:
            return "aim"
        return "must" if sign * number >= sign * target.must else "missed"


Measure: TypeAlias = Callable[[Run], Awaitable[Sequence[Sample]]]

FIGURES: dict[str, Figure] = {}
MEASUREMENTS: dict[str, tuple[Measure, int]] = {}
"""By figure: what measures it, and its place among the samples which that gives."""


def figure(
    name: str,
    unit: str,
    *,
    must: float,
    aim: float,
    judged: Judged = "ratio",
    direction: Direction = "at least",
    on_demand: bool = False,
) -> Figure:
    """A figure and its marks."""
    return Figure(name, unit, Target(must, aim, judged, direction), on_demand)


def measures(*figures: Figure) -> Callable[[Measure], Measure]:
    """Registers the decorated function as what gives a sample of each of these, in their order."""

    def register(measure: Measure) -> Measure:
        for place, one in enumerate(figures):
            FIGURES[one.name] = one
            MEASUREMENTS[one.name] = (measure, place)
        return measure

    return register


def _median(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return statistics.median(known) if known else None
