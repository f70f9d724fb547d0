"""Between the preparation and its confirmation: approval by a second person, and proofs to test profiles."""

from collections.abc import Awaitable, Callable

import orjson

from campaign.delivery.v1 import before_the_send_pb2 as pb
from campaign.mta.v1 import relay_service_pb2 as mta_pb
from delivery_service import convert
from delivery_service.api.recipients import recipient_violations
from delivery_service.api.validation import delivery_id_of, require_valid
from delivery_service.domain.address import AddressProblem, address_problem, normalise_address
from delivery_service.domain.delivery import Delivery
from delivery_service.domain.identifiers import message_id
from delivery_service.domain.lifecycle import TRANSITIONS, Command, next_state
from delivery_service.domain.problems import (
    DeliveryChanged,
    LimitReached,
    MtaSideUnavailable,
    PlanChanged,
    SecondPersonNeeded,
)
from delivery_service.settings import Settings
from delivery_service.store.before_the_send import BeforeTheSend
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.relay_parts import PartMessages
from service_runtime.access import caller
from service_runtime.clock import Clock
from service_runtime.problems import FieldViolation, InvalidInput

_WRITE_TRIES_MAX = 20
"""How often a command reads again because someone else wrote in between."""
_STATES = tuple(TRANSITIONS[Command.SEND_PROOF])
_VERDICTS = {
    mta_pb.RELAY_VERDICT_ACCEPTED: pb.PROOF_VERDICT_ACCEPTED,
    mta_pb.RELAY_VERDICT_REFUSED: pb.PROOF_VERDICT_REFUSED,
}

HandOver = Callable[[Delivery, PartMessages], Awaitable[mta_pb.RelayResponse]]
"""Relays messages now. TimeoutError or ConnectionError if the MTA side does not answer."""


class BeforeTheSendCalls:
    """`changed` is called with a delivery that was approved, to wake watchers."""

    def __init__(
        self,
        deliveries: Deliveries,
        store: BeforeTheSend,
        hand_over: HandOver,
        settings: Settings,
        clock: Clock,
        changed: Callable[[int], None],
    ) -> None:
        self._deliveries = deliveries
        self._store = store
        self._hand_over = hand_over
        self._settings = settings
        self._clock = clock
        self._changed = changed

    async def approve(self, request: pb.ApproveDeliveryRequest) -> pb.ApproveDeliveryResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        if not request.plan_digest:
            raise InvalidInput.of("plan_digest", "is empty: give the digest of the plan that you approve")
        approver = caller().subject
        for _ in range(_WRITE_TRIES_MAX):
            delivery = await self._deliveries.get(delivery_id)
            next_state(delivery_id, delivery.state, Command.APPROVE)
            delivery.require_log("approve it")
            digest = delivery.plan.plan_digest if delivery.plan else ""
            if digest != request.plan_digest:
                raise PlanChanged(delivery_id, digest)
            if approver == delivery.preparer:
                raise SecondPersonNeeded(delivery_id, approver, "has prepared it, and can't approve it")
            if delivery.approval is not None and delivery.approval.approver == approver:
                return pb.ApproveDeliveryResponse(delivery=convert.delivery_to_pb(delivery))
            if await self._store.approve(delivery, approver, digest, self._clock.now()):
                self._changed(delivery_id)
        raise DeliveryChanged(delivery_id, "")

    async def send_proof(self, request: pb.SendProofRequest) -> pb.SendProofResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        delivery = await self._deliveries.get(delivery_id)
        addresses = self._addresses(delivery, request)
        next_state(delivery_id, delivery.state, Command.SEND_PROOF)
        delivery.require_log("send a proof")
        messages = await self._store.add_proof(
            delivery_id,
            _STATES,
            self._settings.proofs_per_delivery_max,
            [profile.profile_id for profile in request.test_profiles],
            addresses,
            [orjson.dumps(dict(profile.attributes)).decode() for profile in request.test_profiles],
            self._clock.now(),
        )
        if messages is None:
            next_state(delivery_id, (await self._deliveries.get(delivery_id)).state, Command.SEND_PROOF)
            raise LimitReached(
                "proofs_per_delivery_max", self._settings.proofs_per_delivery_max, "duplicate the delivery"
            )
        try:
            answer = await self._hand_over(delivery, messages)
        except (TimeoutError, ConnectionError) as error:
            raise MtaSideUnavailable(delivery_id) from error
        words = {refusal.index: refusal.diagnostic for refusal in answer.refusals}
        return pb.SendProofResponse(
            proofs=[
                pb.Proof(
                    recipient=recipient,
                    message_id=message_id(delivery_id, recipient),
                    address=address,
                    verdict=_VERDICTS.get(verdict, pb.PROOF_VERDICT_TRY_LATER),
                    diagnostic=words.get(index, ""),
                )
                for index, (recipient, address, verdict) in enumerate(
                    zip(messages.recipients, messages.addresses, answer.verdicts, strict=True)
                )
            ]
        )

    def _addresses(self, delivery: Delivery, request: pb.SendProofRequest) -> list[str]:
        """The normalised addresses; InvalidInput naming whatever is wrong."""
        limits, profiles = self._settings, request.test_profiles
        if not 1 <= len(profiles) <= limits.proofs_per_call_max:
            raise InvalidInput.of(
                "test_profiles", f"has {len(profiles)} entries: give 1 to {limits.proofs_per_call_max}"
            )
        violations: list[FieldViolation] = []
        addresses = []
        for index, profile in enumerate(profiles):
            field = f"test_profiles[{index}]"
            address = normalise_address(delivery.channel, profile.address)
            addresses.append(address)
            violations += recipient_violations(field, profile.profile_id, profile.address, profile.attributes, limits)
            if address_problem(delivery.channel, address) is not AddressProblem.NONE:
                violations.append(
                    FieldViolation(f"{field}.address", f"is no address of channel {delivery.channel.name}: correct it")
                )
        require_valid(violations)
        return addresses
