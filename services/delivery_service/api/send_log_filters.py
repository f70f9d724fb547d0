"""What a list or an export of send logs asks for: filters on what a feedback mode shows, as filters on rows."""

from dataclasses import dataclass
from typing import Final

from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1 import send_log_feed_pb2 as feed_pb
from delivery_service.api.validation import enums_of
from delivery_service.domain.delivery import Delivery
from delivery_service.domain.identifiers import RECIPIENT_MAX
from delivery_service.domain.lifecycle import Channel
from delivery_service.domain.outcome import FailureType, Reason
from delivery_service.domain.status import FeedbackMode, Status, outcomes_shown_as
from delivery_service.store.send_logs import Filters
from service_runtime.problems import InvalidInput

_STATUSES: Final = {int(status): status for status in Status}
FAILURE_TYPES: Final[dict[int, FailureType]] = {int(kind): kind for kind in FailureType if kind is not FailureType.NONE}
REASONS: Final[dict[int, Reason]] = {int(reason): reason for reason in Reason if reason is not Reason.NONE}


@dataclass(frozen=True, slots=True)
class AskedFilters:
    """The filters of a request, checked."""

    statuses: frozenset[Status]
    failure_types: frozenset[FailureType]
    reasons: frozenset[Reason]

    @classmethod
    def of(cls, request: pb.ListSendLogsRequest | feed_pb.ExportSendLogsRequest) -> "AskedFilters":
        """InvalidInput names the wrong one."""
        return cls(
            enums_of("statuses", request.statuses, _STATUSES),
            enums_of("failure_types", request.failure_types, FAILURE_TYPES),
            enums_of("reasons", request.reasons, REASONS),
        )

    def in_mode(self, mode: FeedbackMode, address: str = "") -> Filters:
        """The same as filters on rows."""
        outcomes = outcomes_shown_as(mode, self.statuses or frozenset(Status))
        if self.failure_types or self.reasons:
            # What the mode hides can't be asked for: a filter would tell it.
            outcomes &= outcomes_shown_as(mode, frozenset({Status.FAILED}))
        return Filters(outcomes, self.failure_types, self.reasons, address)


def mode_of(number: int, delivery: Delivery) -> FeedbackMode:
    """The feedback mode asked for; none: the delivery's own."""
    if number == 0:
        return delivery.feedback_mode
    if number not in FeedbackMode.__members__.values():
        raise InvalidInput.of("feedback_mode", f"is {number}: give WITH_EFS, WITHOUT_EFS, or nothing")
    if number == FeedbackMode.WITH_EFS and delivery.channel is not Channel.EMAIL:
        raise InvalidInput.of("feedback_mode", f"is WITH_EFS on channel {delivery.channel.name}: it is of EMAIL alone")
    return FeedbackMode(number)


def recipient_of(recipient: int) -> int:
    """A recipient's number in a request; a proof's is below 1."""
    if not recipient or not -RECIPIENT_MAX <= recipient <= RECIPIENT_MAX:
        raise InvalidInput.of("recipient", f"is {recipient}: give a recipient's number, from 1, or a proof's, from -1")
    return recipient
