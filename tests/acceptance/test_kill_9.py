"""kill -9 at the worst moments: after a restart the result equals the truth, and no one was written to twice."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from campaign.delivery.v1 import delivery_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service.store.migrate import migrate
from service_runtime.embedded_postgres import DURABLE, EmbeddedPostgres, PostgresUnavailable
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.process_stack import ProcessStack, process_stack

pytestmark = pytest.mark.timeout(600)

RECIPIENTS = 6_000
MISBEHAVIOUR = (
    *("--duplicates", "0.05", "--reorder", "--cut-streams", "15", "--unknown-messages", "0.002"),
    *("--malformed", "0.002", "--try-later", "0.01", "--time-scale", "0.3"),
)


@pytest.fixture
async def stack(database: str, tmp_path: Path) -> AsyncIterator[ProcessStack]:
    async with process_stack(tmp_path, database, *MISBEHAVIOUR, "--delay-acks-ms", "200") as running:
        yield running
    await assert_laws(database)


async def test_feedback_service_killed_in_mid_stream_loses_nothing(stack: ProcessStack) -> None:
    delivery = await stack.prepared(RECIPIENTS)
    await stack.confirm(delivery)
    for reported in (500, 2_000, 4_000):
        await stack.until(delivery.delivery_id, reported=reported)
        await stack.kill("feedback_service")
        await stack.start("feedback_service")

    kpis = await stack.truth_reached(delivery.delivery_id)

    assert kpis.to_deliver == RECIPIENTS


async def test_delivery_service_killed_in_mid_relay_and_mid_apply_loses_nothing_and_sends_nothing_twice(
    stack: ProcessStack,
) -> None:
    delivery = await stack.prepared(RECIPIENTS)
    await stack.confirm(delivery)
    for handed_over in (1, 1_500, 3_000):
        await stack.until(delivery.delivery_id, handed_over=handed_over)
        await stack.kill("delivery_service")
        await stack.start("delivery_service")
    await stack.until(delivery.delivery_id, reported=4_000)
    await stack.kill("delivery_service")
    await stack.start("delivery_service")

    kpis = await stack.truth_reached(delivery.delivery_id)

    assert kpis.to_deliver == RECIPIENTS


async def test_both_services_killed_at_once_come_back_to_the_truth(stack: ProcessStack) -> None:
    delivery = await stack.prepared(RECIPIENTS)
    await stack.confirm(delivery)
    await stack.until(delivery.delivery_id, handed_over=2_000, reported=500)
    await stack.kill("delivery_service")
    await stack.kill("feedback_service")
    await stack.start("feedback_service")
    await stack.start("delivery_service")

    await stack.truth_reached(delivery.delivery_id)


async def test_a_stop_whose_service_is_killed_cancels_exactly_what_never_left(database: str, tmp_path: Path) -> None:
    """Killed right after it has answered, and again in mid-closing: messages were on their way both times."""
    one_part = {"DELIVERY_RELAY_PARTS_IN_FLIGHT_MAX": "1"}
    async with process_stack(tmp_path, database, *MISBEHAVIOUR, **one_part) as stack:
        delivery = await stack.prepared(20_000)
        delivery_id = delivery.delivery_id
        await stack.confirm(delivery)
        await stack.until(delivery_id, handed_over=2_000)

        await stack.stub.StopDelivery(pb.StopDeliveryRequest(delivery_id=delivery_id))
        await stack.kill("delivery_service")
        await stack.start("delivery_service")
        await stack.kill("delivery_service")
        await stack.start("delivery_service")

        async def decided() -> bool:
            stopped = await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_STOPPED)
            outcomes = (await stack.kpis(delivery_id)).outcomes
            assert stack.truth is not None
            assert stack.truth.idle
            assert stack.truth.answered == 20_000 - outcomes.canceled
            counted = {field.name: getattr(outcomes, field.name) for field in outcomes.DESCRIPTOR.fields}
            told = stack.truth.outcomes
            assert {**counted, "canceled": 0} == {**told, "canceled": 0}
            assert told["canceled"] <= counted["canceled"]  # withdrawn: some of those that never left
            assert counted["prepared"] == 0
            return stopped.stop.complete

        await eventually(decided)
        assert stack.truth is not None
        assert stack.truth.duplicates_sent == 0
        assert stack.truth.answered < 20_000
    await assert_laws(database)


async def test_delivery_service_killed_while_preparing_ends_in_the_same_plan(database: str, tmp_path: Path) -> None:
    small_steps = {"DELIVERY_PREPARATION_RECIPIENTS_PER_STEP": "1024"}
    async with process_stack(tmp_path, database, **small_steps) as stack:
        plain = await stack.prepared(40_000)
        await stack.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=plain.delivery_id))
        await stack.kill("delivery_service")
        await stack.start("delivery_service")
        again = await stack.in_state(plain.delivery_id, delivery_pb2.DELIVERY_STATE_READY)

        assert again.plan.plan_digest == plain.plan.plan_digest
        assert again.plan.to_deliver == 40_000
    await assert_laws(database)


async def test_postgres_killed_in_mid_run_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    with ExitStack() as exits:
        postgres = exits.enter_context(EmbeddedPostgres(folder, DURABLE))
        await migrate(postgres.dsn)
        async with process_stack(tmp_path, postgres.dsn, *MISBEHAVIOUR) as stack:
            delivery = await stack.prepared(RECIPIENTS)
            await stack.confirm(delivery)
            await stack.until(delivery.delivery_id, handed_over=1_000, reported=200)

            _kill_postgres(folder)
            exits.close()
            await stack.healthy(serving=False)
            again = await eventually(lambda: _started_again(exits, folder), timeout_seconds=90)

            assert again.dsn == postgres.dsn
            await stack.healthy(serving=True)
            await stack.truth_reached(delivery.delivery_id)
        await assert_laws(again.dsn)


def _kill_postgres(folder: Path) -> None:
    postmaster = int((folder / "cluster" / "postmaster.pid").read_text().splitlines()[0])
    os.kill(postmaster, signal.SIGKILL)


def _started_again(exits: ExitStack, folder: Path) -> EmbeddedPostgres | None:
    try:
        return exits.enter_context(EmbeddedPostgres(folder, DURABLE))
    except PostgresUnavailable:  # the killed server's children still hold its shared memory
        return None
