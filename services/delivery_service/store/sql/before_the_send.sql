-- Approval, proofs and pacing.

-- name: approve_delivery
-- Of the version that was read. Slot 0's revision is raised, so that KPI watchers see it.
with changed as (
    update delivery
    set version = version + 1, update_time = $3, approver = $4, approve_time = $3, approved_digest = $5
    where delivery_id = $1 and version = $2 and state = 4
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $3
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: add_proof
select add_proof($1, $2, $3, $4, $5, $6, $7);

-- name: paced_deliveries
-- Those being sent whose pacing holds messages back, and how many have left; messages to paused domains don't keep the
-- others waiting: they count as left.
select d.delivery_id, d.first_wave_count, d.messages_per_hour, d.pace_granted, d.pace_through, d.pace_time,
    c.left_count + case when d.paused_domains = '[]' then 0 else (
        select coalesce(sum(p.held_count), 0) from relay_part p where p.delivery_id = d.delivery_id and not p.done)
    end as left_count
from delivery d
join lateral (
    select sum(k.canceled + k.relayed + k.deferred + k.expired + k.delivered + k.bounced)::bigint as left_count
    from delivery_counter k where k.delivery_id = d.delivery_id
) c on true
where d.state = 6 and d.state in (2, 5, 6) and d.messages_per_hour is not null and d.pace_through < d.recipient_count;

-- name: grant_messages
-- Lets $4 more messages go, unless another replica has been here: the $4-th from the last one granted is the new last,
-- or the whole audience if there are fewer.
update delivery
set pace_granted = pace_granted + $4, pace_time = $3,
    pace_through = case when $4::bigint = 0 then pace_through else coalesce((
        select recipient from send_log
        where delivery_id = $1 and recipient > delivery.pace_through and outcome = 0
        order by recipient offset $4::bigint - 1 limit 1), recipient_count) end
where delivery_id = $1 and pace_time is not distinct from $2 and state = 6
returning delivery_id;
