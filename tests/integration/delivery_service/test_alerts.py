"""Alerts of running deliveries: raised once a day, listed, watched, posted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web

from campaign.delivery.v1 import alert_pb2, delivery_pb2, send_log_pb2
from tests.support.clock import SetClock
from tests.support.delivery_stack import DeliveryStack, Observed, delivery_stack
from tests.support.eventually import eventually
from tests.support.statuses import refused

START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
QUICK: dict[str, Any] = {
    "alert_check_seconds": 0.02,
    "alert_poll_seconds": 0.02,
    "alert_sample_min": 1,
    "alert_webhook_retry_seconds": 0.01,
}
FAILED_DRAFT = delivery_pb2.Content(html="<p>no subject</p>", from_address="news@example.com")


async def listed(stack: DeliveryStack, **fields: Any) -> list[alert_pb2.Alert]:
    return list((await stack.stub.ListAlerts(alert_pb2.ListAlertsRequest(**fields))).alerts)


async def raised(stack: DeliveryStack, number: int) -> list[alert_pb2.Alert]:
    """That many alerts, the newest first."""

    async def enough() -> list[alert_pb2.Alert] | None:
        found = await listed(stack)
        return found if len(found) >= number else None

    found: list[alert_pb2.Alert] = await eventually(enough)
    assert len(found) == number
    return found


class Webhook:
    """Takes what is posted, after refusing the first few."""

    def __init__(self, refuse: int) -> None:
        self.refuse = refuse
        self.posts: list[dict[str, Any]] = []
        self.tokens: list[str] = []

    async def take(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers.get("Authorization", ""))
        if self.refuse:
            self.refuse -= 1
            return web.Response(status=503)
        self.posts.append(await request.json())
        return web.Response()


@asynccontextmanager
async def webhook(refuse: int = 0) -> AsyncIterator[tuple[Webhook, str]]:
    hook = Webhook(refuse)
    application = web.Application()
    application.router.add_post("/alerts", hook.take)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        yield hook, f"http://{host}:{port}/alerts"
    finally:
        await runner.cleanup()


async def test_an_alert_is_raised_once_a_day_whatever_the_replicas(database: str, tmp_path: Path) -> None:
    clock = SetClock(START)
    async with (
        delivery_stack(database, tmp_path / "one", clock=clock, **QUICK) as one,
        delivery_stack(database, tmp_path / "two", clock=clock, mta=one.mta, **QUICK),
    ):
        delivery_id = await one.sent(4)
        await one.apply(Observed(f"{delivery_id}-1", send_log_pb2.OUTCOME_BOUNCED, failure_type=2, reason=2))
        (alert,) = await raised(one, 1)
        assert (alert.delivery_id, alert.label, alert.cause) == (
            delivery_id,
            "a test",
            alert_pb2.ALERT_CAUSE_HARD_BOUNCES,
        )
        assert alert.detail == "1 of 4 bounced hard: the limit is 5.00%"
        await one.apply(Observed(f"{delivery_id}-2", send_log_pb2.OUTCOME_DEFERRED, failure_type=1, reason=3))
        assert (await raised(one, 2))[0].cause == alert_pb2.ALERT_CAUSE_SOFT_BOUNCES

        clock.set(START + timedelta(days=1))
        again = await raised(one, 4)
        assert sorted(a.cause for a in again[:2]) == [
            alert_pb2.ALERT_CAUSE_SOFT_BOUNCES,
            alert_pb2.ALERT_CAUSE_HARD_BOUNCES,
        ]


async def test_a_failed_preparation_and_a_send_that_does_not_start_are_told(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, alert_start_pending_seconds=0.01, **QUICK) as stack:
        delivery_id = await stack.create(content=FAILED_DRAFT)
        await stack.prepare(delivery_id)
        (alert,) = await raised(stack, 1)
        assert (alert.delivery_id, alert.cause) == (delivery_id, alert_pb2.ALERT_CAUSE_PREPARATION_FAILED)
        assert await listed(stack, delivery_id=delivery_id) == [alert]
        assert await listed(stack, delivery_id=await stack.create()) == []


async def test_a_watch_tells_each_alert_once_and_goes_on_where_it_was_cut(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, watch_heartbeat_seconds=0.05, **QUICK) as stack:
        await stack.prepare(await stack.create(content=FAILED_DRAFT))
        (first,) = await raised(stack, 1)

        async def next_of(call: Any) -> alert_pb2.Alert:
            while True:
                response = await call.read()
                if response.alerts:
                    assert len(response.alerts) == 1
                    alert: alert_pb2.Alert = response.alerts[0]
                    return alert
                assert response.HasField("heartbeat_time")

        call: Any = stack.stub.WatchAlerts(alert_pb2.WatchAlertsRequest())
        assert await next_of(call) == first
        await stack.prepare(await stack.create(content=FAILED_DRAFT))
        second = await next_of(call)
        assert second.alert_id > first.alert_id
        call.cancel()

        again: Any = stack.stub.WatchAlerts(alert_pb2.WatchAlertsRequest(after_alert_id=first.alert_id))
        assert await next_of(again) == second
        again.cancel()


async def test_the_webhook_hears_each_alert_until_it_takes_it(database: str, tmp_path: Path) -> None:
    (tmp_path / "webhook.token").write_text("secret\n")
    async with (
        webhook(refuse=2) as (hook, url),
        delivery_stack(
            database,
            tmp_path / "service",
            alert_webhook_url=url,
            alert_webhook_token_file=tmp_path / "webhook.token",
            **QUICK,
        ) as stack,
    ):
        delivery_id = await stack.create(content=FAILED_DRAFT, label="the spring letter")
        await stack.prepare(delivery_id)
        await eventually(lambda: hook.posts)
        (post,) = hook.posts
        (alert,) = await raised(stack, 1)
        assert (post["alert_id"], post["delivery_id"]) == (alert.alert_id, delivery_id)
        assert (post["label"], post["cause"]) == ("the spring letter", "PREPARATION_FAILED")
        assert hook.tokens == ["Bearer secret"] * 3
        await asyncio.sleep(0)
        assert len(hook.posts) == 1


async def test_alerts_are_paged_newest_first(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, **QUICK) as stack:
        for _ in range(3):
            await stack.prepare(await stack.create(content=FAILED_DRAFT))
        everything = await raised(stack, 3)
        page = await stack.stub.ListAlerts(alert_pb2.ListAlertsRequest(page_size=2))
        rest = await stack.stub.ListAlerts(alert_pb2.ListAlertsRequest(page_size=2, page_token=page.next_page_token))
        assert [*page.alerts, *rest.alerts] == everything
        assert not rest.next_page_token
        ids = [alert.alert_id for alert in everything]
        assert ids == sorted(ids, reverse=True)


async def test_the_watchers_of_alerts_are_bounded(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, alert_watchers_max=1, watch_heartbeat_seconds=0.05, **QUICK) as stack:
        first: Any = stack.stub.WatchAlerts(alert_pb2.WatchAlertsRequest())
        assert (await first.read()).HasField("heartbeat_time")
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED"):
            await stack.stub.WatchAlerts(alert_pb2.WatchAlertsRequest()).read()
        first.cancel()


async def test_a_negative_alert_id_is_refused(common: DeliveryStack) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await common.stub.WatchAlerts(alert_pb2.WatchAlertsRequest(after_alert_id=-1)).read()
    assert problem.fields == ["after_alert_id"]


@pytest.mark.parametrize("kept", [True, False])
async def test_alerts_are_forgotten_after_their_time(database: str, tmp_path: Path, kept: bool) -> None:
    clock = SetClock(START)
    async with delivery_stack(database, tmp_path, clock=clock, **QUICK) as stack:
        await stack.prepare(await stack.create(content=FAILED_DRAFT))
        await raised(stack, 1)
        clock.set(START + timedelta(days=29 if kept else 31))
        if kept:
            assert len(await listed(stack)) == 1
        else:

            async def gone() -> bool:
                return not await listed(stack)

            await eventually(gone)
