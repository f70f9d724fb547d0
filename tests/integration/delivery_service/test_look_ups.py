"""Looking things up after a send: one message, one person's messages, KPIs by group, tracking facts one by one."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from campaign.delivery.v1 import delivery_pb2, kpis_pb2, look_ups_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from tests.support.delivery_stack import DeliveryStack, Fact, Observed, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import OUTCOMES
from tests.support.postgres import connected
from tests.support.statuses import refused

SOFT, HARD = send_log_pb2.FAILURE_TYPE_SOFT, send_log_pb2.FAILURE_TYPE_HARD
DEFERRED, DELIVERED, BOUNCED = (
    send_log_pb2.OUTCOME_DEFERRED,
    send_log_pb2.OUTCOME_DELIVERED,
    send_log_pb2.OUTCOME_BOUNCED,
)
DOMAIN, REASON, HOUR = (
    look_ups_pb2.KPI_BREAKDOWN_BY_RECIPIENT_DOMAIN,
    look_ups_pb2.KPI_BREAKDOWN_BY_REASON,
    look_ups_pb2.KPI_BREAKDOWN_BY_HOUR,
)
OPEN, CLICK, UNSUBSCRIBE, COMPLAINT = (
    send_log_pb2.TIMELINE_ENTRY_KIND_OPEN,
    send_log_pb2.TIMELINE_ENTRY_KIND_CLICK,
    send_log_pb2.TIMELINE_ENTRY_KIND_UNSUBSCRIBE,
    send_log_pb2.TIMELINE_ENTRY_KIND_COMPLAINT,
)
HOUR_US = 3_600_000_000
TIME_US = 1_790_000_100_000_000


# RenderMessage.


async def rendered(stack: DeliveryStack, delivery_id: str, recipient: int = 1) -> look_ups_pb2.RenderMessageResponse:
    return await stack.stub.RenderMessage(
        look_ups_pb2.RenderMessageRequest(delivery_id=delivery_id, recipient=recipient)
    )


async def test_a_message_is_rendered_as_its_recipient_was_sent_it(common: DeliveryStack) -> None:
    content = delivery_pb2.Content(
        subject="Hello {{ first_name }}", html="<p>{{ first_name }}</p>", text="Hi {{ first_name }}",
        from_address="news@example.com", from_name="News", reply_to_address="answers@example.com",
    )  # fmt: skip
    delivery_id = await common.create(content=content)
    recipient = pb.NewRecipient(address="a@example.com", attributes={"first_name": "<Ann>"})
    await common.add(delivery_id, [recipient, *people(1)])
    ready = await common.prepare(delivery_id)

    before = await rendered(common, delivery_id)
    await common.confirm(ready)
    await common.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    after = await rendered(common, delivery_id)

    assert (after.subject, after.html, after.text) == ("Hello <Ann>", "<p>&lt;Ann&gt;</p>", "Hi <Ann>")
    assert (after.address, after.from_address) == ("a@example.com", "news@example.com")
    assert (after.from_name, after.reply_to_address) == ("News", "answers@example.com")
    assert (before.handed_over, after.handed_over) == (False, True)
    before.handed_over = True
    assert before == after
    assert (await rendered(common, delivery_id, 2)).subject == "Hello Name1"


async def test_a_message_that_can_not_be_rendered_says_why(common: DeliveryStack) -> None:
    content = delivery_pb2.Content(
        subject="{{ 10 // (first_name | length - 5) }}", html="<p>x</p>", from_address="news@example.com"
    )
    delivery_id = await common.create(content=content)
    await common.add(delivery_id, [pb.NewRecipient(address="a@example.com", attributes={"first_name": "Names"})])
    await common.prepare(delivery_id)

    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "MESSAGE_NOT_RENDERED") as problem:
        await rendered(common, delivery_id)

    assert "subject: ZeroDivisionError" in problem.message
    assert problem.metadata == {"delivery_id": delivery_id, "recipient": "1"}


async def test_who_gets_no_message_has_none_to_render(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE"):
        await rendered(common, delivery_id)
    await common.add(delivery_id, [*people(1), *people(1)])
    await common.prepare(delivery_id)
    async with refused(grpc.StatusCode.NOT_FOUND, "SEND_LOG_NOT_FOUND"):
        await rendered(common, delivery_id, 2)  # a duplicate
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await rendered(common, delivery_id, 0)
    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
        await rendered(common, "12345")


# ListProfileMessages.


async def messages(stack: DeliveryStack, **fields: Any) -> list[look_ups_pb2.ProfileMessage]:
    """All pages."""
    found: list[look_ups_pb2.ProfileMessage] = []
    token, pages = "", 0
    while True:
        request = look_ups_pb2.ListProfileMessagesRequest(**{"page_size": 2, "page_token": token, **fields})
        page = await stack.stub.ListProfileMessages(request)
        assert len(page.messages) <= request.page_size
        found += page.messages
        token, pages = page.next_page_token, pages + 1
        assert pages < 50
        if not token:
            return found


@pytest.mark.parametrize("scanned", [3, 20_000])
async def test_a_persons_messages_are_listed_over_all_deliveries_newest_first(
    database: str, tmp_path: Path, scanned: int
) -> None:
    limits: dict[str, Any] = {"rows_scanned_per_page_max": scanned, "profile_deliveries_scanned_per_page_max": scanned}
    async with delivery_stack(database, tmp_path, **limits) as stack:
        ann = [
            pb.NewRecipient(profile_id="ann", address="ann@example.com", attributes={"first_name": "Ann"}),
            pb.NewRecipient(profile_id="ann", address="ann@work.example.com", attributes={"first_name": "Ann"}),
            pb.NewRecipient(profile_id="Ann", address="other@example.com"),
        ]
        sent: list[str] = []
        for n in range(4):
            delivery_id = await stack.create(label=f"number {n}")
            await stack.add(delivery_id, [*people(2), *ann, ann[0]])
            await stack.confirm(await stack.prepare(delivery_id))
            await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
            sent.append(delivery_id)
        draft = await stack.create()
        await stack.add(draft, ann)
        sms = await stack.create(channel=delivery_pb2.CHANNEL_SMS)
        await stack.add(sms, [pb.NewRecipient(profile_id="ann", address="+491701234567")])
        await stack.prepare(sms)
        await stack.apply(Observed(f"{sent[1]}-3", BOUNCED, TIME_US, HARD, 2))

        everything = await messages(stack, profile_id="ann")
        emails = await messages(stack, profile_id="ann", channel=delivery_pb2.CHANNEL_EMAIL)
        by_address = await messages(stack, address="ann@EXAMPLE.com")
        nothing = await messages(stack, profile_id="nobody")
        no_address = await messages(stack, address="nobody@example.com")

    def places(found: list[look_ups_pb2.ProfileMessage]) -> list[tuple[str, int]]:
        return [(message.send_log.delivery_id, message.send_log.recipient) for message in found]

    newest_first = [(delivery_id, recipient) for delivery_id in reversed(sent) for recipient in (4, 3)]
    assert places(emails) == newest_first
    assert places(everything) == [(sms, 1), *newest_first]
    assert places(by_address) == [place for place in newest_first if place[1] == 3]
    assert (nothing, no_address) == ([], [])
    bounced = everything[1 + newest_first.index((sent[1], 3))]
    assert (bounced.send_log.outcome, bounced.send_log.reason) == (BOUNCED, 2)
    assert (bounced.label, bounced.state) == ("number 1", delivery_pb2.DELIVERY_STATE_FINISHED)
    assert bounced.HasField("start_time")
    assert everything[0].channel == delivery_pb2.CHANNEL_SMS
    assert everything[0].feedback_mode == delivery_pb2.FEEDBACK_MODE_WITHOUT_EFS


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "profile_id"),
        ({"profile_id": "a", "address": "b"}, "profile_id"),
        ({"profile_id": "x" * 201}, "profile_id"),
        ({"profile_id": "a\x00"}, "profile_id"),
        ({"profile_id": "a", "channel": 9}, "channel"),
        ({"profile_id": "a", "page_size": -1}, "page_size"),
        ({"profile_id": "a", "page_token": "cAAA"}, "page_token"),
    ],
)
async def test_a_malformed_request_for_messages_is_refused(
    common: DeliveryStack, fields: dict[str, Any], field: str
) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await common.stub.ListProfileMessages(look_ups_pb2.ListProfileMessagesRequest(**fields))

    assert problem.fields == [field]


# GetKpiBreakdown.


async def breakdown(
    stack: DeliveryStack, delivery_id: str, by: int, **fields: Any
) -> look_ups_pb2.GetKpiBreakdownResponse:
    found = await stack.stub.GetKpiBreakdown(
        look_ups_pb2.GetKpiBreakdownRequest(
            delivery_id=delivery_id, by=look_ups_pb2.KpiBreakdownBy.ValueType(by), **fields
        )
    )
    parts = [*found.groups, *([found.other] if found.HasField("other") else [])]
    for name in OUTCOMES:
        assert sum(getattr(part.outcomes, name) for part in parts) == getattr(found.outcomes, name)
    for name in ("pending", "sent", "failed", "canceled"):
        assert sum(getattr(part.statuses, name) for part in parts) == getattr(found.statuses, name)
    assert all(part.volume == sum(getattr(part.outcomes, name) for name in OUTCOMES) for part in parts)
    return found


async def spread(stack: DeliveryStack) -> str:
    """Of 12 recipients at three domains: 4 delivered in one hour, 3 deferred and 2 bounced in the next, 3 relayed."""
    delivery_id = await stack.create()
    domains = ["big.example"] * 6 + ["mid.example"] * 4 + ["small.example", "tiny.example"]
    await stack.add(delivery_id, [pb.NewRecipient(address=f"p{n}@{domain}") for n, domain in enumerate(domains)])
    await stack.confirm(await stack.prepare(delivery_id))
    await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    await stack.apply(
        *(Observed(f"{delivery_id}-{n}", DELIVERED, TIME_US) for n in (1, 2, 3, 4)),
        *(Observed(f"{delivery_id}-{n}", DEFERRED, TIME_US + HOUR_US, SOFT, 6) for n in (5, 6, 7)),
        *(Observed(f"{delivery_id}-{n}", BOUNCED, TIME_US + HOUR_US, HARD, 2) for n in (8, 9)),
    )
    return delivery_id


async def test_kpis_by_recipient_domain_add_up_to_the_delivery(common: DeliveryStack) -> None:
    delivery_id = await spread(common)

    found = await breakdown(common, delivery_id, DOMAIN)
    largest = await breakdown(common, delivery_id, DOMAIN, groups_max=1)

    kpis = await common.kpis(delivery_id)
    assert (found.outcomes, found.revision, found.resume_token) == (kpis.outcomes, kpis.revision, kpis.resume_token)
    assert found.statuses == kpis.with_efs.statuses
    volumes = [(group.recipient_domain, group.volume) for group in found.groups]
    assert volumes == [("big.example", 6), ("mid.example", 4), ("small.example", 1), ("tiny.example", 1)]
    assert found.groups[0].outcomes == kpis_pb2.OutcomeCounts(delivered=4, deferred=2)
    assert found.groups[0].statuses == kpis_pb2.StatusCounts(sent=4, failed=2)
    assert not found.HasField("other")
    assert [group.recipient_domain for group in largest.groups] == ["big.example"]
    assert (largest.other_groups, largest.other.volume) == (3, 6)
    assert largest.other.WhichOneof("key") is None


async def test_kpis_by_reason_hide_what_the_mode_hides(common: DeliveryStack) -> None:
    delivery_id = await spread(common)

    shown = await breakdown(common, delivery_id, REASON)
    hidden = await breakdown(common, delivery_id, REASON, feedback_mode=delivery_pb2.FEEDBACK_MODE_WITHOUT_EFS)

    assert [(group.reason, group.volume) for group in shown.groups] == [(0, 7), (6, 3), (2, 2)]
    assert [(group.reason, group.volume) for group in hidden.groups] == [(0, 10), (2, 2)]
    assert shown.groups[0].WhichOneof("key") is None
    assert hidden.statuses == (await common.kpis(delivery_id)).without_efs.statuses


async def test_kpis_by_hour_are_in_the_order_of_time_and_what_has_not_left_has_none(common: DeliveryStack) -> None:
    ready = await common.ready(2)
    delivery_id = await spread(common)

    before = await breakdown(common, ready.delivery_id, HOUR)
    found = await breakdown(common, delivery_id, HOUR)

    assert [(group.WhichOneof("key"), group.volume) for group in before.groups] == [(None, 2)]
    hours = [(group.hour_start_time.ToMicroseconds(), group.volume) for group in found.groups]
    begin = TIME_US - TIME_US % HOUR_US
    relayed_us = 1_800_000_000_000_000 - 1_800_000_000_000_000 % HOUR_US  # by the double's clock
    assert hours == [(begin, 4), (begin + HOUR_US, 5), (relayed_us, 3)]
    assert datetime.fromtimestamp(begin / 1e6, UTC).minute == 0


async def test_break_downs_of_a_moving_delivery_still_add_up(common: DeliveryStack) -> None:
    delivery_id = await common.sent(3_000)
    running = True

    async def change() -> None:
        for n in range(12):
            await common.apply(
                *(Observed(f"{delivery_id}-{r}", DEFERRED, TIME_US + n, SOFT) for r in range(n + 1, 3_000, 17)),
                *(Observed(f"{delivery_id}-{r}", DELIVERED, TIME_US) for r in range(n + 1, 3_000, 29)),
            )

    async def look() -> int:
        seen = set()
        while running:
            seen.add((await breakdown(common, delivery_id, DOMAIN)).revision)  # asserts that it adds up
        return len(seen)

    looking = asyncio.create_task(look())
    await change()
    running = False
    assert await looking > 2


async def test_an_empty_delivery_has_no_groups(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE"):
        await breakdown(common, delivery_id, DOMAIN)
    await common.add(delivery_id, [pb.NewRecipient(address="")])
    await common.prepare(delivery_id)

    found = await breakdown(common, delivery_id, DOMAIN)

    assert len(found.groups) == 0
    assert not found.HasField("other")


async def test_one_break_down_of_a_delivery_runs_at_a_time(common: DeliveryStack) -> None:
    delivery_id = await common.sent(2)
    async with connected(common.dsn) as connection, connection.transaction():
        await connection.execute(
            "select pg_advisory_xact_lock(hashtextextended('kpi_breakdown', $1))", int(delivery_id)
        )
        async with refused(grpc.StatusCode.ABORTED, "ALREADY_RUNNING"):
            await breakdown(common, delivery_id, DOMAIN)
    await breakdown(common, delivery_id, DOMAIN)


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"by": 0}, "by"), ({"by": 9}, "by"), ({"groups_max": -1}, "groups_max"), ({"feedback_mode": 9}, "feedback_mode")],
)
async def test_a_malformed_break_down_is_refused(common: DeliveryStack, fields: dict[str, Any], field: str) -> None:
    delivery_id = await common.sent(1)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        request = look_ups_pb2.GetKpiBreakdownRequest(**{"delivery_id": delivery_id, "by": DOMAIN, **fields})
        await common.stub.GetKpiBreakdown(request)

    assert problem.fields == [field]


async def test_the_number_of_groups_is_bounded(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, breakdown_groups_max=3, breakdown_groups_default=2) as stack:
        delivery_id = await spread(stack)
        assert len((await breakdown(stack, delivery_id, DOMAIN)).groups) == 2
        assert len((await breakdown(stack, delivery_id, DOMAIN, groups_max=100)).groups) == 3


# Tracking.


async def events(stack: DeliveryStack, delivery_id: str, **fields: Any) -> list[look_ups_pb2.TrackingEvent]:
    """All pages."""
    found: list[look_ups_pb2.TrackingEvent] = []
    token, pages = "", 0
    while True:
        request = look_ups_pb2.ListTrackingEventsRequest(
            **{"delivery_id": delivery_id, "page_size": 3, "page_token": token, **fields}
        )
        page = await stack.stub.ListTrackingEvents(request)
        assert len(page.events) <= request.page_size
        found += page.events
        token, pages = page.next_page_token, pages + 1
        assert pages < 100
        if not token:
            return found


async def track(stack: DeliveryStack, delivery_id: str) -> None:
    """Six recipients who do something, everything reported three times in three orders."""
    facts = [
        *(Fact(f"{delivery_id}-{n}", OPEN, TIME_US + n) for n in (1, 2, 3)),
        Fact(f"{delivery_id}-1", OPEN, TIME_US + 100),
        *(Fact(f"{delivery_id}-2", CLICK, TIME_US + 100, f"https://example.com/{n}") for n in range(4)),
        Fact(f"{delivery_id}-4", CLICK, TIME_US + 100, "https://example.com/0"),
        *(Fact(f"{delivery_id}-{n}", UNSUBSCRIBE, TIME_US) for n in (1, 5)),
        Fact(f"{delivery_id}-5", UNSUBSCRIBE, TIME_US + 1),
        *(Fact(f"{delivery_id}-6", COMPLAINT, TIME_US + n) for n in range(3)),
    ]
    for repetition in (facts, facts[::-1], facts[5:] + facts[:5]):
        await stack.track(*repetition)


@pytest.mark.parametrize("scanned", [2, 20_000])
async def test_tracking_events_are_listed_once_each_by_kind_and_recipient(
    database: str, tmp_path: Path, scanned: int
) -> None:
    async with delivery_stack(database, tmp_path, rows_scanned_per_page_max=scanned) as stack:
        delivery_id = await stack.sent(7)
        await track(stack, delivery_id)

        everything = await events(stack, delivery_id)
        clicks = await events(stack, delivery_id, kinds=[CLICK])
        of_one = await events(stack, delivery_id, recipient=1)
        both = await events(stack, delivery_id, recipient=5, kinds=[UNSUBSCRIBE, COMPLAINT])
        nothing = await events(stack, delivery_id, recipient=7)
        none_at_all = await events(stack, await stack.create())

    assert len(everything) == 15
    order = [(e.recipient, e.kind, e.event_time.ToMicroseconds()) for e in everything]
    assert order == sorted(order)
    assert [(e.recipient, e.url[-1]) for e in clicks if e.recipient == 4] == [(4, "0")]
    assert sorted(e.url[-1] for e in clicks if e.recipient == 2) == ["0", "1", "2", "3"]
    assert [(e.kind, e.event_time.ToMicroseconds()) for e in of_one] == [
        (OPEN, TIME_US + 1),
        (OPEN, TIME_US + 100),
        (UNSUBSCRIBE, TIME_US),
    ]
    assert len(both) == 2
    assert (nothing, none_at_all) == ([], [])


async def test_opens_clicks_unsubscribes_and_complaints_are_counted_exactly_under_repetition(
    common: DeliveryStack,
) -> None:
    delivery_id = await common.sent(8)
    await common.apply(*(Observed(f"{delivery_id}-{n}", DELIVERED, TIME_US) for n in (1, 2, 5, 7)))
    await common.apply(Observed(f"{delivery_id}-6", BOUNCED, TIME_US, HARD))
    await track(common, delivery_id)

    await common.stub.ComputeStatistics(pb.ComputeStatisticsRequest(delivery_id=delivery_id))

    kpis = await common.kpis(delivery_id)
    totals = kpis.engagement
    assert (totals.opened, totals.opens) == (4, 4)  # recipient 4 only clicked, which implies an open
    assert (totals.clicked, totals.clicks) == (2, 5)
    assert (totals.unsubscribed, totals.unsubscribes) == (2, 3)
    assert (totals.complained, totals.complaints) == (1, 3)
    assert totals.HasField("as_of_time")

    def rates(mode: kpis_pb2.KpiProjection) -> list[tuple[int, int]]:
        return [(r.count, r.base) for r in (mode.opened, mode.clicked, mode.unsubscribed, mode.complained)]

    assert rates(kpis.with_efs) == [(2, 4), (1, 4), (2, 4), (0, 4)]
    assert rates(kpis.without_efs) == [(4, 7), (2, 7), (2, 7), (0, 7)]


async def test_live_engagement_follows_each_fact(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, engagement_refresh_seconds=0) as stack:
        delivery_id = await stack.sent(3)

        async def reached(unsubscribed: int) -> None:
            async with asyncio.timeout(60):
                call: Any = stack.stub.WatchKpis(pb.WatchKpisRequest(delivery_ids=[delivery_id]))
                async for response in call:
                    if response.kpis.engagement.unsubscribed == unsubscribed:
                        call.cancel()
                        return

        await stack.track(Fact(f"{delivery_id}-1", UNSUBSCRIBE, TIME_US))
        await reached(1)
        await stack.track(
            Fact(f"{delivery_id}-2", UNSUBSCRIBE, TIME_US), Fact(f"{delivery_id}-1", UNSUBSCRIBE, TIME_US)
        )
        await reached(2)


async def test_rates_follow_the_delivered_also_when_nobody_opens(database: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"engagement_refresh_seconds": 0, "engagement_check_seconds": 0.05}
    async with delivery_stack(database, tmp_path, **settings) as stack:
        delivery_id = await stack.sent(4)
        await stack.apply(Observed(f"{delivery_id}-1", DELIVERED, TIME_US))
        await stack.track(Fact(f"{delivery_id}-1", OPEN, TIME_US))

        async def opened(count: int, base: int) -> bool:
            rate = (await stack.kpis(delivery_id)).with_efs.opened
            return (rate.count, rate.base) == (count, base)

        await eventually(lambda: opened(1, 1))
        await stack.apply(*(Observed(f"{delivery_id}-{n}", DELIVERED, TIME_US) for n in (2, 3)))
        await eventually(lambda: opened(1, 3))
        await stack.apply(Observed(f"{delivery_id}-1", BOUNCED, TIME_US, HARD))
        await eventually(lambda: opened(0, 2))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"kinds": [0]}, "kinds[0]"),
        ({"kinds": [OPEN, 1]}, "kinds[1]"),
        ({"recipient": 2**31}, "recipient"),
        ({"page_token": "x"}, "page_token"),
        ({"page_size": -1}, "page_size"),
    ],
)
async def test_a_malformed_request_for_tracking_events_is_refused(
    common: DeliveryStack, fields: dict[str, Any], field: str
) -> None:
    delivery_id = await common.create()
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await common.stub.ListTrackingEvents(
            look_ups_pb2.ListTrackingEventsRequest(**{"delivery_id": delivery_id, **fields})
        )

    assert problem.fields == [field]
