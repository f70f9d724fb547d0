"""Retention: how long what is kept, and where the ranges of ids end that are dropped as a whole."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Final

from delivery_service.domain.identifiers import creation_time, first_id_at

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class RangeKind(IntEnum):
    """What a range is of; the numbers are stored. Logs go first."""

    LOG = 1
    DELIVERY = 2


@dataclass(frozen=True, slots=True)
class Period:
    """How long a kind is kept, and how much time one of its ranges spans."""

    kept: timedelta
    span: timedelta


@dataclass(frozen=True, slots=True)
class OpenRange:
    """The last range of a kind: everything from an id on; and the newest delivery in it, if there is one."""

    kind: RangeKind
    begin_id: int
    newest_id: int | None


@dataclass(frozen=True, slots=True)
class NewRange:
    """Where the open range is to end, and the next one to begin; and what its partitions are called."""

    end_id: int
    suffix: str


def next_range(opened: OpenRange, span: timedelta, now: datetime, ahead: timedelta) -> NewRange | None:
    """The range to open behind this one; None: it is not yet time. That is `ahead` of its first delivery, so that it is
    still empty then. If nobody was there in time, it ends behind its newest delivery.

    Ranges end at multiples of the span since the epoch."""
    newest = now + ahead
    if opened.newest_id is not None:
        newest = max(newest, creation_time(opened.newest_id))
    if first_id_at(newest) < opened.begin_id:
        return None
    end = _EPOCH + ((newest - _EPOCH) // span + 1) * span
    return NewRange(first_id_at(end), f"from_{end:%Y%m%d}")
