-- Ranges of recipients are written side by side, by several connections of the worker that holds the preparation.

-- Step 2, repeated: writes the send logs of recipients p_after + 1 .. p_through, and their relay parts. Ranges end at
-- the last number of a part, so that a part is written by one range. How far the preparation has come, p_done, is moved
-- by the worker once all ranges of a step are in; until then a range may be written again. False: lost the lease.
--
-- The delivery is held FOR SHARE: ranges go together, and nobody else takes the preparation while one is being written.
-- A plan for the array of the excluded: only so is it hashed (0018).
create function write_range (
    p_delivery_id bigint, p_token uuid, p_done integer, p_after integer, p_through integer, p_now timestamptz
) returns boolean language plpgsql set plan_cache_mode = force_custom_plan as $$
declare
    v_excluded integer[];
begin
    perform from delivery
    where delivery_id = p_delivery_id and preparation_token = p_token and prepared_through = p_done for share;
    if not found then
        return false;
    end if;
    -- Rows of an earlier preparation of this delivery, or of a worker that crashed in this step.
    delete from send_log where delivery_id = p_delivery_id and recipient > p_after and recipient <= p_through;
    delete from relay_part
    where delivery_id = p_delivery_id and part >= (p_after + 1) / 1024 and part <= p_through / 1024;
    v_excluded := array(
        select recipient from exclusion_log
        where delivery_id = p_delivery_id and recipient > p_after and recipient <= p_through);
    insert into send_log (delivery_id, recipient, outcome, event_time, update_time)
    select p_delivery_id, r.recipient, 0, p_now, p_now
    from recipient r
    where r.delivery_id = p_delivery_id and r.recipient > p_after and r.recipient <= p_through
        and r.recipient <> all (v_excluded);
    insert into relay_part (delivery_id, part, prepared_count)
    select p_delivery_id, recipient / 1024, count(*)
    from send_log where delivery_id = p_delivery_id and recipient > p_after and recipient <= p_through
    group by 2;
    return true;
end $$;

-- For replicas of the version before: one that goes on with a preparation begun by this version may find parts.
create or replace function prepare_range (
    p_delivery_id bigint, p_token uuid, p_after integer, p_through integer, p_now timestamptz
) returns boolean language plpgsql set plan_cache_mode = force_custom_plan as $$
begin
    if not write_range(p_delivery_id, p_token, p_after, p_after, p_through, p_now) then
        return false;
    end if;
    update delivery set prepared_through = p_through where delivery_id = p_delivery_id;
    return true;
end $$;
