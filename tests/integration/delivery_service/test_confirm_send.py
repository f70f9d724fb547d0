"""ConfirmSend: by whom, of what, in which state, how often."""

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import pytest

from campaign.delivery.v1 import delivery_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from tests.support.delivery_stack import DeliveryStack, people
from tests.support.postgres import connected
from tests.support.statuses import refused

State = delivery_pb2.DeliveryState


async def test_a_confirmed_delivery_is_relayed_to_everyone_once(stack: DeliveryStack) -> None:
    delivery = await stack.ready(2_500)

    response = await stack.confirm(delivery)
    finished = await stack.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)

    assert response.to_deliver == 2_500
    assert response.confirmation.confirmer == "tester"
    assert finished.confirmation == response.confirmation
    assert finished.start_time == response.start_time == response.confirmation.confirm_time
    assert finished.validity_end_time.seconds - finished.start_time.seconds == 84 * 3_600
    assert len(stack.mta.addresses) == 2_500
    assert set(stack.mta.addresses.values()) == {1}
    kpis = await stack.kpis(delivery.delivery_id)
    assert kpis.outcomes.relayed == kpis.handed_over == kpis.to_deliver == 2_500


async def test_validate_only_tells_what_would_happen_and_changes_nothing(stack: DeliveryStack) -> None:
    delivery = await stack.ready(3)

    response = await stack.confirm(delivery, validate_only=True)

    assert response.to_deliver == 3
    assert not response.HasField("confirmation")
    assert (await stack.delivery(delivery.delivery_id)).etag == delivery.etag


async def test_the_same_request_id_gets_the_same_answer_again_and_sends_once(stack: DeliveryStack) -> None:
    delivery = await stack.ready(3)
    request_id = str(uuid4())

    first = await stack.confirm(delivery, request_id=request_id)
    await stack.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    second = await stack.confirm(delivery, request_id=request_id)

    assert second == first
    assert set(stack.mta.addresses.values()) == {1}


async def test_the_same_request_id_with_another_digest_is_refused(stack: DeliveryStack) -> None:
    delivery = await stack.ready(3)
    request_id = str(uuid4())
    await stack.confirm(delivery, request_id=request_id)

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED") as problem:
        await stack.confirm(delivery, request_id=request_id, plan_digest="0" * 64)

    assert problem.fields == ["request_id"]


async def test_a_second_confirmation_under_another_request_id_is_refused_by_the_state(stack: DeliveryStack) -> None:
    delivery = await stack.ready(3)
    await stack.confirm(delivery)

    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE") as problem:
        await stack.confirm(delivery)

    assert problem.metadata["allowed_states"] == "READY"


async def test_many_confirmations_at_once_with_one_request_id_all_get_the_one_answer(stack: DeliveryStack) -> None:
    delivery = await stack.ready(3)
    request_id = str(uuid4())

    answers = await asyncio.gather(*(stack.confirm(delivery, request_id=request_id) for _ in range(20)))

    assert all(answer == answers[0] for answer in answers)
    await stack.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    assert set(stack.mta.addresses.values()) == {1}


async def test_of_many_confirmations_at_once_with_different_request_ids_one_wins(stack: DeliveryStack) -> None:
    delivery = await stack.ready(3)

    answers: list[Any] = await asyncio.gather(*(stack.confirm(delivery) for _ in range(20)), return_exceptions=True)

    won = [answer for answer in answers if not isinstance(answer, BaseException)]
    lost = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(won) == 1
    assert {error.code() for error in lost} == {grpc.StatusCode.FAILED_PRECONDITION}
    finished = await stack.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    assert finished.confirmation == won[0].confirmation
    assert set(stack.mta.addresses.values()) == {1}


async def test_an_old_digest_is_refused_after_an_edit_and_a_new_preparation(stack: DeliveryStack) -> None:
    delivery = await stack.ready(3)
    edit = delivery_pb2.Delivery(delivery_id=delivery.delivery_id)
    edit.content.subject = "Changed"
    request = pb.UpdateDeliveryRequest(delivery=edit)
    request.update_mask.paths.append("content.subject")
    await stack.stub.UpdateDelivery(request)
    again = await stack.prepare(delivery.delivery_id)

    async with refused(grpc.StatusCode.ABORTED, "PLAN_CHANGED") as problem:
        await stack.confirm(delivery)

    assert problem.metadata["plan_digest"] == again.plan.plan_digest != delivery.plan.plan_digest
    assert (await stack.confirm(again)).to_deliver == 3


async def test_preparing_again_without_a_change_keeps_the_digest(stack: DeliveryStack) -> None:
    delivery = await stack.ready(3)

    again = await stack.prepare(delivery.delivery_id)

    assert again.plan.plan_digest == delivery.plan.plan_digest


async def test_one_more_recipient_changes_the_digest_and_wants_a_new_preparation(stack: DeliveryStack) -> None:
    delivery = await stack.ready(3)

    await stack.add(delivery.delivery_id, people(1, first=100))

    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE"):
        await stack.confirm(delivery)
    again = await stack.prepare(delivery.delivery_id)
    assert again.plan.plan_digest != delivery.plan.plan_digest
    assert again.plan.to_deliver == 4


@pytest.mark.parametrize(
    "roles", [("prepare-deliveries",), ("read",), ("administration",), ("mta", "feedback", "relay")]
)
async def test_without_the_role_nobody_confirms(stack: DeliveryStack, roles: tuple[str, ...]) -> None:
    delivery = await stack.ready(3)

    async with refused(grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING") as problem:
        await stack.client(*roles).ConfirmSend(
            # The state and the digest are wrong too: the role comes first.
            pb.ConfirmSendRequest(delivery_id="1", plan_digest="no")
        )

    assert problem.metadata["required_role"] == "start-deliveries"
    assert (await stack.delivery(delivery.delivery_id)).state == delivery_pb2.DELIVERY_STATE_READY


async def test_the_state_is_checked_before_the_digest(stack: DeliveryStack) -> None:
    delivery_id = await stack.create()

    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE") as problem:
        await stack.stub.ConfirmSend(pb.ConfirmSendRequest(delivery_id=delivery_id, plan_digest="no"))

    assert problem.metadata["state"] == "EDITING"


@pytest.mark.parametrize(
    "state", [s for s in State.values() if s not in (0, delivery_pb2.DELIVERY_STATE_READY)], ids=State.Name
)
async def test_only_a_ready_delivery_can_be_confirmed(stack: DeliveryStack, state: int) -> None:
    delivery = await stack.ready(3)
    delivery_id = int(delivery.delivery_id)
    async with connected(stack.dsn) as connection:
        # Leases that never end, of the preparation and of every part, keep the workers from moving it on.
        await connection.execute(
            "update relay_part set available_time = 'infinity' where delivery_id = $1", delivery_id
        )
        await connection.execute(
            "update delivery set state = $2, preparation_token = gen_random_uuid(), "
            "preparation_lease_time = 'infinity' where delivery_id = $1",
            delivery_id,
            state,
        )

        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE") as problem:
            await stack.confirm(delivery)
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE"):
            await stack.confirm(delivery, validate_only=True)

        name = State.Name(State.ValueType(state)).removeprefix("DELIVERY_STATE_")
        assert problem.metadata["state"] == name
        assert await connection.fetchval("select count(*) from confirmation where delivery_id = $1", delivery_id) == 0
        await connection.execute("update delivery set state = 4 where delivery_id = $1", delivery_id)
    assert not stack.mta.addresses


async def test_an_unknown_delivery_is_not_found(stack: DeliveryStack) -> None:
    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
        await stack.stub.ConfirmSend(pb.ConfirmSendRequest(delivery_id="12345", plan_digest="x"))


@pytest.mark.parametrize("delivery_id", ["", "abc", "-1", "0", "99999999999999999999999"])
async def test_a_malformed_delivery_id_is_refused_by_name(stack: DeliveryStack, delivery_id: str) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await stack.stub.ConfirmSend(pb.ConfirmSendRequest(delivery_id=delivery_id, plan_digest="x"))

    assert problem.fields == ["delivery_id"]


async def test_an_empty_audience_can_be_confirmed_with_a_warning_and_finishes(stack: DeliveryStack) -> None:
    delivery = await stack.prepare(await stack.create())

    response = await stack.confirm(delivery)

    assert response.to_deliver == 0
    assert [warning.field for warning in response.warnings] == ["recipients"]
    await stack.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
