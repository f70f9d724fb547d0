-- Recurring deliveries, their occurrences and children; the two steps to a child are functions (schema/0005).

-- name: recurring_due
-- Recurring deliveries that have an occurrence by now, or whose next one is not worked out.
select delivery_id, next_occurrence_time from delivery
where state = 6 and recurring and coalesce(next_occurrence_time, '-infinity') <= $1
order by coalesce(next_occurrence_time, '-infinity') limit $2;

-- name: record_occurrences
select record_occurrences($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: occurrences_due
-- Without a child yet, of parents that go on.
select o.delivery_id, o.local_time from occurrence o join delivery d on d.delivery_id = o.delivery_id and d.state = 6
where o.state = 1 order by o.due_time limit $1;

-- name: spawn_child
select spawn_child($1, $2, $3);

-- name: children_to_confirm
select delivery_id from delivery
where state = 4 and parent_id is not null and system_confirms and confirm_by_time >= $1
order by delivery_id limit $2;

-- name: children_out_of_time
select delivery_id, version from delivery
where state = 4 and parent_id is not null and confirm_by_time < $1
order by delivery_id limit $2;

-- name: finish_recurring
-- IN_PROGRESS to FINISHED once no occurrence is left to come and each has its child.
with changed as (
    update delivery d
    set state = 9, version = version + 1, update_time = $1, finish_time = $1
    where state = 6 and recurring and coalesce(next_occurrence_time, '-infinity') = 'infinity'
        and not exists (select from occurrence o where o.delivery_id = d.delivery_id and o.state = 1)
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $1
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: list_occurrences
-- Newest first, before the nominal time of the previous page's last.
select * from occurrence
where delivery_id = $1 and local_time < $2 and (cardinality($3::smallint[]) = 0 or state = any ($3::smallint[]))
order by local_time desc limit $4;

-- name: recurrence_totals
-- Counts over all children, in one statement, so in one snapshot. People are told apart by profile, or by address. Of
-- children whose log was dropped, opens and clicks are as last counted, and people can't be told apart any more.
with child as (
    select delivery_id, log_dropped_time is not null as dropped from delivery where parent_id = $1
), counted as (
    select sum(c.prepared) as prepared, sum(c.canceled) as canceled, sum(c.relayed) as relayed,
        sum(c.deferred) as deferred, sum(c.expired) as expired, sum(c.delivered) as delivered,
        sum(c.bounced) as bounced
    from child join delivery_counter c using (delivery_id)
), person as (
    select case when r.profile_id = '' then 'address ' || r.address else 'profile ' || r.profile_id end as person,
        bool_or(t.kind = 4) as clicked, count(*) filter (where t.kind = 3) as opens,
        count(*) filter (where t.kind = 4) as clicks
    from child join tracking_log t using (delivery_id) join recipient r using (delivery_id, recipient)
    where t.kind in (3, 4) and t.recipient > 0 and not child.dropped
    group by 1
), past as (
    select count(*) as children, coalesce(sum(e.opens), 0)::bigint as opens, coalesce(sum(e.clicks), 0)::bigint as clicks
    from child left join engagement e using (delivery_id) where child.dropped
)
select (select count(*) from child) as children,
    past.children as children_without_log,
    (select count(*) from occurrence where delivery_id = $1 and state = 3) as skipped,
    c.*, p.unique_opened, p.unique_clicked, p.opens + past.opens as opens, p.clicks + past.clicks as clicks
from past, counted c, (
    select count(*) as unique_opened, count(*) filter (where clicked) as unique_clicked,
        coalesce(sum(opens), 0)::bigint as opens, coalesce(sum(clicks), 0)::bigint as clicks
    from person) as p;
