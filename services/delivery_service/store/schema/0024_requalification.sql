-- Re-qualification: what was qualified by older rules is corrected under new ones, and from then on older ones are
-- refused, so that a process which still has them can't undo it.

-- The oldest version of the rules whose observations the slot still takes; 0: any. In the row that every writer locks
-- first, so the check costs nothing, and none can slip through between a re-qualification and a write.
alter table delivery_counter add column rules_version_min smallint not null default 0;

-- A transition that is a correction: the outcome is the one before, and type and reason are what new rules read. A
-- recipient has one in each revision that corrected any report about it, also if the row itself stays as it was.
alter table transition add column correction boolean not null default false;

-- What new rules read in a report that is in the log, and is not where the row stands: the log is append-only.
alter table late_observation add column correction boolean not null default false;

-- What an MTA said beside code and text, where it did: without it, such a report could not be qualified again.
create table observation_detail (
    delivery_id bigint not null,
    recipient integer not null,
    outcome smallint not null,
    event_time timestamptz not null,
    mta_event_kind smallint not null,  -- campaign.feedback.v1.MtaEventKind
    vendor_class text collate "C" not null,
    primary key (delivery_id, recipient, outcome, event_time)
);

-- Keeps such details; of two about one report the greater, whatever their order. Written before the observations
-- themselves: stopped in between, both come again.
create function keep_details (
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

-- Refuses observations by rules older than the slot takes: apply_slot and keep_late call it once they hold the slot.
-- Version 0 is what no rules have read: it is always taken.
create function require_rules (
    p_delivery_id bigint, p_slot smallint, p_rules_version_min smallint, p_rules_versions smallint[]
) returns void language plpgsql as $$
begin
    if exists (select from unnest(p_rules_versions) as v where v between 1 and p_rules_version_min - 1) then
        raise object_not_in_prerequisite_state using message = format(
            'slot %s of delivery %s takes rules of version %s and newer', p_slot, p_delivery_id, p_rules_version_min);
    end if;
end $$;

-- From now on, the delivery takes no observations by rules older than this. Locks slots in the order of all writers.
create function fence_rules (p_delivery_id bigint, p_rules_version smallint) returns void language plpgsql as $$
begin
    perform require_rules(c.delivery_id, c.slot, c.rules_version_min, array[p_rules_version])
    from (select * from delivery_counter where delivery_id = p_delivery_id order by slot for no key update) c;
    update delivery_counter set rules_version_min = p_rules_version
    where delivery_id = p_delivery_id and rules_version_min < p_rules_version;
end $$;

-- Everything that was ever reported about these recipients, each report once, with how it counts: as the newest rules
-- that read it say (by the same rules, the greater). A report is what the MTA said; type and reason are not part of it.
-- `disputed`: what is kept of it says different things, since other rules read it when it came again or was corrected.
create function known_reports (p_delivery_id bigint, p_recipients integer[]) returns table (
    recipient integer, outcome smallint, event_time timestamptz, smtp_code smallint, enhanced_code text,
    diagnostic text, attempt smallint, failure_type smallint, reason smallint, rules_version smallint,
    commit_time timestamptz, logged boolean, disputed boolean
) language sql stable as $$
    select distinct on (e.recipient, e.outcome, e.event_time, e.smtp_code, e.enhanced_code, e.diagnostic, e.attempt)
        e.recipient, e.outcome, e.event_time, e.smtp_code, e.enhanced_code, e.diagnostic, e.attempt, e.failure_type,
        e.reason, e.rules_version, min(e.commit_time) over report, bool_or(e.logged) over report,
        min(e.failure_type * 100 + e.reason) over report <> max(e.failure_type * 100 + e.reason) over report
    from (
        select t.recipient, t.outcome, t.event_time, t.smtp_code, t.enhanced_code, t.diagnostic, t.attempt,
            t.failure_type, t.reason, t.rules_version, t.commit_time, true as logged
        from transition t where t.delivery_id = p_delivery_id and t.recipient = any (p_recipients)
        union all
        select k.recipient, k.outcome, k.event_time, k.smtp_code, k.enhanced_code, k.diagnostic, k.attempt,
            k.failure_type, k.reason, k.rules_version, k.commit_time, false
        from late_observation k where k.delivery_id = p_delivery_id and k.recipient = any (p_recipients)
    ) e
    window report as (
        partition by e.recipient, e.outcome, e.event_time, e.smtp_code, e.enhanced_code, e.diagnostic, e.attempt)
    order by e.recipient, e.outcome, e.event_time, e.smtp_code, e.enhanced_code, e.diagnostic, e.attempt,
        e.rules_version desc, e.failure_type desc, e.reason desc
$$;

-- What the given verdicts of a version of the rules change: each report about their recipients, as it counts now and
-- then, and the row as it stands now, which is the greatest of the reports then. `corrected`: an older version read it
-- otherwise. `wins`: it is where the row stands then. `affected`: something about its recipient changes.
create function planned_corrections (
    p_delivery_id bigint, p_rules_version smallint,
    p_recipients integer[], p_outcomes smallint[], p_event_times_us bigint[], p_failure_types smallint[],
    p_reasons smallint[], p_smtp_codes smallint[], p_enhanced_codes text[], p_diagnostics text[], p_attempts smallint[]
) returns table (
    recipient integer, outcome smallint, event_time timestamptz, smtp_code smallint, enhanced_code text,
    diagnostic text, attempt smallint, failure_type_before smallint, reason_before smallint, failure_type smallint,
    reason smallint, rules_version smallint, commit_time timestamptz, logged boolean, corrected boolean, wins boolean,
    affected boolean, row_failure_type smallint, row_reason smallint
) language sql stable as $$
    with verdict as (
        select distinct on (v.recipient, v.outcome, v.event_time, v.smtp_code, v.enhanced_code, v.diagnostic, v.attempt)
            v.*
        from observation_rows(p_recipients, p_outcomes, p_event_times_us, p_failure_types, p_reasons, p_smtp_codes,
            p_enhanced_codes, p_diagnostics, p_attempts, null) v
        order by v.recipient, v.outcome, v.event_time, v.smtp_code, v.enhanced_code, v.diagnostic, v.attempt,
            v.failure_type desc, v.reason desc
    ), report as (
        select k.*, v.recipient is not null as corrected, coalesce(v.failure_type, k.failure_type) as failure_type_then,
            coalesce(v.reason, k.reason) as reason_then
        from known_reports(p_delivery_id, array(select distinct u from unnest(p_recipients) as u)) k
        left join verdict v
            on (v.recipient, v.outcome, v.event_time, v.smtp_code, v.enhanced_code, v.diagnostic, v.attempt)
                = (k.recipient, k.outcome, k.event_time, k.smtp_code, k.enhanced_code, k.diagnostic, k.attempt)
            and k.rules_version < p_rules_version
            and (v.failure_type, v.reason) <> (k.failure_type, k.reason)
    ), ranked as (
        select r.*, l.failure_type as row_failure_type, l.reason as row_reason,
            (l.outcome, l.event_time) = (r.outcome, r.event_time) and row_number() over (partition by r.recipient
                order by r.outcome desc, r.event_time desc, r.failure_type_then desc, r.reason_then desc,
                    r.smtp_code desc, r.enhanced_code collate "C" desc, r.diagnostic collate "C" desc,
                    r.attempt desc) = 1 as wins,
            (l.failure_type, l.reason, l.smtp_code, l.enhanced_code, l.diagnostic, l.attempt)
                = (r.failure_type_then, r.reason_then, r.smtp_code, r.enhanced_code, r.diagnostic, r.attempt) as stands
        from report r join send_log l on l.delivery_id = p_delivery_id and l.recipient = r.recipient
    )
    select r.recipient, r.outcome, r.event_time, r.smtp_code, r.enhanced_code, r.diagnostic, r.attempt,
        r.failure_type, r.reason, r.failure_type_then, r.reason_then,
        case when r.corrected then p_rules_version else r.rules_version end, r.commit_time, r.logged, r.corrected,
        r.wins,
        bool_or(r.corrected or r.wins and not r.stands) over (partition by r.recipient), r.row_failure_type,
        r.row_reason
    from ranked r
$$;

-- Corrects one slot of a delivery: reports, by what the MTA said, with what version p_rules_version of the rules reads
-- in them. The one way in which a row ever goes down, and only in type and reason: what an MTA says happens next
-- decides the outcome, and no rule does.
--
-- As in apply_slot the slot is locked first, and all else sees what its last writer committed; so it doesn't matter
-- what was reported since the caller looked. Each row becomes the greatest of its reports; reports that are not in the
-- log are set to what they count now, and those that are get such an entry beside it. Done again it finds nothing to
-- do; stopped, it has done nothing.
--
-- Gives what has changed (or, with p_validate_only, would): from which type and reason to which, how many reports, and
-- how many send logs.
create function correct_slot (
    p_delivery_id bigint, p_slot smallint, p_now timestamptz, p_validate_only boolean, p_rules_version smallint,
    p_recipients integer[], p_outcomes smallint[], p_event_times_us bigint[], p_failure_types smallint[],
    p_reasons smallint[], p_smtp_codes smallint[], p_enhanced_codes text[], p_diagnostics text[], p_attempts smallint[]
) returns table (
    outcome smallint, failure_type_before smallint, reason_before smallint, failure_type smallint, reason smallint,
    reports bigint, send_logs bigint
) language plpgsql as $$
#variable_conflict use_column
declare
    v_revision bigint;
    v_rules_version_min smallint;
begin
    select c.revision + 1, c.rules_version_min into v_revision, v_rules_version_min
    from delivery_counter c where c.delivery_id = p_delivery_id and c.slot = p_slot for no key update;
    if not found then
        return;
    end if;
    perform require_rules(p_delivery_id, p_slot, v_rules_version_min, array[p_rules_version]);

    return query
    with planned as materialized (
        select * from planned_corrections(p_delivery_id, p_rules_version, p_recipients, p_outcomes, p_event_times_us,
            p_failure_types, p_reasons, p_smtp_codes, p_enhanced_codes, p_diagnostics, p_attempts) p
        where p.affected
    ), done as (
        select p.* from planned p where not p_validate_only
    ), changed as (
        update send_log l
        set failure_type = p.failure_type, reason = p.reason, smtp_code = p.smtp_code, enhanced_code = p.enhanced_code,
            diagnostic = p.diagnostic, attempt = p.attempt, update_time = p_now
        from done p
        where p.wins and l.delivery_id = p_delivery_id and l.recipient = p.recipient
            and (l.failure_type, l.reason, l.smtp_code, l.enhanced_code, l.diagnostic, l.attempt)
                <> (p.failure_type, p.reason, p.smtp_code, p.enhanced_code, p.diagnostic, p.attempt)
    ), logged as (
        insert into transition (delivery_id, revision, recipient, slot, before, outcome, failure_type, reason,
            smtp_code, attempt, rules_version, event_time, commit_time, enhanced_code, diagnostic, correction)
        select p_delivery_id, v_revision, p.recipient, p_slot, p.outcome, p.outcome, p.failure_type, p.reason,
            p.smtp_code, p.attempt, p.rules_version, p.event_time, p_now, p.enhanced_code, p.diagnostic, true
        from done p where p.wins
    ), outdated as (
        delete from late_observation k using done p
        where p.corrected and k.delivery_id = p_delivery_id
            and (k.recipient, k.outcome, k.event_time, k.smtp_code, k.enhanced_code, k.diagnostic, k.attempt)
                = (p.recipient, p.outcome, p.event_time, p.smtp_code, p.enhanced_code, p.diagnostic, p.attempt)
    ), restated as (
        insert into late_observation (delivery_id, recipient, outcome, failure_type, reason, smtp_code, attempt,
            rules_version, event_time, commit_time, enhanced_code, diagnostic, correction)
        select p_delivery_id, p.recipient, p.outcome, p.failure_type, p.reason, p.smtp_code, p.attempt,
            p.rules_version, p.event_time, case when p.logged then p_now else p.commit_time end, p.enhanced_code,
            p.diagnostic, p.logged
        from done p where p.corrected and not p.wins
    ), delta as (
        -- Proofs are numbered below 1, and never counted.
        select p.outcome, p.failure_type, 1 as n from done p where p.wins and p.recipient > 0
        union all
        select p.outcome, p.row_failure_type, -1 from done p where p.wins and p.recipient > 0
    ), total as (
        select
            coalesce(sum(d.n) filter (where d.outcome = 3 and d.failure_type = 2), 0)::integer as deferred_hard,
            coalesce(sum(d.n) filter (where d.outcome = 4 and d.failure_type = 2), 0)::integer as expired_hard,
            coalesce(sum(d.n) filter (where d.outcome = 6 and d.failure_type = 2), 0)::integer as bounced_hard,
            coalesce(sum(d.n) filter (where d.outcome = 3 and d.failure_type = 3), 0)::integer as deferred_ignored,
            coalesce(sum(d.n) filter (where d.outcome = 4 and d.failure_type = 3), 0)::integer as expired_ignored,
            coalesce(sum(d.n) filter (where d.outcome = 6 and d.failure_type = 3), 0)::integer as bounced_ignored
        from delta d
    ), counted as (
        update delivery_counter c
        set revision = v_revision, commit_time = p_now,
            deferred_hard = c.deferred_hard + t.deferred_hard, expired_hard = c.expired_hard + t.expired_hard,
            bounced_hard = c.bounced_hard + t.bounced_hard,
            deferred_ignored = c.deferred_ignored + t.deferred_ignored,
            expired_ignored = c.expired_ignored + t.expired_ignored,
            bounced_ignored = c.bounced_ignored + t.bounced_ignored
        from total t
        where c.delivery_id = p_delivery_id and c.slot = p_slot and exists (select from done)
    )
    select c.outcome, c.failure_type_before, c.reason_before, c.failure_type, c.reason,
        sum(c.reports)::bigint, sum(c.send_logs)::bigint
    from (
        select p.outcome, p.failure_type_before, p.reason_before, p.failure_type, p.reason, 1 as reports, 0 as send_logs
        from planned p where p.corrected
        union all
        select p.outcome, p.row_failure_type, p.row_reason, p.failure_type, p.reason, 0, 1
        from planned p
        where p.wins and p.recipient > 0 and (p.row_failure_type, p.row_reason) <> (p.failure_type, p.reason)
    ) c
    group by 1, 2, 3, 4, 5 order by 1, 2, 3, 4, 5;
end $$;
