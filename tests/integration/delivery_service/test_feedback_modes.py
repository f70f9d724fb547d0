"""The page's two tables ("Avec / Sans le service de commentaires par email"), cell by cell, through the RPCs.

Judged as the page means it: after the hand-over, one committed event at a time, in causal order.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from campaign.delivery.v1 import delivery_pb2, kpis_pb2, send_log_pb2
from tests.support.delivery_stack import DeliveryStack, Observed, delivery_stack
from tests.support.invariants import assert_laws
from tests.support.postgres import DatabaseFactory

WITH, WITHOUT = delivery_pb2.FEEDBACK_MODE_WITH_EFS, delivery_pb2.FEEDBACK_MODE_WITHOUT_EFS
PENDING = send_log_pb2.SEND_LOG_STATUS_PENDING
SENT = send_log_pb2.SEND_LOG_STATUS_SENT
FAILED = send_log_pb2.SEND_LOG_STATUS_FAILED
RECIPIENTS = 4

HARD = ("BOUNCED", 2, 2)  # outcome, failure type hard, reason User unknown
SOFT = ("DEFERRED", 1, 6)  # soft, Mailbox full
RETRIED = ("DELIVERED", 0, 0)
GAVE_UP = ("EXPIRED", 1, 6)
OUT_OF_BAND = ("BOUNCED", 1, 1)

STEPS = {
    # name: events committed before, the event judged
    "relayed": ([], None),
    "hard bounce": ([], HARD),
    "soft bounce": ([], SOFT),
    "retry succeeded": ([SOFT], RETRIED),
    "retries failed": ([SOFT], GAVE_UP),
    # Beyond the page, by the lattice.
    "soft bounce again": ([SOFT], SOFT),
    "hard bounce after soft": ([SOFT], HARD),
    "out-of-band bounce after delivered": ([RETRIED], OUT_OF_BAND),
    "delivered after expired": ([SOFT, GAVE_UP], RETRIED),
}
Case = tuple[int, str]

TABLES: dict[Case, tuple[str, str, int]] = {
    # (mode, step): what the page says of (delivered, bounces and errors, status)
    (WITH, "relayed"): ("starts at 0 %", "starts at 0 %", PENDING),
    (WITH, "hard bounce"): ("unchanged", "up", FAILED),
    (WITH, "soft bounce"): ("unchanged", "up", FAILED),
    (WITH, "retry succeeded"): ("up", "down", SENT),
    (WITH, "retries failed"): ("unchanged", "unchanged", FAILED),
    (WITHOUT, "relayed"): ("starts at 100 %", "starts at 0 %", SENT),
    (WITHOUT, "hard bounce"): ("down", "up", FAILED),
    (WITHOUT, "soft bounce"): ("unchanged", "unchanged", SENT),
    (WITHOUT, "retry succeeded"): ("unchanged", "unchanged", SENT),
    (WITHOUT, "retries failed"): ("down", "up", FAILED),
    (WITH, "soft bounce again"): ("unchanged", "unchanged", FAILED),
    (WITHOUT, "soft bounce again"): ("unchanged", "unchanged", SENT),
    (WITH, "hard bounce after soft"): ("unchanged", "unchanged", FAILED),
    (WITHOUT, "hard bounce after soft"): ("down", "up", FAILED),
    (WITH, "out-of-band bounce after delivered"): ("down", "up", FAILED),
    (WITHOUT, "out-of-band bounce after delivered"): ("down", "up", FAILED),
    (WITH, "delivered after expired"): ("up", "down", SENT),
    (WITHOUT, "delivered after expired"): ("up", "down", SENT),
}


@dataclass
class Seen:
    """What the RPCs say around one step."""

    before: kpis_pb2.KpiProjection
    after: kpis_pb2.KpiProjection
    status: int
    send_log: send_log_pb2.SendLog


@pytest.fixture(scope="module")
async def shared(
    database_factory: DatabaseFactory, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DeliveryStack]:
    """One DeliveryService for all cells; each has a delivery of its own."""
    async with database_factory.fresh() as dsn:
        async with delivery_stack(dsn, tmp_path_factory.mktemp("modes")) as stack:
            await stack.sent()  # opens the relay stream: a task that must not seem to be left by the first test
            yield stack
        await assert_laws(dsn)


async def _play(stack: DeliveryStack, mode: int, step: str) -> Seen:
    delivery_id = await stack.sent(RECIPIENTS, feedback_mode=mode)
    earlier, judged = STEPS[step]
    time_us = 1_800_000_100_000_000
    message_id = (await stack.send_log(delivery_id)).send_log.message_id

    async def apply(event: tuple[str, int, int]) -> None:
        nonlocal time_us
        time_us += 1_000_000
        outcome = send_log_pb2.Outcome.Value(f"OUTCOME_{event[0]}")
        observed = Observed(message_id, outcome, time_us, event[1], event[2], 0, "", "the MTA's words")
        assert not (await stack.apply(observed)).rejections

    for event in earlier:
        await apply(event)
    before = _projection(await stack.kpis(delivery_id), mode)
    if judged is not None:
        await apply(judged)
    after = _projection(await stack.kpis(delivery_id), mode)
    send_log = (await stack.send_log(delivery_id)).send_log
    return Seen(before, after, send_log.status, send_log)


def _projection(kpis: kpis_pb2.Kpis, mode: int) -> kpis_pb2.KpiProjection:
    assert kpis.feedback_mode == mode
    return kpis.with_efs if mode == WITH else kpis.without_efs


def _assert_moved(expected: str, before: kpis_pb2.Rate, after: kpis_pb2.Rate) -> None:
    match expected:
        case "starts at 0 %":
            assert (after.count, after.rate) == (0, 0.0)
        case "starts at 100 %":
            assert (after.count, after.rate) == (RECIPIENTS, 1.0)
        case "unchanged":
            assert after == before
        case "up":
            assert after.count == before.count + 1
            assert after.rate > before.rate
        case "down":
            assert after.count == before.count - 1
            assert after.rate < before.rate


def _name(case: Case) -> str:
    return f"{delivery_pb2.FeedbackMode.Name(delivery_pb2.FeedbackMode.ValueType(case[0]))[14:].lower()}-{case[1]}"


@pytest.mark.parametrize("case", TABLES, ids=_name)
async def test_the_delivered_percentage_moves_as_the_page_says(shared: DeliveryStack, case: Case) -> None:
    seen = await _play(shared, *case)

    _assert_moved(TABLES[case][0], seen.before.delivered, seen.after.delivered)


@pytest.mark.parametrize("case", TABLES, ids=_name)
async def test_the_bounces_and_errors_percentage_moves_as_the_page_says(shared: DeliveryStack, case: Case) -> None:
    seen = await _play(shared, *case)

    _assert_moved(TABLES[case][1], seen.before.bounces_and_errors, seen.after.bounces_and_errors)


@pytest.mark.parametrize("case", TABLES, ids=_name)
async def test_the_send_log_status_is_the_one_the_page_says(shared: DeliveryStack, case: Case) -> None:
    seen = await _play(shared, *case)

    assert seen.status == TABLES[case][2]


@pytest.mark.parametrize("step", ["soft bounce", "retry succeeded"])
async def test_without_efs_the_reason_of_a_message_shown_as_sent_is_hidden(shared: DeliveryStack, step: str) -> None:
    seen = await _play(shared, WITHOUT, step)

    assert seen.status == SENT
    assert (seen.send_log.failure_type, seen.send_log.reason, seen.send_log.diagnostic) == (0, 0, "")


async def test_with_efs_the_reason_of_a_soft_bounce_is_shown_and_cleared_by_the_delivery(shared: DeliveryStack) -> None:
    deferred = await _play(shared, WITH, "soft bounce")
    delivered = await _play(shared, WITH, "retry succeeded")

    assert deferred.send_log.reason == send_log_pb2.REASON_MAILBOX_FULL
    assert deferred.send_log.diagnostic == "the MTA's words"
    assert (delivered.send_log.reason, delivered.send_log.diagnostic) == (0, "")


async def test_either_projection_can_be_asked_for_whatever_the_deliverys_mode(shared: DeliveryStack) -> None:
    delivery_id = await shared.sent(RECIPIENTS, feedback_mode=WITH)

    kpis = await shared.kpis(delivery_id)

    assert kpis.with_efs.delivered.count == 0
    assert kpis.without_efs.delivered.count == RECIPIENTS
    assert (await shared.send_log(delivery_id, mode=WITHOUT)).send_log.status == SENT
    assert (await shared.send_log(delivery_id, mode=WITH)).send_log.status == PENDING
