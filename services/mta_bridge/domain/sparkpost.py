"""Event batches of SparkPost (Momentum): an array of {"msys": {CLASS: event}}."""

from typing import Any, Final

from mta_bridge.domain.fields import at, number, text, time_us
from mta_bridge.domain.reports import Clues, Found, Kind, Malformed, Report

KINDS: Final = {
    "delivery": Kind.DELIVERY,
    "delay": Kind.TRANSIENT_FAILURE,
    "bounce": Kind.BOUNCE,
    "policy_rejection": Kind.BOUNCE,
    "generation_failure": Kind.BOUNCE,
    "generation_rejection": Kind.BOUNCE,
    "out_of_band": Kind.OUT_OF_BAND_BOUNCE,
    "spam_complaint": Kind.COMPLAINT,
    "open": Kind.OPEN,
    "initial_open": Kind.OPEN,
    "amp_open": Kind.OPEN,
    "amp_initial_open": Kind.OPEN,
    "click": Kind.CLICK,
    "amp_click": Kind.CLICK,
    "list_unsubscribe": Kind.UNSUBSCRIBE,
    "link_unsubscribe": Kind.UNSUBSCRIBE,
}
"""`injection` and what is about text messages or relays says nothing about an email's fate."""
AUTO_REPLY_CLASS: Final = "60"
TRANSIENT_CLASSES: Final = frozenset(("24", "70"))
"""The message was given up for lack of time."""
META: Final = ("message_id", "broadlogId", "campaign_message_id")
"""Where in rcpt_meta our id may stand, if the injection has put it there."""


def read(body: Any) -> list[Found]:
    """All events that say something; raises Malformed. An empty `msys` is how SparkPost tries the address."""
    if not isinstance(body, list):
        raise Malformed("the batch is an array")
    found = []
    for entry in body:
        msys = at(entry, "msys")
        if not isinstance(msys, dict):
            raise Malformed("each entry has an object msys")
        for event in msys.values():
            if isinstance(event, dict) and (one := _read_one(event)) is not None:
                found.append(one)
    return found


def _read_one(event: dict[str, Any]) -> Found | None:
    if (kind := KINDS.get(text(event, "type"))) is None:
        return None
    bounce_class = text(event, "bounce_class")
    if kind is Kind.OUT_OF_BAND_BOUNCE and bounce_class == AUTO_REPLY_CLASS:
        kind = Kind.AUTO_REPLY
    elif kind is Kind.BOUNCE and bounce_class in TRANSIENT_CLASSES:
        kind = Kind.EXPIRATION
    code = number(event, "error_code")
    meta = at(event, "rcpt_meta")
    url = text(event, "target_link_url")
    if kind is Kind.CLICK and not url:
        kind = Kind.OPEN
    report = Report(
        "",
        kind,
        time_us(event.get("timestamp")),
        code if 200 <= code <= 599 else 0,
        "",
        "" if kind is Kind.DELIVERY else " ".join((text(event, "raw_reason") or text(event, "reason")).split()),
        number(event, "num_retries") + 1 if kind in (Kind.DELIVERY, Kind.TRANSIENT_FAILURE) else 0,
        url if kind is Kind.CLICK else "",
        bounce_class,
        text(event, "fbtype"),
    )
    clues = Clues(
        addresses=(text(event, "msg_from"),),
        message_id=next(filter(None, (text(meta, name) for name in META)), ""),
    )
    return Found(clues, report)
