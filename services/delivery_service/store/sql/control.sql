-- Pause, resume and stop. Each compares the state, and raises slot 0's revision, so that watchers see it.

-- name: pause_delivery
-- By someone, or for a cause ($4) that the breaker found and nobody has resumed over.
with changed as (
    update delivery
    set state = 7, version = version + 1, update_time = $2, pause_time = $2, pauser = $3, pause_cause = $4,
        pause_detail = $5
    where delivery_id = $1 and state = 6 and $4::smallint <> all (overruled_causes)
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $2
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: resume_delivery
with changed as (
    update delivery
    set state = 6, version = version + 1, update_time = $2, pause_time = null, pauser = '', pause_cause = 0,
        pause_detail = '',
        -- A command is no cause of the breaker's.
        overruled_causes = case when pause_cause > 1 then overruled_causes || pause_cause else overruled_causes end
    where delivery_id = $1 and state = 7
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $2
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: stop_delivery
-- Waits for a claim that holds the state; after it, none can be made.
with changed as (
    update delivery
    set state = 8, version = version + 1, update_time = $2, stop_time = $2, stopper = $3,
        stop_revisions = (
            select array_agg(c.revision order by c.slot) from delivery_counter c where c.delivery_id = $1)
    where delivery_id = $1 and state in (5, 6, 7)
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $2
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: breaker_samples
-- Of the deliveries in progress: how many messages were handed over, and what speaks for a pause.
select d.delivery_id, d.overruled_causes, c.handed_over, c.hard_bounces,
    (select count(distinct t.recipient) from tracking_log t
        where t.delivery_id = d.delivery_id and t.kind = 6 and t.recipient > 0) as complained
from delivery d
join lateral (
    select sum(k.relayed + k.deferred + k.expired + k.delivered + k.bounced) as handed_over,
        sum(k.deferred_hard + k.expired_hard + k.bounced_hard) as hard_bounces
    from delivery_counter k where k.delivery_id = d.delivery_id
) c on c.handed_over >= $1
where d.state = 6 and d.state in (2, 5, 6);

-- name: in_flight
-- Messages that someone holds and may have given away: still PREPARED, in a part that is claimed now.
select count(*) from relay_part p
join send_log s on s.delivery_id = p.delivery_id
    and s.recipient >= p.part * 1024 and s.recipient < (p.part + 1) * 1024 and s.outcome = 0
where p.delivery_id = $1 and not p.done and p.lease_holder <> '' and p.available_time > clock_timestamp();

-- name: note_stop_in_flight
-- Once: a repeated stop tells the first number again.
update delivery set stop_in_flight = $2 where delivery_id = $1 and stop_in_flight is null;
