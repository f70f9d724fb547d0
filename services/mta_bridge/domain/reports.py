"""The normal form of everything that comes in: one report about one message."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Kind(IntEnum):
    """What happened; numbered like MtaEventKind of the contract (a test compares the two)."""

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


FINAL_KINDS: Final = frozenset(
    (Kind.DELIVERY, Kind.EXPIRATION, Kind.BOUNCE, Kind.ADMIN_BOUNCE, Kind.OUT_OF_BAND_BOUNCE)
)
"""After these, the mail server has nothing more to do for the message."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of one event. `message_id` is the one that the message was relayed under."""

    message_id: str
    kind: Kind
    event_time_us: int
    smtp_code: int = 0
    enhanced_code: str = ""
    diagnostic: str = ""
    attempt: int = 0
    url: str = ""
    vendor_class: str = ""
    feedback_type: str = ""


@dataclass(frozen=True, slots=True)
class Clues:
    """What may tell which message something is about, the best first."""

    addresses: tuple[str, ...] = ()
    """Where one of our return paths may stand."""
    texts: tuple[bytes, ...] = ()
    """Where a token may stand among other things."""
    message_id: str = ""
    """Given by someone who is trusted: an authenticated caller."""


@dataclass(frozen=True, slots=True)
class Found:
    """A report that is not tied to its message yet."""

    clues: Clues
    report: Report


class Malformed(Exception):
    """What came in is not in the form that it should have. The text says why, for its sender."""
