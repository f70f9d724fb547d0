-- The apply path with columns as literals of arrays (store/array_literals.py), a text for each layer. Taking a layer's
-- part out of arrays of the whole batch, ten times, cost more than all else of a layer that has two rows: PL/pgSQL takes
-- an array apart when it is given one, and puts it together again for each slice.
--
-- These stand beside the functions of the same names in 0002, which replicas of the version before call.

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
    p_recipients text, p_outcomes text, p_event_times_us text, p_failure_types text, p_reasons text,
    p_smtp_codes text, p_enhanced_codes text, p_diagnostics text, p_attempts text, p_rules_versions text
) returns integer[] language plpgsql as $$
declare
    v_revision bigint;
    v_rules_version_min smallint;
    v_losers integer[];
begin
    select revision + 1, rules_version_min into v_revision, v_rules_version_min
    from delivery_counter where delivery_id = p_delivery_id and slot = p_slot for no key update;
    if not found then
        return p_recipients::integer[];
    end if;
    if v_rules_version_min > 0 then
        perform require_rules(p_delivery_id, p_slot, v_rules_version_min, p_rules_versions::smallint[]);
    end if;

    with observation as (
        select o.recipient, o.outcome, o.failure_type, o.reason, o.smtp_code, o.attempt, o.rules_version, o.event_time,
            o.enhanced_code collate "C" as enhanced_code, o.diagnostic collate "C" as diagnostic
        from observation_rows(p_recipients::integer[], p_outcomes::smallint[], p_event_times_us::bigint[],
            p_failure_types::smallint[], p_reasons::smallint[], p_smtp_codes::smallint[], p_enhanced_codes::text[],
            p_diagnostics::text[], p_attempts::smallint[], p_rules_versions::smallint[]) as o
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
    returning case when t.n < cardinality(p_recipients::integer[]) then
        array(select unnest(p_recipients::integer[]) except select recipient from changed) end
    into v_losers;
    if not found then
        return p_recipients::integer[];
    end if;
    return v_losers;
end $$;

-- Applies layers of many slots and deliveries in one round trip: a loop here, since one round trip each is ten times
-- slower over many small deliveries, and one statement over all of them is what a distributed Postgres can't route.
-- Layer i has the i-th literal of each column; a column of zeros has none. The caller orders layers by (delivery, slot):
-- every writer takes the slot locks in the same order. Gives the layer's number and the recipient of each that did not
-- win.
create function apply_slots (
    p_delivery_ids bigint[], p_slots smallint[], p_now timestamptz,
    p_recipients text[], p_outcomes text[], p_event_times_us text[], p_failure_types text[], p_reasons text[],
    p_smtp_codes text[], p_enhanced_codes text[], p_diagnostics text[], p_attempts text[], p_rules_versions text[]
) returns table (layer integer, recipient integer) language plpgsql as $$
declare
    v_losers integer[];
begin
    for i in 1 .. cardinality(p_delivery_ids) loop
        v_losers := apply_slot(p_delivery_ids[i], p_slots[i], p_now, p_recipients[i], p_outcomes[i],
            p_event_times_us[i], p_failure_types[i], p_reasons[i], p_smtp_codes[i], p_enhanced_codes[i],
            p_diagnostics[i], p_attempts[i], p_rules_versions[i]);
        if v_losers is not null then
            return query select i, u from unnest(v_losers) as u;
        end if;
    end loop;
end $$;
