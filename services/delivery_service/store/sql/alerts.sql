-- Alerts.

-- name: alert_samples
-- What the rules of alerts look at, of deliveries above $1, at most $2 of them. Preparations that failed before $3 are
-- old news.
select d.delivery_id, d.label, d.state, d.update_time, d.start_time, d.pause_cause, d.pause_detail, d.messages_per_hour,
    d.paused_domains, d.overruled_domains,
    d.validity_closed_time is not null as validity_closed, coalesce((d.plan->>'to_deliver')::bigint, 0) as to_deliver,
    greatest(d.contact_time, (
        select f.confirm_time from confirmation f
        where f.delivery_id = d.delivery_id and f.request_id = d.confirm_request_id)) as due_time, c.*
from delivery d
join lateral (
    select sum(k.relayed)::bigint as relayed,
        sum(k.relayed + k.deferred + k.expired + k.delivered + k.bounced)::bigint as handed_over,
        sum(k.deferred + k.expired + k.bounced)::bigint as failed,
        sum(k.deferred_hard + k.expired_hard + k.bounced_hard)::bigint as hard,
        sum(k.deferred_ignored + k.expired_ignored + k.bounced_ignored)::bigint as ignored,
        max(k.newest_event_time) as newest_event_time
    from delivery_counter k where k.delivery_id = d.delivery_id
) c on true
where d.settled_time is null and not d.recurring and d.state in (3, 5, 6, 7, 8, 9) and d.delivery_id > $1
    and (d.state <> 3 or d.update_time >= $3)
order by d.delivery_id limit $2;

-- name: raise_alerts
select raise_alerts($1, $2, $3, $4, $5);

-- name: raise_domain_alerts
select raise_domain_alerts($1, $2, $3, $4);

-- name: drop_old_alerts
delete from alert where raise_time < $1;

-- name: list_alerts
-- Below an id, newest first; of one delivery, if one is given.
select alert_id, delivery_id, label, cause, raise_time, detail, recipient_domain from alert
where alert_id < $1 and ($2::bigint is null or delivery_id = $2) order by alert_id desc limit $3;

-- name: alerts_after
select alert_id, delivery_id, label, cause, raise_time, detail, recipient_domain from alert
where alert_id > $1 order by alert_id limit $2;

-- name: newest_alert
select coalesce(max(alert_id), 0) from alert;

-- name: claim_alert
-- One that the webhook has not taken, raised after $3: nobody else tries it before $2.
update alert a set next_try_time = $2, tries = a.tries + 1
from (
    select delivery_id, cause, day, recipient_domain from alert
    where notify_time is null and next_try_time <= $1 and raise_time > $3
    order by next_try_time limit 1 for update skip locked
) as k
where (a.delivery_id, a.cause, a.day, a.recipient_domain) = (k.delivery_id, k.cause, k.day, k.recipient_domain)
returning a.alert_id, a.delivery_id, a.label, a.cause, a.raise_time, a.detail, a.recipient_domain, a.tries;

-- name: alert_taken
update alert set notify_time = $2 where alert_id = $1;

-- name: alert_not_taken
update alert set next_try_time = $2 where alert_id = $1 and notify_time is null;
