"""The delivery as the domain sees it: plain data, read from the store and shown by the API."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, IntEnum, auto
from typing import Final

from delivery_service.domain.audience import EVERYBODY, AudienceOptions
from delivery_service.domain.breaker import PauseCause
from delivery_service.domain.domain_pauses import NO_DOMAIN_PAUSES, DomainPauses
from delivery_service.domain.lifecycle import Channel, DeliveryState
from delivery_service.domain.pacing import Pacing
from delivery_service.domain.problems import LogDropped
from delivery_service.domain.schedule import Schedule
from delivery_service.domain.status import FeedbackMode

VALIDITY_MAX: Final = timedelta(days=3.5)
"""The longest time a message may be retried: MTAs keep none for longer."""


class ExclusionCause(IntEnum):
    """Why a recipient gets no message; the numbers are stored. In order of evaluation."""

    ADDRESS_EMPTY = 1
    ADDRESS_MALFORMED = 2
    DENYLISTED = 4
    QUARANTINED = 5
    DUPLICATE = 3
    CONTROL_GROUP = 6
    SUPPRESSED_ADDRESS = 7
    SUPPRESSED_DOMAIN = 8


@dataclass(frozen=True, slots=True)
class Content:
    """What is sent: templates and sender."""

    subject: str = ""
    html: str = ""
    text: str = ""
    from_address: str = ""
    from_name: str = ""
    reply_to_address: str = ""


@dataclass(frozen=True, slots=True)
class Issue:
    """A finding of the preparation: the field concerned, and what to do."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a preparation found. `plan_digest` is empty if it failed."""

    targeted: int
    exclusions: Mapping[ExclusionCause, int]
    to_deliver: int
    warnings: tuple[Issue, ...]
    errors: tuple[Issue, ...]
    plan_digest: str
    prepare_time: datetime
    preparer: str


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Who confirmed which plan, when, by which request."""

    confirmer: str
    confirm_time: datetime
    plan_digest: str
    request_id: str
    start_time: datetime | None = None
    """When sending was to start by the answer; None: a recurring delivery without an occurrence to come."""


@dataclass(frozen=True, slots=True)
class Approval:
    """Who approved which plan, and when."""

    approver: str
    approve_time: datetime
    plan_digest: str


@dataclass(frozen=True, slots=True)
class ParentOccurrence:
    """Of which occurrence (nominal local time) of which recurring delivery a delivery is the child."""

    parent_id: int
    local_time: datetime
    confirm_by_time: datetime
    system_confirms: bool


class DeliveryKind(Enum):
    """What a delivery is to others."""

    PLAIN = auto()
    RECURRING = auto()
    CHILD = auto()


@dataclass(frozen=True, slots=True)
class Delivery:
    """One send, from its draft to its end. `version` changes with every write: the store compares it before setting."""

    delivery_id: int
    label: str
    channel: Channel
    feedback_mode: FeedbackMode
    content: Content
    validity_period: timedelta
    state: DeliveryState
    creator: str
    create_time: datetime
    update_time: datetime
    version: int = 1
    recipient_count: int = 0
    audience_digest: bytes = b""
    preparer: str = ""
    plan: Plan | None = None
    confirmation: Confirmation | None = None
    start_time: datetime | None = None
    finish_time: datetime | None = None
    validity_end_time: datetime | None = None
    pause_time: datetime | None = None
    pauser: str = ""
    pause_cause: PauseCause = PauseCause.NONE
    pause_detail: str = ""
    stop_time: datetime | None = None
    stopper: str = ""
    stop_in_flight: int | None = None
    stop_left: int | None = None
    validity_closed_time: datetime | None = None
    settled_time: datetime | None = None
    schedule: Schedule | None = None
    """None: at once."""
    contact_time: datetime | None = None
    """The instant that the schedule stands for; of a recurrence, that of its first occurrence."""
    parent_occurrence: ParentOccurrence | None = None
    requires_approval: bool = False
    last_approval: Approval | None = None
    """In force only while its digest is the plan's: see `approval`."""
    pacing: Pacing | None = None
    domain_pauses: DomainPauses = NO_DOMAIN_PAUSES
    audience_options: AudienceOptions = EVERYBODY
    retry_of_id: int | None = None
    """The delivery whose failed recipients it is for."""
    audience_source_id: int | None = None
    """While its recipients are being copied: from where."""
    log_dropped_time: datetime | None = None
    """When retention dropped its audience and logs."""

    def require_log(self, command: str) -> None:
        """LogDropped, if there is nothing left that the command could work on."""
        if self.log_dropped_time is not None:
            raise LogDropped(self.delivery_id, self.log_dropped_time, command)

    @property
    def approval(self) -> Approval | None:
        """The approval of the present plan."""
        if self.plan is None or self.last_approval is None or self.last_approval.plan_digest != self.plan.plan_digest:
            return None
        return self.last_approval

    @property
    def kind(self) -> DeliveryKind:
        """A child has no schedule of its own."""
        if self.parent_occurrence is not None:
            return DeliveryKind.CHILD
        return DeliveryKind.RECURRING if self.is_recurring else DeliveryKind.PLAIN

    @property
    def is_recurring(self) -> bool:
        """It sends nothing itself, and spawns children."""
        return self.schedule is not None and self.schedule.recurrence is not None

    @property
    def is_collecting(self) -> bool:
        """A retry whose recipients are still being copied: it is not known how many there will be."""
        return self.audience_source_id is not None and self.audience_source_id == self.retry_of_id

    @property
    def validity_in_force(self) -> timedelta:
        """The validity period as it counts."""
        return min(self.validity_period, VALIDITY_MAX)
