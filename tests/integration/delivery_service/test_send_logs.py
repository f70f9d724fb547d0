"""Send logs: pages, filters, projections, timelines."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from campaign.delivery.v1 import delivery_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from tests.support.delivery_stack import DeliveryStack, Fact, Observed, delivery_stack, people
from tests.support.invariants import assert_laws
from tests.support.postgres import DatabaseFactory
from tests.support.statuses import refused

WITH, WITHOUT = delivery_pb2.FEEDBACK_MODE_WITH_EFS, delivery_pb2.FEEDBACK_MODE_WITHOUT_EFS
SENT, FAILED, PENDING = (
    send_log_pb2.SEND_LOG_STATUS_SENT,
    send_log_pb2.SEND_LOG_STATUS_FAILED,
    send_log_pb2.SEND_LOG_STATUS_PENDING,
)
HARD, SOFT = send_log_pb2.FAILURE_TYPE_HARD, send_log_pb2.FAILURE_TYPE_SOFT
USER_UNKNOWN, MAILBOX_FULL = send_log_pb2.REASON_USER_UNKNOWN, send_log_pb2.REASON_MAILBOX_FULL
SIZE = 40


@pytest.fixture(scope="module")
async def scanning(
    database_factory: DatabaseFactory, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DeliveryStack]:
    """A service that looks at no more than 7 rows for a page, so that filters give short pages."""
    async with database_factory.fresh() as dsn:
        folder: Path = tmp_path_factory.mktemp("send-logs")
        async with delivery_stack(dsn, folder, rows_scanned_per_page_max=7, timeline_entries_max=5) as stack:
            await stack.sent()
            yield stack
        await assert_laws(dsn)


@pytest.fixture(scope="module")
async def played(scanning: DeliveryStack) -> str:
    """Of 40 recipients: 1-10 bounced hard, 11-15 deferred, 16-35 delivered, the rest relayed."""
    delivery_id = await scanning.sent(SIZE)
    bounced = [
        Observed(f"{delivery_id}-{r}", send_log_pb2.OUTCOME_BOUNCED, failure_type=HARD, reason=USER_UNKNOWN)
        for r in range(1, 11)
    ]
    deferred = [
        Observed(f"{delivery_id}-{r}", send_log_pb2.OUTCOME_DEFERRED, failure_type=SOFT, reason=MAILBOX_FULL)
        for r in range(11, 16)
    ]
    delivered = [Observed(f"{delivery_id}-{r}", send_log_pb2.OUTCOME_DELIVERED) for r in range(16, 36)]
    await scanning.apply(*bounced, *deferred, *delivered)
    return delivery_id


async def listed(stack: DeliveryStack, delivery_id: str, **fields: Any) -> list[send_log_pb2.SendLog]:
    """All pages. Each is bounded; the last one alone has no token."""
    found: list[send_log_pb2.SendLog] = []
    token, pages = "", 0
    while True:
        request = pb.ListSendLogsRequest(**{"delivery_id": delivery_id, "page_size": 4, "page_token": token, **fields})
        page = await stack.stub.ListSendLogs(request)
        assert len(page.send_logs) <= request.page_size
        found += page.send_logs
        token, pages = page.next_page_token, pages + 1
        assert pages < 50
        if not token:
            return found


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, range(1, 41)),
        ({"statuses": [FAILED]}, range(1, 16)),
        ({"statuses": [SENT]}, range(16, 36)),
        ({"statuses": [PENDING]}, range(36, 41)),
        ({"statuses": [FAILED, PENDING]}, [*range(1, 16), *range(36, 41)]),
        ({"failure_types": [HARD]}, range(1, 11)),
        ({"failure_types": [HARD, SOFT]}, range(1, 16)),
        ({"reasons": [MAILBOX_FULL]}, range(11, 16)),
        ({"reasons": [MAILBOX_FULL], "failure_types": [HARD]}, []),
        ({"statuses": [SENT], "reasons": [MAILBOX_FULL]}, []),
        ({"address": "person12@EXAMPLE.com"}, [12]),
        ({"address": "person12@example.com", "statuses": [SENT]}, []),
        ({"address": "nobody@example.com"}, []),
        # Without EFS a deferred message is shown as sent, and its reason can't be asked for.
        ({"feedback_mode": WITHOUT, "statuses": [SENT]}, range(11, 41)),
        ({"feedback_mode": WITHOUT, "statuses": [FAILED]}, range(1, 11)),
        ({"feedback_mode": WITHOUT, "reasons": [MAILBOX_FULL]}, []),
    ],
    ids=str,
)
async def test_a_filter_finds_exactly_its_send_logs_over_bounded_pages(
    scanning: DeliveryStack, played: str, fields: dict[str, Any], expected: list[int]
) -> None:
    found = await listed(scanning, played, **fields)

    assert [send_log.recipient for send_log in found] == list(expected)


async def test_a_send_log_shows_who_and_what(scanning: DeliveryStack, played: str) -> None:
    (found,) = await listed(scanning, played, address="person3@example.com")

    assert (found.profile_id, found.address, found.delivery_id) == ("p3", "person3@example.com", played)
    assert (found.status, found.outcome) == (FAILED, send_log_pb2.OUTCOME_BOUNCED)
    assert (found.failure_type, found.reason) == (HARD, USER_UNKNOWN)
    assert found.message_id == f"{played}-3"


async def test_send_logs_of_an_edited_delivery_are_not_shown(common: DeliveryStack) -> None:
    ready = await common.ready(3)
    assert len(await listed(common, ready.delivery_id)) == 3

    await common.add(ready.delivery_id, people(1, first=50))

    assert await listed(common, ready.delivery_id) == []
    async with refused(grpc.StatusCode.NOT_FOUND, "SEND_LOG_NOT_FOUND"):
        await common.send_log(ready.delivery_id)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"page_size": -5}, "page_size"),
        ({"page_token": "x"}, "page_token"),
        ({"statuses": [0]}, "statuses[0]"),
        ({"failure_types": [9]}, "failure_types[0]"),
        ({"reasons": [0]}, "reasons[0]"),
        ({"feedback_mode": 9}, "feedback_mode"),
        ({"address": "x" * 321}, "address"),
        ({"delivery_id": "x"}, "delivery_id"),
    ],
)
async def test_a_malformed_request_is_refused_by_field(
    scanning: DeliveryStack, played: str, fields: dict[str, Any], field: str
) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await scanning.stub.ListSendLogs(pb.ListSendLogsRequest(**{"delivery_id": played, **fields}))

    assert problem.fields == [field]


async def test_a_page_size_beyond_the_limit_is_taken_as_the_limit(common: DeliveryStack) -> None:
    ready = await common.ready(1_200)

    page = await common.stub.ListSendLogs(pb.ListSendLogsRequest(delivery_id=ready.delivery_id, page_size=9_999))
    by_default = await common.stub.ListSendLogs(pb.ListSendLogsRequest(delivery_id=ready.delivery_id))

    assert len(page.send_logs) == 1_000
    assert len(by_default.send_logs) == 100


async def test_a_timeline_tells_transitions_late_observations_and_tracking_by_event_time(common: DeliveryStack) -> None:
    delivery_id = await common.sent(1)
    message_id = f"{delivery_id}-1"
    time_us = 1_800_000_100_000_000
    deferred = Observed(message_id, send_log_pb2.OUTCOME_DEFERRED, time_us, SOFT, MAILBOX_FULL, 452, "4.2.2", "full", 1)
    await common.apply(Observed(message_id, send_log_pb2.OUTCOME_DELIVERED, time_us + 10, smtp_code=250, attempt=2))
    await common.apply(deferred)
    await common.apply(deferred)  # a repetition adds nothing
    click = Fact(message_id, send_log_pb2.TIMELINE_ENTRY_KIND_CLICK, time_us + 20, "https://example.com/a")
    await common.track(click)
    await common.track(click)

    answer = await common.send_log(delivery_id)

    assert answer.send_log.outcome == send_log_pb2.OUTCOME_DELIVERED
    assert [(entry.kind, entry.outcome) for entry in answer.timeline] == [
        (send_log_pb2.TIMELINE_ENTRY_KIND_TRANSITION, send_log_pb2.OUTCOME_RELAYED),
        (send_log_pb2.TIMELINE_ENTRY_KIND_LATE_OBSERVATION, send_log_pb2.OUTCOME_DEFERRED),
        (send_log_pb2.TIMELINE_ENTRY_KIND_TRANSITION, send_log_pb2.OUTCOME_DELIVERED),
        (send_log_pb2.TIMELINE_ENTRY_KIND_CLICK, 0),
    ]
    relayed, late, delivered, clicked = answer.timeline
    assert (relayed.before, delivered.before) == (send_log_pb2.OUTCOME_PREPARED, send_log_pb2.OUTCOME_RELAYED)
    assert delivered.revision > relayed.revision
    assert (late.reason, late.diagnostic, late.smtp_code, late.rules_version) == (MAILBOX_FULL, "full", 452, 1)
    assert clicked.url == "https://example.com/a"
    assert not answer.timeline_truncated


async def test_a_long_timeline_is_cut_and_says_so(scanning: DeliveryStack) -> None:
    delivery_id = await scanning.sent(1)
    for attempt in range(1, 10):
        await scanning.apply(
            Observed(
                f"{delivery_id}-1",
                send_log_pb2.OUTCOME_DEFERRED,
                1_800_000_100_000_000 + attempt,
                SOFT,
                MAILBOX_FULL,
                attempt=attempt,
            )
        )

    answer = await scanning.send_log(delivery_id)

    assert len(answer.timeline) == 5
    assert answer.timeline_truncated


async def test_an_event_time_ahead_of_the_clock_is_shown_and_flagged(common: DeliveryStack) -> None:
    delivery_id = await common.sent(2)
    far = 4_000_000_000_000_000
    await common.apply(Observed(f"{delivery_id}-1", send_log_pb2.OUTCOME_DELIVERED, far))
    past = 1_700_000_000_000_000
    await common.apply(Observed(f"{delivery_id}-2", send_log_pb2.OUTCOME_DELIVERED, past))

    ahead = (await common.send_log(delivery_id, 1)).send_log
    sound = (await common.send_log(delivery_id, 2)).send_log

    assert ahead.event_time_ahead
    assert ahead.event_time.seconds == far // 1_000_000
    assert not sound.event_time_ahead


@pytest.mark.parametrize("recipient", [0, -(2**31), 2**31])
async def test_a_recipient_number_out_of_range_is_refused(common: DeliveryStack, recipient: int) -> None:
    delivery_id = await common.create()

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await common.send_log(delivery_id, recipient)

    assert problem.fields == ["recipient"]
