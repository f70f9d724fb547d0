-- The transition log as a feed, and exports by it. A place in a slot is given as (from revision, after recipient): what
-- is left of that revision behind that recipient, and everything later; a recipient is at most once in a revision.

-- name: log_states
-- How far the logs of these deliveries have come: what the feed polls, one statement for all that are watched.
select d.delivery_id, array_agg(c.revision order by c.slot) as slot_revisions,
    d.settled_time is not null as settled, d.log_dropped_time
from delivery d join delivery_counter c on c.delivery_id = d.delivery_id
where d.delivery_id = any ($1::bigint[]) group by d.delivery_id;

-- name: log_page
-- The next $6 transitions of slot $2, from place ($3, $4) through revision $5. One row at least, which tells whether the
-- log was dropped, in the same snapshot. Without test profiles, whom no KPI counts.
select d.log_dropped_time, t.*, coalesce(r.profile_id, '') as profile_id
from delivery d
left join lateral (
    (select revision, recipient, slot, before, outcome, failure_type, reason, smtp_code, attempt, rules_version,
        event_time, commit_time, enhanced_code, diagnostic, correction
    from transition
    where delivery_id = $1 and slot = $2 and revision >= $3 and revision <= $5 and recipient > 0
        and (revision > $3 or recipient > $4)
    order by revision, recipient limit $6)
    union all
    (select revision, recipient, $2::smallint, 0, 2, 0, 0, 0, 0, 0, event_time, commit_time, '', '', false
    from handed_over_after($1, $2, $3, $4, $5, $6))
    order by revision, recipient limit $6
) t on true
left join recipient r on r.delivery_id = $1 and r.recipient = t.recipient
where d.delivery_id = $1
order by t.revision, t.recipient;

-- name: changed_send_logs
-- The next $6 transitions as in log_page, each with the send log's present state if it is its recipient's last one
-- through revision $5 and the row passes the filters: so each recipient comes once, and a page reads a bounded number
-- of rows.
select d.log_dropped_time, t.revision, t.recipient as place, s.*, r.profile_id, r.address
from delivery d
left join lateral (
    (select c.revision, c.recipient
    from transition c
    where c.delivery_id = $1 and c.slot = $2 and c.revision >= $3 and c.revision <= $5 and c.recipient > 0
        and (c.revision > $3 or c.recipient > $4)
    order by c.revision, c.recipient limit $6)
    union all
    (select revision, recipient from handed_over_after($1, $2, $3, $4, $5, $6))
    order by revision, recipient limit $6
) t on true
left join send_log s on s.delivery_id = $1 and s.recipient = t.recipient
    and s.outcome = any ($7::smallint[])
    and (cardinality($8::smallint[]) = 0 or s.failure_type = any ($8::smallint[]))
    and (cardinality($9::smallint[]) = 0 or s.reason = any ($9::smallint[]))
    -- In the hand-over log there is never a later one.
    and not exists (
        select from transition n
        where n.delivery_id = $1 and n.recipient = t.recipient and n.revision > t.revision and n.revision <= $5)
left join recipient r on r.delivery_id = s.delivery_id and r.recipient = s.recipient
where d.delivery_id = $1
order by t.revision, t.recipient;
