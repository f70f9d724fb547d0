"""The words of the contracts, as numbers. They equal the enums of the protos; a test compares the two."""

from enum import IntEnum


class MtaEventKind(IntEnum):
    """What an MTA says happened to a message, and happens next."""

    DELIVERY = 1
    TRANSIENT_FAILURE = 2
    EXPIRATION = 3
    BOUNCE = 4
    ADMIN_BOUNCE = 5
    OUT_OF_BAND_BOUNCE = 6
    OPEN = 7
    CLICK = 8
    UNSUBSCRIBE = 9
    COMPLAINT = 10
    AUTO_REPLY = 11


class Outcome(IntEnum):
    """Where the message stands. Only those that MTA events can imply."""

    DEFERRED = 4
    EXPIRED = 5
    DELIVERED = 6
    BOUNCED = 7


class TrackingKind(IntEnum):
    """A fact beside the outcome; numbered like the timeline entries that it becomes."""

    OPEN = 3
    CLICK = 4
    UNSUBSCRIBE = 5
    COMPLAINT = 6
    AUTO_REPLY = 7


class FailureType(IntEnum):
    """How a failure counts against the address."""

    NONE = 0
    SOFT = 1
    HARD = 2
    IGNORED = 3


class Reason(IntEnum):
    """The finer cause of a failure. Only those that MTA events can imply."""

    NONE = 0
    NOT_DEFINED = 1
    USER_UNKNOWN = 2
    INVALID_DOMAIN = 3
    UNREACHABLE = 4
    ACCOUNT_DISABLED = 5
    MAILBOX_FULL = 6
    REFUSED = 7
    ERROR_IGNORED = 8


OUTCOME_OF_KIND: dict[int, Outcome] = {
    MtaEventKind.DELIVERY: Outcome.DELIVERED,
    MtaEventKind.TRANSIENT_FAILURE: Outcome.DEFERRED,
    MtaEventKind.EXPIRATION: Outcome.EXPIRED,
    MtaEventKind.BOUNCE: Outcome.BOUNCED,
    MtaEventKind.ADMIN_BOUNCE: Outcome.BOUNCED,
    MtaEventKind.OUT_OF_BAND_BOUNCE: Outcome.BOUNCED,
}
"""The kinds that change where a message stands."""

TRACKING_OF_KIND: dict[int, TrackingKind] = {
    MtaEventKind.OPEN: TrackingKind.OPEN,
    MtaEventKind.CLICK: TrackingKind.CLICK,
    MtaEventKind.UNSUBSCRIBE: TrackingKind.UNSUBSCRIBE,
    MtaEventKind.COMPLAINT: TrackingKind.COMPLAINT,
    MtaEventKind.AUTO_REPLY: TrackingKind.AUTO_REPLY,
}
"""The kinds that are facts beside it."""
