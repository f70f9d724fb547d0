-- KPIs: counts and slot revisions are read in one statement, never in two, so that the vector names exactly the point
-- of the log that the counts add up to.

-- name: get_kpis
select d.delivery_id, d.channel, d.state, d.feedback_mode, d.settled_time is not null as settled,
    d.validity_closed_time is not null as validity_closed, c.*, e.opened, e.clicked, e.opens, e.clicks,
    e.opened_with_efs, e.clicked_with_efs, e.delivered_with_efs, e.opened_without_efs, e.clicked_without_efs,
    e.delivered_without_efs, e.as_of_time, e.unsubscribed, e.unsubscribes, e.complained, e.complaints,
    e.unsubscribed_with_efs, e.complained_with_efs, e.unsubscribed_without_efs, e.complained_without_efs
from delivery d
join lateral (
    select array_agg(c.revision order by c.slot) as slot_revisions, sum(c.prepared) as prepared,
        sum(c.canceled) as canceled, sum(c.relayed) as relayed, sum(c.deferred) as deferred,
        sum(c.expired) as expired, sum(c.delivered) as delivered, sum(c.bounced) as bounced,
        sum(c.deferred_hard) as deferred_hard, sum(c.expired_hard) as expired_hard,
        sum(c.bounced_hard) as bounced_hard, sum(c.deferred_ignored) as deferred_ignored,
        sum(c.expired_ignored) as expired_ignored, sum(c.bounced_ignored) as bounced_ignored,
        max(c.commit_time) as commit_time, max(c.newest_event_time) as newest_event_time
    from delivery_counter c where c.delivery_id = d.delivery_id
) c on true
left join engagement e on e.delivery_id = d.delivery_id
where d.delivery_id = any ($1::bigint[]);

-- name: revisions
-- What the watch feed polls: one statement for all watched deliveries.
select delivery_id, sum(revision)::bigint as revision from delivery_counter
where delivery_id = any ($1::bigint[]) group by delivery_id;

-- name: long_transaction
-- This transaction's statements may run $1 ms long, with $2 parallel workers.
select set_config('statement_timeout', $1, true), set_config('max_parallel_workers_per_gather', $2, true);

-- name: lock_recount
-- One recount per delivery at a time; held until the transaction ends. False: another one runs.
select pg_try_advisory_xact_lock(hashtextextended('compute_statistics', $1));

-- name: recount
-- The rows of a delivery ($1, of $2 slots, which the bits $3 of a recipient's number tell) against its counters, in one
-- statement, so in one snapshot: exact without holding any writer up. Gives the rows counted, and the differences as
-- columns.
--
-- Slot, outcome and type are packed into one integer: a single key to group by, made in as few steps as possible, since
-- each step for each row is felt. So proofs are left out by their key, which is negative, once they are counted. The key
-- comes out of a UNION ALL with nothing, because of an expression over `recipient` Postgres assumes as many values as
-- there are recipients, and then counts neither in parallel nor in memory; of a column of a union it assumes a few. A
-- statement of its own and not in a function, where a SELECT INTO is never parallel.
with key as (
    select recipient & $3::integer | outcome * 4 + failure_type as key  -- parts of 1,024, dealt to slots: 10 bits free
    from send_log where delivery_id = $1
    union all
    select 0 where false
), counted_by_key as materialized (  -- or the sign would be looked at in each row
    select key, count(*) as n from key group by key
), counted as (
    select ((key >> 10) % $2::integer)::smallint as slot, (key & 1023) >> 2 as outcome, key & 3 as failure_type, n
    from counted_by_key where key >= 0
), counted_by_counter as (
    select slot, (array['prepared', 'canceled', 'relayed', 'deferred', 'expired', 'delivered', 'bounced'])[outcome + 1]
        as counter, sum(n)::bigint as n
    from counted group by 1, 2
    union all
    select slot, (array['deferred', 'expired', '', 'bounced'])[outcome - 2]
        || case failure_type when 2 then '_hard' else '_ignored' end, sum(n)::bigint
    from counted where outcome in (3, 4, 6) and failure_type in (2, 3) group by 1, 2
), found_by_counter as (
    select c.slot, v.counter, v.n
    from delivery_counter c
    cross join lateral (values ('prepared', c.prepared), ('canceled', c.canceled), ('relayed', c.relayed),
        ('deferred', c.deferred), ('expired', c.expired), ('delivered', c.delivered), ('bounced', c.bounced),
        ('deferred_hard', c.deferred_hard), ('expired_hard', c.expired_hard), ('bounced_hard', c.bounced_hard),
        ('deferred_ignored', c.deferred_ignored), ('expired_ignored', c.expired_ignored),
        ('bounced_ignored', c.bounced_ignored)) as v (counter, n)
    where c.delivery_id = $1
), difference as (
    select slot, counter, coalesce(c.n, 0)::bigint as counted, coalesce(f.n, 0)::bigint as found
    from counted_by_counter c full join found_by_counter f using (slot, counter)
    where coalesce(c.n, 0) <> coalesce(f.n, 0)
)
select (select coalesce(sum(n), 0)::bigint from counted) as recounted,
    coalesce(array_agg(slot), '{}') as slots, coalesce(array_agg(counter), '{}') as counters,
    coalesce(array_agg(counted), '{}') as counted, coalesce(array_agg(found), '{}') as found
from difference;

-- name: correct_counters
select correct_counters($1, $2, $3, $4, $5, $6);

-- name: refresh_engagement
select refresh_engagement($1, $2);

-- name: stale_engagement
-- Deliveries whose opens and clicks changed, last counted before $1.
select delivery_id from engagement
where stale_since_time is not null and (as_of_time is null or as_of_time <= $1)
order by stale_since_time limit $2;
