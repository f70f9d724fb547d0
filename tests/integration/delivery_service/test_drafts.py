"""Drafts: create, get, list, update; and who may call what."""

from typing import Any

import grpc
import grpc.aio
import pytest

from campaign.delivery.v1 import delivery_pb2, delivery_service_pb2, observation_service_pb2, role_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from service_runtime.client import StaticToken, open_channel
from service_runtime.development_keys import DevelopmentKeys
from tests.support.delivery_stack import CONTENT, DeliveryStack
from tests.support.statuses import refused


def update(delivery_id: str, *paths: str, etag: str = "", **fields: Any) -> pb.UpdateDeliveryRequest:
    request = pb.UpdateDeliveryRequest(delivery=delivery_pb2.Delivery(delivery_id=delivery_id, etag=etag, **fields))
    request.update_mask.paths.extend(paths)
    return request


async def test_a_new_draft_has_the_defaults_of_its_channel(common: DeliveryStack) -> None:
    email = await common.delivery(await common.create())
    sms = await common.delivery(await common.create(channel=delivery_pb2.CHANNEL_SMS))

    assert email.channel == delivery_pb2.CHANNEL_EMAIL
    assert email.feedback_mode == delivery_pb2.FEEDBACK_MODE_WITH_EFS
    assert email.validity_period.seconds == 84 * 3_600
    assert email.state == delivery_pb2.DELIVERY_STATE_EDITING
    assert email.creator == "tester"
    assert sms.feedback_mode == delivery_pb2.FEEDBACK_MODE_WITHOUT_EFS


async def test_efs_on_another_channel_is_refused(common: DeliveryStack) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await common.create(channel=delivery_pb2.CHANNEL_SMS, feedback_mode=delivery_pb2.FEEDBACK_MODE_WITH_EFS)

    assert problem.fields == ["delivery.feedback_mode"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label", "x" * 201),
        ("label", "a\x00b"),
        ("content.subject", "x" * 1_001),
        ("content.html", "é" * (256 * 1_024 + 1)),
        ("content.text", "x" * (512 * 1_024 + 1)),
        ("content.from_address", "x" * 321),
        ("content.from_name", "x" * 201),
        ("content.reply_to_address", "x" * 321),
    ],
)
async def test_a_field_that_is_too_long_is_refused_by_name(common: DeliveryStack, field: str, value: str) -> None:
    draft = delivery_pb2.Delivery(content=CONTENT)
    owner, _, name = field.rpartition(".")
    setattr(draft.content if owner else draft, name, value)

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await common.stub.CreateDelivery(pb.CreateDeliveryRequest(delivery=draft))

    assert problem.fields == [f"delivery.{field}"]


@pytest.mark.parametrize("seconds", [0, -1, 400 * 86_400])
async def test_an_impossible_validity_period_is_refused(common: DeliveryStack, seconds: int) -> None:
    draft = delivery_pb2.Delivery()
    draft.validity_period.seconds = seconds

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await common.stub.CreateDelivery(pb.CreateDeliveryRequest(delivery=draft))

    assert problem.fields == ["delivery.validity_period"]


async def test_enum_numbers_that_do_not_exist_are_refused(common: DeliveryStack) -> None:
    for field in ("channel", "feedback_mode"):
        draft = delivery_pb2.Delivery()
        setattr(draft, field, 99)
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
            await common.stub.CreateDelivery(pb.CreateDeliveryRequest(delivery=draft))
        assert problem.fields == [f"delivery.{field}"]


async def test_deliveries_are_listed_newest_first_in_pages_without_bodies(stack: DeliveryStack) -> None:
    created = [await stack.create(label=str(number)) for number in range(5)]

    seen: list[str] = []
    token = ""
    while True:
        page = await stack.stub.ListDeliveries(pb.ListDeliveriesRequest(page_size=2, page_token=token))
        assert len(page.deliveries) <= 2
        assert all(delivery.content.html == "" for delivery in page.deliveries)
        assert all(delivery.content.subject == CONTENT.subject for delivery in page.deliveries)
        seen += [delivery.delivery_id for delivery in page.deliveries]
        token = page.next_page_token
        if not token:
            break

    assert seen == sorted(created, key=int, reverse=True)


async def test_deliveries_can_be_listed_by_state(stack: DeliveryStack) -> None:
    draft = await stack.create()
    ready = await stack.ready()

    request = pb.ListDeliveriesRequest(states=[delivery_pb2.DELIVERY_STATE_READY])
    page = await stack.stub.ListDeliveries(request)

    assert [delivery.delivery_id for delivery in page.deliveries] == [ready.delivery_id]
    assert draft not in page.deliveries


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"page_size": -1}, "page_size"),
        ({"page_token": "nonsense"}, "page_token"),
        ({"page_token": "🙈"}, "page_token"),
        ({"states": [0]}, "states[0]"),
        ({"states": [4, 77]}, "states[1]"),
    ],
)
async def test_a_malformed_list_request_is_refused_by_field(
    common: DeliveryStack, request_fields: dict[str, Any], field: str
) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await common.stub.ListDeliveries(pb.ListDeliveriesRequest(**request_fields))

    assert problem.fields == [field]


async def test_an_update_changes_what_the_mask_names_and_nothing_else(common: DeliveryStack) -> None:
    delivery_id = await common.create()

    request = update(delivery_id, "content.subject", "feedback_mode", label="ignored", feedback_mode=2)
    request.delivery.content.subject = "New"
    changed = (await common.stub.UpdateDelivery(request)).delivery

    assert changed.content.subject == "New"
    assert changed.content.html == CONTENT.html
    assert changed.label == "a test"
    assert changed.feedback_mode == delivery_pb2.FEEDBACK_MODE_WITHOUT_EFS


async def test_an_edit_takes_a_ready_delivery_back_and_its_plan_with_it(common: DeliveryStack) -> None:
    ready = await common.ready(3)
    before = await common.kpis(ready.delivery_id)

    edited = (await common.stub.UpdateDelivery(update(ready.delivery_id, "feedback_mode", feedback_mode=2))).delivery

    assert edited.state == delivery_pb2.DELIVERY_STATE_EDITING
    assert not edited.HasField("plan")
    after = await common.kpis(ready.delivery_id)
    assert after.to_deliver == 0
    assert after.revision > before.revision


async def test_a_label_may_change_in_any_state_and_changes_no_state(common: DeliveryStack) -> None:
    delivery_id = await common.sent()

    changed = (await common.stub.UpdateDelivery(update(delivery_id, "label", label="New"))).delivery

    assert changed.label == "New"
    assert changed.state == delivery_pb2.DELIVERY_STATE_FINISHED
    assert changed.plan.to_deliver == 3
    assert (await common.kpis(delivery_id)).outcomes.relayed == 3


async def test_the_content_of_a_sent_delivery_cannot_change(common: DeliveryStack) -> None:
    delivery_id = await common.sent()

    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE") as problem:
        await common.stub.UpdateDelivery(update(delivery_id, "content", content=CONTENT))

    assert problem.metadata["state"] == "FINISHED"


async def test_an_etag_that_is_not_the_present_one_is_refused(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    seen = await common.delivery(delivery_id)
    await common.stub.UpdateDelivery(update(delivery_id, "label", label="First", etag=seen.etag))

    async with refused(grpc.StatusCode.ABORTED, "DELIVERY_CHANGED"):
        await common.stub.UpdateDelivery(update(delivery_id, "label", label="Second", etag=seen.etag))

    assert (await common.delivery(delivery_id)).label == "First"


@pytest.mark.parametrize("paths", [(), ("state",), ("content.nothing",), ("delivery_id",), ("channel",), ("plan",)])
async def test_a_mask_may_name_only_what_can_change(common: DeliveryStack, paths: tuple[str, ...]) -> None:
    delivery_id = await common.create()

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await common.stub.UpdateDelivery(update(delivery_id, *paths))

    assert problem.fields == ["update_mask"]


_IMPLIES = {
    "start-deliveries": {"start-deliveries", "prepare-deliveries", "read"},
    "prepare-deliveries": {"prepare-deliveries", "read"},
}
ROLES = ["read", "prepare-deliveries", "start-deliveries", "mta", "feedback", "administration", "relay"]
_METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in (
        delivery_service_pb2.DESCRIPTOR.services_by_name["DeliveryService"],
        observation_service_pb2.DESCRIPTOR.services_by_name["ObservationService"],
    )
    for method in service.methods
}
METHODS = {
    name: role_pb2.Role.Name(method.GetOptions().Extensions[role_pb2.required_role])[5:].lower().replace("_", "-")
    for name, method in _METHODS.items()
}
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
TAKE_STREAMS = {REFLECTION, *(name for name, method in _METHODS.items() if method.client_streaming)}


async def _code_of(channel: grpc.aio.Channel, method: str) -> grpc.StatusCode:
    """How a call ends, of whatever kind it is; OK once it has answered anything.

    With one empty request, or none if several may come: a client that writes while the call is refused may see INTERNAL
    from its own library.
    """
    requests: Any = iter([] if method in TAKE_STREAMS else [b""])
    call: Any = channel.stream_stream(method)(requests)
    try:
        async for _ in call:  # some streams never end
            call.cancel()
            break
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("method", METHODS)
async def test_an_rpc_is_open_to_its_role_and_those_that_imply_it_only(
    module_stack: DeliveryStack, method: str, role: str
) -> None:
    # As bytes, and an empty request: whether the door opens is told before what is wrong with the request.
    async with module_stack.one_channel(role) as channel:
        code = await _code_of(channel, method)

    admitted = METHODS[method] in _IMPLIES.get(role, {role})
    assert (code != grpc.StatusCode.PERMISSION_DENIED) == admitted


@pytest.mark.parametrize("method", METHODS)
async def test_no_rpc_is_open_without_a_token(module_stack: DeliveryStack, method: str) -> None:
    async with grpc.aio.insecure_channel(module_stack.target) as channel:
        assert await _code_of(channel, method) == grpc.StatusCode.UNAUTHENTICATED


async def test_reflection_and_health_are_closed_without_a_token_too(common: DeliveryStack) -> None:
    async with grpc.aio.insecure_channel(common.target) as channel:
        for method in (
            "/grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/Watch",
            REFLECTION,
        ):
            assert await _code_of(channel, method) == grpc.StatusCode.UNAUTHENTICATED, method


async def test_a_forged_token_is_refused(common: DeliveryStack) -> None:
    forged = DevelopmentKeys.generate().sign("mallory", ["start-deliveries"])
    async with open_channel(common.target, StaticToken(forged)) as channel:
        stub = DeliveryServiceStub(channel)
        async with refused(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
            await stub.ListDeliveries(pb.ListDeliveriesRequest())
