-- Re-qualification; the functions are in schema/0024_requalification.sql.

-- name: keep_details
select keep_details($1, $2, $3, $4, $5, $6);

-- name: deliveries_active_between
-- Deliveries that have send logs and may have been reported on in the time from $2 until $3: created before its end,
-- and not settled before its beginning, or reported on since. Newest first, below the id $1.
select d.delivery_id from delivery d
where d.delivery_id < $1 and d.slot_count > 0 and d.create_time < $3 and d.log_dropped_time is null
    and (d.settled_time is null or d.settled_time >= $2 or exists (
        select from delivery_counter c where c.delivery_id = d.delivery_id and c.newest_event_time >= $2))
order by d.delivery_id desc limit $4;

-- name: fence_rules
select fence_rules($1, $2);

-- name: reports_to_requalify
-- Of the next $3 recipients behind $2: the failures reported about those that had one in the time from $4 until $5, each
-- once, unless rules of version $6 or newer read it and nothing disputes them.
with range as materialized (
    select min(recipient) as first, max(recipient) as last
    from (select recipient from send_log where delivery_id = $1 and recipient > $2 order by recipient limit $3) s
), chosen as materialized (
    select array(
        select t.recipient
        from range r join transition t
            on t.delivery_id = $1 and t.recipient between r.first and r.last and t.outcome in (3, 4, 6)
                and t.event_time >= $4 and t.event_time < $5
        union
        select k.recipient
        from range r join late_observation k
            on k.delivery_id = $1 and k.recipient between r.first and r.last and k.outcome in (3, 4, 6)
                and k.event_time >= $4 and k.event_time < $5) as recipients
)
select k.recipient, k.outcome, (extract(epoch from k.event_time) * 1000000)::bigint as event_time_us, k.smtp_code,
    k.enhanced_code, k.diagnostic, k.attempt, k.failure_type, k.reason, k.rules_version, k.disputed,
    coalesce(d.mta_event_kind, 0::smallint) as mta_event_kind, coalesce(d.vendor_class, '') as vendor_class
from chosen c cross join lateral known_reports($1, c.recipients) k
left join observation_detail d on d.delivery_id = $1 and d.recipient = k.recipient and d.outcome = k.outcome
    and d.event_time = k.event_time
where k.outcome in (3, 4, 6) and (k.rules_version < $6 or k.disputed)
    and k.diagnostic !~ '^erased [0-9]{6}$'  -- an erased profile's: what the rules read is gone, how it counts stays
order by k.recipient, k.event_time;

-- name: correct_slot
select * from correct_slot($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14);

-- name: undefined_reports
-- What is kept of reports that no rule read: of these deliveries in their order, in the time from $2 until $3, $4 at the
-- most. `read_since`: newer rules have read the report since. One that came by several ways may be among them twice.
with scanned as materialized (
    select e.*
    from unnest($1::bigint[]) with ordinality as d (delivery_id, place)
    cross join lateral (
        (select t.delivery_id, t.recipient, t.outcome, t.event_time, t.smtp_code, t.enhanced_code, t.diagnostic,
            t.attempt, t.rules_version
        from transition t
        where t.delivery_id = d.delivery_id and t.reason = 1 and t.failure_type = 1
            and t.event_time >= $2 and t.event_time < $3)
        union all
        (select k.delivery_id, k.recipient, k.outcome, k.event_time, k.smtp_code, k.enhanced_code, k.diagnostic,
            k.attempt, k.rules_version
        from late_observation k
        where k.delivery_id = d.delivery_id and k.reason = 1 and k.failure_type = 1
            and k.event_time >= $2 and k.event_time < $3)
    ) e
    limit $4
)
select e.delivery_id, e.recipient, e.outcome, e.event_time, e.smtp_code, e.enhanced_code, e.diagnostic,
    exists (
        select from known_reports(e.delivery_id, array[e.recipient]) k
        where (k.reason <> 1 or k.failure_type <> 1)
            and (k.outcome, k.event_time, k.smtp_code, k.enhanced_code, k.diagnostic, k.attempt)
                = (e.outcome, e.event_time, e.smtp_code, e.enhanced_code, e.diagnostic, e.attempt)) as read_since
from scanned e;
