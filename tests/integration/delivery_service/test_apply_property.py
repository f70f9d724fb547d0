"""The lattice on the real store: any order, repetition, batching and concurrency of the same observations gives the
same rows, the same KPIs and the same known facts as a naive model."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from delivery_service.domain.outcome import FAILING, Observation, Outcome
from delivery_service.store.apply_writer import ApplySettings, ApplyWriter
from delivery_service.store.database import DatabaseSettings, open_pool
from delivery_service.store.hand_over import HandOver
from delivery_service.store.kpis import KpiStore
from delivery_service.store.observations import ObservationColumns
from service_runtime.clock import SystemClock
from tests.support.invariants import assert_laws
from tests.support.postgres import DatabaseFactory, connected
from tests.support.seeding import seed_delivery_over

RECIPIENTS = [1, 2, 1_023, 1_024, 2_048]
"""In several parts, so in several slots."""
UNKNOWN = 3
"""Of the same part as the first ones, and without a send log."""
SLOTS = 2
TIME_US = 1_800_000_000_000_000

_ids = itertools.count(1)


@dataclass
class Replicas:
    """Two processes' worth of apply paths on one database."""

    connection: asyncpg.Connection
    """To prepare for a history and to look at what came of it: a new one each time would take most of the time."""
    writers: list[ApplyWriter]
    kpis: KpiStore


@asynccontextmanager
async def replica(dsn: str) -> AsyncIterator[tuple[ApplyWriter, asyncpg.Pool]]:
    database = DatabaseSettings(dsn)
    pool = await open_pool(database)
    writer = ApplyWriter(pool, database, ApplySettings(batch_size_max=7), SystemClock(), lambda _: None)
    tasks = [asyncio.create_task(run, name=name) for name, run in writer.runs()]
    try:
        yield writer, pool
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pool.close()


@pytest.fixture(scope="module")
async def replicas(database_factory: DatabaseFactory) -> AsyncIterator[Replicas]:
    async with database_factory.fresh() as dsn:
        async with replica(dsn) as (one, pool), replica(dsn) as (other, _), connected(dsn) as connection:
            yield Replicas(connection, [one, other], KpiStore(pool, 60.0))
        await assert_laws(dsn)


Fact = tuple[int, Observation]
"""(recipient, what was reported): raw, not normalised."""

_observations = st.builds(
    Observation,
    outcome=st.sampled_from([Outcome.CANCELED, Outcome.RELAYED, *sorted(FAILING), Outcome.DELIVERED]),
    event_time_us=st.integers(TIME_US, TIME_US + 3),
    failure_type=st.integers(0, 3),
    reason=st.integers(0, 2),
    smtp_code=st.sampled_from([0, 250, 550]),
    enhanced_code=st.sampled_from(["", "5.1.1", "4.2.2"]),
    # "Z" < "a" < "é" < an astral character byte-wise, but not in every collation.
    diagnostic=st.sampled_from(["", "a", "Z", "é", "￿", "\U0001f600"]),
    attempt=st.integers(0, 2),
)
_facts = st.lists(st.tuples(st.sampled_from(RECIPIENTS), _observations), min_size=1, max_size=25)


@st.composite
def _histories(draw: st.DrawFn) -> tuple[list[Fact], list[list[list[Fact]]]]:
    """Facts; and a way in which they come: all of them, some again, in any order, in batches, over three streams."""
    facts = draw(_facts)
    again = draw(st.lists(st.sampled_from(facts), max_size=15))
    arrivals = draw(st.permutations(facts + again))
    streams: list[list[list[Fact]]] = [[], [], []]
    while arrivals:
        size = draw(st.integers(1, 10))
        batch, arrivals = arrivals[:size], arrivals[size:]
        draw(st.sampled_from(streams)).append(list(batch))
    return facts, streams


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=_histories())
async def test_any_order_repetition_batching_and_concurrency_gives_what_a_naive_model_says(
    replicas: Replicas, history: tuple[list[Fact], list[list[list[Fact]]]]
) -> None:
    facts, streams = history
    delivery_id = next(_ids)
    await seed_delivery_over(replicas.connection, delivery_id, RECIPIENTS, slots=SLOTS)

    async def play(stream: list[list[Fact]], writer: ApplyWriter) -> None:
        for batch in stream:
            refused = await writer.apply(_columns(delivery_id, batch))
            assert (refused.unknown, refused.malformed) == ([], [])

    await asyncio.gather(*map(play, streams, itertools.cycle(replicas.writers)))

    expected = _naive_rows(facts)
    assert await _rows(replicas.connection, delivery_id) == expected
    assert await _known(replicas.connection, delivery_id) == {(r, _normalised(o)) for r, o in facts}
    counts = (await replicas.kpis.get([delivery_id]))[delivery_id].counts
    by_outcome = Counter(row.outcome for row in expected.values())
    assert {outcome: counts.of(outcome) for outcome in Outcome} == {o: by_outcome.get(o, 0) for o in Outcome}
    for outcome in FAILING:
        kinds = Counter(row.failure_type for row in expected.values() if row.outcome == outcome)
        assert (counts.hard[outcome], counts.ignored[outcome]) == (kinds[2], kinds[3])


@st.composite
def _hand_overs(draw: st.DrawFn) -> dict[int, int]:
    """Recipients of one part, in order, and when each was accepted: often all at the same time."""
    part = draw(st.sampled_from(([1, 2, 1_023, UNKNOWN], [1_024], [2_048])))
    recipients = sorted(draw(st.lists(st.sampled_from(part), min_size=1, unique=True)))
    times_us = st.integers(TIME_US, TIME_US + 3)
    at_once = draw(st.one_of(st.none(), times_us))
    return {recipient: at_once or draw(times_us) for recipient in recipients}


_steps = st.lists(st.one_of(_hand_overs(), _facts), min_size=1, max_size=12)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=_steps)
async def test_a_hand_over_does_by_its_own_statement_what_the_general_one_does(
    replicas: Replicas, steps: list[dict[int, int] | list[Fact]]
) -> None:
    """Before and after any feedback, cancellation and repetition: the same rows, log, counters and answer."""
    ours, general = next(_ids), next(_ids)
    writer = replicas.writers[0]
    for delivery_id in (ours, general):
        await seed_delivery_over(replicas.connection, delivery_id, RECIPIENTS, slots=SLOTS)

    for step in steps:
        if isinstance(step, dict):
            refused, _ = await writer.apply_hand_over(HandOver(ours, list(step), list(step.values())))
            assert refused == await writer.apply(HandOver(general, list(step), list(step.values())).columns())
        else:
            for delivery_id in (ours, general):
                await writer.apply(_columns(delivery_id, step))

    assert await _everything(replicas.connection, ours) == await _everything(replicas.connection, general)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(hand_overs=st.lists(_hand_overs(), min_size=1, max_size=6), history=_histories())
async def test_hand_overs_among_feedback_of_several_writers_give_what_a_naive_model_says(
    replicas: Replicas, hand_overs: list[dict[int, int]], history: tuple[list[Fact], list[list[list[Fact]]]]
) -> None:
    feedback, streams = history
    delivery_id = next(_ids)
    await seed_delivery_over(replicas.connection, delivery_id, RECIPIENTS, slots=SLOTS)

    async def relay(writer: ApplyWriter) -> None:
        for accepted in hand_overs:
            refused, _ = await writer.apply_hand_over(HandOver(delivery_id, list(accepted), list(accepted.values())))
            assert refused.unknown == [index for index, recipient in enumerate(accepted) if recipient == UNKNOWN]

    async def report(stream: list[list[Fact]], writer: ApplyWriter) -> None:
        for batch in stream:
            await writer.apply(_columns(delivery_id, batch))

    await asyncio.gather(
        *map(report, streams, itertools.cycle(replicas.writers)), *(relay(writer) for writer in replicas.writers)
    )

    facts = feedback + [
        (recipient, Observation(Outcome.RELAYED, time_us))
        for accepted in hand_overs
        for recipient, time_us in accepted.items()
        if recipient != UNKNOWN
    ]
    assert await _rows(replicas.connection, delivery_id) == _naive_rows(facts)
    assert await _known(replicas.connection, delivery_id) == {(r, _normalised(o)) for r, o in facts}


def _columns(delivery_id: int, batch: list[Fact]) -> ObservationColumns:
    columns = ObservationColumns()
    for recipient, o in batch:
        row: tuple[Any, ...] = (delivery_id, recipient, *o[:4], *o[4:], 1)
        for name, value in zip(ObservationColumns.__dataclass_fields__, _by_column(row), strict=True):
            getattr(columns, name).append(value)
    columns.normalise()
    return columns


def _by_column(row: tuple[Any, ...]) -> Iterator[Any]:
    # The fields of an Observation stand in the order of comparison, which is that of the columns too.
    yield from row


def _normalised(o: Observation) -> tuple[Any, ...]:
    if o.outcome in (Outcome.DEFERRED, Outcome.EXPIRED, Outcome.BOUNCED):
        return tuple(o)
    return (o.outcome, o.event_time_us, 0, 0, o.smtp_code, o.enhanced_code, "", o.attempt)


def _naive_rows(facts: list[Fact]) -> dict[int, Observation]:
    """One fact at a time, by the words of the design: a greater rank, else a later time, else greater fields."""
    rows = {recipient: Observation(Outcome.PREPARED, 0) for recipient in RECIPIENTS}
    for recipient, raw in facts:
        row, fact = rows[recipient], Observation(*_normalised(raw))
        for index in range(len(fact)):
            ours, theirs = row[index], fact[index]
            if isinstance(ours, str) and isinstance(theirs, str):
                ours, theirs = ours.encode(), theirs.encode()  # type: ignore[assignment]
            if ours != theirs:
                if theirs > ours:  # type: ignore[operator]
                    rows[recipient] = fact
                break
    return rows


_FIELDS = """outcome, (extract(epoch from event_time) * 1000000)::bigint, failure_type, reason, smtp_code,
    enhanced_code, diagnostic, attempt"""


async def _rows(connection: asyncpg.Connection, delivery_id: int) -> dict[int, Observation]:
    rows = await connection.fetch(f"select recipient, {_FIELDS} from send_log where delivery_id = $1", delivery_id)
    # The time of a row that nothing happened to is when it was prepared.
    return {row[0]: Observation(0, 0) if row[1] == 0 else Observation(*list(row)[1:]) for row in rows}


async def _known(connection: asyncpg.Connection, delivery_id: int) -> set[tuple[int, tuple[Any, ...]]]:
    """Transitions and late observations together: all that was ever reported, each once."""
    rows = await connection.fetch(
        f"select recipient, {_FIELDS} from every_transition where delivery_id = $1 "
        f"union all select recipient, {_FIELDS} from late_observation where delivery_id = $1",
        delivery_id,
    )
    known = [(row[0], tuple(row)[1:]) for row in rows]
    assert len(known) == len(set(known)), "a fact is kept twice"
    return set(known)


async def _everything(connection: asyncpg.Connection, delivery_id: int) -> dict[str, list[tuple[Any, ...]]]:
    """All that the apply path writes, but for when. Revisions only by their order: what becomes RELAYED without having
    been PREPARED has one of its own."""
    tables = {
        "send_log": {"update_time"},
        "every_transition": {"commit_time", "revision"},
        "late_observation": {"commit_time"},
        "delivery_counter": {"commit_time", "revision"},
    }
    found = {}
    for table, moments in tables.items():
        rows = await connection.fetch(f"select * from {table} where delivery_id = $1", delivery_id)
        if table == "every_transition":
            rows.sort(key=lambda row: (row["recipient"], row["revision"]))
        found[table] = [
            tuple(value for name, value in row.items() if name not in {"delivery_id", *moments}) for row in rows
        ]
        if table != "every_transition":
            found[table].sort()
    # The time of a row that nothing happened to is when it was prepared.
    found["send_log"] = [row for row in found["send_log"] if row[1] != Outcome.PREPARED]
    return found
