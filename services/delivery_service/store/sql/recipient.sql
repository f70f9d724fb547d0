-- The audience.

-- name: lock_draft
-- Holds the delivery while a chunk is added to it: chunks of two uploads may not take the same numbers. A chunk is the
-- one thing that takes several round trips; idle_in_transaction_session_timeout frees a stopped writer's lock.
select state, version, recipient_count, audience_digest, parent_id is not null as is_child, log_dropped_time
from delivery where delivery_id = $1 for no key update;

-- name: get_channel
select channel from delivery where delivery_id = $1;

-- name: get_upload
select last_chunk, added_count from recipient_upload where delivery_id = $1 and upload_id = $2;

-- name: add_chunk
-- Counts the chunk in, in the same transaction as its rows. An edit of the audience takes the plan away. The version is
-- raised only with the state: chunks of a draft touch no field that an edit writes, and an edit that compares versions
-- would never get in between those of a large upload.
with changed as (
    update delivery
    set recipient_count = recipient_count + $4, audience_digest = $5, state = $6, update_time = $7,
        version = version + $8::boolean::integer, plan = null
    where delivery_id = $1
    returning delivery_id, recipient_count
), uncounted as (
    -- The state has changed, and a delivery that was READY has counters to take back.
    update delivery_counter c set revision = c.revision + 1, commit_time = $7, prepared = 0
    from changed d where c.delivery_id = d.delivery_id and $8::boolean
)
insert into recipient_upload as u (delivery_id, upload_id, last_chunk, added_count)
select delivery_id, $2, $3, $4 from changed
on conflict (delivery_id, upload_id) do update set last_chunk = $3, added_count = u.added_count + $4
returning u.added_count, (select recipient_count from changed) as recipient_count;
