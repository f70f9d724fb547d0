-- Closing: stopped deliveries, the end of the validity period, and settling. $2 is now, by the workers' clock.

-- name: deliveries_to_close
-- Stopped ones with messages that are not decided, and those whose validity ended $2 less a grace ago.
(select delivery_id from delivery where state = 8 and finish_time is null order by delivery_id limit $3)
union
(select delivery_id from delivery
    where validity_closed_time is null and validity_end_time <= $1::timestamptz - $2::interval
        and (state in (6, 7, 9) or state = 8 and finish_time is not null)
    order by validity_end_time limit $3);

-- name: claim_closing
-- Takes or renews the lease of closing a delivery, by the database's clock.
update delivery set closing_token = $2, closing_lease_time = clock_timestamp() + $3::interval
where delivery_id = $1
    and (closing_token is null or closing_token = $2 or closing_lease_time < clock_timestamp())
returning delivery_id;

-- name: has_open_parts
select exists (select from relay_part where delivery_id = $1 and not done);

-- name: last_recipient
select coalesce(max(recipient), 0) from send_log where delivery_id = $1;

-- name: deferred_rows
-- The rows among recipients $2 to $3 that still wait for a retry.
select recipient, failure_type, reason, smtp_code, attempt, enhanced_code, diagnostic
from send_log where delivery_id = $1 and recipient between $2 and $3 and outcome = 3 order by recipient;

-- name: finish_stop
-- Everything of a stopped delivery is decided. What left after the stop is told by the log: the transitions after the
-- vector of that moment that lead away from PREPARED, canceling and proofs aside. With nothing handed over at all there
-- is nothing to wait for any more.
with changed as (
    update delivery d
    set finish_time = $2, update_time = $2, version = version + 1,
        stop_left = (
            select count(*) from unnest(d.stop_revisions) with ordinality as r (revision, n)
            join transition t on t.delivery_id = $1 and t.slot = r.n - 1 and t.revision > r.revision
            where t.recipient > 0 and t.before = 0 and t.outcome > 1)
        + (
            select coalesce(sum(h.recipient_count), 0)
            from unnest(d.stop_revisions) with ordinality as r (revision, n)
            join hand_over_log h on h.delivery_id = $1 and h.slot = r.n - 1 and h.revision > r.revision
                and h.revision > 0),
        settled_time = case when d.start_time is null then $2::timestamptz end
    where d.delivery_id = $1 and d.state = 8 and d.finish_time is null
        and not exists (select from relay_part p where p.delivery_id = $1 and not p.done)
    returning d.delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $2
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: close_validity
-- Nothing waits any more. FAILED if nothing was ever handed over: then, proofs aside, the log has nothing but rows that
-- expired from PREPARED.
with changed as (
    update delivery d
    set validity_closed_time = $2, update_time = $2, version = version + 1,
        finish_time = coalesce(d.finish_time, $2),
        state = case when d.state not in (6, 7) then d.state
            when exists (select from hand_over_log h where h.delivery_id = $1) or exists (
                select from transition t
                where t.delivery_id = $1 and t.recipient > 0 and not (t.before = 0 and t.outcome = 4)) then 9
            else 10 end
    where d.delivery_id = $1 and d.validity_closed_time is null
        and not exists (select from relay_part p where p.delivery_id = $1 and not p.done)
    returning d.delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $2
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: settle_deliveries
-- Asynchronous bounces are over: $2 after the last hand-over.
with due as (
    select delivery_id from delivery
    where settled_time is null and finish_time <= $1::timestamptz - $2::interval
        -- Recurring deliveries have no validity period of their own.
        and (validity_closed_time is not null or validity_end_time is null)
    order by finish_time limit $3
    for no key update skip locked
), changed as (
    update delivery d set settled_time = $1, update_time = $1, version = version + 1
    from due where d.delivery_id = due.delivery_id
    returning d.delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $1
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;
