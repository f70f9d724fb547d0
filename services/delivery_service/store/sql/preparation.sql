-- Preparation; the steps are functions (schema/0003_preparation.sql and later).

-- name: claim_preparation
-- Takes the lease of a preparation: free, expired, or already ours. By the database's clock: replicas' clocks may
-- differ.
update delivery
set preparation_token = $2, preparation_lease_time = clock_timestamp() + $3::interval
where delivery_id = $1 and state = 2 and audience_source_id is null
    and (preparation_token is null or preparation_token = $2 or preparation_lease_time < clock_timestamp())
returning prepared_through;

-- name: renew_preparation
-- Only ours: a preparation that was canceled and begun anew meanwhile is another worker's.
update delivery set preparation_lease_time = clock_timestamp() + $3::interval
where delivery_id = $1 and state = 2 and preparation_token = $2;

-- name: clear_range
select clear_range($1, $2, $3, $4);

-- name: prepare_exclusions
select prepare_exclusions($1, $2);

-- name: write_range
select write_range($1, $2, $3, $4, $5, $6);

-- name: end_step
-- All ranges of a step are written.
update delivery set prepared_through = $4
where delivery_id = $1 and preparation_token = $2 and prepared_through = $3
returning delivery_id;

-- name: exclusion_volumes
-- Who was excluded and why, as volumes and as a checksum that does not depend on the order of rows.
select cause, count(*) as volume,
    coalesce(sum(hashint8extended(recipient, cause)::numeric), 0)::text as checksum
from exclusion_log where delivery_id = $1 group by cause;

-- name: prepared_count
select coalesce(sum(prepared_count), 0)::bigint from relay_part where delivery_id = $1;

-- name: finish_preparation
select finish_preparation($1, $2, $3, $4, $5);

-- name: fail_preparation
with changed as (
    update delivery
    set state = 3, version = version + 1, update_time = $4, plan = $3, preparation_token = null,
        preparation_lease_time = null
    where delivery_id = $1 and preparation_token = $2 and state = 2
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $4
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;
