"""The rules of the quarantine: by example, and against a model that tells the story in other words."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery_service.domain.outcome import FailureType, Reason
from delivery_service.domain.quarantine import (
    AddressStatus,
    Guard,
    QuarantineRules,
    Report,
    Verdict,
    counted_now,
    judge,
)

START = datetime(2026, 3, 2, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
RULES = QuarantineRules()
NONE, WITH_ERRORS = AddressStatus.NONE, AddressStatus.WITH_ERRORS
PROVISIONAL, QUARANTINED = AddressStatus.PROVISIONAL, AddressStatus.QUARANTINED


def soft(at: timedelta, reason: Reason = Reason.UNREACHABLE) -> Report:
    return Report(START + at, FailureType.SOFT, reason)


def hard(at: timedelta, reason: Reason = Reason.USER_UNKNOWN) -> Report:
    return Report(START + at, FailureType.HARD, reason)


def success(at: timedelta) -> Report:
    return Report(START + at, FailureType.NONE)


def told(*reports: Report, guards: tuple[Guard, ...] = ()) -> tuple[AddressStatus, int]:
    verdict = judge(reports, RULES, guards)
    return verdict.status, verdict.error_count


@pytest.mark.parametrize(
    ("reports", "status", "count"),
    [
        ([], NONE, 0),
        ([hard(HOUR)], QUARANTINED, 0),
        ([hard(HOUR, Reason.REFUSED)], WITH_ERRORS, 1),
        ([hard(HOUR, Reason.QUARANTINED_ADDRESS), hard(HOUR, Reason.DENYLISTED_ADDRESS)], NONE, 0),
        ([Report(START, FailureType.IGNORED, Reason.ERROR_IGNORED)], NONE, 0),
        ([soft(HOUR), soft(24 * HOUR)], WITH_ERRORS, 1),
        ([soft(HOUR), soft(25 * HOUR)], WITH_ERRORS, 2),
        ([soft(HOUR), soft(24 * HOUR), soft(25 * HOUR)], WITH_ERRORS, 2),
        ([soft(n * DAY) for n in range(4)], WITH_ERRORS, 4),
        ([soft(n * DAY) for n in range(5)], QUARANTINED, 5),
        ([soft(n * DAY, Reason.REFUSED) for n in range(5)], QUARANTINED, 5),
        ([*(soft(n * DAY) for n in range(4)), success(3 * DAY + HOUR), soft(4 * DAY)], WITH_ERRORS, 1),
        ([soft(HOUR), success(2 * HOUR), soft(3 * HOUR)], WITH_ERRORS, 1),
        ([soft(HOUR), success(HOUR)], WITH_ERRORS, 1),  # at the same moment, the success is the first
        ([soft(timedelta()), soft(10 * DAY)], WITH_ERRORS, 1),
        ([soft(timedelta()), soft(10 * DAY - HOUR)], WITH_ERRORS, 2),
        ([soft(timedelta(), Reason.MAILBOX_FULL), soft(29 * DAY)], WITH_ERRORS, 2),
        ([soft(timedelta(), Reason.MAILBOX_FULL), soft(30 * DAY)], WITH_ERRORS, 1),
        ([hard(HOUR), success(DAY), success(100 * DAY)], QUARANTINED, 0),  # never released by itself
    ],
)
def test_reports_come_to_what_the_rules_say(reports: list[Report], status: AddressStatus, count: int) -> None:
    assert told(*reports) == (status, count)


def test_the_deciding_report_is_told() -> None:
    first = hard(DAY)
    assert judge([hard(2 * DAY), first, soft(HOUR)], RULES).decisive == first
    assert judge([soft(HOUR), soft(2 * HOUR)], RULES).decisive == soft(HOUR)


def test_a_hard_bounce_while_its_domain_is_guarded_is_provisional_and_the_next_report_decides() -> None:
    guards = (Guard(START, START + DAY),)
    assert told(hard(HOUR), guards=guards) == (PROVISIONAL, 0)
    assert told(hard(HOUR), hard(2 * HOUR), guards=guards) == (PROVISIONAL, 0)
    assert told(hard(HOUR), success(DAY), guards=guards) == (NONE, 0)
    assert told(hard(HOUR), hard(DAY), guards=guards) == (QUARANTINED, 0)
    assert told(hard(HOUR), soft(11 * DAY), guards=guards) == (WITH_ERRORS, 1)
    assert told(hard(-HOUR), guards=guards) == (QUARANTINED, 0)
    assert told(hard(9 * DAY), guards=(Guard(START),)) == (PROVISIONAL, 0)


def test_soft_errors_count_on_while_the_domain_is_guarded() -> None:
    assert told(*(soft(n * DAY) for n in range(5)), guards=(Guard(START),)) == (QUARANTINED, 5)


def test_errors_that_are_old_enough_are_counted_no_more_now() -> None:
    assert counted_now(3, START, Reason.UNREACHABLE, RULES, START + 10 * DAY - HOUR) == 3
    assert counted_now(3, START, Reason.UNREACHABLE, RULES, START + 10 * DAY) == 0
    assert counted_now(3, START, Reason.MAILBOX_FULL, RULES, START + 10 * DAY) == 3


_reports = st.lists(
    st.builds(
        Report,
        event_time=st.integers(0, 40 * 6).map(lambda sixths: START + sixths * 4 * HOUR),
        failure_type=st.sampled_from(
            [FailureType.SOFT] * 6 + [FailureType.NONE, FailureType.HARD, FailureType.IGNORED]
        ),
        reason=st.sampled_from(
            [Reason.UNREACHABLE, Reason.MAILBOX_FULL, Reason.REFUSED, Reason.REFUSED, Reason.QUARANTINED_ADDRESS]
        ),
    ),
    max_size=25,
)


@given(_reports, st.randoms(use_true_random=False))
def test_neither_order_nor_repetition_of_reports_matters(reports: list[Report], random: object) -> None:
    again = [*reports, *reports[::2]]
    random.shuffle(again)  # type: ignore[attr-defined]
    assert judge(again, RULES) == judge(reports, RULES)


@given(_reports)
def test_the_verdict_is_the_one_of_a_naive_model(reports: list[Report]) -> None:
    verdict = judge(reports, RULES)
    assert (verdict.status, verdict.error_count) == _naive(reports)


@given(_reports, st.integers(0, 40))
def test_forgetting_what_came_before_the_reports_that_matter_changes_nothing(reports: list[Report], day: int) -> None:
    verdict = judge(reports, RULES)
    since = verdict.since or START
    kept = [report for report in reports if report.event_time >= min(since, START + day * DAY)]
    assert replace(judge(kept, RULES), since=None) == replace(verdict, since=None)


def _naive(reports: list[Report]) -> tuple[AddressStatus, int]:
    """For each report in turn: does the story up to it quarantine?"""
    story = sorted(each for each in reports if _counts(each))
    for end in range(len(story) + 1):
        count = _errors_in_a_row(story[:end])
        if end and _is_hard(story[end - 1]):
            return QUARANTINED, _errors_in_a_row(story[: end - 1], story[end - 1].event_time)
        if count >= 5:
            return QUARANTINED, 5
    count = _errors_in_a_row(story)
    return (WITH_ERRORS, count) if count else (NONE, 0)


def _counts(report: Report) -> bool:
    return report.failure_type is not FailureType.IGNORED and report.reason is not Reason.QUARANTINED_ADDRESS


def _is_hard(report: Report) -> bool:
    return report.failure_type is FailureType.HARD and report.reason is not Reason.REFUSED


def _errors_in_a_row(story: list[Report], now: datetime | None = None) -> int:
    """Significant errors since the last success, or since they had been forgotten, at the time of the last report."""
    significant: list[Report] = []
    for report in story:
        if report.failure_type is FailureType.NONE:
            significant = []
            continue
        if significant and _forgotten(significant[-1], report.event_time):
            significant = []
        if not significant or report.event_time - significant[-1].event_time >= DAY:
            significant.append(report)
    if now and significant and _forgotten(significant[-1], now):
        return 0
    return len(significant)


def _forgotten(error: Report, now: datetime) -> bool:
    return now - error.event_time >= (30 if error.reason is Reason.MAILBOX_FULL else 10) * DAY


def test_nothing_reported_is_nothing_decided() -> None:
    assert judge([], RULES) == Verdict()
