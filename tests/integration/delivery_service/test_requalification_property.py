"""Re-qualification on the real store: whatever was reported, by which rules and in which order, and whatever comes in
meanwhile, rows, KPIs and known reports become what a naive model reads in all reports by the new rules."""

import asyncio
import itertools
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from delivery_service.domain.outcome import FAILING, Observation, Outcome
from delivery_service.domain.problems import DeliveryNotFound, RulesOutdated
from delivery_service.store.apply_writer import ApplyWriter
from delivery_service.store.kpis import KpiStore
from delivery_service.store.observations import ObservationColumns
from delivery_service.store.requalification import BEFORE_ALL_RECIPIENTS, Change, Requalification, Verdict
from service_runtime.clock import from_microseconds
from tests.integration.delivery_service.test_apply_property import replica
from tests.support.invariants import assert_laws
from tests.support.postgres import DatabaseFactory
from tests.support.seeding import seed_delivery_over

RECIPIENTS = [1, 2, 1_023, 1_024, 2_048]
SLOTS = 2
TIME_US = 1_800_000_000_000_000
NOW = datetime(2027, 2, 1, tzinfo=UTC)
OLD, NEW = 1, 2

_ids = itertools.count(1)


@dataclass
class Stores:
    """Two processes' worth of apply paths on one database, and what re-qualifies it."""

    dsn: str
    writers: list[ApplyWriter]
    requalification: Requalification
    kpis: KpiStore
    pool: asyncpg.Pool

    async def seed(self, delivery_id: int) -> None:
        async with self.pool.acquire() as connection:
            await seed_delivery_over(connection, delivery_id, RECIPIENTS, slots=SLOTS)


@pytest.fixture(scope="module")
async def stores(database_factory: DatabaseFactory) -> AsyncIterator[Stores]:
    async with database_factory.fresh() as dsn:
        async with replica(dsn) as (one, pool), replica(dsn) as (other, other_pool):
            # Pages of two recipients: runs have several steps to be stopped at.
            requalification = Requalification(other_pool, recipients_per_page=2)
            yield Stores(dsn, [one, other], requalification, KpiStore(pool, 60.0), pool)
        await assert_laws(dsn)


@dataclass(frozen=True)
class Report:
    """What an MTA said about a recipient's message; how it counts is the rules' business."""

    recipient: int
    outcome: int
    event_time_us: int
    smtp_code: int
    diagnostic: str

    def read(self, rules_version: int) -> Observation:
        """The observation that rules of a version make of it."""
        failure_type = reason = 0
        if self.outcome in FAILING:
            # Any pure function will do, as long as its versions disagree now and then.
            number = zlib.crc32(repr((self.smtp_code, self.diagnostic, rules_version)).encode())
            failure_type, reason = number % 3 + 1, number // 3 % 2 + 1
        text = self.diagnostic if self.outcome in FAILING else ""
        return Observation(
            self.outcome, self.event_time_us, failure_type, reason, self.smtp_code, "", text, self.event_time_us % 2
        )


_reports = st.builds(
    Report,
    recipient=st.sampled_from(RECIPIENTS),
    outcome=st.sampled_from([Outcome.CANCELED, Outcome.RELAYED, *sorted(FAILING), Outcome.DELIVERED]),
    event_time_us=st.integers(TIME_US, TIME_US + 3),
    smtp_code=st.sampled_from([450, 550]),
    diagnostic=st.sampled_from(["", "a", "Z", "é"]),
)


@st.composite
def _histories(draw: st.DrawFn) -> tuple[list[tuple[Report, int]], list[Report], int]:
    """What is reported before, by which rules; what is reported meanwhile; and the step that the first run dies at."""
    reports = draw(st.lists(_reports, min_size=1, max_size=20))
    again = draw(st.lists(st.sampled_from(reports), max_size=10))
    before = [(report, draw(st.sampled_from([OLD, OLD, NEW]))) for report in draw(st.permutations(reports + again))]
    meanwhile = draw(st.lists(st.one_of(_reports, st.sampled_from(reports)), max_size=10))
    return before, meanwhile, draw(st.integers(0, 4))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=_histories())
async def test_whatever_was_reported_a_requalification_makes_it_what_the_new_rules_say(
    stores: Stores, history: tuple[list[tuple[Report, int]], list[Report], int]
) -> None:
    before, meanwhile, dies_at = history
    delivery_id = next(_ids)
    await stores.seed(delivery_id)
    writers = itertools.cycle(stores.writers)
    for report, rules_version in before:
        await _apply(next(writers), delivery_id, [report], rules_version)

    # A first run dies in its middle; another one runs while reports come in, read by a process with the old rules
    # until it is refused, and then again by one with the new ones.
    await _requalify(stores, delivery_id, steps=dies_at)

    async def report_on() -> None:
        for report in meanwhile:
            try:
                await _apply(next(writers), delivery_id, [report], OLD)
                raise AssertionError("outdated rules were taken")
            except RulesOutdated:
                await _apply(next(writers), delivery_id, [report], NEW)

    await asyncio.gather(_requalify(stores, delivery_id), report_on())
    reports = {report for report, _ in before} | set(meanwhile)
    expected = _naive_rows(reports)
    assert await _rows(stores.pool, delivery_id) == expected
    assert await _known(stores.pool, delivery_id) == {
        (report.recipient, report.read(NEW)) for report in reports if report.outcome in FAILING
    }
    await _assert_kpis(stores, delivery_id, expected)

    # Done: again, it finds nothing to do; and what is reported once more is known already.
    entries = await _entries(stores.pool, delivery_id)
    assert await _requalify(stores, delivery_id) == []
    for writer in stores.writers:
        await _apply(writer, delivery_id, sorted(reports, key=repr), NEW)
    assert await _entries(stores.pool, delivery_id) == entries


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=_histories())
async def test_a_dry_run_tells_what_the_run_then_changes_and_changes_nothing(
    stores: Stores, history: tuple[list[tuple[Report, int]], list[Report], int]
) -> None:
    before, _, _ = history
    delivery_id = next(_ids)
    await stores.seed(delivery_id)
    for report, rules_version in before:
        await _apply(stores.writers[0], delivery_id, [report], rules_version)
    rows, entries = await _rows(stores.pool, delivery_id), await _entries(stores.pool, delivery_id)
    told = await _requalify(stores, delivery_id, validate_only=True)
    assert (await _rows(stores.pool, delivery_id), await _entries(stores.pool, delivery_id)) == (rows, entries)
    assert await stores.pool.fetchval(
        "select max(rules_version_min) from delivery_counter where delivery_id = $1", delivery_id
    ) == 0, "it refuses the old rules"  # fmt: skip
    assert await _requalify(stores, delivery_id) == told
    now = await _rows(stores.pool, delivery_id)
    moved = Counter((*rows[r][2:4], *row[2:4]) for r, row in now.items() if rows[r][2:4] != row[2:4])
    assert moved == _sums(told, lambda change: change.send_logs)


def _sums(changes: list[Change], count: Callable[[Change], int]) -> Counter[tuple[int, ...]]:
    sums: Counter[tuple[int, ...]] = Counter()
    for change in changes:
        key = (change.failure_type_before, change.reason_before, change.failure_type, change.reason)
        sums[key] += count(change)
    return +sums


NEWER = 3
EARLY = Report(1, Outcome.DEFERRED, TIME_US, 450, "a")
LATE = Report(1, Outcome.BOUNCED, TIME_US + 1, 550, "Z")


async def test_what_newer_rules_have_read_is_left_alone_and_older_ones_come_too_late(stores: Stores) -> None:
    delivery_id = next(_ids)
    await stores.seed(delivery_id)
    await _apply(stores.writers[0], delivery_id, [LATE], NEWER)
    before = await _rows(stores.pool, delivery_id)
    otherwise = Verdict(1, *LATE.read(NEWER)._replace(failure_type=3, reason=7))
    assert await stores.requalification.correct(delivery_id, NEW, [otherwise], NOW, validate_only=False) == []
    await stores.requalification.fence(delivery_id, NEWER)
    with pytest.raises(RulesOutdated):
        await stores.requalification.correct(delivery_id, NEW, [otherwise], NOW, validate_only=True)
    with pytest.raises(RulesOutdated):
        await stores.requalification.fence(delivery_id, NEW)
    assert await _rows(stores.pool, delivery_id) == before
    await stores.requalification.fence(delivery_id, NEWER)  # the same again


async def test_a_late_report_is_corrected_in_its_place_and_a_superseded_one_beside_the_log(stores: Stores) -> None:
    delivery_id = next(_ids)
    await stores.seed(delivery_id)
    superseded, late = EARLY, Report(1, Outcome.DEFERRED, TIME_US + 2, 450, "a")
    for report in (superseded, LATE, late):
        await _apply(stores.writers[0], delivery_id, [report], OLD)
    verdicts = [Verdict(1, *report.read(OLD)._replace(failure_type=2, reason=5)) for report in (superseded, late)]
    await stores.requalification.correct(delivery_id, NEW, verdicts, NOW, validate_only=False)
    kept = await stores.pool.fetch(
        "select failure_type, reason, rules_version, correction, commit_time = $2 as now from late_observation "
        "where delivery_id = $1 order by event_time",
        delivery_id,
        NOW,
    )
    assert [tuple(row) for row in kept] == [(2, 5, NEW, True, True), (2, 5, NEW, False, False)]


async def test_a_correction_that_meets_an_unknown_message_or_slot_changes_nothing(stores: Stores) -> None:
    delivery_id = next(_ids)
    await stores.seed(delivery_id)
    nobody = Verdict(77, *EARLY.read(NEW))
    assert await stores.requalification.correct(delivery_id, NEW, [nobody], NOW, validate_only=False) == []
    with pytest.raises(DeliveryNotFound):
        await stores.requalification.correct(10**9, NEW, [nobody], NOW, validate_only=False)
    with pytest.raises(DeliveryNotFound):
        await stores.requalification.fence(10**9, NEW)


async def _requalify(
    stores: Stores, delivery_id: int, *, steps: int | None = None, validate_only: bool = False
) -> list[Change]:
    """What FeedbackService does, up to a number of steps. Gives what has changed."""
    store, changes = stores.requalification, list[Change]()
    if not validate_only:
        await store.fence(delivery_id, NEW)
    after: int | None = BEFORE_ALL_RECIPIENTS
    while after is not None and (steps is None or (steps := steps - 1) >= 0):
        page = await store.reports(delivery_id, after, NOW - timedelta(days=900), NOW + timedelta(days=900), NEW)
        verdicts = [verdict for row in page.rows if (verdict := _verdict(row))]
        # A run that is to be stopped gives them one by one: it dies between the reports about one recipient too.
        for some in [verdicts] if steps is None else [[verdict] for verdict in verdicts]:
            changes += await store.correct(delivery_id, NEW, some, NOW, validate_only=validate_only)
        after = page.next_after
    return changes


def _verdict(row: asyncpg.Record) -> Verdict | None:
    report = Report(row["recipient"], row["outcome"], row["event_time_us"], row["smtp_code"], row["diagnostic"])
    observation = report.read(NEW)
    if (observation.failure_type, observation.reason) == (row["failure_type"], row["reason"]) and not row["disputed"]:
        return None
    return Verdict(report.recipient, *observation)


async def _apply(writer: ApplyWriter, delivery_id: int, reports: list[Report], rules_version: int) -> None:
    columns = ObservationColumns()
    for report in reports:
        values: tuple[Any, ...] = (delivery_id, report.recipient, *report.read(rules_version), rules_version)
        for name, value in zip(ObservationColumns.__dataclass_fields__, values, strict=True):
            getattr(columns, name).append(value)
    refused = await writer.apply(columns)
    assert (refused.unknown, refused.malformed) == ([], [])


def _naive_rows(reports: set[Report]) -> dict[int, Observation]:
    rows = {recipient: Observation(Outcome.PREPARED, 0) for recipient in RECIPIENTS}
    for report in reports:
        rows[report.recipient] = max(rows[report.recipient], report.read(NEW))
    return rows


_FIELDS = """recipient, outcome, (extract(epoch from event_time) * 1000000)::bigint, failure_type, reason, smtp_code,
    enhanced_code, diagnostic, attempt"""


async def _rows(pool: asyncpg.Pool, delivery_id: int) -> dict[int, Observation]:
    rows = await pool.fetch(f"select {_FIELDS} from send_log where delivery_id = $1", delivery_id)
    # The time of a row that nothing happened to is when it was prepared.
    return {row[0]: Observation(0, 0) if row[1] == 0 else Observation(*list(row)[1:]) for row in rows}


async def _known(pool: asyncpg.Pool, delivery_id: int) -> set[tuple[int, Observation]]:
    """Every failure reported, each with how it counts."""
    rows = await pool.fetch(
        f"select {_FIELDS} from known_reports($1, $2) where outcome in (3, 4, 6)", delivery_id, RECIPIENTS
    )
    return {(row[0], Observation(*list(row)[1:])) for row in rows}


async def _entries(pool: asyncpg.Pool, delivery_id: int) -> tuple[int, ...]:
    row = await pool.fetchrow(
        """
        select (select count(*) from transition where delivery_id = $1),
            (select count(*) from late_observation where delivery_id = $1),
            (select sum(revision) from delivery_counter where delivery_id = $1)
        """,
        delivery_id,
    )
    assert row is not None
    return tuple(map(int, row))


async def _assert_kpis(stores: Stores, delivery_id: int, expected: dict[int, Observation]) -> None:
    counts = (await stores.kpis.get([delivery_id]))[delivery_id].counts
    by_outcome = Counter(row.outcome for row in expected.values())
    assert {outcome: counts.of(outcome) for outcome in Outcome} == {o: by_outcome.get(o, 0) for o in Outcome}
    for outcome in FAILING:
        kinds = Counter(row.failure_type for row in expected.values() if row.outcome == outcome)
        assert (counts.hard[outcome], counts.ignored[outcome]) == (kinds[2], kinds[3])


def test_the_times_of_the_model_lie_in_the_range_that_is_requalified() -> None:
    assert abs(from_microseconds(TIME_US) - NOW) < timedelta(days=900)
