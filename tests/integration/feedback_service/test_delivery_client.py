"""The stream to DeliveryService, step by step: what the order of events on the loop must not change."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from feedback_service.delivery_client import DeliveryClient
from feedback_service.event_budget import EventBudget
from feedback_service.metrics import FeedbackMetrics
from feedback_service.observation_batch import ClientBatch
from feedback_service.settings import Settings
from service_runtime.client import StaticToken, open_channel
from tests.support.clock import ManualClock
from tests.support.eventually import eventually
from tests.support.feedback_stack import delivered
from tests.support.observation_double import ObservationDouble


@pytest.fixture
async def delivery() -> AsyncIterator[ObservationDouble]:
    double = ObservationDouble()
    await double.start()
    yield double
    double.acking.set()
    await double.stop()


@pytest.mark.parametrize("steps", range(8))
async def test_a_stop_that_meets_the_end_of_the_stream_is_a_stop(
    delivery: ObservationDouble, tmp_path: Path, steps: int
) -> None:
    files = {"token_file": tmp_path, "jwt_public_key_file": tmp_path}
    settings = Settings(**files, flush_interval_ms=1, source_report_seconds=1_000)  # type: ignore[arg-type]
    clock = ManualClock()

    async def ignore(_: bool) -> None: ...

    budget = EventBudget(1_000)
    client = DeliveryClient(
        settings,
        lambda: open_channel(delivery.target, None),
        StaticToken("token"),
        budget,
        FeedbackMetrics(CollectorRegistry()),
        clock,
        random.random,
        replica_id="replica",
        on_connection=ignore,
        on_outdated=lambda: None,
    )
    delivery.acking.clear()
    running = asyncio.create_task(client.run())
    await eventually(lambda: client.is_connected)
    assert budget.take_now("mta", 1)
    client.add(ClientBatch("mta", 1, 1, lambda _: None), delivered("a"))
    await clock.advance(0.001)
    await eventually(lambda: delivery.received == ["a"])

    # The client gives the stream up, an error in its task group, and is told to stop some steps of the loop later.
    advancing = asyncio.create_task(clock.advance(2 * settings.ack_seconds_max))
    await eventually(lambda: clock.monotonic() > settings.ack_seconds_max, interval_seconds=0)
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait((running,), timeout=60)
    advancing.cancel()
    assert done, "the cancellation was lost: the client streams on"
    assert running.cancelled()
