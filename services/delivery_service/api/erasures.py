"""EraseProfile: one person's data goes everywhere, and every count stays."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

from campaign.delivery.v1 import erasure_pb2 as pb
from delivery_service.api.validation import require_valid, text_violation
from delivery_service.domain.identifiers import message_id
from delivery_service.domain.problems import ErasureBlocked
from delivery_service.settings import Settings
from delivery_service.store.erasures import ErasedRecipient, Erasures
from service_runtime.access import caller
from service_runtime.clock import Clock
from service_runtime.problems import InvalidInput

log = logging.getLogger(__name__)

_LISTED_MAX: Final = 100
_PREFIX: Final = "erased-"
"""What an erasure_id begins with."""
_ROUNDS_MAX: Final = 10
"""Looks for the profile in what was copied, or uploaded, while it was erased."""
_MESSAGE_IDS_MAX: Final = 10_000
"""Messages whose dead letters are looked for in one statement."""


@dataclass(slots=True)
class _Found:
    """What an erasure has come upon so far."""

    deliveries: set[int] = field(default_factory=set)
    recipients: int = 0
    reports: int = 0
    tracking_facts: int = 0
    dead_letters: int = 0
    control_groups: int = 0
    unsettled: list[int] = field(default_factory=list)
    blocking: list[int] = field(default_factory=list)
    messages: list[tuple[int, int]] = field(default_factory=list)
    addresses: set[str] = field(default_factory=set)

    def add(self, delivery_id: int, recipients: list[ErasedRecipient]) -> None:
        """Some recipients of a delivery are the profile's."""
        self.deliveries.add(delivery_id)
        self.recipients += len(recipients)
        _note(self.unsettled, delivery_id, any(each.unsettled for each in recipients))
        _note(self.blocking, delivery_id, any(each.to_leave for each in recipients))
        self.messages += [(delivery_id, each.recipient) for each in recipients]
        self.addresses |= {each.address for each in recipients if each.address}

    def answer(self, erasure_id: str = "") -> pb.EraseProfileResponse:
        return pb.EraseProfileResponse(
            erasure_id=erasure_id if self.recipients or self.control_groups else "",
            delivery_count=len(self.deliveries),
            recipient_count=self.recipients,
            report_count=self.reports,
            tracking_fact_count=self.tracking_facts,
            dead_letter_count=self.dead_letters,
            control_group_count=self.control_groups,
            unsettled_delivery_ids=map(str, self.unsettled),
            blocking_delivery_ids=[] if erasure_id else map(str, self.blocking),
        )


class ErasureCalls:
    """`changed` is called with each delivery that lost someone: drafts may have gone back to EDITING."""

    def __init__(self, erasures: Erasures, settings: Settings, clock: Clock, changed: Callable[[int], None]) -> None:
        self._erasures = erasures
        self._settings = settings
        self._clock = clock
        self._changed = changed

    async def erase(self, request: pb.EraseProfileRequest) -> pb.EraseProfileResponse:
        profile_id = request.profile_id
        if not profile_id:
            raise InvalidInput.of("profile_id", "is empty: name the profile to erase")
        require_valid([text_violation("profile_id", profile_id, self._settings.profile_id_characters_max)])
        found = _Found()
        async for delivery_id, recipients in self._erasures.recipients(profile_id):
            found.add(delivery_id, recipients)
        if request.validate_only:
            return found.answer()
        if found.blocking:
            raise ErasureBlocked(found.blocking)
        again = profile_id.startswith(_PREFIX)
        erasure_id = profile_id
        if not again:
            erasure_id = await self._erasures.begin(profile_id, f"{_PREFIX}{uuid4()}", self._clock.now())
        # First of all: once the recipients are erased, nothing says any more which messages and addresses were theirs.
        await self._erase_dead_letters(found)
        await self._forget_reports(found)
        erased = await self._erase_recipients(profile_id, erasure_id, repeat=not again)
        await self._forget_reports(erased)  # what was read for the quarantine meanwhile
        erased.dead_letters = found.dead_letters
        if not again:
            erased.control_groups = await self._erasures.erase_from_control_groups(profile_id, erasure_id)
            await self._erasures.complete(profile_id)
        log.info(
            "erased a profile",
            extra={"action": "erase_profile", "erasure_id": erasure_id, "by": caller().subject,
                   "recipients": erased.recipients},
        )  # fmt: skip
        return erased.answer(erasure_id)

    async def _erase_dead_letters(self, found: _Found) -> None:
        addresses = [address.lower() for address in found.addresses]
        for begin in range(0, max(len(found.messages), 1), _MESSAGE_IDS_MAX):
            part = found.messages[begin : begin + _MESSAGE_IDS_MAX]
            if part:
                ids = [message_id(*message) for message in part]
                found.dead_letters += await self._erasures.erase_from_dead_letters(ids, addresses)
                addresses = []  # one look suffices

    async def _forget_reports(self, found: _Found) -> None:
        addresses = sorted(found.addresses)
        for begin in range(0, len(found.messages), _MESSAGE_IDS_MAX):
            part = found.messages[begin : begin + _MESSAGE_IDS_MAX]
            await self._erasures.erase_from_address_health(part, addresses)

    async def _erase_recipients(self, profile_id: str, erasure_id: str, *, repeat: bool) -> _Found:
        """Erases recipients until no other one is found: audiences may be being copied meanwhile."""
        erased = _Found()
        for _ in range(_ROUNDS_MAX):
            found_any = False
            async for delivery_id, recipients in self._erasures.recipients(profile_id):
                done = await self._erasures.erase(
                    delivery_id, [each.recipient for each in recipients], erasure_id, self._clock.now()
                )
                if done is None:
                    raise ErasureBlocked([delivery_id])
                found_any = True
                erased.add(delivery_id, recipients)
                erased.reports += done.reports
                erased.tracking_facts += done.tracking_facts
                self._changed(delivery_id)
            if not (repeat and found_any):
                break
            await self._erasures.wait_for_copies()
        return erased


def _note(noted: list[int], delivery_id: int, applies: bool) -> None:
    """Notes a delivery once; not more than are told."""
    if applies and delivery_id not in noted and len(noted) < _LISTED_MAX:
        noted.append(delivery_id)
