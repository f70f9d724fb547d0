"""SMTP replies, as they stand in diagnostics and in the texts of bounces."""

import re
from itertools import islice
from typing import Final

ENHANCED_CODES_MAX: Final = 20

_REPLY: Final = re.compile(
    r"(?<![\w.,:/-])(?:SMTP; ?|#)?([245]\d\d)(?:[ -]+#?|-#|;)\(?#?([245]\.\d{1,3}\.\d{1,3})?(?![\d.]*(?: bytes|/))",
    re.IGNORECASE,
)
_ENHANCED: Final = re.compile(r"(?<![\d.])([245]\.\d{1,3}\.\d{1,3})(?!\.?\d)")
_NAMED: Final = re.compile(r"\b(?:code|error|reply|status)(?: code)?[ :=#]{1,3}([45]\d\d)(?![\d.])", re.IGNORECASE)
_NO_REPLY: Final = re.compile(r"^(?:[245]\d\d) (?:bytes|days|hours|minutes|seconds|messages|recipients)", re.IGNORECASE)


def codes_in(text: str) -> tuple[int, str]:
    """The SMTP code of the first refusal in a text, and the first enhanced code that says why; 0 and empty: none."""
    code, enhanced = 0, ""
    for match in _REPLY.finditer(text):
        if match[1][0] in "45" and not _NO_REPLY.match(text[match.start(1) : match.start(1) + 24]):
            code, enhanced = int(match[1]), match[2] or ""
            break
    if not code and (named := _NAMED.search(text)):
        code = int(named[1])
    if is_vague(enhanced):
        found = [match[1] for match in islice(_ENHANCED.finditer(text), ENHANCED_CODES_MAX) if match[1][0] in "45"]
        enhanced = next((one for one in found if not is_vague(one)), enhanced or next(iter(found), ""))
    return code, enhanced


def is_vague(enhanced_code: str) -> bool:
    """Whether it says no more than that it failed."""
    return enhanced_code[1:3] in ("", ".0")


def has_expired(text: str, code: int, enhanced_code: str) -> bool:
    """Whether a failure that is final was only temporary: somebody gave up."""
    lowered = text.lower()
    if any(phrase in lowered for phrase in EXPIRY_PHRASES):
        return True
    return 400 <= code < 500 if code else enhanced_code.startswith("4")


EXPIRY_PHRASES: Final = (
    *("retry timeout exceeded", "retry time not reached", "envelope expired", "message expired", "delivery expired"),
    *(
        "delivery time expired",
        "message timed out",
        "too old",
        "too long in queue",
        "in the queue too long",
    ),
    *("queue too long", "maximum queue", "queue lifetime", "queue time exceeded", "timed out while in queue"),
    *("exceeded the time limit", "delivery attempts have failed", "has been in queue", "i'm not going to try again"),
    *("not able to deliver it within", "retry limit", "no further attempts", "expired after", "attempts expired"),
)
