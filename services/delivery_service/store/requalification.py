"""Re-qualification: what was reported about a delivery, for new rules to read; and what they correct."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

import asyncpg

from delivery_service.domain.identifiers import slot_of
from delivery_service.domain.outcome import FailureType, Outcome, Reason
from delivery_service.domain.problems import DeliveryNotFound, RulesOutdated
from delivery_service.domain.undefined_failures import UndefinedReport
from delivery_service.store.queries import query

BEFORE_ALL_RECIPIENTS: Final = -(2**31)
"""Proofs are numbered below 1."""


class Detail(NamedTuple):
    """What an MTA said about one report beside code and text."""

    delivery_id: int
    recipient: int
    outcome: int
    event_time_us: int
    mta_event_kind: int
    vendor_class: str


class Verdict(NamedTuple):
    """A report, by what the MTA said, and what the rules read in it."""

    recipient: int
    outcome: int
    event_time_us: int
    failure_type: int
    reason: int
    smtp_code: int
    enhanced_code: str
    diagnostic: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Change:
    """From which type and reason to which: of how many reports, and of how many send logs."""

    outcome: Outcome
    failure_type_before: FailureType
    reason_before: Reason
    failure_type: FailureType
    reason: Reason
    reports: int
    send_logs: int


@dataclass(frozen=True, slots=True)
class ReportPage:
    """The reports about some recipients, and the recipient to go on behind; None: that was all."""

    rows: list[asyncpg.Record]
    next_after: int | None


class Requalification:
    """Reads reports and corrects how they count."""

    def __init__(self, pool: asyncpg.Pool, recipients_per_page: int) -> None:
        self._pool = pool
        self._recipients_per_page = recipients_per_page

    async def keep_details(self, details: Sequence[Detail]) -> None:
        """Keeps what can't be told from the observations themselves; to be called before these are applied."""
        if details:
            await self._pool.execute(query("keep_details"), *map(list, zip(*sorted(details), strict=True)))

    async def deliveries(self, below: int, since: datetime, until: datetime, limit: int) -> list[int]:
        """The newest `limit` deliveries, of an id below `below`, that may have been reported on in that time."""
        rows = await self._pool.fetch(query("deliveries_active_between"), below, since, until, limit)
        return [row["delivery_id"] for row in rows]

    async def fence(self, delivery_id: int, rules_version: int) -> None:
        """From now on the delivery takes nothing that older rules have read. DeliveryNotFound, RulesOutdated."""
        await self._slot_count(delivery_id)
        try:
            await self._pool.execute(query("fence_rules"), delivery_id, rules_version)
        except asyncpg.ObjectNotInPrerequisiteStateError as error:
            raise RulesOutdated(rules_version) from error

    async def reports(
        self, delivery_id: int, after: int, since: datetime, until: datetime, rules_version: int
    ) -> ReportPage:
        """What was reported about some recipients behind `after`: those with a failure in that time."""
        size = self._recipients_per_page
        rows = await self._pool.fetch(
            query("reports_to_requalify"), delivery_id, after, size, since, until, rules_version
        )
        scanned = await self._pool.fetchrow(query("scanned_through"), delivery_id, after, size)
        assert scanned is not None  # an aggregate
        return ReportPage(rows, scanned["recipient"] if scanned["n"] == size else None)

    async def correct(
        self, delivery_id: int, rules_version: int, verdicts: Sequence[Verdict], now: datetime, *, validate_only: bool
    ) -> list[Change]:
        """Corrects a delivery by these verdicts, slot by slot, each in one statement; or only tells what would change.
        Stopped in between, some slots are corrected: the same again does the rest. DeliveryNotFound, RulesOutdated."""
        slot_count = await self._slot_count(delivery_id)
        by_slot: dict[int, list[Verdict]] = {}
        for verdict in verdicts:
            by_slot.setdefault(slot_of(verdict.recipient, slot_count), []).append(verdict)
        changes: list[Change] = []
        for slot, members in sorted(by_slot.items()):
            columns = map(list, zip(*members, strict=True))
            try:
                rows = await self._pool.fetch(
                    query("correct_slot"), delivery_id, slot, now, validate_only, rules_version, *columns
                )
            except asyncpg.ObjectNotInPrerequisiteStateError as error:
                raise RulesOutdated(rules_version) from error
            changes += [_change(row) for row in rows]
        return changes

    async def undefined_reports(
        self, delivery_ids: Sequence[int], since: datetime, until: datetime, limit: int
    ) -> list[UndefinedReport | None]:
        """Reports of these deliveries in that time that no rules had read, at most `limit`; None: they have since."""
        rows = await self._pool.fetch(query("undefined_reports"), delivery_ids, since, until, limit)
        return [None if row["read_since"] else UndefinedReport(*list(row)[:-1]) for row in rows]

    async def _slot_count(self, delivery_id: int) -> int:
        slot_count = await self._pool.fetchval(query("slot_count"), delivery_id)
        if not slot_count:
            raise DeliveryNotFound(delivery_id)
        return int(slot_count)


def _change(row: asyncpg.Record) -> Change:
    return Change(
        outcome=Outcome(row["outcome"]),
        failure_type_before=FailureType(row["failure_type_before"]),
        reason_before=Reason(row["reason_before"]),
        failure_type=FailureType(row["failure_type"]),
        reason=Reason(row["reason"]),
        reports=row["reports"],
        send_logs=row["send_logs"],
    )
