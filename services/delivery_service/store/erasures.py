"""Erasing a profile, a bounded number of recipients a statement.

BLANKED is the one place that says what may tell who someone was; a test walks the catalog and finds every column of a
text in it, or said why not.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Final, NamedTuple

import asyncpg

from delivery_service.store.queries import query

BLANKED: Final[Mapping[str, frozenset[str]]] = {
    "recipient": frozenset({"profile_id", "address", "attributes"}),
    "send_log": frozenset({"diagnostic"}),
    "transition": frozenset({"diagnostic"}),
    "late_observation": frozenset({"diagnostic"}),
    "observation_detail": frozenset({"vendor_class"}),
    "tracking_log": frozenset({"url"}),
    "delivery": frozenset({"control_group_profile_ids"}),
    "dead_letter": frozenset({"message_id", "diagnostic", "detail"}),
    "address_event": frozenset({"address"}),
    "address_health": frozenset({"diagnostic"}),
    "erasure": frozenset({"profile_id"}),
}
"""Table to its columns that an erasure blanks, or empties with the row. Extending it: the columns here, and the
statement in erase_recipients (of rows by recipient) or in sql/erasure.sql."""


class ErasedRecipient(NamedTuple):
    """A recipient to erase: whether the MTA may still report about it, and whether its message is still to leave."""

    recipient: int
    address: str
    unsettled: bool
    to_leave: bool


@dataclass(frozen=True, slots=True)
class Erased:
    """How many entries lost their texts."""

    reports: int
    tracking_facts: int


class Erasures:
    """Every step may be repeated."""

    def __init__(self, pool: asyncpg.Pool, recipients_per_step: int) -> None:
        self._pool = pool
        self._step = recipients_per_step

    async def begin(self, profile_id: str, erasure_id: str, now: datetime) -> str:
        """The id of the erasure: this one, or that of one begun before that is not complete."""
        return str(await self._pool.fetchval(query("begin_erasure"), profile_id, erasure_id, now))

    async def complete(self, profile_id: str) -> None:
        """Nothing links the erasure to the profile any more."""
        await self._pool.execute(query("complete_erasure"), profile_id)

    async def recipients(self, profile_id: str) -> AsyncIterator[tuple[int, list[ErasedRecipient]]]:
        """The profile's recipients, by delivery; one delivery may come more than once."""
        place = (0, -(2**31))
        while rows := await self._pool.fetch(query("recipients_of_profile"), profile_id, *place, self._step):
            for delivery_id, group in groupby(rows, key=lambda row: row["delivery_id"]):
                found = [
                    ErasedRecipient(row["recipient"], row["address"], bool(row["unsettled"]), bool(row["to_leave"]))
                    for row in group
                ]
                yield delivery_id, found
            place = (rows[-1]["delivery_id"], rows[-1]["recipient"])
            if len(rows) < self._step:
                return

    async def erase(self, delivery_id: int, recipients: Sequence[int], erasure_id: str, now: datetime) -> Erased | None:
        """Erases these recipients of a delivery. None: a message of theirs is still to leave."""
        row = await self._pool.fetchrow(query("erase_recipients"), delivery_id, recipients, erasure_id, now)
        return None if row is None else Erased(row["reports"], row["tracking_facts"])

    async def wait_for_copies(self) -> None:
        """What was copied from an audience before it was erased is there after this."""
        await self._pool.execute(query("wait_for_copies"))

    async def erase_from_control_groups(self, profile_id: str, erasure_id: str) -> int:
        """How many named it."""
        return int(await self._pool.fetchval(query("erase_from_control_groups"), profile_id, erasure_id))

    async def erase_from_dead_letters(self, message_ids: Sequence[str], addresses: Sequence[str]) -> int:
        """How many were of these messages, or named one of these addresses."""
        return int(await self._pool.fetchval(query("erase_from_dead_letters"), message_ids, addresses))

    async def erase_from_address_health(self, messages: Sequence[tuple[int, int]], addresses: Sequence[str]) -> None:
        """Forgets what was reported about these messages, by delivery and recipient, to these addresses."""
        delivery_ids, recipients = [message[0] for message in messages], [message[1] for message in messages]
        await self._pool.execute(query("erase_from_address_health"), delivery_ids, recipients, addresses)
