"""kill -9 at the worst moments: after a restart the result equals the truth, and no one was written to twice."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from delivery_service.store.migrate import migrate
from service_runtime.embedded_postgres import DURABLE, EmbeddedPostgres, PostgresUnavailable
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.process_stack import MISBEHAVIOUR, ProcessStack, process_stack

pytestmark = pytest.mark.timeout(600)

RECIPIENTS = 6_000


async def test_feedback_service_killed_in_mid_stream_loses_nothing(stack: ProcessStack) -> None:
    delivery = await stack.prepared(RECIPIENTS)
    await stack.confirm(delivery)
    for reported in (500, 2_000, 4_000):
        await stack.until(delivery.delivery_id, reported=reported)
        await stack.kill("feedback_service")
        await stack.start("feedback_service")

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


async def test_postgres_killed_in_mid_run_is_waited_for(folder: Path, tmp_path: Path) -> None:
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
