"""What a mail says, in one form for all kinds of mails."""

from dataclasses import dataclass
from enum import Enum


class MailKind(Enum):
    """What kind of mail it is."""

    DELIVERY_STATUS = "delivery status"
    FREE_TEXT = "free text"
    COMPLAINT = "complaint"
    AUTO_REPLY = "auto reply"
    OTHER = "other"


class Action(Enum):
    """What it says happened to the message of one recipient."""

    DELIVERED = "delivered"
    DELAYED = "delayed"
    EXPIRED = "expired"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RecipientReport:
    """What it says about one recipient."""

    address: str
    action: Action
    smtp_code: int = 0
    enhanced_code: str = ""
    diagnostic: str = ""


@dataclass(frozen=True, slots=True)
class MailReport:
    """What a mail says. `clues` are texts in which a token of ours may stand, the best first."""

    kind: MailKind
    recipients: tuple[RecipientReport, ...] = ()
    reporter: str = ""
    envelope_id: str = ""
    feedback_type: str = ""
    clues: tuple[str, ...] = ()
    date: str = ""
    """The mail's own, as it stands there."""
