"""The generic JSON form, for anything else: {"events": [{…}]}, named like the fields of MtaEvent in the contract."""

from typing import Any, Final

from mta_bridge.domain.fields import number, text, time_us
from mta_bridge.domain.reports import Clues, Found, Kind, Malformed, Report

FIELDS: Final = frozenset(
    (
        *("message_id", "token", "return_path", "kind", "event_time", "smtp_code", "enhanced_code", "diagnostic"),
        *("attempt", "url", "vendor_class", "feedback_type"),
    )
)


def read(body: Any) -> list[Found]:
    """All events; raises Malformed, which names the first that is wrong. This form is ours, so it is read strictly."""
    events = body.get("events") if isinstance(body, dict) else None
    if not isinstance(events, list):
        raise Malformed('the body is {"events": [...]}')
    return [_read_one(f"events[{index}]", event) for index, event in enumerate(events)]


def _read_one(place: str, event: Any) -> Found:
    if not isinstance(event, dict):
        raise Malformed(f"{place} is no object")
    if unknown := event.keys() - FIELDS:
        raise Malformed(f"{place} has unknown fields: {', '.join(sorted(map(str, unknown)))[:200]}")
    name = text(event, "kind").upper()
    if name not in Kind.__members__:
        raise Malformed(f"{place}.kind is none of {', '.join(Kind.__members__)}")
    if not (when := time_us(event.get("event_time"))):
        raise Malformed(f"{place}.event_time is no time: give seconds since the epoch, or ISO 8601")
    clues = Clues(addresses=(text(event, "token"), text(event, "return_path")), message_id=text(event, "message_id"))
    if not clues.message_id and not any(clues.addresses):
        raise Malformed(f"{place} names no message: give message_id, token or return_path")
    kind = Kind[name]
    if kind is Kind.CLICK and not text(event, "url"):
        raise Malformed(f"{place}.url is missing")
    report = Report(
        "",
        kind,
        when,
        number(event, "smtp_code"),
        text(event, "enhanced_code"),
        text(event, "diagnostic"),
        number(event, "attempt"),
        text(event, "url"),
        text(event, "vendor_class"),
        text(event, "feedback_type"),
    )
    return Found(clues, report)
