-- Who of an audience gets no message by choice: control groups, and suppression lists of addresses and domains.

alter table delivery
    -- The control group: at most one of these; neither: there is none.
    add column control_group_share double precision,
    add column control_group_profile_ids text[],
    -- Names of lists. The preparation fails if one does not exist.
    add column suppression_lists text[] not null default '{}';
create index delivery_suppression_lists on delivery using gin (suppression_lists) where suppression_lists <> '{}';

-- Named and shared. Whoever changes the entries holds the list: so its counts are exact, and batches with the same
-- entries in another order can't wait for each other in a circle.
create table suppression_list (
    list_id bigint generated always as identity primary key,
    name text collate "C" not null unique,
    channel smallint not null,
    description text not null,
    creator text not null,
    create_time timestamptz not null,
    update_time timestamptz not null,
    address_count bigint not null default 0,
    domain_count bigint not null default 0
);

-- kind: 1 address, 2 domain, which stands for its subdomains too.
create table suppression_entry (
    list_id bigint not null,
    kind smallint not null,
    value text collate "C" not null,
    add_time timestamptz not null,
    primary key (list_id, kind, value)
);

-- Lists that were deleted, and whose entries are not all removed yet.
create table deleted_suppression_list (
    list_id bigint primary key,
    delete_time timestamptz not null
);

-- How many entries were new; null: no such list. More than p_max on the list raises program_limit_exceeded.
create function add_suppression_entries (
    p_name text, p_addresses text[], p_domains text[], p_max bigint, p_now timestamptz
) returns bigint language plpgsql as $$
declare
    v_list suppression_list;
    v_addresses bigint;
    v_domains bigint;
begin
    select * into v_list from suppression_list where name = p_name for no key update;
    if not found then
        return null;
    end if;
    with added as (
        insert into suppression_entry (list_id, kind, value, add_time)
        select v_list.list_id, 1, a.value, p_now from unnest(p_addresses) as a (value)
        union all
        select v_list.list_id, 2, d.value, p_now from unnest(p_domains) as d (value)
        on conflict do nothing
        returning kind
    )
    select count(*) filter (where kind = 1), count(*) filter (where kind = 2) into v_addresses, v_domains from added;
    if v_list.address_count + v_list.domain_count + v_addresses + v_domains > p_max then
        raise program_limit_exceeded;
    end if;
    update suppression_list
    set address_count = address_count + v_addresses, domain_count = domain_count + v_domains, update_time = p_now
    where list_id = v_list.list_id and v_addresses + v_domains > 0;
    return v_addresses + v_domains;
end $$;

-- How many entries were there; null: no such list.
create function remove_suppression_entries (p_name text, p_addresses text[], p_domains text[], p_now timestamptz)
returns bigint language plpgsql as $$
declare
    v_list_id bigint;
    v_addresses bigint;
    v_domains bigint;
begin
    select list_id into v_list_id from suppression_list where name = p_name for no key update;
    if not found then
        return null;
    end if;
    with removed as (
        delete from suppression_entry e
        using (
            select 1 as kind, a.value from unnest(p_addresses) as a (value)
            union all
            select 2, d.value from unnest(p_domains) as d (value)
        ) r
        where e.list_id = v_list_id and e.kind = r.kind and e.value = r.value
        returning e.kind
    )
    select count(*) filter (where kind = 1), count(*) filter (where kind = 2) into v_addresses, v_domains
    from removed;
    update suppression_list
    set address_count = address_count - v_addresses, domain_count = domain_count - v_domains, update_time = p_now
    where list_id = v_list_id and v_addresses + v_domains > 0;
    return v_addresses + v_domains;
end $$;

-- Takes a list away: for every caller it is gone with this; its entries follow, in batches. Gives the deliveries that
-- keep it from that, some of them: those that are not over and name it. Null: no such list. A preparation holds the
-- lists that it reads, and looks that they are there, so that none is taken away under it.
create function delete_suppression_list (p_name text, p_now timestamptz) returns bigint[] language plpgsql as $$
declare
    v_list_id bigint;
    v_users bigint[];
begin
    select list_id into v_list_id from suppression_list where name = p_name for update;
    if not found then
        return null;
    end if;
    v_users := array(
        select delivery_id from delivery
        where suppression_lists @> array[p_name] and suppression_lists <> '{}' and state < 8
        order by delivery_id limit 20);
    if cardinality(v_users) = 0 then
        delete from suppression_list where list_id = v_list_id;
        insert into deleted_suppression_list (list_id, delete_time) values (v_list_id, p_now);
    end if;
    return v_users;
end $$;

-- Removes at most p_limit entries of a deleted list; true once none is left, null if another replica is at it, or has
-- been. Repeated until then.
create function purge_suppression_list (p_list_id bigint, p_limit integer) returns boolean language plpgsql as $$
declare
    v_rows integer;
begin
    perform from deleted_suppression_list where list_id = p_list_id for update skip locked;
    if not found then
        return null;
    end if;
    delete from suppression_entry where list_id = p_list_id and (kind, value) in (
        select kind, value from suppression_entry where list_id = p_list_id order by kind, value limit p_limit);
    get diagnostics v_rows = row_count;
    if v_rows >= p_limit then
        return false;
    end if;
    delete from deleted_suppression_list where list_id = p_list_id;
    return true;
end $$;

-- The rules of exclusion, one function each. A rule leaves alone who is excluded already, so that the first one that
-- matches counts; and each reads the audience once, whatever the number of its recipients, without sorting: of an
-- audience that has just been uploaded there are no statistics, and Postgres takes it for a few rows that are quickly
-- sorted, or looked up one by one. So nested loops are off as well where an audience meets another large table, and
-- plans are made for the values at hand: only so is a list of profiles hashed.

-- Causes 1 and 2: no address, or none that can be one.
create function exclude_bad_addresses (p_delivery_id bigint) returns void language sql as $$
    insert into exclusion_log (delivery_id, recipient, cause)
    select p_delivery_id, recipient, address_problem
    from recipient where delivery_id = p_delivery_id and recipient > 0 and address_problem <> 0;
$$;

-- Cause 3. Of those who are not excluded yet, the lowest number of each address stays. The inner query finds the few
-- addresses that repeat. Proofs, which have numbers below 1, are nobody's double.
create function exclude_duplicates (p_delivery_id bigint) returns void language plpgsql
set plan_cache_mode = force_custom_plan as $$
declare
    -- As an array, which is hashed once, instead of a look into the exclusions for each row.
    v_excluded constant integer[] := array(
        select recipient from exclusion_log where delivery_id = p_delivery_id and cause not in (1, 2));
begin
    insert into exclusion_log (delivery_id, recipient, cause)
    select p_delivery_id, r.recipient, 3
    from (
        select address, min(recipient) as kept from recipient
        where delivery_id = p_delivery_id and recipient > 0 and address_problem = 0
            and recipient <> all (v_excluded)
        group by address having count(*) > 1
    ) repeated
    join recipient r on r.delivery_id = p_delivery_id and r.address = repeated.address and r.recipient > repeated.kept
    where r.recipient <> all (v_excluded);
end $$;

-- Cause 6. A share is drawn by a hash of the person, whose seed is the delivery: the one by which Postgres places rows
-- in partitions, so it is the same on every replica and in every version. A child's seed is its parent.
create function exclude_control_group (p_delivery_id bigint) returns void language plpgsql
set plan_cache_mode = force_custom_plan as $$
declare
    v_share double precision;
    v_profile_ids text[];
    v_seed bigint;
begin
    select control_group_share, control_group_profile_ids, coalesce(parent_id, delivery_id)
    into v_share, v_profile_ids, v_seed
    from delivery where delivery_id = p_delivery_id;
    if v_share is not null then
        insert into exclusion_log (delivery_id, recipient, cause)
        select p_delivery_id, recipient, 6 from recipient
        where delivery_id = p_delivery_id and recipient > 0 and address_problem = 0
            and hashtextextended(case profile_id when '' then address else profile_id end, v_seed) & 4294967295
                < (v_share * 4294967296)::bigint
        on conflict do nothing;
    elsif v_profile_ids is not null then
        insert into exclusion_log (delivery_id, recipient, cause)
        select p_delivery_id, recipient, 6 from recipient
        where delivery_id = p_delivery_id and recipient > 0 and address_problem = 0
            and profile_id = any (v_profile_ids)
        on conflict do nothing;
    end if;
end $$;

-- Cause 7. With many more suppressed addresses than recipients, each of these is looked up; else both are hashed.
create function exclude_suppressed_addresses (p_delivery_id bigint) returns void language plpgsql
set plan_cache_mode = force_custom_plan set enable_nestloop = off as $$
declare
    v_list_ids bigint[];
    v_looked_up boolean;
begin
    select array_agg(l.list_id), sum(l.address_count) > 10 * max(d.recipient_count) into v_list_ids, v_looked_up
    from delivery d join suppression_list l on l.name = any (d.suppression_lists)
    where d.delivery_id = p_delivery_id and l.address_count > 0;
    if v_list_ids is null then
        return;
    end if;
    perform set_config('enable_nestloop', v_looked_up::text, true);
    insert into exclusion_log (delivery_id, recipient, cause)
    select p_delivery_id, r.recipient, 7
    from recipient r join suppression_entry e on e.value = r.address
    where r.delivery_id = p_delivery_id and r.recipient > 0 and r.address_problem = 0
        and e.list_id = any (v_list_ids) and e.kind = 1
    on conflict do nothing;
end $$;

-- Cause 8. The audience's domains, each once, with all that they are subdomains of, are compared with the lists.
create function exclude_suppressed_domains (p_delivery_id bigint) returns void language plpgsql
set plan_cache_mode = force_custom_plan set enable_nestloop = off as $$
declare
    v_list_ids bigint[];
    v_domains text[];
begin
    v_list_ids := array(
        select l.list_id from delivery d join suppression_list l on l.name = any (d.suppression_lists)
        where d.delivery_id = p_delivery_id and l.domain_count > 0);
    if cardinality(v_list_ids) = 0 then
        return;
    end if;
    v_domains := array(
        select distinct d.domain
        from (
            select distinct split_part(address, '@', -1) as domain from recipient
            where delivery_id = p_delivery_id and recipient > 0 and address_problem = 0
        ) d
        cross join lateral string_to_array(d.domain, '.') as l (labels)
        cross join lateral generate_series(1, cardinality(l.labels)) as n (first)
        join suppression_entry e on e.value = array_to_string(l.labels[n.first:], '.')
        where e.list_id = any (v_list_ids) and e.kind = 2);
    if cardinality(v_domains) = 0 then
        return;
    end if;
    insert into exclusion_log (delivery_id, recipient, cause)
    select p_delivery_id, recipient, 8 from recipient
    where delivery_id = p_delivery_id and recipient > 0 and address_problem = 0
        and split_part(address, '@', -1) = any (v_domains)
    on conflict do nothing;
end $$;

-- Step 1 of a preparation: records who gets no message, and why; a recipient under the first cause that matches.
-- False: lost the lease, or a suppression list has gone since it was looked at. Without sorting: see above.
create or replace function prepare_exclusions (p_delivery_id bigint, p_token uuid) returns boolean language plpgsql
set enable_sort = off as $$
declare
    v_names text[];
begin
    select suppression_lists into v_names from delivery where delivery_id = p_delivery_id;
    perform from suppression_list where name = any (v_names) for key share;
    if (select count(*) from suppression_list where name = any (v_names)) < cardinality(v_names) then
        return false;
    end if;
    update delivery set prepared_through = 0
    where delivery_id = p_delivery_id and preparation_token = p_token and prepared_through = -1;
    if not found then
        return false;
    end if;
    delete from exclusion_log where delivery_id = p_delivery_id;
    delete from relay_part where delivery_id = p_delivery_id;
    perform exclude_bad_addresses(p_delivery_id);
    perform exclude_duplicates(p_delivery_id);
    perform exclude_control_group(p_delivery_id);
    perform exclude_suppressed_addresses(p_delivery_id);
    perform exclude_suppressed_domains(p_delivery_id);
    return true;
end $$;

-- Its array of the excluded is hashed only by a plan that is made for it. Postgres' choice after some steps is a plan for
-- any array, which compares each recipient with each of the excluded: a third of them makes that 20 times slower.
alter function prepare_range (bigint, uuid, integer, integer, timestamptz) set plan_cache_mode = force_custom_plan;

-- The child of an occurrence that is due, with its parent's audience options. The parent is locked first: so its state
-- is held while the child is made, and the occurrences of a period are dealt with one after the other. Gives what
-- became of the occurrence (OccurrenceState); null: someone else has dealt with it, or the parent is not IN_PROGRESS.
create or replace function spawn_child (p_parent_id bigint, p_local_time timestamp, p_now timestamptz) returns smallint
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
            audience_source_id, audience_source_count, messages_per_hour, first_wave_count, control_group_share,
            control_group_profile_ids, suppression_lists)
        values (v_occurrence.child_id, v_parent.label, v_parent.channel, v_parent.feedback_mode, v_parent.subject,
            v_parent.html, v_parent.body_text, v_parent.from_address, v_parent.from_name, v_parent.reply_to_address,
            v_parent.validity_period, 2, 'system', p_now, p_now, v_parent.recipient_count, v_parent.audience_digest,
            'system', p_parent_id, p_local_time, v_occurrence.due_time + v_lateness,
            not (v_parent.schedule->'recurrence'->>'request_confirmation')::boolean,
            p_parent_id, v_parent.recipient_count, v_parent.messages_per_hour, v_parent.first_wave_count,
            v_parent.control_group_share, v_parent.control_group_profile_ids, v_parent.suppression_lists)
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
