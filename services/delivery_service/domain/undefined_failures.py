"""What MTAs say that no qualification rule reads, grouped by their words: equal but for addresses, ids and codes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

_VARIABLE: Final = re.compile(r"[@\d]")
_MASK: Final = "#"


class UndefinedReport(NamedTuple):
    """One report that no rule has read."""

    delivery_id: int
    recipient: int
    outcome: int
    event_time: datetime
    smtp_code: int
    enhanced_code: str
    diagnostic: str


@dataclass(slots=True)
class UndefinedFailure:
    """Reports of the same words and codes; the newest of them is the example."""

    text: str
    smtp_code: int
    enhanced_code: str
    count: int
    messages: set[tuple[int, int]]
    first_time: datetime
    example: UndefinedReport


def masked(text: str) -> str:
    """The text without what differs from one report to the next: lower case, white space collapsed, `#` for each word
    with a digit or an `@`."""
    return " ".join(_MASK if _VARIABLE.search(word) else word for word in text.lower().split())


class UndefinedFailures:
    """Groups reports, each once. Bounded by how many are added."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, int, str], UndefinedFailure] = {}
        self._seen: set[UndefinedReport] = set()

    @property
    def reports(self) -> int:
        """How many were added."""
        return len(self._seen)

    def add(self, reports: Iterable[UndefinedReport]) -> None:
        """Counts some more."""
        for report in reports:
            if report in self._seen:
                continue
            self._seen.add(report)
            key = masked(report.diagnostic), report.smtp_code, report.enhanced_code
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = UndefinedFailure(*key, 0, set(), report.event_time, report)
            group.count += 1
            group.messages.add((report.delivery_id, report.recipient))
            group.first_time = min(group.first_time, report.event_time)
            if report.event_time > group.example.event_time:
                group.example = report

    def most_frequent(self, count: int) -> list[UndefinedFailure]:
        """The largest groups, largest first; of the same size, the newest first."""
        return sorted(self._groups.values(), key=lambda group: (group.count, group.example.event_time), reverse=True)[
            :count
        ]
