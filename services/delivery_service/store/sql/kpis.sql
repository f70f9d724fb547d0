-- KPIs: counts and slot revisions are read in one statement, never in two, so that the vector names exactly the point
-- of the log that the counts add up to.

-- name: get_kpis
select d.delivery_id, d.channel, d.state, d.feedback_mode, d.settled_time is not null as settled,
    coalesce(d.validity_end_time <= $2, false) as validity_closed, c.*, e.opened, e.clicked, e.opens, e.clicks,
    e.opened_with_efs, e.clicked_with_efs, e.delivered_with_efs, e.opened_without_efs, e.clicked_without_efs,
    e.delivered_without_efs, e.as_of_time
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

-- name: compute_statistics
select drift, recounted from compute_statistics($1, $2, $3);

-- name: refresh_engagement
select refresh_engagement($1, $2);

-- name: stale_engagement
-- Deliveries whose opens and clicks changed, last counted before $1.
select delivery_id from engagement
where stale_since_time is not null and (as_of_time is null or as_of_time <= $1)
order by stale_since_time limit $2;
