"""A database as production has it after a while: one delivery to two million among thousands of others, analysed."""

import asyncpg

from tests.support.postgres import connected

LARGE = 1_000_000
"""Its delivery_id; the others are below and above it."""
RECIPIENTS = 2_000_000
PARTS_DONE, PARTS = 1_465, 1_954
PARTS_HELD = 8
LEFT = PARTS_DONE * 1_024 - 1
"""The recipients up to this one have left; every thirtieth bounced hard, every 10,000th complained."""
PARTS_BY_ROW = 977
"""Parts whose hand-over is in the log row by row; of the later ones it is in the hand-over log."""
DOMAINS = 50
OTHERS = 5_000
SMALL_AUDIENCE = 20

_DELIVERIES = f"""
insert into delivery (delivery_id, label, channel, feedback_mode, subject, html, body_text, from_address, from_name,
    reply_to_address, validity_period, state, creator, create_time, update_time, slot_count, recipient_count,
    audience_digest, confirm_request_id, plan, start_time, validity_end_time, finish_time, validity_closed_time,
    settled_time, contact_time, recurring, next_occurrence_time, parent_id, occurrence_local_time, confirm_by_time,
    system_confirms, stop_time, stop_revisions)
select d, 'delivery ' || d, 1, 1, 's', 'h', '', 'news@example.com', '', '', '84 hours', state, 'someone', now(), now(),
    4, case when d = {LARGE} then {RECIPIENTS} else {SMALL_AUDIENCE} end, '', 'request', '{{"to_deliver": 20}}',
    case when state >= 6 then now() end,
    case when d = {LARGE} then now() + interval '1 day' when state >= 6 then now() - interval '30 days' end,
    case when state = 9 then now() - interval '30 days' end, case when state = 9 then now() - interval '27 days' end,
    case when state = 9 then now() - interval '20 days' end,
    case when state = 5 then now() + interval '1 hour' * (d % 1000) - interval '1 hour' end,
    state = 6 and d % 2 = 0 and d <> {LARGE},
    case when state = 6 and d <> {LARGE} then now() + interval '1 day' end,
    case when state = 4 then 2 end, case when state = 4 then timestamp '2026-01-01' + d * interval '1 hour' end,
    case when state = 4 then now() + interval '1 hour' end, state = 4 and d % 4 = 0, null, null
from (
    -- Nearly all are over; a few are in each other state.
    select d, case when d = {LARGE} then 6 when d % 100 = 1 then 5 when d % 100 = 2 then 1 when d % 100 = 4 then 4
        when d % 500 = 6 then 6 else 9 end as state
    from (select generate_series(1, {OTHERS}) union all select {LARGE}
          union all select generate_series({LARGE} + 1, {LARGE} + {OTHERS})) as g (d)
) as s;
insert into confirmation (delivery_id, request_id, plan_digest, confirmer, confirm_time)
select delivery_id, 'request', 'digest', 'someone', now() - interval '1 hour' from delivery where state >= 5;
insert into delivery_counter (delivery_id, slot, revision, prepared, relayed, delivered, bounced_hard, bounced)
select delivery_id, s, case when delivery_id = {LARGE} then {RECIPIENTS} else 100 end,
    case when delivery_id = {LARGE} then {RECIPIENTS - LEFT} / 4 else 0 end, 0,
    case when delivery_id = {LARGE} then {LEFT} / 4 else 5 end, 0, 0
from delivery, generate_series(0, 3) as s;
insert into engagement (delivery_id, as_of_time, stale_since_time)
select delivery_id, now() - interval '2 hours', case when delivery_id = {LARGE} then now() end from delivery
"""
_ROWS = f"""
insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
select {LARGE}, r, 0, 'profile' || r, 'p' || r || '@domain' || r % {DOMAINS} || '.example', '{{}}'
from generate_series(1, {RECIPIENTS}) as r;
insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
select delivery_id, r, 0, 'profile' || r, 'p' || r || '@domain' || r % {DOMAINS} || '.example', '{{}}'
from delivery, generate_series(1, {SMALL_AUDIENCE}) as r where delivery_id <> {LARGE};
insert into send_log (delivery_id, recipient, outcome, failure_type, event_time, update_time)
select {LARGE}, r, case when r > {LEFT} then 0 when r % 30 = 0 then 6 else 2 end,
    case when r <= {LEFT} and r % 30 = 0 then 2 else 0 end, now(), now()
from generate_series(1, {RECIPIENTS}) as r;
insert into send_log (delivery_id, recipient, outcome, event_time, update_time)
select delivery_id, r, 5, now(), now()
from delivery, generate_series(1, {SMALL_AUDIENCE}) as r where delivery_id <> {LARGE} and state >= 4;
insert into transition (delivery_id, revision, recipient, slot, before, outcome, failure_type, reason, smtp_code,
    attempt, rules_version, event_time, commit_time, enhanced_code, diagnostic)
select {LARGE}, r, r, r / 1024 % 4, 0, case when r % 30 = 0 then 6 else 2 end,
    case when r % 30 = 0 then 2 else 0 end, 0, 0, 0, 0, now(), now(), '', ''
from generate_series(1, {LEFT}) as r where r < {PARTS_BY_ROW} * 1024 or r % 30 = 0;
insert into hand_over_log (delivery_id, slot, revision, part, first_recipient, recipient_count, commit_time,
    event_times_us)
select {LARGE}, p % 4, p * 1024 + 1, p, p * 1024, 989, now(), array(
    select case when r % 30 = 0 then 0 else 1800000000000000 end
    from generate_series(p * 1024, p * 1024 + 1023) as r)
from generate_series({PARTS_BY_ROW}, {PARTS_DONE} - 1) as p;
insert into hand_over_log (delivery_id, slot, revision, part, first_recipient, recipient_count, commit_time,
    event_times_us)
select delivery_id, 0, 2, 0, 1, {SMALL_AUDIENCE}, now(), array_fill(1800000000000000, array[{SMALL_AUDIENCE}])
from delivery where delivery_id <> {LARGE} and state = 9;
insert into late_observation (delivery_id, recipient, outcome, failure_type, reason, smtp_code, attempt, rules_version,
    event_time, commit_time, enhanced_code, diagnostic)
select {LARGE}, r, 2, 0, 0, 0, 0, 0, now(), now(), '', '' from generate_series(1, 20000) as r;
insert into tracking_log (delivery_id, recipient, kind, event_time, commit_time, url)
select {LARGE}, r, case when r % 2000 = 0 then 6 else 3 end, now(), now(), ''
from generate_series(5, {LEFT}, 5) as r;
insert into relay_part (delivery_id, part, prepared_count, done, claim_count)
select {LARGE}, p, 1024, p < {PARTS_DONE}, case when p < {PARTS_DONE} then 1 else 0 end
from generate_series(0, {PARTS} - 1) as p;
update relay_part set lease_holder = 'holder', available_time = now() + interval '1 day', claim_count = 1
where delivery_id = {LARGE} and part >= {PARTS_DONE} and part < {PARTS_DONE + PARTS_HELD};
insert into relay_part (delivery_id, part, prepared_count, done, claim_count)
select delivery_id, 0, {SMALL_AUDIENCE}, true, 1 from delivery where delivery_id <> {LARGE} and state = 9
"""
_BESIDE = """
insert into alert (delivery_id, cause, day, alert_id, label, raise_time, detail, next_try_time, notify_time)
select d, 4, current_date - 1, d, '', now() - interval '1 day' , '', now(), case when d % 5000 > 0 then now() end
from generate_series(1, 20000) as d;
insert into occurrence (delivery_id, local_time, due_time, state, child_id, update_time)
select delivery_id, timestamp '2026-01-01' + n * interval '1 hour', now(), case when n = 2000 then 1 else 2 end,
    delivery_id * 10000 + n, now()
from delivery, generate_series(1, 2000) as n where recurring;
insert into dead_letter (message_id, source_id, outcome, tracking_kind, event_time, create_time, smtp_code, diagnostic,
    detail)
select 'm' || n, 'mta', 2, 0, now(), now(), 0, '', '' from generate_series(1, 20000) as n
"""
QUARANTINED, DENIED = 100_000, 50_000
READ_THROUGH = 600_000
"""The revision up to which the log of LARGE was read for the quarantine."""
_ADDRESSES = f"""
update delivery_counter set newest_event_time = now() where delivery_id = {LARGE} or delivery_id <= 50;
insert into address_scan (delivery_id, slot, revision)
select delivery_id, slot, case when delivery_id = {LARGE} then {READ_THROUGH} else revision end from delivery_counter;
insert into address_health (channel, address, domain, status, error_count, error_time, update_time, forget_time,
    judged_version, known_since)
select 1, 'q' || n || '@domain' || n % {DOMAINS} || '.example', 'domain' || n % {DOMAINS} || '.example',
    case when n <= {QUARANTINED} then 3 else 1 end, 1, now() - n * interval '1 minute', now(),
    now() + interval '1 day', case when n % 1000 = 0 then 0 else 1 end, now() - interval '1 year'
from generate_series(1, {2 * QUARANTINED}) as n;
insert into address_event (channel, address, delivery_id, recipient, outcome, event_time, failure_type, reason,
    rules_version)
select channel, address, {LARGE}, row_number() over (), 6, error_time, 2, 2, 1 from address_health;
insert into denylist (channel, kind, value, denied, cause, change_time)
select 1, k, case k when 1 then 'd' || n || '@domain1.example' else 'denied' || n end, true, k, now()
from generate_series(1, {DENIED}) as n, generate_series(1, 2) as k;
insert into allowlist (channel, address, add_time, adder, note)
select 1, 'a' || n || '@domain1.example', now(), '', '' from generate_series(1, 1000) as n;
insert into domain_result (bucket_time, domain, delivered, hard)
select date_trunc('hour', now()) - h * interval '1 hour', 'domain' || n || '.example', 10, 1
from generate_series(1, 200) as h, generate_series(1, 200) as n;
insert into outage_guard (domain, begin_time, last_trip_time, end_time)
select 'domain' || n || '.example', now() - interval '2 days', now() - interval '1 day', now() - interval '1 day'
from generate_series(1, 1000) as n;
insert into address_news (delivery_id, recipient)
select {LARGE}, n from generate_series(1, 10000) as n
"""
_TABLES = ("recipient", "send_log", "transition", "hand_over_log", "tracking_log", "late_observation")


async def seed_large_world(dsn: str) -> None:
    """Fills a migrated database. The secondary indexes are made at the end, and the log of Postgres is left out."""
    async with connected(dsn) as connection:
        partitions = await connection.fetch(
            "select p.relid::regclass::text as name from unnest($1::text[]::regclass[]) t, pg_partition_tree(t) p "
            "where p.isleaf",
            list(_TABLES),
        )
        for partition in partitions:
            await connection.execute(f"alter table {partition['name']} set unlogged")
        await connection.execute("set maintenance_work_mem = '512MB'; set max_parallel_maintenance_workers = 2")
        indexes = await connection.fetch(
            "select indexrelid::regclass::text as name, pg_get_indexdef(indexrelid) as definition from pg_index "
            "where indrelid = any ($1::text[]::regclass[]) and not indisprimary",
            list(_TABLES),
        )
        for index in indexes:
            await connection.execute(f"drop index {index['name']}")
        for statements in (_DELIVERIES, _ROWS, _BESIDE, _ADDRESSES):
            await connection.execute(statements)
        for index in indexes:
            await connection.execute(index["definition"].replace(" ON ONLY ", " ON "))  # of the partitions as well
        await _vacuum(connection)


async def _vacuum(connection: asyncpg.Connection) -> None:
    """As autovacuum does after so many insertions."""
    await connection.execute("vacuum (analyze)")
