"""What became of each report about one message: what the lattice compared, and what decided."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from itertools import pairwise
from typing import Final

from delivery_service.domain.outcome import FailureType, Observation, Outcome, Reason


class Verdict(IntEnum):
    """The numbers are the contract's."""

    APPLIED = 1
    LATE = 2
    IGNORED = 3
    CORRECTED = 4


class DecidedBy(IntEnum):
    """The first field in which two observations differ; the numbers are the contract's."""

    NOTHING = 0
    RANK = 1
    EVENT_TIME = 2
    DETAIL = 3


_PREPARED: Final = Observation(Outcome.PREPARED, 0)


@dataclass(frozen=True, slots=True)
class Report:
    """One report that is known: accepted (it has a revision), late, or a tracking fact (it has no observation)."""

    observation: Observation | None
    revision: int
    commit_time: datetime
    rules_version: int
    name: str
    """Of a tracking fact, for a person."""
    correction: bool = False
    """It is no report, but how one counts by newer rules."""


@dataclass(frozen=True, slots=True)
class Explained:
    """What became of one report; `compared` is what it won over, or lost to."""

    verdict: Verdict
    decided_by: DecidedBy
    compared: Observation | None
    sentence: str


def decided_by(first: Observation, second: Observation) -> DecidedBy:
    """What decides between two observations."""
    if first.outcome != second.outcome:
        return DecidedBy.RANK
    if first.event_time_us != second.event_time_us:
        return DecidedBy.EVENT_TIME
    return DecidedBy.NOTHING if first == second else DecidedBy.DETAIL


def explain_reports(reports: Sequence[Report]) -> list[Explained]:
    """What became of each, in the order given."""
    accepted = sorted((r for r in reports if r.revision), key=lambda report: report.revision)
    before = {report.revision: previous for previous, report in pairwise(accepted)}
    return [_explained(report, accepted, before.get(report.revision)) for report in reports]


def _explained(report: Report, accepted: Sequence[Report], previous: Report | None) -> Explained:
    own = report.observation
    if own is None:
        return Explained(
            Verdict.IGNORED,
            DecidedBy.NOTHING,
            None,
            f"{report.name.capitalize()}: a fact beside the outcome, which never changes it.",
        )
    if report.correction:
        return _corrected(report, own, previous)
    if report.revision:
        lost = (previous.observation if previous else None) or _PREPARED
        decision = decided_by(own, lost)
        return Explained(
            Verdict.APPLIED, decision, lost, f"Applied: {_won(own, lost, decision)}.{_rules(report.rules_version)}"
        )
    winner = _winner(report, own, accepted)
    if winner is None:
        return Explained(Verdict.LATE, DecidedBy.NOTHING, None, "Late: something greater was known already.")
    decision = decided_by(winner, own)
    return Explained(
        Verdict.LATE,
        decision,
        winner,
        f"Late, changed nothing: {_won(winner, own, decision)}.{_rules(report.rules_version)}",
    )


def _corrected(report: Report, own: Observation, previous: Report | None) -> Explained:
    before = previous.observation if previous else None
    if report.revision and before == own:
        sentence = (
            "Corrected: newer rules read another report of this message otherwise; where it stands stays the same."
        )
        return Explained(Verdict.CORRECTED, DecidedBy.NOTHING, None, sentence)
    was = f", not {_counts(before)}" if report.revision and before is not None else ""
    sentence = f"Corrected: it counts as {_counts(own)}{was}; the outcome stays.{_rules(report.rules_version)}"
    return Explained(Verdict.CORRECTED, DecidedBy.NOTHING, None, sentence)


def _counts(observation: Observation) -> str:
    return f"{FailureType(observation.failure_type).name}, {Reason(observation.reason).name}"


def _winner(report: Report, own: Observation, accepted: Sequence[Report]) -> Observation | None:
    """What the row held when a late report came: the newest accepted one by then. By the clocks of the processes that
    committed them; if these disagree, the first one that was greater at all."""
    greater = [other for other in accepted if other.observation is not None and other.observation > own]
    by_then = [other for other in greater if other.commit_time <= report.commit_time]
    chosen = by_then[-1] if by_then else greater[0] if greater else None
    return chosen.observation if chosen else None


def _won(winner: Observation, loser: Observation, decision: DecidedBy) -> str:
    first, second = Outcome(winner.outcome), Outcome(loser.outcome)
    match decision:
        case DecidedBy.RANK:
            return f"{first.name} (rank {first:d}) is greater than {second.name} (rank {second:d})"
        case DecidedBy.EVENT_TIME:
            return f"of two {first.name}, the later event time is greater"
        case _:
            return f"of two {first.name} at the same time, the one with the greater detail is greater"


def _rules(version: int) -> str:
    return f" Qualified by version {version} of the rules." if version else ""
