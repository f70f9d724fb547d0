"""What makes a single MTA event acceptable. A good event costs a few comparisons; only a bad one is explained."""

import re
from dataclasses import dataclass
from functools import lru_cache

from feedback_service.domain.vocabulary import OUTCOME_OF_KIND, TRACKING_OF_KIND, MtaEventKind

MESSAGE_ID_CHARACTERS_MAX = 100
ENHANCED_CODE_CHARACTERS_MAX = 20
DIAGNOSTIC_CHARACTERS_MAX = 1_000
URL_CHARACTERS_MAX = 2_000
VENDOR_CLASS_CHARACTERS_MAX = 100
FEEDBACK_TYPE_CHARACTERS_MAX = 100
EVENT_TIME_US_MIN = 946_684_800_000_000  # 2000-01-01
EVENT_TIME_US_END = 4_102_444_800_000_000  # 2100-01-01
SMTP_CODE_MIN = 200
SMTP_CODE_MAX = 599

NUL = "\0"
_ENHANCED_CODE = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an event. Never repeats the value: it may be an address, or long."""

    field: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field} {self.problem}: {self.remedy}"


@lru_cache(maxsize=4_096)
def is_enhanced_code(text: str) -> bool:
    """Whether `text` is an enhanced status code (RFC 3463)."""
    return len(text) <= ENHANCED_CODE_CHARACTERS_MAX and _ENHANCED_CODE.fullmatch(text) is not None


def find_fault(
    kind: int,
    message_id: str,
    event_time_us: int,
    smtp_code: int,
    enhanced_code: str,
    diagnostic: str,
    attempt: int,
    *,
    url: str = "",
    vendor_class: str = "",
    feedback_type: str = "",
) -> Fault | None:
    """The first fault of an event; None if it is fine."""
    if kind not in OUTCOME_OF_KIND and kind not in TRACKING_OF_KIND:
        return Fault("kind", f"{kind} is unknown here", "send one of the kinds of this version of the contract")
    if not message_id:
        return Fault("message_id", "is missing", "send the id that the message was relayed under")
    if not EVENT_TIME_US_MIN <= event_time_us < EVENT_TIME_US_END:
        return Fault(
            "event_time_us",
            "lies outside the years 2000 to 2099",
            "send microseconds since the epoch, and set the clock",
        )
    if smtp_code and not SMTP_CODE_MIN <= smtp_code <= SMTP_CODE_MAX:
        return Fault("smtp_code", f"{smtp_code} lies outside 200..599", "send the reply code, or 0 if there was none")
    if attempt < 0:
        return Fault("attempt", f"{attempt} is negative", "count attempts from 1, or send 0 if unknown")
    for field, text, characters_max in (
        ("message_id", message_id, MESSAGE_ID_CHARACTERS_MAX),
        ("enhanced_code", enhanced_code, ENHANCED_CODE_CHARACTERS_MAX),
        ("diagnostic", diagnostic, None),  # cut, not refused
        ("url", url, URL_CHARACTERS_MAX),
        ("vendor_class", vendor_class, VENDOR_CLASS_CHARACTERS_MAX),
        ("feedback_type", feedback_type, FEEDBACK_TYPE_CHARACTERS_MAX),
    ):
        if NUL in text:
            return Fault(field, "contains a NUL character", "leave it out")
        if characters_max is not None and len(text) > characters_max:
            return Fault(field, f"is longer than {characters_max} characters", "send it within the limit")
    if enhanced_code and not is_enhanced_code(enhanced_code):
        return Fault("enhanced_code", "is not of the form class.subject.detail", 'send e.g. "5.1.1", or leave it empty')
    if kind == MtaEventKind.CLICK and not url:
        return Fault("url", "is missing", "send the link that was clicked")
    return None
