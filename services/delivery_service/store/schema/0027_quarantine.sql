-- The quarantine, the denylist and the allowlist: properties of addresses and profiles, not of any delivery.
--
-- The quarantine is derived, off the hot path, in two steps. Facts about addresses are taken from the log
-- (`collect_address_facts`, `take_address_news`): each step moves its cursor in the transaction that keeps the facts,
-- and a fact that is kept again changes nothing. Then an address whose facts have changed is judged by
-- domain/quarantine.py, and the verdict is written if the facts are still those that were judged. So it doesn't matter
-- in which order things are reported, how often they are read, by how many replicas, or where one of them is killed.

-- An address about which failures were reported, or that someone dealt with by hand.
create table address_health (
    channel smallint not null,
    address text collate "C" not null,  -- as recipients' are: an email's domain in lower case
    domain text collate "C" not null,  -- of an email; else ''
    -- Raised with each change of what the verdict rests on; the verdict is of the facts of judged_version.
    fact_version integer not null default 1,
    judged_version integer not null default 0,
    -- Successes with an event time from here on are among the facts; of older ones only those that were looked for.
    known_since timestamptz not null default 'infinity',
    status smallint not null default 0,  -- domain/quarantine.py, AddressStatus
    error_count smallint not null default 0,
    -- What decided: the error that quarantined, else the last one that counts.
    failure_type smallint not null default 0,
    reason smallint not null default 0,
    error_time timestamptz,
    delivery_id bigint,
    recipient integer,
    diagnostic text collate "C" not null default '',
    -- Quarantined by hand: who did it, '' for nobody, and why.
    adder text not null default '',
    note text not null default '',
    -- Released by hand: what was reported of a time up to then counts no more.
    release_time timestamptz not null default '-infinity',
    update_time timestamptz not null,
    -- When it may be forgotten, unless it is quarantined.
    forget_time timestamptz not null default 'infinity',
    primary key (channel, address)
) with (fillfactor = 70);
create index address_to_judge on address_health (channel, address) where judged_version <> fact_version;
-- What a preparation and a hand-over look for: as narrow as it can be.
create index address_quarantined on address_health (channel, address) where status = 3;
create index address_error on address_health (error_time, channel, address) where status >= 2;
create index address_to_forget on address_health (forget_time) where status < 3;

-- What was reported about messages to these addresses: failures (types 1 to 3), and successes (outcome 5, type 0).
create table address_event (
    channel smallint not null,
    address text collate "C" not null,
    delivery_id bigint not null,
    recipient integer not null,
    outcome smallint not null,
    event_time timestamptz not null,
    failure_type smallint not null,
    reason smallint not null,
    rules_version smallint not null,
    primary key (channel, address, delivery_id, recipient, outcome, event_time)
);

-- How far the log of each slot was read.
create table address_scan (
    delivery_id bigint not null,
    slot smallint not null,
    revision bigint not null default 0,
    primary key (delivery_id, slot)
);

-- Messages with something to take into account that has no place in the log's order: observations that did not win,
-- complaints and unsubscribes. A queue: what is taken is deleted, in the transaction that keeps what it says.
create table address_news (
    delivery_id bigint not null,
    recipient integer not null
);

-- Who is not to be written to because they said so. kind: 1 address, 2 profile; both of one channel. cause: 1
-- complaint, 2 unsubscribe, 3 by hand. A row that someone took off stays, with `denied` false: what was reported of a time up to
-- then doesn't put it back.
create table denylist (
    channel smallint not null,
    kind smallint not null,
    value text collate "C" not null,
    denied boolean not null,
    cause smallint not null,
    change_time timestamptz not null,
    changer text not null default '',
    note text not null default '',
    delivery_id bigint,
    recipient integer,
    primary key (channel, kind, value)
);
create index denylist_denied on denylist (channel, kind, value) where denied;

-- Addresses that are never quarantined.
create table allowlist (
    channel smallint not null,
    address text collate "C" not null,
    add_time timestamptz not null,
    adder text not null,
    note text not null,
    primary key (channel, address)
);

-- What became of messages by recipient domain, in steps of time: the outage guard's baseline. Of email alone.
create table domain_result (
    bucket_time timestamptz not null,
    domain text collate "C" not null,
    delivered bigint not null default 0,
    hard bigint not null default 0,
    primary key (bucket_time, domain)
);

-- Times in which hard bounces of a domain are doubted. No end: it lasts. (One unique index alone: with another one, two
-- processes that begin to guard a domain at once could fail instead of agreeing.)
create table outage_guard (
    domain text collate "C" not null,
    begin_time timestamptz not null,
    last_trip_time timestamptz not null,
    end_time timestamptz
);
create index outage_guard_domain on outage_guard (domain, begin_time);
create unique index outage_guard_open on outage_guard (domain) where end_time is null;

-- Keeps facts about the messages of one delivery; of two verdicts on one report the newer rules' (of the same rules the
-- greater). Facts about an address begin with a failure: of addresses that have had none, nothing is kept. When the
-- first one comes (or one older than all so far), the successes since then that went unnoticed are looked for: among
-- the deliveries of which anything as new was reported, p_lookback of them at most. Called by one transaction at a
-- time. Rows are found by their keys alone: a hash would read all of a large delivery.
create function keep_address_facts (
    p_channel smallint, p_delivery_id bigint, p_recipients integer[], p_addresses text[], p_outcomes smallint[],
    p_event_times timestamptz[], p_failure_types smallint[], p_reasons smallint[], p_rules_versions smallint[],
    p_lookback integer, p_now timestamptz
) returns void language plpgsql set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_addresses text[];
    v_oldest timestamptz[];
    v_until timestamptz[];
begin
    if 1 = any (p_failure_types) or 2 = any (p_failure_types) then
        insert into address_health (channel, address, domain, update_time)
        select distinct p_channel, f.address, case when p_channel = 1 then split_part(f.address, '@', -1) else '' end,
            p_now
        from unnest(p_addresses, p_failure_types) as f (address, failure_type) where f.failure_type in (1, 2)
        on conflict do nothing;

        with unknown as (
            select h.address, f.oldest, h.known_since
            from (
                select f.address, min(f.event_time) as oldest
                from unnest(p_addresses, p_failure_types, p_event_times) as f (address, failure_type, event_time)
                where f.failure_type in (1, 2) group by f.address
            ) f
            join address_health h on h.channel = p_channel and h.address = f.address collate "C"
            where f.oldest < h.known_since
        ), known as (
            update address_health h set known_since = u.oldest
            from unknown u where h.channel = p_channel and h.address = u.address
        )
        select array_agg(address), array_agg(oldest), array_agg(known_since) into v_addresses, v_oldest, v_until
        from unknown;
    end if;

    with fact as (
        select f.address, p_delivery_id as delivery_id, f.recipient, f.outcome, f.event_time, f.failure_type,
            f.reason, f.rules_version
        from unnest(p_recipients, p_addresses, p_outcomes, p_event_times, p_failure_types, p_reasons, p_rules_versions)
            as f (recipient, address, outcome, event_time, failure_type, reason, rules_version)
        where f.failure_type in (1, 2) or (
            select true from address_health h where h.channel = p_channel and h.address = f.address collate "C")
        union all
        select l.address, r.delivery_id, r.recipient, 5::smallint, e.event_time, 0::smallint, 0::smallint, 0::smallint
        from (
            select c.delivery_id from delivery_counter c
            where cardinality(v_addresses) > 0 and c.newest_event_time >= (select min(u) from unnest(v_oldest) as u)
            group by c.delivery_id order by max(c.newest_event_time) desc, c.delivery_id desc limit p_lookback
        ) c
        join delivery d on d.delivery_id = c.delivery_id and d.channel = p_channel
        cross join unnest(v_addresses, v_oldest, v_until) as l (address, oldest, until)
        join recipient r on r.delivery_id = c.delivery_id and r.address = l.address collate "C"
        cross join lateral (
            select t.event_time from transition t
            where t.delivery_id = r.delivery_id and t.recipient = r.recipient and t.outcome = 5
            union
            select k.event_time from late_observation k
            where k.delivery_id = r.delivery_id and k.recipient = r.recipient and k.outcome = 5
        ) e
        where e.event_time >= l.oldest and e.event_time < l.until
    ), changed as (
        insert into address_event as known (channel, address, delivery_id, recipient, outcome, event_time, failure_type,
            reason, rules_version)
        select distinct on (f.address, f.delivery_id, f.recipient, f.outcome, f.event_time)
            p_channel, f.address, f.delivery_id, f.recipient, f.outcome, f.event_time, f.failure_type, f.reason,
            f.rules_version
        from fact f
        order by f.address, f.delivery_id, f.recipient, f.outcome, f.event_time, f.rules_version desc,
            f.failure_type desc, f.reason desc
        on conflict (channel, address, delivery_id, recipient, outcome, event_time) do update
        set failure_type = excluded.failure_type, reason = excluded.reason, rules_version = excluded.rules_version
        where (known.rules_version, known.failure_type, known.reason)
            < (excluded.rules_version, excluded.failure_type, excluded.reason)
        returning address
    )
    update address_health h set fact_version = h.fact_version + 1, update_time = p_now
    from (select distinct address from changed) c
    where h.channel = p_channel and h.address = c.address;
end $$;

-- Keeps all that is known of some messages of a delivery, as the newest rules read it.
create function keep_known_reports (p_delivery_id bigint, p_recipients integer[], p_lookback integer, p_now timestamptz)
returns void language sql as $$
    select keep_address_facts(d.channel, p_delivery_id, array_agg(r.recipient), array_agg(r.address),
        array_agg(k.outcome), array_agg(k.event_time), array_agg(k.failure_type), array_agg(k.reason),
        array_agg(k.rules_version), p_lookback, p_now)
    from known_reports(p_delivery_id, p_recipients) k
    join recipient r on r.delivery_id = p_delivery_id and r.recipient = k.recipient
    join delivery d on d.delivery_id = p_delivery_id
    where r.address_problem = 0 and (k.outcome = 5 or k.failure_type > 0)
        and not (k.outcome = 4 and k.event_time = coalesce(d.validity_end_time, 'infinity'))
    group by d.channel
$$;

-- One step of reading the log of one slot: at most p_rows transitions (no fewer than a revision may have). An EXPIRED
-- that is the end of the validity period itself repeats an error, and is none: no MTA said it. Gives how many there were; null: another process is at it (one at a time, over all slots: so that no success can
-- slip past while its address becomes known).
create function collect_address_facts (
    p_delivery_id bigint, p_slot smallint, p_rows integer, p_lookback integer, p_bucket interval,
    p_oldest_bucket timestamptz, p_now timestamptz
) returns integer language plpgsql set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_channel smallint;
    v_validity_end_time timestamptz;
    v_after bigint;
    v_through bigint;
    v_rows integer;
    v_recipients integer[];
    v_addresses text[];
    v_outcomes smallint[];
    v_event_times timestamptz[];
    v_failure_types smallint[];
    v_reasons smallint[];
    v_rules_versions smallint[];
    v_corrected integer[];
begin
    if not pg_try_advisory_xact_lock(hashtextextended('address_facts', 0)) then
        return null;
    end if;
    select d.channel, coalesce(d.validity_end_time, 'infinity'), c.revision, coalesce(s.revision, 0)
    into v_channel, v_validity_end_time, v_through, v_after
    from delivery d
    join delivery_counter c on c.delivery_id = d.delivery_id and c.slot = p_slot
    left join address_scan s on s.delivery_id = d.delivery_id and s.slot = p_slot
    where d.delivery_id = p_delivery_id;
    if not found then
        return 0;
    end if;
    -- The revision of the row behind the last one that fits is left for the next step, as a whole.
    v_through := coalesce((
        select t.revision - 1 from transition t
        where t.delivery_id = p_delivery_id and t.slot = p_slot and t.revision > v_after and t.revision <= v_through
        order by t.delivery_id, t.slot, t.revision offset p_rows limit 1), v_through);

    select count(*), array_agg(r.recipient) filter (where e.counts), array_agg(r.address) filter (where e.counts),
        array_agg(t.outcome) filter (where e.counts), array_agg(t.event_time) filter (where e.counts),
        array_agg(t.failure_type) filter (where e.counts), array_agg(t.reason) filter (where e.counts),
        array_agg(t.rules_version) filter (where e.counts),
        array_agg(distinct t.recipient) filter (where t.correction)
    into v_rows, v_recipients, v_addresses, v_outcomes, v_event_times, v_failure_types, v_reasons, v_rules_versions,
        v_corrected
    from transition t
    -- Of most transitions nothing is looked up.
    left join recipient r on r.delivery_id = t.delivery_id
        and r.recipient = case when t.outcome = 5 or t.failure_type in (1, 2) then t.recipient end
    cross join lateral (
        select r.address_problem = 0 and not t.correction
            and not (t.outcome = 4 and t.event_time = v_validity_end_time) as counts) e
    where t.delivery_id = p_delivery_id and t.slot = p_slot and t.revision > v_after and t.revision <= v_through;

    if v_recipients is not null then
        perform keep_address_facts(v_channel, p_delivery_id, v_recipients, v_addresses, v_outcomes, v_event_times,
            v_failure_types, v_reasons, v_rules_versions, p_lookback, p_now);
        if v_channel = 1 then
            -- Blocks of the sender, and what no MTA said, are no bounces of the domain's.
            insert into domain_result as known (bucket_time, domain, delivered, hard)
            select date_bin(p_bucket, f.event_time, timestamptz 'epoch') as bucket_time,
                split_part(f.address, '@', -1) as domain,
                count(*) filter (where f.outcome = 5), count(*) filter (where f.outcome <> 5)
            from unnest(v_addresses, v_outcomes, v_event_times, v_failure_types, v_reasons)
                as f (address, outcome, event_time, failure_type, reason)
            where f.event_time >= p_oldest_bucket
                and (f.outcome = 5 or f.failure_type = 2 and f.reason not in (7, 10, 11))
            group by 1, 2 order by 1, 2
            on conflict (bucket_time, domain) do update
            set delivered = known.delivered + excluded.delivered, hard = known.hard + excluded.hard;
        end if;
    end if;
    if v_corrected is not null then
        perform keep_known_reports(p_delivery_id, v_corrected, p_lookback, p_now);
    end if;
    insert into address_scan (delivery_id, slot, revision) values (p_delivery_id, p_slot, v_through)
    on conflict (delivery_id, slot) do update set revision = excluded.revision;
    return v_rows;
end $$;

-- Takes at most p_limit messages out of the queue. A complaint puts the address on the denylist; an unsubscribe the
-- profile, or the address of a recipient without one. Gives how many were taken; null: another process is at it.
create function take_address_news (p_limit integer, p_lookback integer, p_now timestamptz) returns integer
language plpgsql set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_delivery_ids bigint[];
    v_recipients integer[];
    v_group record;
begin
    if not pg_try_advisory_xact_lock(hashtextextended('address_facts', 0)) then
        return null;
    end if;
    with taken as (
        delete from address_news where ctid = any (array(select ctid from address_news limit p_limit))
        returning delivery_id, recipient
    )
    select array_agg(delivery_id), array_agg(recipient) into v_delivery_ids, v_recipients from taken;
    if v_delivery_ids is null then
        return 0;
    end if;
    for v_group in
        select n.delivery_id, array_agg(distinct n.recipient) as recipients
        from unnest(v_delivery_ids, v_recipients) as n (delivery_id, recipient) group by 1 order by 1
    loop
        perform keep_known_reports(v_group.delivery_id, v_group.recipients, p_lookback, p_now);
        insert into denylist as known (channel, kind, value, denied, cause, change_time, delivery_id, recipient)
        select distinct on (s.channel, s.kind, s.value)
            s.channel, s.kind, s.value, true, s.cause, s.event_time, v_group.delivery_id, s.recipient
        from (
            select d.channel, case when f.kind = 5 and r.profile_id <> '' then 2 else 1 end as kind,
                case when f.kind = 5 and r.profile_id <> '' then r.profile_id else r.address end collate "C" as value,
                case when f.kind = 6 then 1 else 2 end as cause, f.event_time, f.recipient
            from tracking_log f
            join recipient r on r.delivery_id = f.delivery_id and r.recipient = f.recipient
            join delivery d on d.delivery_id = f.delivery_id
            where f.delivery_id = v_group.delivery_id and f.recipient = any (v_group.recipients) and f.kind in (5, 6)
        ) s
        order by s.channel, s.kind, s.value, s.event_time desc
        on conflict (channel, kind, value) do update
        set denied = true, cause = excluded.cause, change_time = excluded.change_time, changer = '', note = '',
            delivery_id = excluded.delivery_id, recipient = excluded.recipient
        where not known.denied and known.change_time < excluded.change_time;
    end loop;
    return cardinality(v_recipients);
end $$;

-- As before, and what is kept and says something about an address is put into the queue.
create or replace function keep_late (
    p_delivery_ids bigint[], p_slots smallint[], p_ends integer[], p_now timestamptz,
    p_recipients integer[], p_outcomes smallint[], p_event_times_us bigint[], p_failure_types smallint[],
    p_reasons smallint[], p_smtp_codes smallint[], p_enhanced_codes text[], p_diagnostics text[],
    p_attempts smallint[], p_rules_versions smallint[]
) returns table (delivery_id bigint, recipient integer) language plpgsql as $$
#variable_conflict use_column
declare
    v_begin integer := 1;
    v_end integer;
    v_rules_version_min smallint;
begin
    for i in 1 .. cardinality(p_ends) loop
        v_end := p_ends[i];
        select c.rules_version_min into v_rules_version_min
        from delivery_counter c where c.delivery_id = p_delivery_ids[i] and c.slot = p_slots[i] for no key update;
        if v_rules_version_min > 0 then
            perform require_rules(p_delivery_ids[i], p_slots[i], v_rules_version_min, p_rules_versions[v_begin:v_end]);
        end if;

        with kept as (
            insert into late_observation as k (delivery_id, recipient, outcome, failure_type, reason, smtp_code,
                attempt, rules_version, event_time, commit_time, enhanced_code, diagnostic)
            select p_delivery_ids[i], o.recipient, o.outcome, o.failure_type, o.reason, o.smtp_code, o.attempt,
                o.rules_version, o.event_time, p_now, o.enhanced_code, o.diagnostic
            from observation_rows(p_recipients[v_begin:v_end], p_outcomes[v_begin:v_end],
                p_event_times_us[v_begin:v_end], p_failure_types[v_begin:v_end], p_reasons[v_begin:v_end],
                p_smtp_codes[v_begin:v_end], p_enhanced_codes[v_begin:v_end], p_diagnostics[v_begin:v_end],
                p_attempts[v_begin:v_end], p_rules_versions[v_begin:v_end]) as o
            join send_log l on l.delivery_id = p_delivery_ids[i] and l.recipient = o.recipient
            where (l.outcome, l.event_time, l.failure_type, l.reason, l.smtp_code, l.enhanced_code, l.diagnostic,
                    l.attempt)
                  > (o.outcome, o.event_time, o.failure_type, o.reason, o.smtp_code, o.enhanced_code collate "C",
                    o.diagnostic collate "C", o.attempt)
                and not exists (
                    select from transition t
                    where t.delivery_id = p_delivery_ids[i] and t.recipient = o.recipient
                        and (t.outcome, t.event_time, t.failure_type, t.reason, t.smtp_code, t.enhanced_code,
                            t.diagnostic, t.attempt)
                          = (o.outcome, o.event_time, o.failure_type, o.reason, o.smtp_code, o.enhanced_code,
                            o.diagnostic, o.attempt))
                and not exists (
                    select from late_observation k
                    where k.delivery_id = p_delivery_ids[i] and k.recipient = o.recipient
                        and (k.outcome, k.event_time, k.failure_type, k.reason, k.smtp_code, k.enhanced_code,
                            k.diagnostic, k.attempt)
                          = (o.outcome, o.event_time, o.failure_type, o.reason, o.smtp_code, o.enhanced_code,
                            o.diagnostic, o.attempt))
            returning k.delivery_id, k.recipient, k.outcome, k.failure_type
        )
        insert into address_news (delivery_id, recipient)
        select distinct k.delivery_id, k.recipient from kept k where k.outcome = 5 or k.failure_type > 0;

        return query select p_delivery_ids[i], u from unnest(p_recipients[v_begin:v_end]) as u
        where not exists (select from send_log l where l.delivery_id = p_delivery_ids[i] and l.recipient = u);
        v_begin := v_end + 1;
    end loop;
end $$;

-- As before, and complaints and unsubscribes are put into the queue.
create or replace function apply_tracking (
    p_delivery_ids bigint[], p_recipients integer[], p_kinds smallint[], p_event_times_us bigint[], p_urls text[],
    p_now timestamptz
) returns integer[] language plpgsql as $$
declare
    v_unknown integer[];
begin
    perform from engagement
    where delivery_id = any (select distinct u from unnest(p_delivery_ids) as u)
    order by delivery_id for no key update;

    with kept as (
        insert into tracking_log (delivery_id, recipient, kind, event_time, commit_time, url)
        select f.delivery_id, f.recipient, f.kind, timestamptz 'epoch' + f.event_time_us * interval '1 microsecond',
            p_now, f.url
        from unnest(p_delivery_ids, p_recipients, p_kinds, p_event_times_us, p_urls)
            as f (delivery_id, recipient, kind, event_time_us, url)
        where exists (select from send_log l where l.delivery_id = f.delivery_id and l.recipient = f.recipient)
            and exists (
                select from delivery d where d.delivery_id = f.delivery_id and (d.state >= 6 or f.recipient < 1))
        on conflict do nothing
        returning delivery_id, recipient, kind
    ), news as (
        insert into address_news (delivery_id, recipient)
        select distinct k.delivery_id, k.recipient from kept k where k.kind in (5, 6)
    )
    update engagement e set stale_since_time = p_now
    where e.delivery_id = any (select distinct u from unnest(p_delivery_ids) as u) and e.stale_since_time is null
        and exists (select from kept);

    select array_agg(f.i) into v_unknown
    from unnest(p_delivery_ids, p_recipients) with ordinality as f (delivery_id, recipient, i)
    where not exists (select from send_log l where l.delivery_id = f.delivery_id and l.recipient = f.recipient)
        or not exists (
            select from delivery d where d.delivery_id = f.delivery_id and (d.state >= 6 or f.recipient < 1));
    return v_unknown;
end $$;

-- What was reported before there was a quarantine. The log of transitions is read from its beginning anyway.
insert into address_news (delivery_id, recipient)
select delivery_id, recipient from late_observation where outcome = 5 or failure_type > 0
union
select delivery_id, recipient from tracking_log where kind in (5, 6);

-- Causes 4 and 5. Of a small audience each address is looked up; else what is denied or quarantined is hashed. Where
-- nobody is, nothing is read.
create function exclude_denied (p_delivery_id bigint) returns void language plpgsql
set plan_cache_mode = force_custom_plan set enable_nestloop = off set enable_hashjoin = on as $$
declare
    v_channel smallint;
    v_looked_up boolean;
begin
    select channel, recipient_count <= 20000 into v_channel, v_looked_up
    from delivery where delivery_id = p_delivery_id;
    perform set_config('enable_nestloop', v_looked_up::text, true),
        set_config('enable_hashjoin', (not v_looked_up)::text, true);
    if exists (select from denylist where channel = v_channel and kind = 1 and denied) then
        insert into exclusion_log (delivery_id, recipient, cause)
        select p_delivery_id, r.recipient, 4
        from recipient r join denylist n on n.value = r.address and n.kind = 1 and n.channel = v_channel and n.denied
        where r.delivery_id = p_delivery_id and r.recipient > 0 and r.address_problem = 0
        on conflict do nothing;
    end if;
    if exists (select from denylist where channel = v_channel and kind = 2 and denied) then
        insert into exclusion_log (delivery_id, recipient, cause)
        select p_delivery_id, r.recipient, 4
        from recipient r
        join denylist n on n.value = r.profile_id collate "C" and n.kind = 2 and n.channel = v_channel and n.denied
        where r.delivery_id = p_delivery_id and r.recipient > 0 and r.address_problem = 0 and r.profile_id <> ''
        on conflict do nothing;
    end if;
    if exists (select from address_health where channel = v_channel and status = 3) then
        insert into exclusion_log (delivery_id, recipient, cause)
        select p_delivery_id, r.recipient, 5
        from recipient r join address_health h on h.address = r.address and h.channel = v_channel and h.status = 3
        where r.delivery_id = p_delivery_id and r.recipient > 0 and r.address_problem = 0
        on conflict do nothing;
    end if;
end $$;

-- As before, with the denylist and the quarantine in their place.
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
    perform exclude_denied(p_delivery_id);
    perform exclude_duplicates(p_delivery_id);
    perform exclude_control_group(p_delivery_id);
    perform exclude_suppressed_addresses(p_delivery_id);
    perform exclude_suppressed_domains(p_delivery_id);
    return true;
end $$;

-- An alert may be about a recipient domain, and no delivery (delivery_id 0).
alter table alert
    add column recipient_domain text collate "C" not null default '',
    drop constraint alert_pkey,
    add primary key (delivery_id, cause, day, recipient_domain);

-- As raise_alerts, about domains.
create function raise_domain_alerts (p_cause smallint, p_domains text[], p_details text[], p_now timestamptz)
returns bigint language plpgsql as $$
declare
    v_raised bigint;
begin
    perform pg_advisory_xact_lock(hashtextextended('raise_alerts', 0));
    insert into alert (delivery_id, cause, day, recipient_domain, alert_id, label, raise_time, detail, next_try_time)
    select 0, p_cause, (p_now at time zone 'UTC')::date, a.domain, nextval('alert_id'), a.domain, p_now, a.detail, p_now
    from unnest(p_domains, p_details) as a (domain, detail)
    where not exists (
        select from alert k where k.delivery_id = 0 and k.cause = p_cause
            and k.day = (p_now at time zone 'UTC')::date and k.recipient_domain = a.domain collate "C")
    on conflict do nothing;
    get diagnostics v_raised = row_count;
    return v_raised;
end $$;
