-- Schedules, recurring deliveries and their children, deleted drafts, copies of audiences.

alter table delivery
    -- As it was given; null: at once. And the instant that it stands for (of a recurrence: of its first occurrence).
    add column schedule jsonb,
    add column contact_time timestamptz,
    -- A recurring delivery sends nothing itself: no worker relays or finishes it as it does others.
    add column recurring boolean not null default false,
    -- Of a recurring delivery IN_PROGRESS: when its next occurrence is due. Null: not worked out yet; infinity: none.
    add column next_occurrence_time timestamptz,
    -- Of a child: its parent, its occurrence's nominal local time, until when it may be confirmed, and whether by the
    -- system.
    add column parent_id bigint,
    add column occurrence_local_time timestamp,
    add column confirm_by_time timestamptz,
    add column system_confirms boolean not null default false,
    -- While the audience is being copied: from where, and how far it has come. recipient_count is final from the start.
    add column audience_source_id bigint,
    add column audience_source_count integer not null default 0,
    add column audience_copied_through integer not null default 0;

-- When sending starts by the answer of the confirmation.
alter table confirmation add column start_time timestamptz;

-- What the workers look for. Few rows at any time, each by what makes it due.
create index delivery_to_start on delivery (coalesce(contact_time, '-infinity')) where state = 5;
create index delivery_recurring on delivery (coalesce(next_occurrence_time, '-infinity'))
    where state = 6 and recurring;
create index delivery_child_ready on delivery (delivery_id) where state = 4 and parent_id is not null;
create index delivery_copying on delivery (audience_source_id) where audience_source_id is not null;
create index delivery_children on delivery (parent_id, delivery_id) where parent_id is not null;

-- The occurrences of recurring deliveries (delivery_id: the parent) that have come: each once, by its nominal local
-- time. state: OccurrenceState. A child's id is chosen with its occurrence, so that making it can be repeated.
create table occurrence (
    delivery_id bigint not null,
    local_time timestamp not null,
    due_time timestamptz not null,
    state smallint not null,
    period_date date,
    child_id bigint not null,
    update_time timestamptz not null,
    primary key (delivery_id, local_time)
);
create index occurrence_due on occurrence (due_time) where state = 1;
create index occurrence_period on occurrence (delivery_id, period_date) where period_date is not null;

-- Drafts that were deleted, and whose rows are not all removed yet.
create table deleted_delivery (
    delivery_id bigint primary key,
    delete_time timestamptz not null
);

-- The first step: the occurrences of a parent that have come, and when its next one is due (null: never). A replica that worked from
-- another state of things than the present one changes nothing. Repeated, or by two replicas at once, each occurrence
-- is there once.
create function record_occurrences (
    p_parent_id bigint, p_seen_next_time timestamptz, p_local_times timestamp[], p_due_times timestamptz[],
    p_states smallint[], p_period_dates date[], p_child_ids bigint[], p_next_time timestamptz, p_now timestamptz
) returns boolean language plpgsql as $$
begin
    update delivery set next_occurrence_time = coalesce(p_next_time, 'infinity')
    where delivery_id = p_parent_id and state = 6 and recurring
        and next_occurrence_time is not distinct from p_seen_next_time;
    if not found then
        return false;
    end if;
    insert into occurrence (delivery_id, local_time, due_time, state, period_date, child_id, update_time)
    select p_parent_id, o.local_time, o.due_time, o.state, o.period_date, o.child_id, p_now
    from unnest(p_local_times, p_due_times, p_states, p_period_dates, p_child_ids)
        as o (local_time, due_time, state, period_date, child_id)
    on conflict do nothing;
    return true;
end $$;

-- The second step: the child of an occurrence that is due. The parent is locked first: so its state is held while the
-- child is made, and the occurrences of a period are dealt with one after the other. Gives what became of the
-- occurrence (OccurrenceState); null: someone else has dealt with it, or the parent is not IN_PROGRESS any more.
create function spawn_child (p_parent_id bigint, p_local_time timestamp, p_now timestamptz) returns smallint
language plpgsql as $$
declare
    v_parent delivery;
    v_occurrence occurrence;
    v_child_of_period bigint;
    v_lateness interval;
    v_state smallint := 2;
begin
    select * into v_parent from delivery
    where delivery_id = p_parent_id and state = 6 and recurring for no key update;
    if not found then
        return null;
    end if;
    select * into v_occurrence from occurrence
    where delivery_id = p_parent_id and local_time = p_local_time and state = 1 for no key update;
    if not found then
        return null;
    end if;
    select child_id into v_child_of_period from occurrence
    where delivery_id = p_parent_id and period_date = v_occurrence.period_date and state = 2;
    v_lateness := make_interval(secs => (v_parent.schedule->'recurrence'->>'max_lateness_seconds')::double precision);
    if v_child_of_period is not null then
        v_state := 4;
    elsif p_now > v_occurrence.due_time + v_lateness then  -- the first step was in time, and then nobody was
        v_state := 3;
    else
        insert into delivery (delivery_id, label, channel, feedback_mode, subject, html, body_text, from_address,
            from_name, reply_to_address, validity_period, state, creator, create_time, update_time, recipient_count,
            audience_digest, preparer, parent_id, occurrence_local_time, confirm_by_time, system_confirms,
            audience_source_id, audience_source_count, messages_per_hour, first_wave_count)
        values (v_occurrence.child_id, v_parent.label, v_parent.channel, v_parent.feedback_mode, v_parent.subject,
            v_parent.html, v_parent.body_text, v_parent.from_address, v_parent.from_name, v_parent.reply_to_address,
            v_parent.validity_period, 2, 'system', p_now, p_now, v_parent.recipient_count, v_parent.audience_digest,
            'system', p_parent_id, p_local_time, v_occurrence.due_time + v_lateness,
            not (v_parent.schedule->'recurrence'->>'request_confirmation')::boolean,
            p_parent_id, v_parent.recipient_count, v_parent.messages_per_hour, v_parent.first_wave_count)
        on conflict do nothing;
        if not found then  -- the id is taken by another delivery: a new one, and the next try makes the child
            update occurrence set child_id = child_id + 1 where delivery_id = p_parent_id and local_time = p_local_time;
            return null;
        end if;
        insert into delivery_counter (delivery_id, slot, revision, commit_time)
        values (v_occurrence.child_id, 0, 1, p_now);
    end if;
    update occurrence set state = v_state, child_id = coalesce(v_child_of_period, child_id), update_time = p_now
    where delivery_id = p_parent_id and local_time = p_local_time;
    update delivery_counter set revision = revision + 1, commit_time = p_now
    where delivery_id = p_parent_id and slot = 0;
    return v_state;
end $$;

-- Copies the next recipients of an audience that is being copied; true once it is complete, null if another replica is
-- at it, or has been. The counter of how far it has come is moved in the same transaction, so a range is copied once.
create function copy_audience (p_delivery_id bigint, p_step integer) returns boolean language plpgsql as $$
declare
    v_from integer;
    v_through integer;
    v_source_id bigint;
    v_source_count integer;
begin
    select audience_copied_through, audience_source_id, audience_source_count
    into v_from, v_source_id, v_source_count
    from delivery where delivery_id = p_delivery_id and audience_source_id is not null for no key update skip locked;
    if not found then
        return null;
    end if;
    v_through := least(v_from + p_step, v_source_count);
    insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
    select p_delivery_id, recipient, address_problem, profile_id, address, attributes
    from recipient where delivery_id = v_source_id and recipient > v_from and recipient <= v_through;
    update delivery set audience_copied_through = v_through,
        audience_source_id = case when v_through < v_source_count then v_source_id end
    where delivery_id = p_delivery_id;
    return v_through = v_source_count;
end $$;

-- Takes a draft away: for every caller it is gone with this. Its rows follow, in batches (purge_deleted). The draft is
-- locked before anything is looked at, so that no copy of its audience can begin meanwhile. Gives 0: deleted; 1: it is
-- not at the version that the caller saw, or no draft; 2: its audience is being copied.
create function delete_draft (p_delivery_id bigint, p_version bigint, p_now timestamptz) returns integer
language plpgsql as $$
begin
    perform from delivery where delivery_id = p_delivery_id and version = p_version and state in (1, 3, 4) for update;
    if not found then
        return 1;
    end if;
    if exists (select from delivery where audience_source_id = p_delivery_id) then
        return 2;
    end if;
    delete from delivery where delivery_id = p_delivery_id;
    delete from delivery_counter where delivery_id = p_delivery_id;
    insert into deleted_delivery (delivery_id, delete_time) values (p_delivery_id, p_now);
    return 0;
end $$;

-- Removes at most p_limit rows of a deleted draft from each table; true once none is left, null if another replica is at
-- it, or has been. Repeated until then.
create function purge_deleted (p_delivery_id bigint, p_limit integer) returns boolean language plpgsql as $$
declare
    v_table text;
    v_rows integer;
    v_more boolean := false;
begin
    perform from deleted_delivery where delivery_id = p_delivery_id for update skip locked;
    if not found then
        return null;
    end if;
    -- A draft has had no feedback; test profiles that it was sent to as a proof may have.
    foreach v_table in array array['send_log', 'recipient', 'exclusion_log', 'transition', 'late_observation',
        'tracking_log'] loop
        execute format(
            'delete from %1$I where delivery_id = $1 and recipient in (
                select recipient from %1$I where delivery_id = $1 order by recipient limit $2)', v_table)
        using p_delivery_id, p_limit;
        get diagnostics v_rows = row_count;
        v_more := v_more or v_rows >= p_limit;
    end loop;
    delete from relay_part where delivery_id = p_delivery_id and part in (
        select part from relay_part where delivery_id = p_delivery_id order by part limit p_limit);
    get diagnostics v_rows = row_count;
    v_more := v_more or v_rows >= p_limit;
    if v_more then
        return false;
    end if;
    delete from recipient_upload where delivery_id = p_delivery_id;
    delete from confirmation where delivery_id = p_delivery_id;
    delete from engagement where delivery_id = p_delivery_id;
    delete from counter_correction where delivery_id = p_delivery_id;
    delete from deleted_delivery where delivery_id = p_delivery_id;
    return true;
end $$;

-- Instead of prepare_range, for a recurring delivery: it has no send logs of its own, only those that an earlier
-- preparation left when it was not recurring yet.
create function clear_range (p_delivery_id bigint, p_token uuid, p_after integer, p_through integer) returns boolean
language plpgsql as $$
begin
    update delivery set prepared_through = p_through
    where delivery_id = p_delivery_id and preparation_token = p_token and prepared_through = p_after;
    if not found then
        return false;
    end if;
    delete from send_log where delivery_id = p_delivery_id and recipient > p_after and recipient <= p_through;
    return true;
end $$;
