-- Pause, resume and stop. Each compares the state, and raises slot 0's revision, so that watchers see it.

-- name: pause_delivery
with changed as (
    update delivery set state = 7, version = version + 1, update_time = $2
    where delivery_id = $1 and state = 6
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $2
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: resume_delivery
with changed as (
    update delivery set state = 6, version = version + 1, update_time = $2
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

-- name: in_flight
-- Messages that someone holds and may have given away: still PREPARED, in a part that is claimed now.
select count(*) from relay_part p
join send_log s on s.delivery_id = p.delivery_id
    and s.recipient >= p.part * 1024 and s.recipient < (p.part + 1) * 1024 and s.outcome = 0
where p.delivery_id = $1 and not p.done and p.lease_holder <> '' and p.available_time > clock_timestamp();

-- name: note_stop_in_flight
-- Once: a repeated stop tells the first number again.
update delivery set stop_in_flight = $2 where delivery_id = $1 and stop_in_flight is null;
