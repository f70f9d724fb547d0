-- The steps of a preparation. Each is one autocommitted call, does nothing unless the caller still holds the
-- preparation (its token), and may be repeated: so the work goes on where a crashed worker left it, and a worker that
-- lost its lease can do no harm.

-- Step 1: records who gets no message, and why; a recipient under the first cause that matches. False: lost the lease.
--
-- Without sorting: of an audience that has just been uploaded there are no statistics, and Postgres takes it for a few
-- rows that are quickly sorted. Hashing the addresses takes a third of the time.
create function prepare_exclusions (p_delivery_id bigint, p_token uuid) returns boolean language plpgsql
set enable_sort = off as $$
begin
    update delivery set prepared_through = 0
    where delivery_id = p_delivery_id and preparation_token = p_token and prepared_through = -1;
    if not found then
        return false;
    end if;
    delete from exclusion_log where delivery_id = p_delivery_id;
    delete from relay_part where delivery_id = p_delivery_id;
    insert into exclusion_log (delivery_id, recipient, cause)
    select p_delivery_id, recipient, address_problem
    from recipient where delivery_id = p_delivery_id and address_problem <> 0;
    -- The lowest number of each address stays. The inner query finds the few addresses that repeat.
    insert into exclusion_log (delivery_id, recipient, cause)
    select p_delivery_id, r.recipient, 3
    from (
        select address, min(recipient) as kept from recipient
        where delivery_id = p_delivery_id and address_problem = 0
        group by address having count(*) > 1
    ) repeated
    join recipient r on r.delivery_id = p_delivery_id and r.address = repeated.address and r.recipient > repeated.kept;
    return true;
end $$;

-- Step 2, repeated: writes the send logs of recipients p_after + 1 .. p_through, and their relay parts. Ranges end at
-- the last number of a part, so that a part is written by one step. False: lost the lease, or done already.
create function prepare_range (
    p_delivery_id bigint, p_token uuid, p_after integer, p_through integer, p_now timestamptz
) returns boolean language plpgsql as $$
declare
    v_excluded integer[];
begin
    update delivery set prepared_through = p_through
    where delivery_id = p_delivery_id and preparation_token = p_token and prepared_through = p_after;
    if not found then
        return false;
    end if;
    -- Rows of an earlier preparation of this delivery, if any.
    delete from send_log
    where delivery_id = p_delivery_id and recipient > p_after and recipient <= p_through;
    -- As an array, which is hashed once, instead of a look into the exclusions for each row.
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

-- Step 3: sets the counters, and the delivery READY with its plan. False: lost the lease.
create function finish_preparation (
    p_delivery_id bigint, p_token uuid, p_slot_count smallint, p_plan jsonb, p_now timestamptz
) returns boolean language plpgsql as $$
declare
    v_slot_count smallint;
begin
    update delivery
    set state = 4, version = version + 1, update_time = p_now, plan = p_plan,
        -- Frozen by the first preparation: recipients and revisions stay in their slots.
        slot_count = case slot_count when 0 then p_slot_count else slot_count end,
        preparation_token = null, preparation_lease_time = null
    where delivery_id = p_delivery_id and preparation_token = p_token and state = 2
    returning slot_count into v_slot_count;
    if not found then
        return false;
    end if;
    -- The revisions go on from where they are: watchers rely on a sum that only grows.
    insert into delivery_counter as c (delivery_id, slot, revision, prepared, commit_time)
    select p_delivery_id, s.slot, 1, coalesce(sum(p.prepared_count), 0), p_now
    from generate_series(0, v_slot_count - 1) as s (slot)
    left join relay_part p on p.delivery_id = p_delivery_id and p.part % v_slot_count = s.slot
    group by s.slot order by s.slot
    on conflict (delivery_id, slot) do update
    set revision = c.revision + 1, prepared = excluded.prepared, commit_time = p_now;
    insert into engagement (delivery_id) values (p_delivery_id) on conflict do nothing;
    return true;
end $$;
