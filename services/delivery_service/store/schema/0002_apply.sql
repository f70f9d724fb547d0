-- The apply path: the only way in which an outcome ever changes.

-- Observations from their columns. A column may be empty instead of all zeros or all '': most are in most batches, and
-- every value of every column costs its sender, the wire and us.
create function observation_rows (
    p_recipients integer[], p_outcomes smallint[], p_event_times_us bigint[], p_failure_types smallint[],
    p_reasons smallint[], p_smtp_codes smallint[], p_enhanced_codes text[], p_diagnostics text[],
    p_attempts smallint[], p_rules_versions smallint[]
) returns table (
    recipient integer, outcome smallint, event_time timestamptz, failure_type smallint, reason smallint,
    smtp_code smallint, enhanced_code text, diagnostic text, attempt smallint, rules_version smallint
) language sql stable as $$
    select o.recipient, o.outcome, timestamptz 'epoch' + o.event_time_us * interval '1 microsecond',
        coalesce(o.failure_type, 0::smallint), coalesce(o.reason, 0::smallint), coalesce(o.smtp_code, 0::smallint),
        coalesce(o.enhanced_code, ''), coalesce(o.diagnostic, ''),
        coalesce(o.attempt, 0::smallint), coalesce(o.rules_version, 0::smallint)
    from unnest(p_recipients, p_outcomes, p_event_times_us, p_failure_types, p_reasons, p_smtp_codes,
            p_enhanced_codes, p_diagnostics, p_attempts, p_rules_versions)
        as o (recipient, outcome, event_time_us, failure_type, reason, smtp_code, enhanced_code, diagnostic,
            attempt, rules_version)
$$;

-- Applies one layer of observations (each recipient at most once) to one slot of one delivery.
--
-- The slot row is locked first, and everything after it runs in later statements, so with a snapshot that sees what
-- the slot's last writer committed. (Within one statement Postgres may run the parts in another order: that lost the
-- log once.) Then: the rows whose observation is greater are updated, each change is logged under the slot's next
-- revision, and the counters move by the same changes. All of it in the caller's single autocommitted statement.
--
-- Gives the recipients whose observation did not win (all of them, if there is no such slot), null if every one did.
-- They are `keep_late`'s: a second statement, so that the many which win don't pay for the few which lose. Stopped in
-- between, nothing is lost: nothing was acknowledged, and what comes again loses again.
create function apply_slot (
    p_delivery_id bigint, p_slot smallint, p_now timestamptz,
    p_recipients integer[], p_outcomes smallint[], p_event_times_us bigint[], p_failure_types smallint[],
    p_reasons smallint[], p_smtp_codes smallint[], p_enhanced_codes text[], p_diagnostics text[],
    p_attempts smallint[], p_rules_versions smallint[]
) returns integer[] language plpgsql as $$
declare
    v_revision bigint;
    v_rules_version_min smallint;
    v_losers integer[];
begin
    select revision + 1, rules_version_min into v_revision, v_rules_version_min
    from delivery_counter where delivery_id = p_delivery_id and slot = p_slot for no key update;
    if not found then
        return p_recipients;
    end if;
    if v_rules_version_min > 0 then
        perform require_rules(p_delivery_id, p_slot, v_rules_version_min, p_rules_versions);
    end if;

    with observation as (
        select o.recipient, o.outcome, o.failure_type, o.reason, o.smtp_code, o.attempt, o.rules_version, o.event_time,
            o.enhanced_code collate "C" as enhanced_code, o.diagnostic collate "C" as diagnostic
        from observation_rows(p_recipients, p_outcomes, p_event_times_us, p_failure_types, p_reasons, p_smtp_codes,
            p_enhanced_codes, p_diagnostics, p_attempts, p_rules_versions) as o
    ), changed as (
        update send_log l
        set outcome = o.outcome, event_time = o.event_time, failure_type = o.failure_type, reason = o.reason,
            smtp_code = o.smtp_code, enhanced_code = o.enhanced_code, diagnostic = o.diagnostic,
            attempt = o.attempt, update_time = p_now
        from observation o
        where l.delivery_id = p_delivery_id and l.recipient = o.recipient
            and (l.outcome, l.event_time, l.failure_type, l.reason, l.smtp_code, l.enhanced_code, l.diagnostic,
                l.attempt)
              < (o.outcome, o.event_time, o.failure_type, o.reason, o.smtp_code, o.enhanced_code, o.diagnostic,
                o.attempt)
        returning l.recipient, old.outcome as before, old.failure_type as failure_type_before, new.outcome,
            new.failure_type, new.reason, new.smtp_code, new.attempt, o.rules_version, new.event_time,
            new.enhanced_code, new.diagnostic
    ), logged as (
        insert into transition (delivery_id, revision, recipient, slot, before, outcome, failure_type, reason,
            smtp_code, attempt, rules_version, event_time, commit_time, enhanced_code, diagnostic)
        select p_delivery_id, v_revision, recipient, p_slot, before, outcome, failure_type, reason, smtp_code,
            attempt, rules_version, event_time, p_now, enhanced_code, diagnostic
        from changed
    ), moved as (
        -- A handful of rows, so that the sums below don't run over the whole batch a dozen times. Proofs are numbered
        -- below 1: logged like any other, and never counted.
        select before, failure_type_before, outcome, failure_type, recipient > 0 as counts, count(*)::integer as n,
            max(event_time) as newest_event_time
        from changed group by 1, 2, 3, 4, 5
    ), delta as (
        select outcome, failure_type, n, newest_event_time from moved where counts
        union all
        select before, failure_type_before, -n, null from moved where counts
    ), total as (
        select
            coalesce(sum(n) filter (where outcome = 0), 0)::integer as prepared,
            coalesce(sum(n) filter (where outcome = 1), 0)::integer as canceled,
            coalesce(sum(n) filter (where outcome = 2), 0)::integer as relayed,
            coalesce(sum(n) filter (where outcome = 3), 0)::integer as deferred,
            coalesce(sum(n) filter (where outcome = 4), 0)::integer as expired,
            coalesce(sum(n) filter (where outcome = 5), 0)::integer as delivered,
            coalesce(sum(n) filter (where outcome = 6), 0)::integer as bounced,
            coalesce(sum(n) filter (where outcome = 3 and failure_type = 2), 0)::integer as deferred_hard,
            coalesce(sum(n) filter (where outcome = 4 and failure_type = 2), 0)::integer as expired_hard,
            coalesce(sum(n) filter (where outcome = 6 and failure_type = 2), 0)::integer as bounced_hard,
            coalesce(sum(n) filter (where outcome = 3 and failure_type = 3), 0)::integer as deferred_ignored,
            coalesce(sum(n) filter (where outcome = 4 and failure_type = 3), 0)::integer as expired_ignored,
            coalesce(sum(n) filter (where outcome = 6 and failure_type = 3), 0)::integer as bounced_ignored,
            (select coalesce(sum(m.n), 0)::integer from moved m) as n,
            max(newest_event_time) as newest_event_time
        from delta
    )
    update delivery_counter c
    set revision = v_revision,
        prepared = c.prepared + t.prepared, canceled = c.canceled + t.canceled, relayed = c.relayed + t.relayed,
        deferred = c.deferred + t.deferred, expired = c.expired + t.expired, delivered = c.delivered + t.delivered,
        bounced = c.bounced + t.bounced, deferred_hard = c.deferred_hard + t.deferred_hard,
        expired_hard = c.expired_hard + t.expired_hard, bounced_hard = c.bounced_hard + t.bounced_hard,
        deferred_ignored = c.deferred_ignored + t.deferred_ignored,
        expired_ignored = c.expired_ignored + t.expired_ignored,
        bounced_ignored = c.bounced_ignored + t.bounced_ignored,
        commit_time = p_now, newest_event_time = greatest(c.newest_event_time, t.newest_event_time)
    from total t
    where c.delivery_id = p_delivery_id and c.slot = p_slot and t.n > 0
    returning case when t.n < cardinality(p_recipients) then
        array(select unnest(p_recipients) except select recipient from changed) end
    into v_losers;
    if not found then
        return p_recipients;
    end if;
    return v_losers;
end $$;

-- Applies layers of many slots and deliveries in one round trip: a loop here, since one round trip each is ten times
-- slower over many small deliveries, and one statement over all of them is what a distributed Postgres can't route.
-- Layer i is the run of the columns that ends at p_ends[i]. The caller orders layers by (delivery, slot): every writer
-- takes the slot locks in the same order. Gives the layer's number and the recipient of each that did not win.
create function apply_slots (
    p_delivery_ids bigint[], p_slots smallint[], p_ends integer[], p_now timestamptz,
    p_recipients integer[], p_outcomes smallint[], p_event_times_us bigint[], p_failure_types smallint[],
    p_reasons smallint[], p_smtp_codes smallint[], p_enhanced_codes text[], p_diagnostics text[],
    p_attempts smallint[], p_rules_versions smallint[]
) returns table (layer integer, recipient integer) language plpgsql as $$
declare
    v_begin integer := 1;
    v_end integer;
begin
    for i in 1 .. cardinality(p_ends) loop
        v_end := p_ends[i];
        return query select i, u from unnest(apply_slot(
            p_delivery_ids[i], p_slots[i], p_now, p_recipients[v_begin:v_end], p_outcomes[v_begin:v_end],
            p_event_times_us[v_begin:v_end], p_failure_types[v_begin:v_end], p_reasons[v_begin:v_end],
            p_smtp_codes[v_begin:v_end], p_enhanced_codes[v_begin:v_end], p_diagnostics[v_begin:v_end],
            p_attempts[v_begin:v_end], p_rules_versions[v_begin:v_end])) as u;
        v_begin := v_end + 1;
    end loop;
end $$;

-- Keeps observations that did not win, grouped and ordered as in apply_slots (a recipient may come more than once in a
-- group): each unless it repeats one already known. With the transitions they are all that was ever reported. Holds the
-- slot while it looks and writes, so that two writers can't keep the same one. Gives those that have no send log.
create function keep_late (
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

        insert into late_observation (delivery_id, recipient, outcome, failure_type, reason, smtp_code, attempt,
            rules_version, event_time, commit_time, enhanced_code, diagnostic)
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
                        o.diagnostic, o.attempt));

        return query select p_delivery_ids[i], u from unnest(p_recipients[v_begin:v_end]) as u
        where not exists (select from send_log l where l.delivery_id = p_delivery_ids[i] and l.recipient = u);
        v_begin := v_end + 1;
    end loop;
end $$;

-- Applies tracking facts (opens, clicks and the like), each exactly once. The caller orders them by delivery.
--
-- The engagement rows are locked first, in that order: so that refresh_engagement can't count past facts that are
-- about to be committed. Gives the indexes (from 1) of facts whose message does not exist: of a delivery that was not
-- started (state 6 and on, which no delivery leaves again) only proofs do yet, though it may have other send logs.
create function apply_tracking (
    p_delivery_ids bigint[], p_recipients integer[], p_kinds smallint[], p_event_times_us bigint[], p_urls text[],
    p_now timestamptz
) returns integer[] language plpgsql as $$
declare
    v_unknown integer[];
begin
    perform from engagement
    where delivery_id = any (select distinct u from unnest(p_delivery_ids) as u)
    order by delivery_id for no key update;

    insert into tracking_log (delivery_id, recipient, kind, event_time, commit_time, url)
    select f.delivery_id, f.recipient, f.kind, timestamptz 'epoch' + f.event_time_us * interval '1 microsecond',
        p_now, f.url
    from unnest(p_delivery_ids, p_recipients, p_kinds, p_event_times_us, p_urls)
        as f (delivery_id, recipient, kind, event_time_us, url)
    where exists (select from send_log l where l.delivery_id = f.delivery_id and l.recipient = f.recipient)
        and exists (select from delivery d where d.delivery_id = f.delivery_id and (d.state >= 6 or f.recipient < 1))
    on conflict do nothing;
    if found then
        update engagement set stale_since_time = p_now
        where delivery_id = any (select distinct u from unnest(p_delivery_ids) as u) and stale_since_time is null;
    end if;

    select array_agg(f.i) into v_unknown
    from unnest(p_delivery_ids, p_recipients) with ordinality as f (delivery_id, recipient, i)
    where not exists (select from send_log l where l.delivery_id = f.delivery_id and l.recipient = f.recipient)
        or not exists (
            select from delivery d where d.delivery_id = f.delivery_id and (d.state >= 6 or f.recipient < 1));
    return v_unknown;
end $$;
