"""Notifications of Amazon SES, where they come by mail: a JSON object in the place of a text.

https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html
"""

import json
import re
from typing import Any, Final

from mta_bridge.mail.delivery_status import RECIPIENTS_MAX
from mta_bridge.mail.replies import codes_in, is_vague
from mta_bridge.mail.report import Action, MailKind, MailReport, RecipientReport

_TYPES: Final = ("notificationType", "eventType")
# A line break in the middle of a string: a mail server has folded it.
_DECODER: Final = json.JSONDecoder(strict=False)
_WORD_BEGINS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def read_notification(text: str) -> MailReport | None:
    """What a notification says; None for any other text."""
    if not any(name in text for name in _TYPES) or (told := _object_in(text)) is None:
        return None
    # Amazon SNS, asked for JSON, puts the notification as a text into an object of its own.
    if isinstance(inner := told.get("Message"), str):
        told = _object_in(inner) or {}
    match next((told[name] for name in _TYPES if name in told), None):
        case "Bounce":
            found = [_bounced(one, told["bounce"]) for one in _listed(told, "bounce", "bouncedRecipients")]
            kind = MailKind.DELIVERY_STATUS
        case "Complaint":
            found = [
                RecipientReport(_text(one, "emailAddress"), Action.DELIVERED)
                for one in _listed(told, "complaint", "complainedRecipients")
            ]
            kind = MailKind.COMPLAINT
        case "Delivery":
            found = [RecipientReport(_whole(one), Action.DELIVERED) for one in _listed(told, "delivery", "recipients")]
            kind = MailKind.DELIVERY_STATUS
        case _:
            return None
    mail = told.get("mail")
    return MailReport(
        kind,
        tuple(one for one in found if "@" in one.address),
        feedback_type=_text(told.get("complaint"), "complaintFeedbackType").lower(),
        clues=tuple(filter(None, (_text(mail, "source"), _text(mail, "messageId")))),
    )


def _object_in(text: str) -> dict[str, Any] | None:
    """The object that a text begins with, whatever stands behind it."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        return dict(_DECODER.raw_decode(text.lstrip())[0])
    except (ValueError, RecursionError):
        return None


def _bounced(recipient: Any, bounce: dict[str, Any]) -> RecipientReport:
    diagnostic = _text(recipient, "diagnosticCode").removeprefix("smtp;").strip()
    status = _text(recipient, "status")
    code, enhanced = codes_in(diagnostic)
    # "MailboxFull": words, as soon as they are apart.
    kind = _WORD_BEGINS.sub(" ", f"{_text(bounce, 'bounceType')} {_text(bounce, 'bounceSubType')}")
    return RecipientReport(
        _text(recipient, "emailAddress"),
        Action.FAILED,
        code,
        enhanced if enhanced and is_vague(status) else status,
        diagnostic or kind,
    )


def _listed(told: dict[str, Any], name: str, member: str) -> list[Any]:
    part = told.get(name)
    found = part.get(member) if isinstance(part, dict) else None
    return found[:RECIPIENTS_MAX] if isinstance(found, list) else []


def _text(part: Any, name: str) -> str:
    return _whole(part.get(name)) if isinstance(part, dict) else ""


def _whole(value: Any) -> str:
    """A text, without the halves of characters that JSON can spell and nothing else can hold."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""
