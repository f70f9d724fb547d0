-- Reading send logs. A page reads a bounded number of rows, whatever the filter: no index on a column that changes.

-- name: list_send_logs
-- Rows of recipients $2 + 1 .. among the next $3 of the delivery, those that pass the filters; `scanned_through` is
-- the last one looked at, so that the caller can go on behind it.
with scanned as (
    select * from send_log where delivery_id = $1 and recipient > $2 order by recipient limit $3
)
select s.*, r.profile_id, r.address
from scanned s join recipient r using (delivery_id, recipient)
where s.outcome = any ($4::smallint[])
    and (cardinality($5::smallint[]) = 0 or s.failure_type = any ($5::smallint[]))
    and (cardinality($6::smallint[]) = 0 or s.reason = any ($6::smallint[]))
order by s.recipient limit $7;

-- name: scanned_through
-- The last of the next $3 recipients behind $2, and how many there are.
select max(recipient) as recipient, count(*) as n
from (select recipient from send_log where delivery_id = $1 and recipient > $2 order by recipient limit $3) s;

-- name: list_send_logs_by_address
-- By the index on the address; the filters then look at those few rows.
select s.*, r.profile_id, r.address
from recipient r join send_log s using (delivery_id, recipient)
where r.delivery_id = $1 and r.address = $2 and r.recipient > $3
    and s.outcome = any ($4::smallint[])
    and (cardinality($5::smallint[]) = 0 or s.failure_type = any ($5::smallint[]))
    and (cardinality($6::smallint[]) = 0 or s.reason = any ($6::smallint[]))
order by r.recipient limit $7;

-- name: get_send_log
select s.*, r.profile_id, r.address
from send_log s join recipient r using (delivery_id, recipient)
where s.delivery_id = $1 and s.recipient = $2;

-- name: get_timeline
-- Everything known about one message, by event time. Each part reads at most the limit.
select entry.*, coalesce(d.mta_event_kind, 0::smallint) as mta_event_kind, coalesce(d.vendor_class, '') as vendor_class
from (
    (select 1 as kind, before, outcome, failure_type, reason, smtp_code, attempt, rules_version, event_time,
        commit_time, enhanced_code, diagnostic, slot, revision, '' as url, correction
    from transition where delivery_id = $1 and recipient = $2 order by revision limit $3)
    union all
    (select 1, 0, 2, 0, 0, 0, 0, 0, event_time, commit_time, '', '', slot, revision, '', false
    from handed_over($1, $2))
    union all
    (select 2, -1, outcome, failure_type, reason, smtp_code, attempt, rules_version, event_time,
        commit_time, enhanced_code, diagnostic, 0, 0, '', correction
    from late_observation where delivery_id = $1 and recipient = $2 order by event_time limit $3)
    union all
    (select kind, -1, -1, 0, 0, 0, 0, 0, event_time, commit_time, '', '', 0, 0, url, false
    from tracking_log where delivery_id = $1 and recipient = $2 order by kind, event_time limit $3)
) entry
left join observation_detail d on d.delivery_id = $1 and d.recipient = $2 and d.outcome = entry.outcome
    and d.event_time = entry.event_time
order by entry.event_time, entry.commit_time, entry.kind, entry.revision limit $3;
