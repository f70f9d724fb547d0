"""What a real MTA does wrong, on request: events twice, late, out of order, about nobody, or nonsense.

None of it changes the truth: every event is reported at least once as it should be, and what is wrong comes on top.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from mta_simulator.dialects import Kind, Report

NOT_TRACKED: Final = 0
"""The range of an event that comes on top: nobody waits for its acknowledgement to settle a message."""


@dataclass(frozen=True, slots=True)
class MisbehaviourOptions:
    """All off by default. Rates are shares of the events."""

    duplicates: float = 0.0
    """Sent again up to `window_seconds` later, on whatever stream comes first."""
    reorder: bool = False
    """Every report is late by up to `window_seconds`; a quarter of the relay's answers too, so that feedback overtakes
    them."""
    unknown_messages: float = 0.0
    """An event about a message that does not exist, on top."""
    malformed: float = 0.0
    """A spoilt copy of an event, on top: a time or a code out of range, a kind that is none, a NUL."""
    cut_streams: int = 0
    """Cut each feedback stream after about that many batches; 0: never."""
    delay_answers_ms: int = 0
    """Each of the relay's answers is held back for up to that long."""
    window_seconds: float = 1.0

    def __post_init__(self) -> None:
        for name in ("duplicates", "unknown_messages", "malformed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"the rate {name} is {getattr(self, name)}: give one between 0 and 1")
        if min(self.cut_streams, self.delay_answers_ms, self.window_seconds) < 0:
            raise ValueError("cut_streams, delay_answers_ms and window_seconds can't be negative")


class PlayedEvent(NamedTuple):
    """One event as it will be reported."""

    message_id: str
    event_time_us: int
    report: Report
    attempt: int
    range_id: int
    """The journal's range that it belongs to, or NOT_TRACKED."""


class Misbehaviour:
    """Draws, from a seeded generator, what goes wrong next."""

    def __init__(self, options: MisbehaviourOptions, seed: int) -> None:
        self._options = options
        self._random = Random(f"misbehaviour {seed}")
        self._window_us = options.window_seconds * 1_000_000
        self.spoils_events = bool(options.duplicates or options.unknown_messages or options.malformed)

    def lateness_us(self) -> int:
        """How much later an event is reported than it should be."""
        return int(self._random.random() * self._window_us) if self._options.reorder else 0

    def on_top_of(self, event: PlayedEvent) -> Iterator[tuple[int, PlayedEvent]]:
        """What is reported besides `event`, and how much later."""
        random, options = self._random.random, self._options
        if random() < options.duplicates:
            yield int(random() * self._window_us), event._replace(range_id=NOT_TRACKED)
        if random() < options.unknown_messages:
            yield 0, event._replace(message_id=f"nobody-{self._random.getrandbits(64):016x}", range_id=NOT_TRACKED)
        if random() < options.malformed:
            yield 0, self._spoilt(event)

    def answer_delay_seconds(self) -> float:
        """How long one of the relay's answers is held back."""
        delay = self._random.random() * self._options.delay_answers_ms / 1_000
        if self._options.reorder and self._random.random() < 0.25:
            delay += self._random.random() * self._options.window_seconds
        return delay

    def batches_until_cut(self) -> int | None:
        """After how many batches a stream is to be cut; None: never."""
        if not self._options.cut_streams:
            return None
        return max(1, round(self._options.cut_streams * self._random.uniform(0.5, 1.5)))

    def _spoilt(self, event: PlayedEvent) -> PlayedEvent:
        spoilt = event._replace(range_id=NOT_TRACKED)
        report = event.report
        match self._random.randrange(5):
            case 0:
                return spoilt._replace(event_time_us=-1)
            case 1:
                return spoilt._replace(event_time_us=7_258_118_400_000_000)  # the year 2200
            case 2:
                return spoilt._replace(report=report._replace(smtp_code=9_999))
            case 3:
                return spoilt._replace(report=report._replace(kind=Kind.MTA_EVENT_KIND_UNSPECIFIED))
        return spoilt._replace(message_id=f"{event.message_id}\0")
