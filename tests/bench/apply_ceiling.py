"""What Postgres alone can apply on this machine: three consumers without any service, on the same server.

- the product's own function and tables, in batches of 2,000 on two bare connections;
- the yardstick: the least that the design asks of an apply path, in narrower tables of its own;
- the peer: row by row, a transaction each, as consumers of webhooks do.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import asyncpg

from delivery_service.domain.identifiers import slot_of
from delivery_service.domain.outcome import Outcome
from delivery_service.store.database import DatabaseSettings, connect_writer
from delivery_service.store.observations import ObservationColumns
from delivery_service.store.queries import query
from tests.bench.events import Fact
from tests.bench.seeding import SLOTS

BATCH: Final = 2_000
WRITERS: Final = 2
_YARDSTICK: Final = (Path(__file__).parent / "yardstick.sql").read_text("utf-8")
_YARDSTICK_SLOTS: Final = 4
_HARD, _USER_UNKNOWN = 2, 1


async def product_rate(dsn: str, facts: Sequence[Fact]) -> float:
    """Events per second through `apply_slot`. A repetition within a batch is dropped, as the services do."""
    filling: dict[tuple[int, int], dict[int, Fact]] = {}
    counts: dict[tuple[int, int], int] = {}
    batches: deque[tuple[Any, ...]] = deque()
    for fact in facts:
        key = (fact.delivery_id, slot_of(fact.recipient, SLOTS))
        filling.setdefault(key, {})[fact.recipient] = fact
        counts[key] = counts.get(key, 0) + 1
        if counts[key] == BATCH:
            batches.append(_arguments(key, filling.pop(key)))
            del counts[key]
    batches.extend(_arguments(key, batch) for key, batch in filling.items())
    connections = [await connect_writer(DatabaseSettings(dsn)) for _ in range(WRITERS)]
    statements = [await connection.prepare(query("apply_slot")) for connection in connections]

    async def write(number: int) -> None:
        while batches:
            await statements[number].fetchval(*batches.popleft())

    began = time.perf_counter()
    await asyncio.gather(*map(write, range(WRITERS)))
    rate = len(facts) / (time.perf_counter() - began)
    for connection in connections:
        await connection.close()
    return rate


def _arguments(key: tuple[int, int], batch: dict[int, Fact]) -> tuple[Any, ...]:
    rows, n = list(batch.values()), len(batch)
    bounced = [fact.bounced for fact in rows]
    columns = ObservationColumns(
        [key[0]] * n,
        [fact.recipient for fact in rows],
        [int(Outcome.BOUNCED if b else Outcome.DELIVERED) for b in bounced],
        [fact.time_us for fact in rows],
        [_HARD if b else 0 for b in bounced],
        [_USER_UNKNOWN if b else 0 for b in bounced],
        [550 if b else 250 for b in bounced],
        ["5.1.1" if b else "2.0.0" for b in bounced],
        [fact.diagnostic if fact.bounced else "" for fact in rows],
        [1] * n,
        [1] * n,
    )
    return (*key, datetime.now(UTC), *columns.statement_values())


async def yardstick_rate(dsn: str, facts: Sequence[Fact]) -> float:
    """Events per second of the yardstick on two connections, the best of its two passes over the same recipients."""
    recipients = list(dict.fromkeys(fact.recipient for fact in facts))
    connection = await asyncpg.connect(dsn)
    await connection.execute(_YARDSTICK)
    await connection.execute(
        "insert into yardstick.send_log (delivery_id, recipient, outcome) select 1, g, 2 from generate_series(1, $1) g",
        len(recipients),
    )
    await connection.execute(
        "insert into yardstick.delivery_counter (delivery_id, slot) select 1, s from generate_series(0, $1) s",
        _YARDSTICK_SLOTS - 1,
    )
    await connection.execute("vacuum analyze yardstick.send_log")
    await connection.execute("checkpoint")
    rates = [await _yardstick_pass(dsn, recipients, outcome) for outcome in (Outcome.DEFERRED, Outcome.DELIVERED)]
    logged = await connection.fetchval("select count(*) from yardstick.transition")
    delivered = await connection.fetchval("select sum(delivered) from yardstick.delivery_counter")
    assert (logged, delivered) == (2 * len(recipients), len(recipients)), "the yardstick lost something"
    await connection.execute("drop schema yardstick cascade")
    await connection.close()
    return max(rates)


async def _yardstick_pass(dsn: str, recipients: Sequence[int], outcome: Outcome) -> float:
    settings = {"search_path": "yardstick", "plan_cache_mode": "force_generic_plan"}
    connections = [await asyncpg.connect(dsn, server_settings=settings) for _ in range(WRITERS)]
    statements = [await c.prepare("select apply($1, $2, $3, $4, $5, $6, $7, $8)") for c in connections]
    filling: list[list[int]] = [[] for _ in range(_YARDSTICK_SLOTS)]
    batches: deque[tuple[int, list[int]]] = deque()
    for recipient in recipients:
        slot = slot_of(recipient, _YARDSTICK_SLOTS)
        filling[slot].append(recipient)
        if len(filling[slot]) == BATCH:
            batches.append((slot, filling[slot]))
            filling[slot] = []
    batches.extend((slot, batch) for slot, batch in enumerate(filling) if batch)

    async def write(number: int) -> None:
        while batches:
            slot, batch = batches.popleft()
            n = len(batch)
            texts = [f"250 2.0.0 Ok: queued as {recipient:x}" for recipient in batch]
            times = [1_795_415_948_000_000 + recipient for recipient in batch]
            await statements[number].fetchval(1, slot, batch, [int(outcome)] * n, times, [250] * n, [1] * n, texts)

    began = time.perf_counter()
    await asyncio.gather(*map(write, range(WRITERS)))
    rate = len(recipients) / (time.perf_counter() - began)
    for connection in connections:
        await connection.close()
    return rate


async def peer_rate(dsn: str, facts: Sequence[Fact]) -> float:
    """Events per second row by row, on the product's tables and two connections."""
    pending = deque(facts)

    async def write() -> None:
        connection = await asyncpg.connect(dsn)
        while pending:
            fact = pending.popleft()
            at = datetime.fromtimestamp(fact.time_us / 1e6, UTC)
            outcome = int(Outcome.BOUNCED if fact.bounced else Outcome.DELIVERED)
            async with connection.transaction():
                before = await connection.fetchval(
                    "select outcome from send_log where delivery_id = $1 and recipient = $2 for update",
                    *(fact.delivery_id, fact.recipient),
                )
                await connection.execute(
                    "update send_log set outcome = $3, event_time = $4, smtp_code = $5, update_time = now() "
                    "where delivery_id = $1 and recipient = $2",
                    *(fact.delivery_id, fact.recipient, outcome, at, 550 if fact.bounced else 250),
                )
                await connection.execute(
                    "insert into transition values ($1, 0, $2, 0, $3, $4, 0, 0, $5, 1, 1, $6, now(), '', $7)",
                    *(fact.delivery_id, fact.recipient, before, outcome, 250, at, fact.diagnostic),
                )
        await connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(WRITERS)))
    return len(facts) / (time.perf_counter() - began)
