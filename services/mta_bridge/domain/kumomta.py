"""Log records of KumoMTA, as its log hooks post them: one object, or an array of them."""

from typing import Any, Final

from mta_bridge.domain.fields import at, number, text, texts, time_us
from mta_bridge.domain.mime import MESSAGE_ID_HEADER
from mta_bridge.domain.reports import Clues, Found, Kind, Malformed, Report

KINDS: Final = {
    "Delivery": Kind.DELIVERY,
    "TransientFailure": Kind.TRANSIENT_FAILURE,
    "Delayed": Kind.TRANSIENT_FAILURE,
    "Bounce": Kind.BOUNCE,
    "Expiration": Kind.EXPIRATION,
    "AdminBounce": Kind.ADMIN_BOUNCE,
    "OOB": Kind.OUT_OF_BAND_BOUNCE,
    "Feedback": Kind.COMPLAINT,
}
"""The other types (Reception, XferIn, Rejection, …) say nothing about what became of a message."""


def read(body: Any) -> list[Found]:
    """All records that say something; raises Malformed."""
    records = body if isinstance(body, list) else [body]
    if not all(isinstance(record, dict) and isinstance(record.get("type"), str) for record in records):
        raise Malformed("each log record is an object with a type")
    return [found for record in records if (found := _read_one(record)) is not None]


def _read_one(record: dict[str, Any]) -> Found | None:
    if (kind := KINDS.get(record["type"])) is None:
        return None
    feedback = at(record, "feedback_report")
    clues = Clues(
        addresses=(
            text(record, "sender"),
            *texts(record, "recipient"),
            text(feedback, "original_mail_from"),
            text(feedback, "original_envelope_id"),
        ),
        texts=(
            *(header.encode() for header in _headers(record)),
            text(feedback, "original_message").encode(),
        ),
    )
    enhanced = at(record, "response", "enhanced_code")
    code = number(record, "response", "code")
    report = Report(
        "",
        kind,
        time_us(record.get("event_time")) or time_us(record.get("timestamp")),
        code if 200 <= code <= 599 else 0,
        ".".join(str(number(enhanced, part)) for part in ("class", "subject", "detail")) if enhanced else "",
        "" if kind in (Kind.DELIVERY, Kind.COMPLAINT) else text(record, "response", "content"),
        # The number of attempts that were made before this one.
        number(record, "num_attempts") + 1 if kind in (Kind.DELIVERY, Kind.TRANSIENT_FAILURE) else 0,
        vendor_class=text(record, "bounce_classification"),
        feedback_type=text(feedback, "feedback_type"),
    )
    return Found(clues, report)


def _headers(record: dict[str, Any]) -> list[str]:
    """Those that may name the message, if the MTA was told to log them."""
    wanted = (MESSAGE_ID_HEADER.lower(), "message-id", "campaign-message-id")
    found: list[str] = []
    for place in ("headers", "meta"):
        logged = record.get(place)
        if isinstance(logged, dict):
            names = [name for name in logged if name.lower().replace("_", "-") in wanted]
            found += [each for name in names for each in texts(logged, name)]
    return found
