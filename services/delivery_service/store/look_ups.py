"""Look-ups over many rows, in bounded pages: one person's messages, tracking facts; and KPIs by group.

A list asks for a chunk of rows, looks through it, and asks for the next one until the page is full or its bound on rows
looked at is reached; then the page is short, and says where to go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Final, NamedTuple

import asyncpg

from delivery_service.domain.kpis import Counts
from delivery_service.domain.lifecycle import Channel, DeliveryState
from delivery_service.domain.outcome import Outcome
from delivery_service.domain.problems import SendLogNotFound
from delivery_service.domain.status import FeedbackMode
from delivery_service.store.kpis import long_transaction
from delivery_service.store.queries import query
from delivery_service.store.send_logs import SendLog, arrays, send_log_of

_CHUNK_ROWS: Final = 1_000
_EVENT_TIME_FIRST: Final = datetime(1970, 1, 1, tzinfo=UTC)
RECIPIENT_LAST: Final = 2**31 - 1


class MessagePlace(NamedTuple):
    """Where a list of one person's messages stands: behind this one."""

    delivery_id: int = 2**63 - 1
    recipient: int = RECIPIENT_LAST


@dataclass(frozen=True, slots=True)
class ProfileMessage:
    """One message of a person, with what it was part of."""

    send_log: SendLog
    label: str
    channel: Channel
    state: DeliveryState
    feedback_mode: FeedbackMode
    start_time: datetime | None


@dataclass(frozen=True, slots=True)
class MessagePage:
    """Some messages, and the place to go on behind; None: that was all."""

    messages: list[ProfileMessage]
    next_place: MessagePlace | None


class TrackingPlace(NamedTuple):
    """Where a list of tracking facts stands: behind this one."""

    recipient: int
    kind: int
    event_time: datetime
    url_hash: str


@dataclass(frozen=True, slots=True)
class TrackingPage:
    """Some tracking facts, and the place to go on behind; None: that was all."""

    rows: list[asyncpg.Record]
    next_place: TrackingPlace | None


class GroupBy(IntEnum):
    """What KPIs are grouped by; the numbers are those of the contract."""

    RECIPIENT_DOMAIN = 1
    REASON = 2
    HOUR = 3


@dataclass(frozen=True, slots=True)
class Group:
    """Send logs of one group; `key` as text, empty for those without one."""

    key: str
    counts: Counts


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The rows by group, the largest first, and the counters, in one snapshot."""

    groups: list[Group]
    other: Counts | None
    other_groups: int
    counters: Counts
    slot_revisions: tuple[int, ...]


class LookUps:
    """Reads them."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        rows_scanned_per_page_max: int,
        deliveries_scanned_per_page_max: int,
        long_statement_timeout_seconds: float,
    ) -> None:
        self._pool = pool
        self._rows_max = rows_scanned_per_page_max
        self._deliveries_max = deliveries_scanned_per_page_max
        self._long_statement_timeout_seconds = long_statement_timeout_seconds

    async def recipient_message(self, delivery_id: int, recipient: int) -> asyncpg.Record:
        """Address, attributes and outcome of one message; SendLogNotFound."""
        row = await self._pool.fetchrow(query("recipient_message"), delivery_id, recipient)
        if row is None:
            raise SendLogNotFound(delivery_id, recipient)
        return row

    async def messages_of_profile(self, profile_id: str, channel: int, behind: MessagePlace, size: int) -> MessagePage:
        """The messages of a profile behind that place, the newest delivery first."""
        return await self._messages("profile", (profile_id,), channel, behind, size)

    async def messages_of_address(
        self, email: str, other: str, channel: int, behind: MessagePlace, size: int
    ) -> MessagePage:
        """The messages to an address, by its form as an email's and as another channel's."""
        return await self._messages("address", (email, other), channel, behind, size)

    async def _messages(
        self, kind: str, wanted: Sequence[str], channel: int, behind: MessagePlace, size: int
    ) -> MessagePage:
        found: list[ProfileMessage] = []
        scanned = 0
        by_profile = kind == "profile"
        scanned_max = self._rows_max if by_profile else self._deliveries_max
        while scanned < scanned_max:
            # At least two deliveries: the first one may be the last one of the chunk before.
            chunk = max(2, min(_CHUNK_ROWS, scanned_max - scanned))
            if by_profile:
                rows = await self._pool.fetch(query("profile_messages"), wanted[0], *behind, chunk, channel)
                through = len(rows)
            else:
                rows = await self._pool.fetch(query("address_messages"), wanted[0], *behind, chunk, channel, wanted[1])
                through = len({row["place"] for row in rows})
            for row in rows:
                if row["shown"]:
                    if len(found) == size:
                        return MessagePage(found, behind)
                    found.append(_profile_message(row))
                behind = MessagePlace(row["place"], row["place_recipient"])
            scanned += through
            if through < chunk:
                return MessagePage(found, None)
        return MessagePage(found, behind)

    async def tracking_events(
        self, delivery_id: int, kinds: frozenset[int], recipient: int | None, behind: TrackingPlace | None, size: int
    ) -> TrackingPage:
        """The tracking facts of a delivery, or of one recipient, behind that place."""
        place = behind or TrackingPlace(recipient or 1, 0, _EVENT_TIME_FIRST, "")
        through = recipient or RECIPIENT_LAST
        found: list[asyncpg.Record] = []
        scanned = 0
        while scanned < self._rows_max:
            chunk = min(_CHUNK_ROWS, self._rows_max - scanned)
            rows = await self._pool.fetch(query("tracking_events"), delivery_id, *place, through, chunk, *arrays(kinds))
            for row in rows:
                if row["shown"]:
                    if len(found) == size:
                        return TrackingPage(found, place)
                    found.append(row)
                place = TrackingPlace(row["recipient"], row["kind"], row["event_time"], row["url_hash"])
            scanned += len(rows)
            if len(rows) < chunk:
                return TrackingPage(found, None)
        return TrackingPage(found, place)

    async def breakdown(
        self, delivery_id: int, by: GroupBy, shown: frozenset[Outcome], groups_max: int
    ) -> Breakdown | None:
        """Counts a delivery's rows by group. None: another run holds the delivery."""
        async with long_transaction(self._pool, self._long_statement_timeout_seconds) as connection:
            if not await connection.fetchval(query("lock_breakdown"), delivery_id):
                return None
            rows = await connection.fetch(query("kpi_breakdown"), delivery_id, by, sorted(shown), groups_max)
        told = [row for row in rows if row["volume"] is not None]
        others = [row for row in told if row["place"] == 0]
        return Breakdown(
            groups=[Group(row["key"], _counts(row)) for row in told if row["place"] > 0],
            other=_counts(others[0]) if others else None,
            other_groups=others[0]["groups"] if others else 0,
            counters=_counts(rows[0], "_counted"),
            slot_revisions=tuple(rows[0]["slot_revisions"]),
        )


def _counts(row: asyncpg.Record, suffix: str = "") -> Counts:
    return Counts(by_outcome={outcome: row[f"{outcome.name.lower()}{suffix}"] for outcome in Outcome})


def _profile_message(row: asyncpg.Record) -> ProfileMessage:
    return ProfileMessage(
        send_log=send_log_of(row),
        label=row["label"],
        channel=Channel(row["channel"]),
        state=DeliveryState(row["state"]),
        feedback_mode=FeedbackMode(row["feedback_mode"]),
        start_time=row["start_time"],
    )
