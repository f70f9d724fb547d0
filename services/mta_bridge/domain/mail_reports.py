"""From a mail in the bounce mailbox to reports: what it says, and which message it is about."""

import email
import email.policy
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Final

from mta_bridge.domain.reports import Clues, Found, Kind, Report

SEARCHED_BYTES_MAX: Final = 256 * 1_024
"""How much of a mail is searched for a token."""
PARTS_MAX: Final = 50
_SPACE = re.compile(r"\s+")
_CODE = re.compile(r"(?:^|;\s*|said: )(\d{3})[ -]")
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")


@dataclass(frozen=True, slots=True)
class ReadMail:
    """What a mail says, before it is known which message it is about."""

    kind: Kind
    time_us: int
    smtp_code: int = 0
    enhanced_code: str = ""
    diagnostic: str = ""
    feedback_type: str = ""
    clues: tuple[str, ...] = ()


def found_in(raw: bytes, recipients: Sequence[str], own_hostnames: Iterable[str], now_us: int) -> list[Found]:
    """All reports of a mail that came to these addresses. Empty: it says nothing about a message."""
    searched = raw[:SEARCHED_BYTES_MAX]
    return [
        Found(
            Clues(addresses=(*recipients, *one.clues), texts=(searched,)),
            Report(
                "",
                one.kind,
                one.time_us,
                one.smtp_code,
                one.enhanced_code,
                one.diagnostic[:1_000],
                feedback_type=one.feedback_type,
            ),
        )
        for one in _read(raw, frozenset(name.lower() for name in own_hostnames), now_us)
    ]


def _read(raw: bytes, own_hostnames: frozenset[str], now_us: int) -> Iterator[ReadMail]:
    # compat32: a tenth of the time that the modern policy takes, and no defect of a mail makes it raise.
    mail = email.message_from_bytes(raw, policy=email.policy.compat32)
    time_us = _time_us(mail.get("Date"), now_us)
    for number, part in enumerate(mail.walk()):
        if number >= PARTS_MAX:
            return
        match part.get_content_type():
            case "message/delivery-status":
                yield from _of_delivery_status(part, own_hostnames, time_us)
                return
            case "message/feedback-report":
                fields = _blocks(part)[0] if _blocks(part) else Message()
                yield ReadMail(Kind.COMPLAINT, time_us, feedback_type=str(fields.get("Feedback-Type", "")).strip())
                return
    if str(mail.get("Auto-Submitted", "no")).strip().lower() != "no":
        yield ReadMail(Kind.AUTO_REPLY, time_us)


def _of_delivery_status(part: Message, own_hostnames: frozenset[str], time_us: int) -> Iterator[ReadMail]:
    blocks = _blocks(part)
    if not blocks:
        return
    reporter = str(blocks[0].get("Reporting-MTA", "")).partition(";")[2].strip().lower()
    in_band = not own_hostnames or reporter in own_hostnames
    envelope_id = str(blocks[0].get("Original-Envelope-Id", "")).strip()
    for block in blocks[1:]:
        action = str(block.get("Action", "")).strip().lower()
        status = match[0] if (match := _STATUS.search(str(block.get("Status", "")))) else ""
        text = _SPACE.sub(" ", str(block.get("Diagnostic-Code", ""))).strip()
        diagnostic = text.partition(";")[2].strip() or text
        code = int(match[1]) if (match := _CODE.search(text)) else 0
        kind: Kind | None = None
        if action in ("delivered", "relayed"):
            kind, diagnostic = Kind.DELIVERY, ""
        elif action == "delayed":
            kind = Kind.EXPIRATION if status == "4.4.7" else Kind.TRANSIENT_FAILURE
        elif action == "failed":
            kind = Kind.EXPIRATION if status.startswith("4") else Kind.BOUNCE
            if not in_band:
                # Told by another server, after ours had handed the message on: it overrides the delivery.
                kind = Kind.OUT_OF_BAND_BOUNCE
        if kind is not None:
            yield ReadMail(kind, time_us, code, status, diagnostic, clues=(envelope_id,) if envelope_id else ())


def _blocks(part: Message) -> list[Message]:
    payload = part.get_payload()
    return [block for block in payload if isinstance(block, Message)] if isinstance(payload, list) else []


def _time_us(date: object, now_us: int) -> int:
    """The mail's own date, so that the same mail told again is the same report; else when it came."""
    try:
        moment = parsedate_to_datetime(str(date))
        time_us = int(moment.timestamp() * 1_000_000)
    except (TypeError, ValueError, OverflowError, OSError):
        return now_us
    return time_us if 0 < time_us <= now_us + 86_400_000_000 else now_us
