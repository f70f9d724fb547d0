-- A layer of observations costs less where it is small, as in batches over many deliveries: the counters of one of five
-- rows took as long as the rows. What there is to count stands in fewer steps, since each is set up anew for a layer; and
-- the few that did not win are looked for only if there are any.

-- As in 0030_apply_literals.sql, with the counters in fewer steps. And rows are found by an array of keys, not by the join
-- with the observations: that is a tenth less for a large layer, and no other rows of the delivery are read, whatever the
-- planner takes for the size of one. Where most deliveries have few messages, or had when a connection made its plan, the
-- join read all messages of a large delivery for each observation.
create or replace function apply_slot (
    p_delivery_id bigint, p_slot smallint, p_now timestamptz,
    p_recipients text, p_outcomes text, p_event_times_us text, p_failure_types text, p_reasons text,
    p_smtp_codes text, p_enhanced_codes text, p_diagnostics text, p_attempts text, p_rules_versions text
) returns integer[] language plpgsql as $$
declare
    v_revision bigint;
    v_rules_version_min smallint;
    v_winners integer[];
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
        where l.delivery_id = p_delivery_id and l.recipient = any (p_recipients::integer[])
            and l.recipient = o.recipient
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
        select before, failure_type_before, outcome, failure_type, count(*)::integer as n,
            (count(*) filter (where recipient > 0))::integer as counted,
            max(event_time) filter (where recipient > 0) as newest_event_time
        from changed group by 1, 2, 3, 4
    ), total as (
        select
            sum(counted * ((outcome = 0)::integer - (before = 0)::integer))::integer as prepared,
            sum(counted * ((outcome = 1)::integer - (before = 1)::integer))::integer as canceled,
            sum(counted * ((outcome = 2)::integer - (before = 2)::integer))::integer as relayed,
            sum(counted * ((outcome = 3)::integer - (before = 3)::integer))::integer as deferred,
            sum(counted * ((outcome = 4)::integer - (before = 4)::integer))::integer as expired,
            sum(counted * ((outcome = 5)::integer - (before = 5)::integer))::integer as delivered,
            sum(counted * ((outcome = 6)::integer - (before = 6)::integer))::integer as bounced,
            sum(counted * (((outcome, failure_type) = (3, 2))::integer
                - ((before, failure_type_before) = (3, 2))::integer))::integer as deferred_hard,
            sum(counted * (((outcome, failure_type) = (4, 2))::integer
                - ((before, failure_type_before) = (4, 2))::integer))::integer as expired_hard,
            sum(counted * (((outcome, failure_type) = (6, 2))::integer
                - ((before, failure_type_before) = (6, 2))::integer))::integer as bounced_hard,
            sum(counted * (((outcome, failure_type) = (3, 3))::integer
                - ((before, failure_type_before) = (3, 3))::integer))::integer as deferred_ignored,
            sum(counted * (((outcome, failure_type) = (4, 3))::integer
                - ((before, failure_type_before) = (4, 3))::integer))::integer as expired_ignored,
            sum(counted * (((outcome, failure_type) = (6, 3))::integer
                - ((before, failure_type_before) = (6, 3))::integer))::integer as bounced_ignored,
            sum(n) as n, max(newest_event_time) as newest_event_time
        from moved
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
    returning array(select recipient from changed) into v_winners;
    if not found then
        return p_recipients::integer[];
    end if;
    if cardinality(v_winners) < cardinality(p_recipients::integer[]) then
        return array(select unnest(p_recipients::integer[]) except select unnest(v_winners));
    end if;
    return null;
end $$;

-- As in 0028_hand_over_log.sql, with rows found by keys in the same way. And what is known of a message is looked for
-- message by message, as `limit` makes it be: as a join, where few were known when the plan was made, each was compared
-- with all that is known of its delivery.
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
            join send_log l on l.delivery_id = p_delivery_ids[i]
                and l.recipient = any (p_recipients[v_begin:v_end]) and l.recipient = o.recipient
            where (l.outcome, l.event_time, l.failure_type, l.reason, l.smtp_code, l.enhanced_code, l.diagnostic,
                    l.attempt)
                  > (o.outcome, o.event_time, o.failure_type, o.reason, o.smtp_code, o.enhanced_code collate "C",
                    o.diagnostic collate "C", o.attempt)
                and (
                    select true from transition t
                    where t.delivery_id = p_delivery_ids[i] and t.recipient = o.recipient
                        and (t.outcome, t.event_time, t.failure_type, t.reason, t.smtp_code, t.enhanced_code,
                            t.diagnostic, t.attempt)
                          = (o.outcome, o.event_time, o.failure_type, o.reason, o.smtp_code, o.enhanced_code,
                            o.diagnostic, o.attempt) limit 1) is null
                and not ((o.outcome, o.failure_type, o.reason, o.smtp_code, o.enhanced_code, o.diagnostic, o.attempt)
                        = (2, 0, 0, 0, '', '', 0)
                    and exists (
                        select from handed_over(p_delivery_ids[i], o.recipient) h where h.event_time = o.event_time))
                and (
                    select true from late_observation k
                    where k.delivery_id = p_delivery_ids[i] and k.recipient = o.recipient
                        and (k.outcome, k.event_time, k.failure_type, k.reason, k.smtp_code, k.enhanced_code,
                            k.diagnostic, k.attempt)
                          = (o.outcome, o.event_time, o.failure_type, o.reason, o.smtp_code, o.enhanced_code,
                            o.diagnostic, o.attempt) limit 1) is null
            returning k.delivery_id, k.recipient, k.outcome, k.failure_type
        )
        insert into address_news (delivery_id, recipient)
        select distinct k.delivery_id, k.recipient from kept k where k.outcome = 5 or k.failure_type > 0;

        return query select p_delivery_ids[i], u from unnest(p_recipients[v_begin:v_end]) as u
        where (
            select true from send_log l where l.delivery_id = p_delivery_ids[i] and l.recipient = u limit 1) is null;
        v_begin := v_end + 1;
    end loop;
end $$;
