"""Every cell of the table in domain/lifecycle.py, through the RPCs: a delivery is driven into each state by calls and
workers alone, each command is given to it, and it does what the table says or is refused with the state and the states
that would not."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import grpc
import pytest
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.field_mask_pb2 import FieldMask

from campaign.delivery.v1 import before_the_send_pb2, commands_pb2, delivery_pb2, domain_pause_pb2, retry_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.schedule_pb2 import AGGREGATION_PERIOD_NONE, Recurrence, Schedule
from delivery_service.domain.lifecycle import TRANSITIONS, Command, DeliveryState
from delivery_service.workers.closing import ClosingWorker
from delivery_service.workers.preparation import PreparationWorker
from delivery_service.workers.relay import RelayWorker
from delivery_service.workers.start import StartWorker
from tests.support.clock import SetClock
from tests.support.delivery_stack import CONTENT, DeliveryStack, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.mta_side import ACCEPT, LATER, Answer
from tests.support.postgres import DatabaseFactory
from tests.support.statuses import refused

State = DeliveryState
STOPPED, FINISHED = delivery_pb2.DELIVERY_STATE_STOPPED, delivery_pb2.DELIVERY_STATE_FINISHED
NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
FAR_AHEAD = Schedule(local_time="2030-01-01T09:00:00", time_zone="UTC")
GATED: Final = (PreparationWorker, StartWorker)
LOOPING: Final = (ClosingWorker, RelayWorker, StartWorker, PreparationWorker)


@dataclass
class World:
    """A service, its clock, an MTA side that puts messages of `held` deliveries off, and a gate before two workers."""

    stack: DeliveryStack
    clock: SetClock
    held: set[str]
    open: bool = True
    passes: int = 0
    gated_running: int = 0

    def decide(self, message: Any) -> Answer:
        return LATER if message.message_id.partition("-")[0] in self.held else ACCEPT

    async def close_gate(self) -> None:
        """Holds the two workers back. A look that has begun may still see what comes next, so it is waited for."""
        self.open = False
        await eventually(lambda: self.gated_running == 0)

    async def workers_looked(self) -> None:
        """Waits until each worker has begun and ended a look since now."""
        wanted = self.passes + 3 * len(LOOPING) * 2
        await eventually(lambda: self.passes >= wanted)


@pytest.fixture(scope="module")
async def world(database_factory: DatabaseFactory, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    clock = SetClock(NOW)
    with pytest.MonkeyPatch.context() as patch:
        made: list[World] = []
        for worker in LOOPING:
            patch.setattr(worker, "work", _watched(worker, made))
        async with (
            database_factory.fresh() as dsn,
            delivery_stack(
                dsn, tmp_path_factory.mktemp("world"), clock=clock, validity_grace_seconds=0, worker_poll_seconds=0.01
            ) as stack,
        ):
            made.append(World(stack, clock, set()))
            stack.mta.decide = made[0].decide
            await stack.sent()  # opens the relay stream, see conftest.py
            yield made[0]
            made[0].open = True
            await assert_laws(dsn)


def _watched(worker: type[Any], made: list[World]) -> Callable[[Any], Awaitable[bool]]:
    work = worker.work

    async def watched(self: Any) -> bool:
        gated = bool(made) and worker in GATED
        if gated and not made[0].open:
            more = False
        else:
            if gated:
                made[0].gated_running += 1
            try:
                more = await work(self)
            finally:
                if gated:
                    made[0].gated_running -= 1
        if made:
            made[0].passes += 1
        return bool(more)

    return watched


async def state_of(world: World, delivery_id: str) -> State:
    return State((await world.stack.delivery(delivery_id)).state)


# How a delivery gets into each state: by calls and workers alone. The gate is left as it must be for it to stay there.


async def editing(world: World) -> str:
    return await world.stack.create(schedule=FAR_AHEAD)


async def preparing(world: World) -> str:
    delivery_id = await world.stack.create(schedule=FAR_AHEAD)
    await world.stack.add(delivery_id, people(2))
    await world.close_gate()
    await world.stack.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))
    return delivery_id


async def preparation_failed(world: World) -> str:
    no_subject = delivery_pb2.Content(html="<p>Hi</p>", from_address="news@example.com")
    delivery_id = await world.stack.create(content=no_subject, schedule=FAR_AHEAD)
    await world.stack.add(delivery_id, people(2))
    await world.stack.prepare(delivery_id)
    return delivery_id


async def ready(world: World) -> str:
    return (await world.stack.ready(2, schedule=FAR_AHEAD)).delivery_id


async def start_pending(world: World) -> str:
    delivery = await world.stack.ready(2, schedule=FAR_AHEAD)
    await world.stack.confirm(delivery)
    return delivery.delivery_id


async def in_progress(world: World) -> str:
    delivery = await world.stack.ready(2)
    world.held.add(delivery.delivery_id)
    await world.stack.confirm(delivery)
    await world.stack.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_IN_PROGRESS)
    return delivery.delivery_id


async def paused(world: World) -> str:
    delivery_id = await in_progress(world)
    await world.stack.stub.PauseDelivery(pb.PauseDeliveryRequest(delivery_id=delivery_id))
    return delivery_id


async def stopped(world: World) -> str:
    delivery_id = await in_progress(world)
    await world.stack.stub.StopDelivery(pb.StopDeliveryRequest(delivery_id=delivery_id))
    return delivery_id


async def finished(world: World) -> str:
    return await world.stack.sent(2)


async def failed(world: World) -> str:
    delivery_id = await in_progress(world)
    world.clock.set(world.clock.now() + timedelta(days=4))
    await world.stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FAILED)
    return delivery_id


DRIVERS: Final[dict[State, Callable[[World], Awaitable[str]]]] = {
    State.EDITING: editing,
    State.PREPARING: preparing,
    State.PREPARATION_FAILED: preparation_failed,
    State.READY: ready,
    State.START_PENDING: start_pending,
    State.IN_PROGRESS: in_progress,
    State.PAUSED: paused,
    State.STOPPED: stopped,
    State.FINISHED: finished,
    State.FAILED: failed,
}


async def child_ready(world: World) -> str:
    """A child of a recurring delivery that waits to be confirmed."""
    now = world.clock.now()
    first = (now + timedelta(minutes=1)).replace(tzinfo=None).isoformat(timespec="seconds")
    once = Recurrence(rule="FREQ=DAILY;COUNT=1", aggregation_period=AGGREGATION_PERIOD_NONE, request_confirmation=True)
    parent = await world.stack.ready(2, schedule=Schedule(local_time=first, time_zone="UTC", recurrence=once))
    await world.stack.confirm(parent)
    world.clock.set(now + timedelta(minutes=2))
    request = pb.ListDeliveriesRequest(
        parent_delivery_id=parent.delivery_id, states=[delivery_pb2.DELIVERY_STATE_READY]
    )

    async def spawned() -> list[delivery_pb2.Delivery]:
        return list((await world.stack.stub.ListDeliveries(request)).deliveries)

    (child,) = await eventually(spawned)
    return child.delivery_id


async def child_in_progress(world: World) -> str:
    delivery_id = await child_ready(world)
    world.held.add(delivery_id)
    await world.stack.confirm(await world.stack.delivery(delivery_id))
    await world.stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_IN_PROGRESS)
    return delivery_id


async def child_start_pending(world: World) -> str:
    delivery_id = await child_ready(world)
    await world.close_gate()
    await world.stack.confirm(await world.stack.delivery(delivery_id))
    return delivery_id


async def child_paused(world: World) -> str:
    delivery_id = await child_in_progress(world)
    await world.stack.stub.PauseDelivery(pb.PauseDeliveryRequest(delivery_id=delivery_id))
    return delivery_id


async def child_stopped(world: World) -> str:
    delivery_id = await child_ready(world)
    await world.stack.stub.Decline(commands_pb2.DeclineRequest(delivery_id=delivery_id))
    return delivery_id


async def child_finished(world: World) -> str:
    delivery_id = await child_ready(world)
    await world.stack.confirm(await world.stack.delivery(delivery_id))
    await world.stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    return delivery_id


CHILD_DRIVERS: Final[dict[State, Callable[[World], Awaitable[str]]]] = {
    State.READY: child_ready,
    State.START_PENDING: child_start_pending,
    State.IN_PROGRESS: child_in_progress,
    State.PAUSED: child_paused,
    State.STOPPED: child_stopped,
    State.FINISHED: child_finished,
}
"""For Decline, which is a child's alone. In the other states a plain delivery is refused for its kind."""

# The calls, by the RPC's name.


async def _edit(stack: DeliveryStack, delivery_id: str) -> Any:
    changed = delivery_pb2.Delivery(delivery_id=delivery_id, content=CONTENT)
    request = pb.UpdateDeliveryRequest(delivery=changed, update_mask=FieldMask(paths=["content.subject"]))
    return await stack.stub.UpdateDelivery(request)


async def _approve(stack: DeliveryStack, delivery_id: str) -> Any:
    digest = (await stack.delivery(delivery_id)).plan.plan_digest or "none"
    request = before_the_send_pb2.ApproveDeliveryRequest(delivery_id=delivery_id, plan_digest=digest)
    return await stack.person("second", "start-deliveries").ApproveDelivery(request)


async def _confirm(stack: DeliveryStack, delivery_id: str) -> Any:
    digest = (await stack.delivery(delivery_id)).plan.plan_digest or "none"
    request = pb.ConfirmSendRequest(delivery_id=delivery_id, plan_digest=digest, request_id=str(uuid4()))
    return await stack.stub.ConfirmSend(request)


async def _proof(stack: DeliveryStack, delivery_id: str) -> Any:
    someone = before_the_send_pb2.TestProfile(address="proof@example.com", attributes={"first_name": "Jo"})
    request = before_the_send_pb2.SendProofRequest(delivery_id=delivery_id, test_profiles=[someone])
    return await stack.stub.SendProof(request)


async def _add(stack: DeliveryStack, delivery_id: str) -> Any:
    return await stack.add(delivery_id, people(1, first=100))


async def _retry(stack: DeliveryStack, delivery_id: str) -> Any:
    request = retry_pb2.RetryFailedRequest(delivery_id=delivery_id, request_id=str(uuid4()))
    if (await stack.delivery(delivery_id)).state not in (STOPPED, FINISHED):  # in these two nobody failed here
        return await stack.stub.RetryFailed(request)
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "NOTHING_TO_RETRY"):
        await stack.stub.RetryFailed(request)
    return None


def _plain(name: str, request: type[Any], **fields: Any) -> Callable[[DeliveryStack, str], Awaitable[Any]]:
    return lambda stack, delivery_id: getattr(stack.stub, name)(request(delivery_id=delivery_id, **fields))


DOMAIN: Final = {"recipient_domain": "example.com"}
CALLS: Final[dict[str, tuple[Command, Callable[[DeliveryStack, str], Awaitable[Any]]]]] = {
    "UpdateDelivery": (Command.EDIT, _edit),
    "AddRecipients": (Command.EDIT, _add),
    "PrepareDelivery": (Command.PREPARE, _plain("PrepareDelivery", pb.PrepareDeliveryRequest)),
    "CancelPreparation": (
        Command.CANCEL_PREPARATION,
        _plain("CancelPreparation", commands_pb2.CancelPreparationRequest),
    ),
    "ApproveDelivery": (Command.APPROVE, _approve),
    "SendProof": (Command.SEND_PROOF, _proof),
    "ConfirmSend": (Command.CONFIRM, _confirm),
    "Unconfirm": (Command.UNCONFIRM, _plain("Unconfirm", commands_pb2.UnconfirmRequest)),
    "Decline": (Command.DECLINE, _plain("Decline", commands_pb2.DeclineRequest)),
    "PauseDelivery": (Command.PAUSE, _plain("PauseDelivery", pb.PauseDeliveryRequest)),
    "ResumeDelivery": (Command.RESUME, _plain("ResumeDelivery", pb.ResumeDeliveryRequest)),
    "PauseDomain": (Command.PAUSE_DOMAIN, _plain("PauseDomain", domain_pause_pb2.PauseDomainRequest, **DOMAIN)),
    "ResumeDomain": (Command.RESUME_DOMAIN, _plain("ResumeDomain", domain_pause_pb2.ResumeDomainRequest, **DOMAIN)),
    "StopDelivery": (Command.STOP, _plain("StopDelivery", pb.StopDeliveryRequest)),
    "RetryFailed": (Command.RETRY_FAILED, _retry),
    "DeleteDelivery": (Command.DELETE, _plain("DeleteDelivery", commands_pb2.DeleteDeliveryRequest)),
}
WORKERS_OWN: Final = {
    Command.FINISH_PREPARATION,
    Command.FAIL_PREPARATION,
    Command.START,
    Command.FINISH,
    Command.CLOSE_VALIDITY,
}
"""What only workers do: below, time passes for a delivery in each state."""
IN_ANY_STATE: Final = {"DuplicateDelivery"}
"""Calls on a delivery that change something, and that no state refuses."""
NOT_OF_THE_TABLE: Final = {"ComputeStatistics"}
"""It is refused where there are no send logs (HAS_SEND_LOGS), and changes no state."""


def test_every_command_of_the_table_is_given_below() -> None:
    by_calls = {command for command, _ in CALLS.values()}
    assert by_calls & WORKERS_OWN == set()
    assert by_calls | WORKERS_OWN == set(Command) == TRANSITIONS.keys(), "a command without a call"
    assert DRIVERS.keys() == set(State), "a state that nothing leads to"


def test_every_call_that_changes_a_delivery_is_given_below() -> None:
    changing = {
        method.name
        for method in pb.DESCRIPTOR.services_by_name["DeliveryService"].methods
        if method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS
        and "delivery_id" in method.input_type.fields_by_name
    }
    # These two have the delivery inside.
    assert changing | {"UpdateDelivery", "AddRecipients"} == CALLS.keys() | IN_ANY_STATE | NOT_OF_THE_TABLE


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", DRIVERS, ids=lambda state: state.name)
async def test_a_command_does_what_the_table_says_or_is_refused(world: World, state: State, call: str) -> None:
    command, give = CALLS[call]
    drivers = CHILD_DRIVERS if command is Command.DECLINE else DRIVERS
    delivery_id = await drivers.get(state, DRIVERS[state])(world)
    before = await world.stack.delivery(delivery_id)
    assert State(before.state) is state
    await world.close_gate()  # what the command leads to is seen before workers go on with it
    try:
        if command is Command.DECLINE and state not in CHILD_DRIVERS:
            async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_KIND") as problem:
                await give(world.stack, delivery_id)
            assert problem.metadata == {"delivery_id": delivery_id, "kind": "PLAIN", "allowed_kinds": "CHILD"}
            assert await world.stack.delivery(delivery_id) == before
        elif state not in TRANSITIONS[command]:
            async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE") as problem:
                await give(world.stack, delivery_id)
            assert problem.metadata == {
                "delivery_id": delivery_id,
                "state": state.name,
                "allowed_states": ", ".join(allowed.name for allowed in TRANSITIONS[command]),
            }
            assert await state_of(world, delivery_id) is state
        elif command is Command.DELETE:
            await give(world.stack, delivery_id)
            async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
                await world.stack.delivery(delivery_id)
        else:
            await give(world.stack, delivery_id)
            assert await state_of(world, delivery_id) is TRANSITIONS[command][state]
    finally:
        world.open = True
        world.held.clear()


AFTER_DAYS: Final = {
    **{state: state for state in State},
    State.IN_PROGRESS: State.FAILED,  # its validity is over, and nothing was handed over
    State.PAUSED: State.FAILED,
}
"""Where workers take a delivery on which nobody gives a command, whatever time passes before its contact time."""


@pytest.mark.parametrize("state", DRIVERS, ids=lambda state: state.name)
async def test_workers_take_a_delivery_only_where_the_table_says(world: World, state: State) -> None:
    delivery_id = await DRIVERS[state](world)
    try:
        world.clock.set(world.clock.now() + timedelta(days=5))
        after = AFTER_DAYS[state]
        assert after is state or state in TRANSITIONS[Command.CLOSE_VALIDITY]
        await world.stack.in_state(delivery_id, delivery_pb2.DeliveryState.ValueType(after))
        await world.workers_looked()
        assert await state_of(world, delivery_id) is after
    finally:
        world.open = True
        world.held.clear()


@pytest.mark.parametrize(
    ("driver", "after"),
    [(preparing, State.READY), (start_pending, State.FINISHED), (in_progress, State.FINISHED)],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_workers_take_a_delivery_on(
    world: World, driver: Callable[[World], Awaitable[str]], after: State
) -> None:
    """FINISH_PREPARATION; START; FINISH. The drivers of PREPARATION_FAILED and FAILED show the two others."""
    delivery_id = await driver(world)
    world.open = True
    world.held.clear()
    if driver is start_pending:  # its time comes
        world.clock.set(max(world.clock.now(), datetime(2030, 1, 1, 9, 0, 1, tzinfo=UTC)))
    await world.stack.in_state(delivery_id, delivery_pb2.DeliveryState.ValueType(after))
    world.clock.set(NOW)


async def test_the_end_of_the_validity_finishes_what_was_handed_over_in_part(world: World) -> None:
    """CLOSE_VALIDITY, where something had left."""
    for pause in (False, True):
        delivery = await world.stack.ready(2)
        second = f"{delivery.delivery_id}-2"
        world.stack.mta.decide = lambda message, second=second: (  # type: ignore[misc]
            LATER if message.message_id == second else ACCEPT
        )
        await world.stack.confirm(delivery)

        async def one_left(delivery_id: str = delivery.delivery_id) -> bool:
            return (await world.stack.kpis(delivery_id)).outcomes.relayed == 1

        await eventually(one_left)
        if pause:
            await world.stack.stub.PauseDelivery(pb.PauseDeliveryRequest(delivery_id=delivery.delivery_id))
        world.clock.set(world.clock.now() + timedelta(days=4))
        await world.stack.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    world.stack.mta.decide = world.decide
