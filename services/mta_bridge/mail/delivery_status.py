"""Delivery status notifications: RFC 3464, and RFC 6533 for addresses that are not ASCII."""

import re
from typing import Final

from mta_bridge.mail.mime import Part, decoded, header_blocks
from mta_bridge.mail.replies import codes_in, has_expired, is_vague
from mta_bridge.mail.report import Action, RecipientReport

REPORT_TYPES: Final = ("message/delivery-status", "message/global-delivery-status")
RECIPIENTS_MAX: Final = 1_000
_NOTHING_HAPPENED: Final = ("expanded", "deliverable")
"""Of a list, the members are told for themselves; and some ask whether an address is one, without a mail."""
_FIELD: Final = re.compile(r"^final-recipient[ \t]*:", re.IGNORECASE | re.MULTILINE)
_STATUS: Final = re.compile(r"\b([245])\.(\d{1,3})\.(\d{1,3})")
_ESCAPED: Final = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}|\+([0-9A-F]{2})")
_EXPIRED: Final = re.compile(r"(?<![^\s(])expired(?![^\s.,;:)])", re.IGNORECASE)
"""The word: not a part of an address."""
_SPACE: Final = re.compile(r"\s+")


def report_part(mail: Part) -> Part | None:
    """The part that holds the report, wherever it stands: not all say multipart/report."""
    return next((part for part in mail.walk() if part.content_type in REPORT_TYPES), None)


def report_in(text: str) -> Part | None:
    """The report that stands in a text, with all its fields: the line before it was spoilt, or was never there."""
    return Part({}, REPORT_TYPES[0], {}, text.encode()) if _FIELD.search(text) else None


def tells_of_nothing(report: Part) -> bool:
    """Whether all that it tells is that nothing happened to a message."""
    told = [block["action"][0].lower() for block in header_blocks(report.text.encode()) if "action" in block]
    return bool(told) and all(action in _NOTHING_HAPPENED for action in told)


def message_fields(report: Part) -> dict[str, list[str]]:
    """The fields about the message as a whole."""
    blocks = header_blocks(report.text.encode())
    return blocks[0] if blocks else {}


def recipients_of(report: Part) -> list[RecipientReport]:
    """What the report says about each recipient; those without an address have an empty one."""
    found = []
    for block in header_blocks(report.text.encode())[: RECIPIENTS_MAX + 1]:
        # Of an alias, the last name may be a local one.
        names = ("final-recipient", "original-recipient", "x-actual-recipient")
        address = next(filter(None, (_address(block, name) for name in names)), "")
        if not address and "action" not in block and "status" not in block:
            continue
        if one := _recipient(block, _address(block, "original-recipient") or address):
            found.append(one)
    return list(dict.fromkeys(found))


def _recipient(block: dict[str, list[str]], address: str) -> RecipientReport | None:
    said = _SPACE.sub(" ", block.get("diagnostic-code", [""])[0]).strip()
    kind, semicolon, text = said.partition(";")
    # Of a program that failed, the kind of diagnostic tells more than the number that it ended with.
    diagnostic = text.strip() if semicolon and " " not in kind.strip() and not text.strip().isdigit() else said
    status = match[0] if (match := _STATUS.search(block.get("status", [""])[0])) else ""
    code, enhanced = codes_in(diagnostic)
    # The server's own words are better than a status that says no more than "failed".
    enhanced = enhanced if enhanced and is_vague(status) else status
    action = _action(block.get("action", [""])[0].split(), status, code, diagnostic)
    if action is None:
        return None
    return RecipientReport(address, action, code, enhanced, diagnostic)


def _action(words: list[str], status: str, code: int, text: str) -> Action | None:
    match words[0].lower() if words else {"2": "delivered", "4": "delayed"}.get(status[:1], "failed"):
        case "delivered" | "relayed":
            return Action.DELIVERED
        case "delayed":
            return Action.EXPIRED if status == "4.4.7" or _EXPIRED.search(text) else Action.DELAYED
        case word if word in _NOTHING_HAPPENED:
            return None
        case _:
            return Action.EXPIRED if has_expired(text, code, status) else Action.FAILED


def _address(block: dict[str, list[str]], name: str) -> str:
    value = block.get(name, [""])[0]
    kind, semicolon, address = value.partition(";")
    if not semicolon:
        kind, address = "", value
    address = address.rpartition(";")[2].strip().strip("<>").strip()  # some say twice of what kind it is
    if address.startswith("@"):  # a source route
        address = address.partition(":")[2]
    if kind.strip().lower() in ("utf-8", "rfc822"):
        address = _ESCAPED.sub(_unescaped, address) if "\\x{" in address else address
    return decoded(address.encode("utf-8", "replace"), {}) if "@" in address else ""


def _unescaped(match: re.Match[str]) -> str:
    number = int(match[1] or match[2], 16)
    return chr(number) if 0x20 <= number <= 0x10FFFF and not 0xD800 <= number <= 0xDFFF else ""
