"""Approval by a second person, proofs, and pacing."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from campaign.delivery.v1 import before_the_send_pb2, delivery_pb2, explanation_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.mta.v1 import relay_service_pb2 as mta_pb
from tests.support.clock import SetClock
from tests.support.delivery_stack import DeliveryStack, Fact, Observed, delivery_stack
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.mta_side import ACCEPT, LATER, Answer, MtaSide
from tests.support.postgres import connected
from tests.support.statuses import refused

FINISHED = delivery_pb2.DELIVERY_STATE_FINISHED
START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)


async def approve(
    stack: DeliveryStack, delivery: delivery_pb2.Delivery, subject: str = "second"
) -> delivery_pb2.Delivery:
    request = before_the_send_pb2.ApproveDeliveryRequest(
        delivery_id=delivery.delivery_id, plan_digest=delivery.plan.plan_digest
    )
    return (await stack.person(subject, "start-deliveries").ApproveDelivery(request)).delivery


async def proofs(stack: DeliveryStack, delivery_id: str, *addresses: str) -> list[before_the_send_pb2.Proof]:
    profiles = [
        before_the_send_pb2.TestProfile(profile_id="colleague", address=address, attributes={"first_name": "Eve"})
        for address in addresses
    ]
    request = before_the_send_pb2.SendProofRequest(delivery_id=delivery_id, test_profiles=profiles)
    return list((await stack.stub.SendProof(request)).proofs)


async def test_a_send_that_requires_an_approval_is_not_confirmed_without_one(common: DeliveryStack) -> None:
    delivery = await common.ready(2, requires_approval=True)
    for validate_only in (True, False):
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "APPROVAL_MISSING"):
            await common.confirm(delivery, validate_only=validate_only)

    approved = await approve(common, delivery)
    assert (approved.approval.approver, approved.approval.plan_digest) == ("second", delivery.plan.plan_digest)
    assert approved.approval.HasField("approve_time")
    await common.confirm(delivery)
    assert (await common.in_state(delivery.delivery_id, FINISHED)).approval == approved.approval


async def test_it_takes_two_to_approve_and_to_confirm(common: DeliveryStack) -> None:
    delivery = await common.ready(1, requires_approval=True)
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "SECOND_PERSON_NEEDED") as problem:
        await approve(common, delivery, "tester")
    assert problem.metadata["subject"] == "tester"
    await approve(common, delivery)
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "SECOND_PERSON_NEEDED"):
        await common.person("second", "start-deliveries").ConfirmSend(
            pb.ConfirmSendRequest(delivery_id=delivery.delivery_id, plan_digest=delivery.plan.plan_digest)
        )
    assert (await common.delivery(delivery.delivery_id)).state == delivery_pb2.DELIVERY_STATE_READY


async def test_an_approval_is_of_one_plan(common: DeliveryStack) -> None:
    delivery = await common.ready(1, requires_approval=True)
    await approve(common, delivery)
    again = await common.prepare(delivery.delivery_id)
    assert again.approval.approver == "second", "nothing has changed"

    draft = delivery_pb2.Delivery(delivery_id=delivery.delivery_id)
    draft.content.subject = "another"
    await common.stub.UpdateDelivery(
        pb.UpdateDeliveryRequest(delivery=draft, update_mask=FieldMask(paths=["content.subject"]))
    )
    changed = await common.prepare(delivery.delivery_id)
    assert not changed.HasField("approval")
    async with refused(grpc.StatusCode.ABORTED, "PLAN_CHANGED"):
        await approve(common, delivery)
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "APPROVAL_MISSING"):
        await common.confirm(changed)


async def test_a_repeated_approval_changes_nothing(common: DeliveryStack) -> None:
    delivery = await common.ready(1, requires_approval=True)
    first = await approve(common, delivery)
    assert await approve(common, delivery) == first


async def test_whether_an_approval_is_required_can_not_be_changed_behind_the_plan(common: DeliveryStack) -> None:
    delivery = await common.ready(1, requires_approval=True)
    request = pb.UpdateDeliveryRequest(
        delivery=delivery_pb2.Delivery(delivery_id=delivery.delivery_id),
        update_mask=FieldMask(paths=["requires_approval"]),
    )
    edited = (await common.stub.UpdateDelivery(request)).delivery
    assert edited.state == delivery_pb2.DELIVERY_STATE_EDITING
    again = await common.prepare(delivery.delivery_id)
    assert again.plan.plan_digest != delivery.plan.plan_digest


async def test_a_proof_is_sent_at_once_and_counts_nowhere(stack: DeliveryStack) -> None:
    delivery = await stack.ready(2)
    before = await stack.kpis(delivery.delivery_id)
    refusal = mta_pb.RelayRefusal(
        failure_type=send_log_pb2.FAILURE_TYPE_HARD,
        reason=send_log_pb2.REASON_USER_UNKNOWN,
        smtp_code=550,
        diagnostic="550 no such user",
    )
    answers = {
        "one@example.com": ACCEPT,
        "two@example.com": Answer(mta_pb.RELAY_VERDICT_REFUSED, refusal),
        "three@example.com": LATER,
    }
    stack.mta.decide = lambda message: answers[message.address]

    sent = await proofs(stack, delivery.delivery_id, *answers)

    assert [(proof.recipient, proof.verdict, proof.diagnostic) for proof in sent] == [
        (-1, before_the_send_pb2.PROOF_VERDICT_ACCEPTED, ""),
        (-2, before_the_send_pb2.PROOF_VERDICT_REFUSED, "550 no such user"),
        (-3, before_the_send_pb2.PROOF_VERDICT_TRY_LATER, ""),
    ]
    assert '"Eve"' in stack.mta.messages[sent[0].message_id].attributes_json
    after = await stack.kpis(delivery.delivery_id)
    assert (after.outcomes, after.to_deliver) == (before.outcomes, 2)


async def test_feedback_on_a_proof_is_in_its_log_and_in_no_kpi(stack: DeliveryStack) -> None:
    delivery = await stack.ready(1)
    (proof,) = await proofs(stack, delivery.delivery_id, "one@example.com")

    ack = await stack.apply(Observed(proof.message_id, send_log_pb2.OUTCOME_DELIVERED))
    assert not ack.rejections
    await stack.track(Fact(proof.message_id))
    response = await stack.send_log(delivery.delivery_id, proof.recipient)
    assert response.send_log.outcome == send_log_pb2.OUTCOME_DELIVERED
    assert len(response.timeline) == 3

    stack.mta.decide = lambda _: ACCEPT
    await stack.confirm(delivery)
    await stack.in_state(delivery.delivery_id, FINISHED)
    kpis = await stack.kpis(delivery.delivery_id)
    assert (kpis.outcomes.relayed, kpis.outcomes.delivered) == (1, 0)
    statistics = await stack.stub.ComputeStatistics(pb.ComputeStatisticsRequest(delivery_id=delivery.delivery_id))
    assert not statistics.drift
    listed = await stack.stub.ListSendLogs(pb.ListSendLogsRequest(delivery_id=delivery.delivery_id))
    assert [log.recipient for log in listed.send_logs] == [1]


async def test_proofs_stay_through_another_preparation_and_have_numbers_of_their_own(stack: DeliveryStack) -> None:
    delivery = await stack.ready(1)
    (first,) = await proofs(stack, delivery.delivery_id, "one@example.com")
    again = await stack.prepare(delivery.delivery_id)
    assert again.plan.plan_digest == delivery.plan.plan_digest
    (second,) = await proofs(stack, delivery.delivery_id, "one@example.com")
    assert (first.recipient, second.recipient) == (-1, -2)


async def test_what_was_edited_after_a_proof_is_what_the_next_proof_and_the_send_carry(stack: DeliveryStack) -> None:
    delivery = await stack.ready(1)
    await proofs(stack, delivery.delivery_id, "one@example.com")
    draft = delivery_pb2.Delivery(delivery_id=delivery.delivery_id)
    for subject in ("corrected", "corrected again"):
        draft.content.subject = subject
        await stack.stub.UpdateDelivery(
            pb.UpdateDeliveryRequest(delivery=draft, update_mask=FieldMask(paths=["content.subject"]))
        )
        delivery = await stack.prepare(delivery.delivery_id)
        if subject == "corrected":
            await proofs(stack, delivery.delivery_id, "one@example.com")
    await stack.confirm(delivery)
    await stack.in_state(delivery.delivery_id, FINISHED)

    # A batch goes with the template that its stream carried last.
    sent_with = dict(stack.mta.subjects)
    first, second, sent = (f"{delivery.delivery_id}-{tail}" for tail in ("t1", "t2", "1"))
    assert sent_with[first] not in ("corrected", "corrected again")
    assert (sent_with[second], sent_with[sent]) == ("corrected", "corrected again")


async def test_a_proof_that_no_mta_side_answers_says_so(database: str, tmp_path: Path) -> None:
    mta = MtaSide()
    await mta.start()
    async with delivery_stack(database, tmp_path, mta=mta) as stack:
        delivery = await stack.ready(1)
        mta.cuts = 1
        async with refused(grpc.StatusCode.UNAVAILABLE, "MTA_SIDE_UNAVAILABLE"):
            await proofs(stack, delivery.delivery_id, "one@example.com")
        (again,) = await proofs(stack, delivery.delivery_id, "one@example.com")
        assert again.verdict == before_the_send_pb2.PROOF_VERDICT_ACCEPTED
    await mta.stop()


@pytest.mark.parametrize(
    ("addresses", "field"),
    [((), "test_profiles"), (("one@example.com", "no address"), "test_profiles[1].address")],
)
async def test_a_malformed_proof_is_refused_by_field(
    common: DeliveryStack, addresses: tuple[str, ...], field: str
) -> None:
    delivery = await common.ready(1)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await proofs(common, delivery.delivery_id, *addresses)
    assert field in problem.fields


async def test_the_proofs_of_a_delivery_are_bounded(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, proofs_per_delivery_max=2, proofs_per_call_max=2) as stack:
        delivery = await stack.ready(1)
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
            await proofs(stack, delivery.delivery_id, *["one@example.com"] * 3)
        await proofs(stack, delivery.delivery_id, "one@example.com", "two@example.com")
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED"):
            await proofs(stack, delivery.delivery_id, "one@example.com")


async def test_a_paced_send_leaves_in_a_first_wave_and_then_by_its_rate(database: str, tmp_path: Path) -> None:
    clock = SetClock(START)
    pacing = delivery_pb2.Pacing(first_wave_count=3, messages_per_hour=60)
    async with (
        delivery_stack(database, tmp_path / "one", clock=clock) as one,
        delivery_stack(database, tmp_path / "two", clock=clock, mta=one.mta),
    ):
        delivery = await one.ready(10, pacing=pacing)
        assert delivery.pacing == pacing
        await one.confirm(delivery)

        async def left(number: int) -> None:
            async def reached() -> bool:
                return (await one.kpis(delivery.delivery_id)).outcomes.relayed == number

            await eventually(reached)

        await left(3)
        explained = await one.stub.ExplainDelivery(
            explanation_pb2.ExplainDeliveryRequest(delivery_id=delivery.delivery_id)
        )
        paced = [fact for fact in explained.facts if fact.kind == explanation_pb2.DELIVERY_FACT_KIND_PACED]
        assert [fact.count for fact in paced] == [3]
        clock.set(clock.now() + timedelta(minutes=1))
        await left(4)
        clock.set(clock.now() + timedelta(minutes=1))
        await left(5)
        assert sum(one.mta.relayed.values()) == 5
        async with connected(database) as connection:
            await connection.execute("update delivery set messages_per_hour = 1000000")
        clock.set(clock.now() + timedelta(minutes=1))
        await left(10)
        await one.in_state(delivery.delivery_id, FINISHED)
    await assert_laws(database)


async def test_a_pacing_beyond_the_validity_is_warned_of(common: DeliveryStack) -> None:
    delivery = await common.ready(5, pacing=delivery_pb2.Pacing(messages_per_hour=1, first_wave_count=1))
    assert "pacing" not in [warning.field for warning in delivery.plan.warnings]
    long = await common.ready(100, pacing=delivery_pb2.Pacing(messages_per_hour=1))
    assert "pacing" in [warning.field for warning in long.plan.warnings]


@pytest.mark.parametrize(
    ("pacing", "field"),
    [
        (delivery_pb2.Pacing(), "delivery.pacing.messages_per_hour"),
        (delivery_pb2.Pacing(messages_per_hour=2_000_000_000), "delivery.pacing.messages_per_hour"),
        (delivery_pb2.Pacing(messages_per_hour=1, first_wave_count=-1), "delivery.pacing.first_wave_count"),
    ],
)
async def test_a_malformed_pacing_is_refused_by_field(
    common: DeliveryStack, pacing: delivery_pb2.Pacing, field: str
) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await common.create(pacing=pacing)
    assert field in problem.fields
