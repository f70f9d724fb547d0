-- The commands that take a delivery back, or away, or copy it. A change of state compares the version that was read,
-- and raises slot 0's revision, so that KPI watchers see it.

-- name: unconfirm
-- START_PENDING to READY, with its plan. Of this and start_delivery one finds the state it wants. A child that the
-- system had confirmed waits for a person from now on: the system would confirm it again at once.
with changed as (
    update delivery
    set state = 4, version = version + 1, update_time = $3, confirm_request_id = null, system_confirms = false
    where delivery_id = $1 and version = $2 and state = 5
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $3
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: cancel_preparation
-- PREPARING to EDITING. The worker that is at it loses its token, and with it every further step.
with changed as (
    update delivery
    set state = 1, version = version + 1, update_time = $3, plan = null, prepared_through = -1,
        preparation_token = null, preparation_lease_time = null
    where delivery_id = $1 and version = $2 and state = 2
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $3
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: decline_child
-- READY to STOPPED, of a child that nobody wants to confirm: stopped like any other, with nothing in flight.
with changed as (
    update delivery
    set state = 8, version = version + 1, update_time = $3, stop_time = $3, stopper = $4, stop_in_flight = 0,
        stop_revisions = (
            select array_agg(c.revision order by c.slot) from delivery_counter c where c.delivery_id = $1)
    where delivery_id = $1 and version = $2 and state = 4 and parent_id is not null
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $3
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: delete_draft
select delete_draft($1, $2, $3);

-- name: deleted_deliveries
select delivery_id from deleted_delivery order by delivery_id limit $1;

-- name: purge_deleted
select purge_deleted($1, $2);

-- name: duplicate_delivery
select copy_draft($1, $2, $3, $4, $5, $6, false);

-- name: audiences_to_copy
-- Those whose source is complete, so that every one that is listed can be worked on.
select d.delivery_id from delivery d
where d.audience_source_id is not null and not exists (
    select from delivery s where s.delivery_id = d.audience_source_id and s.audience_source_id is not null)
limit $1;

-- name: copy_audience
select copy_audience($1, $2);
