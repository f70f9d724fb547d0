"""Ids: of deliveries, of messages, and where a recipient's row lives."""

from datetime import datetime
from typing import Final

RECIPIENTS_PER_PART: Final = 1_024
"""Recipients are dealt out in ranges of this size: to slots in turn, and as parts to relay workers."""

_TIME_SHIFT: Final = 20
_DELIVERY_ID_MAX: Final = 2**63 - 1
_RECIPIENT_MAX: Final = 2**31 - 1


def new_delivery_id(now: datetime, random_bits: int) -> int:
    """A time-ordered 63-bit id: milliseconds since the epoch, then 20 random bits.

    Ordered by time so that tables can be split by ranges of it; random below, so that replicas need no sequence.
    """
    return (int(now.timestamp() * 1_000) << _TIME_SHIFT) | (random_bits & ((1 << _TIME_SHIFT) - 1))


def parse_delivery_id(text: str) -> int | None:
    """The number behind a delivery_id of the API; None if it can't be one."""
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        return None
    value = int(text)
    return value if 0 < value <= _DELIVERY_ID_MAX else None


def message_id(delivery_id: int, recipient: int) -> str:
    """The id that an MTA echoes: the same for the same message, whoever sends it again. Digits and a dash survive
    every mail header and case-folding."""
    return f"{delivery_id}-{recipient}"


def parse_message_id(text: str) -> tuple[int, int] | None:
    """(delivery_id, recipient) of a message id of ours; None if it is not one."""
    head, dash, tail = text.partition("-")
    if not (dash and len(head) <= 19 and len(tail) <= 10 and text.isascii() and head.isdigit() and tail.isdigit()):
        return None
    delivery_id, recipient = int(head), int(tail)
    if not (0 < delivery_id <= _DELIVERY_ID_MAX and 0 < recipient <= _RECIPIENT_MAX):
        return None
    return delivery_id, recipient


def part_of(recipient: int) -> int:
    """The part that a recipient's row belongs to, for ever."""
    return recipient // RECIPIENTS_PER_PART


def slot_of(recipient: int, slot_count: int) -> int:
    """The slot whose counters and revision a recipient's row belongs to, for ever."""
    return recipient // RECIPIENTS_PER_PART % slot_count
