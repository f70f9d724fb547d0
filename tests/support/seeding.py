"""Deliveries straight into the tables, for tests of the store that need no preparation."""

import asyncpg
import orjson
from asyncpg.pool import PoolConnectionProxy

from delivery_service.domain.identifiers import slot_of
from tests.support.postgres import connected


async def seed_delivery(dsn: str, delivery_id: int, recipients: list[int], *, slots: int = 4) -> None:
    """A delivery in state IN_PROGRESS with PREPARED send logs of these recipients."""
    async with connected(dsn) as connection:
        await seed_delivery_over(connection, delivery_id, recipients, slots=slots)


async def seed_delivery_over(
    connection: asyncpg.Connection | PoolConnectionProxy, delivery_id: int, recipients: list[int], *, slots: int = 4
) -> None:
    """The same, over a connection that is there already: for many."""
    async with connection.transaction():
        await connection.execute(
            """
            insert into delivery (delivery_id, label, channel, feedback_mode, subject, html, body_text,
                from_address, from_name, reply_to_address, validity_period, state, creator, create_time,
                update_time, slot_count, recipient_count, plan)
            values ($1, '', 1, 1, 's', 'h', '', 'a@example.com', '', '', '84 hours', 6, 'test', now(), now(), $2,
                $3, $4)
            """,
            delivery_id,
            slots,
            len(recipients),
            orjson.dumps({"to_deliver": len(recipients)}).decode(),
        )
        await connection.executemany(
            "insert into recipient values ($1, $2, 0, '', 'person' || $2::int || '@example.com', '{}')",
            [(delivery_id, recipient) for recipient in recipients],
        )
        await connection.executemany(
            "insert into send_log (delivery_id, recipient, outcome, event_time, update_time) "
            "values ($1, $2, 0, now(), now())",
            [(delivery_id, recipient) for recipient in recipients],
        )
        prepared = [0] * slots
        for recipient in recipients:
            prepared[slot_of(recipient, slots)] += 1
        await connection.executemany(
            "insert into delivery_counter (delivery_id, slot, revision, prepared) values ($1, $2, 1, $3)",
            [(delivery_id, slot, number) for slot, number in enumerate(prepared)],
        )
        await connection.execute("insert into engagement (delivery_id) values ($1)", delivery_id)
