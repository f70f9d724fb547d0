"""Ids: of deliveries, of messages, and where a recipient's row lives."""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

RECIPIENTS_PER_PART: Final = 1_024
"""Recipients are dealt out in ranges of this size: to slots in turn, and as parts to relay workers."""

_TIME_SHIFT: Final = 20
_DELIVERY_ID_MAX: Final = 2**63 - 1
RECIPIENT_MAX: Final = 2**31 - 1
_NOT_OURS: Final = (0, 0)
_PROOF: Final = "t"
_ORDINARY_IDS: Final = re.compile(r"(?:[1-9][0-9]{0,18}+-[1-9][0-9]{0,8}+\n)++")
"""Lines that are ids of ours, unless a delivery's number is too large."""


def new_delivery_id(now: datetime, random_bits: int) -> int:
    """A time-ordered 63-bit id: milliseconds since the epoch, then 20 random bits.

    Ordered by time so that tables can be split by ranges of it; random below, so that replicas need no sequence.
    """
    return first_id_at(now) | (random_bits & ((1 << _TIME_SHIFT) - 1))


def first_id_at(moment: datetime) -> int:
    """The smallest id of a delivery created then; any id of one created before is smaller."""
    return int(moment.timestamp() * 1_000) << _TIME_SHIFT


def creation_time(delivery_id: int) -> datetime:
    """When the delivery was created; an id says nothing about when it was sent."""
    return datetime.fromtimestamp((delivery_id >> _TIME_SHIFT) / 1_000, UTC)


def parse_delivery_id(text: str) -> int | None:
    """The number behind a delivery_id of the API; None if it can't be one."""
    return _number(text, _DELIVERY_ID_MAX) or None


def message_id(delivery_id: int, recipient: int) -> str:
    """The id that an MTA echoes: the same for the same message, whoever sends it again. Digits and a dash survive
    every mail header and case-folding. A proof's, numbered below 1, has a letter."""
    return f"{delivery_id}-{recipient}" if recipient > 0 else f"{delivery_id}-{_PROOF}{-recipient}"


def message_ids(delivery_id: int, recipients: Iterable[int]) -> list[str]:
    """The same for several: their first half is written once."""
    head = f"{delivery_id}-"
    return [f"{head}{recipient}" if recipient > 0 else message_id(delivery_id, recipient) for recipient in recipients]


def parse_message_id(text: str) -> tuple[int, int] | None:
    """(delivery_id, recipient) of a message id of ours; None if it is not one."""
    found = _parse(text)
    return None if found == _NOT_OURS else found


def parse_message_ids(texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """The delivery_ids and the recipients of these; 0 and 0 for what is not a message id of ours.

    For batches, which nearly always hold ordinary ids of few deliveries: those are looked at as one text.
    """
    lines = "\n".join(texts)
    halves = lines.replace("-", "\n").split("\n")
    if len(halves) == 2 * len(texts) and _ORDINARY_IDS.fullmatch(lines + "\n"):
        numbers = {head: int(head) for head in set(halves[::2])}
        if max(numbers.values()) <= _DELIVERY_ID_MAX:
            return [numbers[head] for head in halves[::2]], list(map(int, halves[1::2]))
    found = [_parse(text) for text in texts]
    return [delivery_id for delivery_id, _ in found], [recipient for _, recipient in found]


def _parse(text: str) -> tuple[int, int]:
    head, _, tail = text.partition("-")
    delivery_id = _number(head, _DELIVERY_ID_MAX)
    recipient = _number(tail, RECIPIENT_MAX)
    if not recipient and tail[:1] == _PROOF:
        recipient = -_number(tail[1:], RECIPIENT_MAX)
    return (delivery_id, recipient) if delivery_id and recipient else _NOT_OURS


def _number(text: str, maximum: int) -> int:
    """The positive number that these digits write in the only way; 0 if they don't."""
    if not (text.isascii() and text.isdigit() and len(text) <= 19) or text[0] == "0":
        return 0
    number = int(text)
    return number if number <= maximum else 0


def part_of(recipient: int) -> int:
    """The part that a recipient's row belongs to, for ever."""
    return recipient // RECIPIENTS_PER_PART


def slot_of(recipient: int, slot_count: int) -> int:
    """The slot whose counters and revision a recipient's row belongs to, for ever."""
    return recipient // RECIPIENTS_PER_PART % slot_count


def slot_bits(slot_count: int) -> int:
    """Bits of a recipient's number, as 32 of them, that tell its slot, and with their sign that it is below 1: a proof.
    Of a count that is no power of two, all of its part."""
    if slot_count & (slot_count - 1) == 0:
        return (slot_count - 1) * RECIPIENTS_PER_PART - RECIPIENT_MAX - 1
    return -RECIPIENTS_PER_PART
