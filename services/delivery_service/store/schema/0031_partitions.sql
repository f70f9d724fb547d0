-- The tables that retention drops, in ranges of delivery_id: by partitions, and never row by row.
--
-- The last range is always open at its upper end: so no insertion ever fails for want of a partition, even if no worker
-- has made the next one in time. (A default partition would do that as well, but none can be detached concurrently
-- where there is one.)

-- Which tables, by what they are dropped with. kind: 1 the logs, 2 what lives as long as the delivery itself; within a
-- kind, readers look at a table with a smaller place first. storage: of each partition.
create table retained_table (
    table_name text primary key,
    kind smallint not null,
    place smallint not null,
    storage text not null default '',
    unique (kind, place)
);
insert into retained_table (table_name, kind, place, storage) values
    ('send_log', 1, 1, 'fillfactor = 45'),
    ('recipient', 1, 2, ''),
    ('transition', 1, 3, ''),
    ('late_observation', 1, 4, ''),
    ('observation_detail', 1, 5, ''),
    ('tracking_log', 1, 6, ''),
    ('exclusion_log', 1, 7, ''),
    ('relay_part', 1, 8, 'fillfactor = 60'),
    ('hand_over_log', 1, 9, ''),
    ('delivery', 2, 1, ''),
    ('delivery_counter', 2, 2, 'fillfactor = 25'),
    ('engagement', 2, 3, ''),
    ('confirmation', 2, 4, ''),
    ('counter_correction', 2, 5, ''),
    ('recipient_upload', 2, 6, ''),
    ('occurrence', 2, 7, ''),
    ('retry', 2, 8, ''),
    ('address_scan', 2, 9, '');

-- The ranges: of each kind they follow one another without a gap. end_id: exclusive; null: open. The partition of a
-- table is called by the table and the suffix. drop_time: since when it is to be dropped.
create table retention_range (
    kind smallint not null,
    begin_id bigint not null,
    end_id bigint,
    suffix text not null,
    drop_time timestamptz,
    primary key (kind, begin_id)
);

-- The id that a delivery created at that time begins with (domain/identifiers.py).
create function first_id_of (p_time timestamptz) returns bigint language sql immutable as $$
    select (floor(extract(epoch from p_time) * 1000)::bigint) << 20
$$;

-- Bounds the open range of a kind at p_end_id, and opens the next one behind it. All tables of the kind in one
-- transaction, so that their ranges are always the same; each is locked against everybody until its end, so the caller
-- sets a lock_timeout. The open range is empty as a rule, since this is done before its time comes; else its rows are
-- read once. False: it ends beyond that already.
create function add_range (p_kind smallint, p_end_id bigint, p_suffix text) returns boolean language plpgsql as $$
declare
    v_open retention_range;
    v_table retained_table;
begin
    select * into v_open from retention_range where kind = p_kind and end_id is null for update;
    if not found or v_open.begin_id >= p_end_id then
        return false;
    end if;
    for v_table in select * from retained_table where kind = p_kind order by place loop
        execute format('alter table %I detach partition %I', v_table.table_name,
            v_table.table_name || '_' || v_open.suffix);
        execute format('alter table %I attach partition %I for values from (%s) to (%s)', v_table.table_name,
            v_table.table_name || '_' || v_open.suffix, v_open.begin_id, p_end_id);
        execute format('create table %I partition of %I for values from (%s) to (maxvalue) %s',
            v_table.table_name || '_' || p_suffix, v_table.table_name, p_end_id,
            case v_table.storage when '' then '' else 'with (' || v_table.storage || ')' end);
    end loop;
    update retention_range set end_id = p_end_id where kind = p_kind and end_id is null;
    insert into retention_range (kind, begin_id, suffix) values (p_kind, p_end_id, p_suffix);
    return true;
end $$;

-- Every table becomes a partitioned one, of which it is the first partition itself: no row moves. Each is read once, to
-- see that its ids are of that range; all is locked meanwhile.
do $$
declare
    v_table retained_table;
    v_first text;
    v_newest bigint;
    v_end bigint;
    v_indexes record;
    v_definitions text[];
    v_definition text;
begin
    -- Of ids that a clock ahead of ours gave, too.
    select coalesce(max(delivery_id), 0) into v_newest from delivery;
    for v_table in select * from retained_table order by kind, place loop
        v_end := greatest(first_id_of(now() + interval '7 days'), v_newest);
        -- At the end of a span of 13 weeks, or of 52 (91 and 364 days, in milliseconds).
        v_end := ((v_end >> 20) / (case v_table.kind when 1 then 7862400000 else 31449600000 end) + 1)
            * (case v_table.kind when 1 then 7862400000 else 31449600000 end) << 20;
        v_first := v_table.table_name || '_first';
        v_definitions := '{}';
        for v_indexes in
            select c.relname, pg_get_indexdef(i.indexrelid) as definition, k.oid as constraint_oid
            from pg_index i join pg_class c on c.oid = i.indexrelid
            left join pg_constraint k on k.conindid = i.indexrelid and k.contype in ('p', 'u')
            where i.indrelid = v_table.table_name::regclass
        loop
            v_definitions := v_definitions || case when v_indexes.constraint_oid is null then v_indexes.definition
                else format('alter table %I add constraint %I %s', v_table.table_name, v_indexes.relname,
                    pg_get_constraintdef(v_indexes.constraint_oid)) end;
            execute format('alter index %I rename to %I', v_indexes.relname, left(v_indexes.relname, 57) || '_first');
        end loop;
        execute format('alter table %I rename to %I', v_table.table_name, v_first);
        execute format('create table %I (like %I including defaults including constraints including comments '
            'including storage including compression) partition by range (delivery_id)', v_table.table_name, v_first);
        foreach v_definition in array v_definitions loop
            execute v_definition;
        end loop;
        execute format('alter table %I attach partition %I for values from (minvalue) to (%s)', v_table.table_name,
            v_first, v_end);
        execute format('create table %I partition of %I for values from (%s) to (maxvalue) %s',
            v_table.table_name || '_from_' || to_char(to_timestamp((v_end >> 20) / 1000) at time zone 'UTC', 'YYYYMMDD'),
            v_table.table_name, v_end,
            case v_table.storage when '' then '' else 'with (' || v_table.storage || ')' end);
        insert into retention_range (kind, begin_id, end_id, suffix) values
            (v_table.kind, -9223372036854775808, v_end, 'first'),
            (v_table.kind, v_end, null,
                'from_' || to_char(to_timestamp((v_end >> 20) / 1000) at time zone 'UTC', 'YYYYMMDD'))
        on conflict do nothing;
    end loop;
end $$;

-- What was bound to the tables themselves, which are the first partitions now.
-- The whole log, a row for each transition. For whoever looks at one by hand, and for tests: a query by recipient reads
-- all hand-overs of the delivery here.
create or replace view every_transition as
select delivery_id, revision, recipient, slot, before, outcome, failure_type, reason, smtp_code, attempt, rules_version,
    event_time, commit_time, enhanced_code, diagnostic, correction
from transition
union all
select h.delivery_id, h.revision, (h.first_recipient + o.place - 1)::integer, h.slot, 0::smallint, 2::smallint,
    0::smallint, 0::smallint, 0::smallint, 0::smallint, 0::smallint,
    timestamptz 'epoch' + o.event_time_us * interval '1 microsecond', h.commit_time, '', '', false
from hand_over_log h
cross join lateral unnest(h.event_times_us) with ordinality as o (event_time_us, place)
where o.event_time_us > 0;

-- Repairs counters that a recount found to differ from the rows, by adding the difference: what was committed since the
-- recount stays in. Logs each correction.
create or replace function correct_counters (
    p_delivery_id bigint, p_now timestamptz, p_slots smallint[], p_counters text[], p_counted bigint[], p_found bigint[]
) returns void language sql begin atomic
    insert into counter_correction (delivery_id, slot, correct_time, counter, counted, found)
    select p_delivery_id, d.slot, p_now, d.counter, d.counted, d.found
    from unnest(p_slots, p_counters, p_counted, p_found) as d (slot, counter, counted, found);

    with by_slot as (
        select d.slot, jsonb_object_agg(d.counter, d.counted - d.found) as change
        from unnest(p_slots, p_counters, p_counted, p_found) as d (slot, counter, counted, found)
        group by d.slot
    ), change as (
        select c.slot, r.* from by_slot c
        cross join lateral jsonb_to_record(c.change) as r (
            prepared integer, canceled integer, relayed integer, deferred integer, expired integer,
            delivered integer, bounced integer, deferred_hard integer, expired_hard integer,
            bounced_hard integer, deferred_ignored integer, expired_ignored integer, bounced_ignored integer)
    )
    update delivery_counter c
    set revision = revision + 1, commit_time = p_now,
        prepared = c.prepared + coalesce(d.prepared, 0), canceled = c.canceled + coalesce(d.canceled, 0),
        relayed = c.relayed + coalesce(d.relayed, 0), deferred = c.deferred + coalesce(d.deferred, 0),
        expired = c.expired + coalesce(d.expired, 0), delivered = c.delivered + coalesce(d.delivered, 0),
        bounced = c.bounced + coalesce(d.bounced, 0),
        deferred_hard = c.deferred_hard + coalesce(d.deferred_hard, 0),
        expired_hard = c.expired_hard + coalesce(d.expired_hard, 0),
        bounced_hard = c.bounced_hard + coalesce(d.bounced_hard, 0),
        deferred_ignored = c.deferred_ignored + coalesce(d.deferred_ignored, 0),
        expired_ignored = c.expired_ignored + coalesce(d.expired_ignored, 0),
        bounced_ignored = c.bounced_ignored + coalesce(d.bounced_ignored, 0)
    from change d
    where c.delivery_id = p_delivery_id and c.slot = d.slot;
end;

-- Keeps what an MTA said beside code and text; of two about one report the greater.
create or replace function keep_details (
    p_delivery_ids bigint[], p_recipients integer[], p_outcomes smallint[], p_event_times_us bigint[],
    p_mta_event_kinds smallint[], p_vendor_classes text[]
) returns void language sql begin atomic
    insert into observation_detail as kept (delivery_id, recipient, outcome, event_time, mta_event_kind, vendor_class)
    select distinct on (1, 2, 3, 4) d.delivery_id, d.recipient, d.outcome,
        timestamptz 'epoch' + d.event_time_us * interval '1 microsecond', d.mta_event_kind,
        d.vendor_class collate "C"
    from unnest(p_delivery_ids, p_recipients, p_outcomes, p_event_times_us, p_mta_event_kinds, p_vendor_classes)
        as d (delivery_id, recipient, outcome, event_time_us, mta_event_kind, vendor_class)
    where exists (select from send_log l where l.delivery_id = d.delivery_id and l.recipient = d.recipient)
    order by 1, 2, 3, 4, 5 desc, 6 desc
    on conflict (delivery_id, recipient, outcome, event_time) do update
    set mta_event_kind = excluded.mta_event_kind, vendor_class = excluded.vendor_class
    where (kept.mta_event_kind, kept.vendor_class) < (excluded.mta_event_kind, excluded.vendor_class);
end;
