"""Pause, Resume and Stop while messages leave: what has left is told truly, and nothing else ever leaves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from campaign.delivery.v1 import before_the_send_pb2, delivery_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.mta.v1 import relay_service_pb2 as relay_pb
from delivery_service.domain.lifecycle import TRANSITIONS, Command, DeliveryState
from delivery_service.store.control import Control
from delivery_service.workers.relay import RelayWorker
from tests.support.delivery_stack import DeliveryStack, Observed, delivery_stack
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.mta_side import ACCEPT, LATER, Answer, MtaSide
from tests.support.postgres import connected
from tests.support.statuses import refused

State = delivery_pb2.DeliveryState
IN_PROGRESS, PAUSED = delivery_pb2.DELIVERY_STATE_IN_PROGRESS, delivery_pb2.DELIVERY_STATE_PAUSED
STOPPED, FINISHED = delivery_pb2.DELIVERY_STATE_STOPPED, delivery_pb2.DELIVERY_STATE_FINISHED
PART = 1_024


async def pause(stack: DeliveryStack, delivery_id: str) -> pb.PauseDeliveryResponse:
    return await stack.stub.PauseDelivery(pb.PauseDeliveryRequest(delivery_id=delivery_id))


async def resume(stack: DeliveryStack, delivery_id: str) -> pb.ResumeDeliveryResponse:
    return await stack.stub.ResumeDelivery(pb.ResumeDeliveryRequest(delivery_id=delivery_id))


async def stop(stack: DeliveryStack, delivery_id: str) -> delivery_pb2.Delivery:
    return (await stack.stub.StopDelivery(pb.StopDeliveryRequest(delivery_id=delivery_id))).delivery


async def stopped_wholly(stack: DeliveryStack, delivery_id: str) -> delivery_pb2.Delivery:
    """Waits until everything of a stopped delivery is decided."""

    async def complete() -> delivery_pb2.Delivery | None:
        delivery = await stack.delivery(delivery_id)
        return delivery if delivery.stop.complete else None

    delivery = await eventually(complete)
    assert delivery is not None
    return delivery


async def nothing_claimed(stack: DeliveryStack, delivery_id: str) -> None:
    async def free() -> bool:
        async with connected(stack.dsn) as connection:
            held = "select count(*) from relay_part where delivery_id = $1 and lease_holder <> ''"
            return bool(await connection.fetchval(held, int(delivery_id)) == 0)

    await eventually(free)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[RelayWorker]:
    """Grows with every look at the states of what is being relayed."""
    ended: list[RelayWorker] = []
    look_at_states = RelayWorker.look_at_states

    async def counted(self: RelayWorker) -> bool:
        again = await look_at_states(self)
        ended.append(self)
        return again

    monkeypatch.setattr(RelayWorker, "look_at_states", counted)
    return ended


async def looked(looks: list[RelayWorker]) -> None:
    """Waits until a look that begins now has ended."""
    until = len(looks) + 2
    await eventually(lambda: len(looks) >= until)


@asynccontextmanager
async def leaving(
    database: str, folder: Path, recipients: int, **settings: Any
) -> AsyncIterator[tuple[DeliveryStack, str]]:
    """A delivery of which two parts are at the MTA side, which doesn't answer until `mta.open` is set."""
    async with delivery_stack(database, folder, relay_parts_in_flight_max=2, **settings) as stack:
        delivery = await stack.ready(recipients)
        parts = min(2, recipients // PART + 1)
        stack.mta.open.clear()
        await stack.confirm(delivery)
        await eventually(lambda: stack.mta.batches_waiting > 0)

        async def both_claimed() -> bool:
            async with connected(database) as connection:
                held = await connection.fetchval("select count(*) from relay_part where lease_holder <> ''")
                return bool(held == parts)

        await eventually(both_claimed)
        try:
            yield stack, delivery.delivery_id
        finally:
            stack.mta.open.set()
    await assert_laws(database)


def accepted_by(mta: MtaSide) -> set[str]:
    return {
        message_id
        for message_id, (answer, _) in mta.journal.items()
        if answer.verdict == relay_pb.RELAY_VERDICT_ACCEPTED
    }


async def test_a_pause_lets_nothing_leave_but_what_is_in_flight_and_resume_goes_on(
    database: str, tmp_path: Path
) -> None:
    async with leaving(database, tmp_path, 5_000) as (stack, delivery_id):
        paused = await pause(stack, delivery_id)
        assert (paused.delivery.state, paused.in_flight_count) == (PAUSED, 2 * PART - 1)  # recipients begin at 1

        stack.mta.open.set()
        await nothing_claimed(stack, delivery_id)
        left = (await stack.kpis(delivery_id)).outcomes.relayed
        assert 0 < left <= paused.in_flight_count
        assert len(stack.mta.journal) == left
        again = await pause(stack, delivery_id)
        assert (again.delivery, again.in_flight_count) == (await stack.delivery(delivery_id), 0)

        assert (await resume(stack, delivery_id)).delivery.state == IN_PROGRESS
        await stack.in_state(delivery_id, FINISHED)
        assert len(accepted_by(stack.mta)) == 5_000
        assert max(stack.mta.addresses.values()) == 1


async def test_what_is_claimed_after_a_resume_leaves_at_once(
    database: str, tmp_path: Path, looks: list[RelayWorker]
) -> None:
    """A worker that has nothing in flight any more doesn't go on taking the delivery for a paused one."""
    async with leaving(database, tmp_path, 5_000) as (stack, delivery_id):
        await pause(stack, delivery_id)
        await looked(looks)
        stack.mta.open.set()
        await nothing_claimed(stack, delivery_id)
        await resume(stack, delivery_id)
        await stack.in_state(delivery_id, FINISHED)
        async with connected(database) as connection:
            claims = await connection.fetch("select claim_count from relay_part where part >= 2")
        assert [row["claim_count"] for row in claims] == [1, 1, 1]


async def test_batches_that_wait_for_the_stream_do_not_leave_after_a_pause(
    database: str, tmp_path: Path, looks: list[RelayWorker]
) -> None:
    """The MTA side reads no further than it can take: most of what is in flight has not been written yet."""
    async with leaving(database, tmp_path, 2_000, relay_batch_size_max=20) as (stack, delivery_id):
        paused = await pause(stack, delivery_id)
        await looked(looks)

        stack.mta.open.set()
        await nothing_claimed(stack, delivery_id)

        # A part of which nothing had been written may have been given up before it was counted.
        assert len(stack.mta.journal) <= paused.in_flight_count <= 2_000
        assert (await stack.kpis(delivery_id)).outcomes.relayed == len(stack.mta.journal) < 2_000
        await resume(stack, delivery_id)
        await stack.in_state(delivery_id, FINISHED)


async def test_pause_and_resume_are_seen_by_watchers(stack: DeliveryStack) -> None:
    stack.mta.decide = lambda _: LATER
    delivery = await stack.ready(3)
    await stack.confirm(delivery)
    await stack.in_state(delivery.delivery_id, IN_PROGRESS)
    watch: Any = stack.stub.WatchKpis(pb.WatchKpisRequest(delivery_ids=[delivery.delivery_id]))
    try:
        seen = [(await watch.read()).kpis.state]
        await pause(stack, delivery.delivery_id)
        seen.append((await watch.read()).kpis.state)
        await resume(stack, delivery.delivery_id)
        seen.append((await watch.read()).kpis.state)
    finally:
        watch.cancel()

    assert seen == [IN_PROGRESS, PAUSED, IN_PROGRESS]


async def test_a_stop_cancels_exactly_what_never_left(database: str, tmp_path: Path) -> None:
    async with leaving(database, tmp_path, 5_000) as (stack, delivery_id):
        stopped = await stop(stack, delivery_id)
        assert (stopped.state, stopped.stop.stopper) == (STOPPED, "tester")
        assert (stopped.stop.in_flight_count, stopped.stop.complete) == (2 * PART - 1, False)

        stack.mta.open.set()
        done = await stopped_wholly(stack, delivery_id)

        left = accepted_by(stack.mta)
        outcomes = (await stack.kpis(delivery_id)).outcomes
        assert (outcomes.relayed, outcomes.canceled, outcomes.prepared) == (len(left), 5_000 - len(left), 0)
        assert 0 < done.stop.left_count == len(left) <= done.stop.in_flight_count
        async with connected(database) as connection:
            rows = await connection.fetch("select recipient from send_log where outcome = 2")
        assert {f"{delivery_id}-{row['recipient']}" for row in rows} == left
        # Only what someone had ever held was asked about.
        assert len(stack.mta.withdrawn) <= 2 * PART - 1
        assert (await stop(stack, delivery_id)) == done


async def test_what_is_claimed_to_be_closed_is_not_in_flight(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The closing worker may be quicker than the count that the answer gives."""
    in_flight = Control.in_flight

    async def late(self: Control, delivery_id: int) -> int:
        async def all_claimed() -> bool:
            async with connected(database) as connection:
                return bool(await connection.fetchval("select bool_and(lease_holder <> '') from relay_part"))

        await eventually(all_claimed)
        return await in_flight(self, delivery_id)

    async with leaving(database, tmp_path, 5_000) as (stack, delivery_id):
        # Two parts that were claimed before, so that the MTA side, which does not answer, is asked about them.
        async with connected(database) as connection:
            await connection.execute("update relay_part set claim_count = 1 where part > 1")
        monkeypatch.setattr(Control, "in_flight", late)
        stopped = await stop(stack, delivery_id)
        # The part that waits for the stream may have been given up by then, and be one of those claimed to be closed.
        assert stopped.stop.in_flight_count in (PART - 1, 2 * PART - 1)
        stack.mta.open.set()
        await stopped_wholly(stack, delivery_id)


async def test_a_proof_that_was_in_flight_is_not_told_among_what_left_after_a_stop(stack: DeliveryStack) -> None:
    stack.mta.decide = lambda _: LATER
    delivery = await stack.ready(3)
    await stack.confirm(delivery)
    await stack.in_state(delivery.delivery_id, IN_PROGRESS)
    profile = before_the_send_pb2.TestProfile(profile_id="colleague", address="proof@example.com")
    proof = before_the_send_pb2.SendProofRequest(delivery_id=delivery.delivery_id, test_profiles=[profile])
    (sent,) = (await stack.stub.SendProof(proof)).proofs
    # The MTA side had taken it, and reports on it after the stop: while the messages are still to be withdrawn.
    stack.mta.open.clear()
    await stop(stack, delivery.delivery_id)
    assert not (await stack.apply(Observed(sent.message_id, send_log_pb2.OUTCOME_DELIVERED))).rejections
    stack.mta.open.set()

    done = await stopped_wholly(stack, delivery.delivery_id)
    assert (await stack.kpis(delivery.delivery_id)).outcomes.canceled == 3
    assert done.stop.left_count == 0


async def test_a_stop_before_anything_was_claimed_asks_the_mta_side_nothing(stack: DeliveryStack) -> None:
    delivery = await stack.ready(3_000)
    async with connected(stack.dsn) as connection:
        await connection.execute("update delivery set state = 5 where delivery_id = $1", int(delivery.delivery_id))
        # No confirmation is there for the start worker to start by.
    await stop(stack, delivery.delivery_id)
    done = await stopped_wholly(stack, delivery.delivery_id)

    assert stack.mta.withdrawn == {}
    assert (await stack.kpis(delivery.delivery_id)).outcomes.canceled == 3_000
    assert done.HasField("settled_time")  # nothing left: nothing to wait for


async def test_messages_that_were_put_off_are_withdrawn_and_canceled(stack: DeliveryStack) -> None:
    stack.mta.decide = lambda message: LATER if message.message_id.endswith("7") else ACCEPT
    delivery = await stack.ready(100)
    await stack.confirm(delivery)

    async def rest_relayed() -> bool:
        return (await stack.kpis(delivery.delivery_id)).outcomes.relayed == 90

    await eventually(rest_relayed)
    await stop(stack, delivery.delivery_id)
    done = await stopped_wholly(stack, delivery.delivery_id)

    outcomes = (await stack.kpis(delivery.delivery_id)).outcomes
    assert (outcomes.relayed, outcomes.canceled) == (90, 10)
    assert done.stop.left_count == 0
    # The MTA side has it in writing: nobody can make them leave any more.
    withdrawn = [
        answer for answer, _ in stack.mta.journal.values() if answer.verdict == relay_pb.RELAY_VERDICT_WITHDRAWN
    ]
    assert len(withdrawn) == 10


async def test_an_mta_side_that_decides_nothing_about_a_withdrawal_is_asked_again_later(
    database: str, tmp_path: Path
) -> None:
    async with delivery_stack(database, tmp_path, relay_retry_seconds=0.5) as stack:
        stack.mta.decide = lambda _: LATER
        stack.mta.decides_withdrawals = False
        delivery = await stack.ready(100)
        first = f"{delivery.delivery_id}-1"
        await stack.confirm(delivery)
        await eventually(lambda: stack.mta.relayed[first])
        await stop(stack, delivery.delivery_id)

        now = asyncio.get_running_loop().time
        begun = await eventually(lambda: now() if stack.mta.withdrawn[first] else None)
        await eventually(lambda: stack.mta.withdrawn[first] >= 4)
        assert now() - begun > 2 * 0.5
        assert not (await stack.delivery(delivery.delivery_id)).stop.complete
        stack.mta.decides_withdrawals = True
        await stopped_wholly(stack, delivery.delivery_id)
        assert (await stack.kpis(delivery.delivery_id)).outcomes.canceled == 100


async def test_a_token_file_that_is_empty_for_a_moment_holds_a_stop_up_and_ends_nothing(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with delivery_stack(database, tmp_path) as stack:
        stack.mta.decide = lambda _: LATER
        delivery = await stack.ready(10)
        await stack.confirm(delivery)
        await eventually(lambda: stack.mta.relayed)
        token = (tmp_path / "relay.token").read_text()
        (tmp_path / "relay.token").write_text("")
        await stop(stack, delivery.delivery_id)
        await eventually(lambda: "closing" in [getattr(record, "worker", "") for record in caplog.records])
        (tmp_path / "relay.token").write_text(token)
        # The part that nobody could ask about is free once its lease has ended.
        async with connected(database) as connection:
            await connection.execute("update relay_part set available_time = now()")
        await stopped_wholly(stack, delivery.delivery_id)


async def test_a_refusal_found_while_stopping_is_a_bounce(database: str, tmp_path: Path) -> None:
    refusal = relay_pb.RelayRefusal(smtp_code=550, diagnostic="no such user")
    async with leaving(database, tmp_path, 10) as (stack, delivery_id):
        stack.mta.decide = lambda _: Answer(relay_pb.RELAY_VERDICT_REFUSED, refusal)
        stack.mta.cuts = 1  # the answer to the hand-over is lost: the withdrawal learns of it
        await stop(stack, delivery_id)
        stack.mta.open.set()
        done = await stopped_wholly(stack, delivery_id)

        assert (await stack.kpis(delivery_id)).outcomes.bounced == 10
        assert done.stop.left_count == 10
        assert (await stack.send_log(delivery_id)).send_log.smtp_code == 550


async def test_a_canceled_message_that_had_left_after_all_tells_the_truth(stack: DeliveryStack) -> None:
    """An MTA side that loses its journal breaks the contract; feedback mends what can be mended."""
    stack.mta.decide = lambda _: LATER
    delivery = await stack.ready(3)
    await stack.confirm(delivery)
    await eventually(lambda: len(stack.mta.relayed) == 3)
    await stop(stack, delivery.delivery_id)
    await stopped_wholly(stack, delivery.delivery_id)

    await stack.apply(Observed(f"{delivery.delivery_id}-2", send_log_pb2.OUTCOME_DELIVERED))

    outcomes = (await stack.kpis(delivery.delivery_id)).outcomes
    assert (outcomes.canceled, outcomes.delivered) == (2, 1)


async def test_while_the_mta_side_is_away_what_may_have_left_stays_undecided(database: str, tmp_path: Path) -> None:
    mta = MtaSide()
    await mta.start()
    try:
        async with delivery_stack(database, tmp_path, mta=mta, withdraw_timeout_seconds=0.2) as stack:
            mta.decide = lambda _: LATER
            delivery = await stack.ready(2_000)
            await stack.confirm(delivery)
            await eventually(lambda: len(mta.relayed) == 2_000)
            await mta.stop()
            await stop(stack, delivery.delivery_id)
            await nothing_claimed(stack, delivery.delivery_id)
            assert not (await stack.delivery(delivery.delivery_id)).stop.complete
            assert (await stack.kpis(delivery.delivery_id)).outcomes.prepared == 2_000

            await mta.start(mta.port)
            await stopped_wholly(stack, delivery.delivery_id)
            assert (await stack.kpis(delivery.delivery_id)).outcomes.canceled == 2_000
    finally:
        await mta.stop()
    await assert_laws(database)


async def test_two_replicas_that_relay_while_a_third_party_stops_send_nothing_twice_and_nothing_late(
    database: str, tmp_path: Path
) -> None:
    """The race that a lease in Postgres cannot win: only the MTA side's journal knows what left."""
    mta = MtaSide()
    await mta.start()
    try:
        async with (
            delivery_stack(database, tmp_path / "a", mta=mta, relay_parts_in_flight_max=2) as one,
            delivery_stack(database, tmp_path / "b", mta=mta, relay_parts_in_flight_max=2) as other,
        ):
            for after in (1, 3_000, 9_000):
                begun = len(mta.journal)
                delivery = await one.ready(20_000)
                await one.confirm(delivery)
                await eventually(lambda begun=begun, after=after: len(mta.journal) >= begun + after)  # type: ignore[misc]
                await stop(other, delivery.delivery_id)
                await stopped_wholly(other, delivery.delivery_id)

                accepted = {i for i in accepted_by(mta) if i.startswith(f"{delivery.delivery_id}-")}
                outcomes = (await one.kpis(delivery.delivery_id)).outcomes
                assert (outcomes.relayed, outcomes.canceled) == (len(accepted), 20_000 - len(accepted))
    finally:
        await mta.stop()
    await assert_laws(database)


_CALLS = {
    Command.PAUSE: lambda stub, i: stub.PauseDelivery(pb.PauseDeliveryRequest(delivery_id=i)),
    Command.RESUME: lambda stub, i: stub.ResumeDelivery(pb.ResumeDeliveryRequest(delivery_id=i)),
    Command.STOP: lambda stub, i: stub.StopDelivery(pb.StopDeliveryRequest(delivery_id=i)),
}


@pytest.mark.parametrize("command", _CALLS, ids=lambda command: command.name)
async def test_every_other_state_refuses_the_command_and_says_which_would_not(
    stack: DeliveryStack, command: Command
) -> None:
    delivery = await stack.ready(1)
    async with connected(stack.dsn) as connection:
        # Leases that never end keep the workers from moving it on.
        await connection.execute("update relay_part set available_time = 'infinity'")
        for state in set(DeliveryState) - TRANSITIONS[command].keys():
            await connection.execute(
                "update delivery set state = $1, preparation_token = gen_random_uuid(), "
                "preparation_lease_time = 'infinity'",
                state,
            )
            async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE") as problem:
                await _CALLS[command](stack.stub, delivery.delivery_id)
            assert problem.metadata["state"] == state.name
            assert problem.metadata["allowed_states"] == ", ".join(s.name for s in TRANSITIONS[command])
            assert await connection.fetchval("select state from delivery") == state
        await connection.execute("update delivery set state = 4")
