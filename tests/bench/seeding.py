"""Deliveries straight into the tables, as the end of a preparation leaves them."""

from dataclasses import dataclass
from typing import Final

import asyncpg
import orjson

from delivery_service.domain.delivery import ExclusionCause
from delivery_service.domain.identifiers import RECIPIENTS_PER_PART
from delivery_service.domain.lifecycle import DeliveryState
from delivery_service.settings import Settings
from tests.bench.events import Audience

SLOTS: Final = int(Settings.model_fields["slots_per_delivery"].default)
DIGEST: Final = "0" * 64
HTML: Final = "<p>Dear {{ first_name }}</p><a href='https://example.com/unsubscribe'>unsubscribe</a>"

_SEND_LOG: Final = """
insert into send_log (delivery_id, recipient, outcome, event_time, update_time)
select $1, g, 0, now(), now() from generate_series(1, $2::int) g
"""
_RECIPIENT: Final = """
insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
select $1, g, 0, 'profile-' || g, 'person' || g || '@mail' || g % 97 || '.example.com',
    json_build_object('first_name', 'Anna' || g, 'city', 'Paris')::text
from generate_series(1, $2::int) g
"""
_PARTS: Final = """
insert into relay_part (delivery_id, part, prepared_count, done)
select $1, g / $3::int, count(*), $4 from generate_series(1, $2::int) g group by 2
"""
_COUNTERS: Final = """
insert into delivery_counter (delivery_id, slot, revision, prepared, commit_time)
select $1, s.slot, 1, coalesce(sum(p.prepared_count), 0), now()
from generate_series(0, $2::int - 1) as s (slot)
left join relay_part p on p.delivery_id = $1 and p.part % $2::int = s.slot
group by s.slot
"""
_DELIVERY: Final = """
insert into delivery (delivery_id, label, channel, feedback_mode, subject, html, body_text, from_address, from_name,
    reply_to_address, validity_period, state, creator, create_time, update_time, start_time, validity_end_time,
    slot_count, recipient_count, plan)
values ($1, 'bench', 1, 1, 'Hello {{ first_name }}', $2, '', 'news@example.com', '', '', '84 hours', $3, 'bench', now(),
    now(), now(), now() + interval '84 hours', $4, $5, $6)
"""


@dataclass(frozen=True, slots=True)
class Seed:
    """One delivery to be. PAUSED is the state in which feedback counts and no worker has anything to do."""

    delivery_id: int
    recipients: int
    state: DeliveryState = DeliveryState.PAUSED
    with_recipients: bool = True
    relayed: bool = False
    """No part is left to relay: the workers leave the send logs alone."""


async def seed(dsn: str, *seeds: Seed) -> None:
    """Makes these deliveries."""
    connection = await asyncpg.connect(dsn)
    try:
        for one in seeds:
            async with connection.transaction():
                await _seed(connection, one)
    finally:
        await connection.close()


async def seed_audience(dsn: str, audience: Audience) -> None:
    """The deliveries of an audience, ready for feedback."""
    first = audience.first_delivery_id
    ids = range(first, first + audience.deliveries)
    # Feedback does not look at addresses.
    await seed(dsn, *(Seed(delivery_id, audience.per_delivery, with_recipients=False) for delivery_id in ids))


async def _seed(connection: asyncpg.Connection, one: Seed) -> None:
    plan = {
        "targeted": one.recipients,
        "exclusions": {cause.name: 0 for cause in ExclusionCause},
        "to_deliver": one.recipients,
        "warnings": [],
        "errors": [],
        "plan_digest": DIGEST,
        "prepare_time": "2026-01-01T00:00:00+00:00",
        "preparer": "bench",
    }
    await connection.execute(
        _DELIVERY, one.delivery_id, HTML, one.state, SLOTS, one.recipients, orjson.dumps(plan).decode()
    )
    if one.with_recipients:
        await connection.execute(_RECIPIENT, one.delivery_id, one.recipients)
    await connection.execute(_SEND_LOG, one.delivery_id, one.recipients)
    await connection.execute(_PARTS, one.delivery_id, one.recipients, RECIPIENTS_PER_PART, one.relayed)
    await connection.execute(_COUNTERS, one.delivery_id, SLOTS)
    await connection.execute("insert into engagement (delivery_id) values ($1)", one.delivery_id)
