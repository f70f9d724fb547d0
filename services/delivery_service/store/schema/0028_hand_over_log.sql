-- The transitions of a hand-over as one row: a part that the MTA side took is a thousand rows of the log that say the
-- same, and writing them, with two index entries each, was more than half of what relaying costs Postgres.

-- A range of recipients that went from PREPARED to RELAYED in one revision of their slot. The log is this and the table
-- transition together (the view every_transition): whoever reads transitions to RELAYED, or from PREPARED, reads both.
-- A message is in it once at most, and then it is the first that its log has: nothing ever becomes PREPARED again.
create table hand_over_log (
    delivery_id bigint not null,
    slot smallint not null,
    revision bigint not null,
    part integer not null,  -- all recipients are of one
    first_recipient integer not null,
    recipient_count integer not null,
    commit_time timestamptz not null,
    -- When each was accepted, from the first recipient on: microseconds since the epoch. 0: not one of them.
    event_times_us bigint[] not null,
    primary key (delivery_id, part, revision)
);
-- All of them, but only for queries that say so: a generic plan would take it for a look-up by part just as well, since
-- a delivery of average size has few.
create index hand_over_log_slot on hand_over_log (delivery_id, slot, revision) where revision > 0;

-- The hand-over of one message, if it is in the hand-over log: one row at most. Its other fields are those of every row
-- there: from PREPARED to RELAYED, and nothing more to say.
create function handed_over (p_delivery_id bigint, p_recipient integer) returns table (
    slot smallint, revision bigint, event_time timestamptz, commit_time timestamptz
) language sql stable as $$
    select h.slot, h.revision,
        timestamptz 'epoch' + h.event_times_us[p_recipient - h.first_recipient + 1] * interval '1 microsecond',
        h.commit_time
    from hand_over_log h
    where h.delivery_id = p_delivery_id and h.part = p_recipient / 1024
        and h.event_times_us[p_recipient - h.first_recipient + 1] > 0
$$;

-- The next p_limit messages of a slot in the hand-over log, from place (p_from_revision, p_after_recipient) through
-- revision p_through, in order. It unfolds no more hand-overs than that takes.
create function handed_over_after (
    p_delivery_id bigint, p_slot smallint, p_from_revision bigint, p_after_recipient integer, p_through bigint,
    p_limit bigint
) returns table (
    revision bigint, recipient integer, event_time timestamptz, commit_time timestamptz
) language sql stable as $$
    select h.revision, (h.first_recipient + o.place - 1)::integer,
        timestamptz 'epoch' + o.event_time_us * interval '1 microsecond', h.commit_time
    from (
        select n.*, sum(n.recipient_count) over (order by n.revision) - n.recipient_count as count_before
        from (
            select revision, first_recipient, recipient_count, commit_time, event_times_us from hand_over_log
            where delivery_id = p_delivery_id and slot = p_slot and revision >= p_from_revision
                and revision <= p_through and revision > 0
            order by revision limit p_limit + 1
        ) n
    ) h
    cross join lateral unnest(h.event_times_us) with ordinality as o (event_time_us, place)
    -- Of the first, any part may be behind the place.
    where h.count_before < p_limit + 1024 and o.event_time_us > 0
        and (h.revision > p_from_revision or h.first_recipient + o.place - 1 > p_after_recipient)
    order by 1, 2 limit p_limit
$$;

-- The whole log, a row for each transition. For whoever looks at one by hand, and for tests: a query by recipient reads
-- all hand-overs of the delivery here.
create view every_transition as
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

-- The apply path's own way for what is most of a send: messages that are PREPARED become RELAYED. What it does is what
-- apply_slot does with the same observations, but that they come as one array, found by one scan of their part's range,
-- and are logged as one row.
--
-- p_event_times_us has an entry for each recipient from p_first on; 0: not handed over. All are of one part of the slot,
-- and none is a proof. Gives the recipients that were not PREPARED (all of them, if there is no such slot), null if every
-- one was: they are for apply_slot to judge.
create or replace function apply_relayed (
    p_delivery_id bigint, p_slot smallint, p_now timestamptz, p_first integer, p_event_times_us bigint[]
) returns integer[] language plpgsql as $$
declare
    v_revision bigint;
    v_recipients integer[];
    v_newest_event_time timestamptz;
    v_others integer[];
    v_other integer;
begin
    select revision + 1 into v_revision
    from delivery_counter where delivery_id = p_delivery_id and slot = p_slot for no key update;

    if found then
        with changed as (
            update send_log l
            set outcome = 2, update_time = p_now,
                event_time = timestamptz 'epoch'
                    + p_event_times_us[l.recipient - p_first + 1] * interval '1 microsecond'
            where l.delivery_id = p_delivery_id
                and l.recipient >= p_first and l.recipient < p_first + cardinality(p_event_times_us)
                and p_event_times_us[l.recipient - p_first + 1] > 0 and l.outcome = 0
            returning l.recipient, new.event_time
        )
        select array_agg(recipient), max(event_time) into v_recipients, v_newest_event_time from changed;
    end if;

    if coalesce(cardinality(v_recipients), 0) < cardinality(array_remove(p_event_times_us, 0)) then
        v_others := array(
            select p_first + o.place::integer - 1
            from unnest(p_event_times_us) with ordinality as o (event_time_us, place) where o.event_time_us > 0
            except select u from unnest(v_recipients) as u);
        foreach v_other in array v_others loop
            p_event_times_us[v_other - p_first + 1] := 0;
        end loop;
    end if;

    if v_recipients is not null then
        insert into hand_over_log (delivery_id, slot, revision, part, first_recipient, recipient_count, commit_time,
            event_times_us)
        values (p_delivery_id, p_slot, v_revision, p_first / 1024, p_first, cardinality(v_recipients), p_now,
            p_event_times_us);
        update delivery_counter c
        set revision = v_revision, prepared = c.prepared - cardinality(v_recipients),
            relayed = c.relayed + cardinality(v_recipients), commit_time = p_now,
            newest_event_time = greatest(c.newest_event_time, v_newest_event_time)
        where c.delivery_id = p_delivery_id and c.slot = p_slot;
    end if;
    return v_others;
end $$;

-- As in 0002_apply.sql, but that what is in the hand-over log is known as well.
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
                and not ((o.outcome, o.failure_type, o.reason, o.smtp_code, o.enhanced_code, o.diagnostic, o.attempt)
                        = (2, 0, 0, 0, '', '', 0)
                    and exists (
                        select from handed_over(p_delivery_ids[i], o.recipient) h where h.event_time = o.event_time))
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

-- As in 0024_requalification.sql, and the same.
create or replace function known_reports (p_delivery_id bigint, p_recipients integer[]) returns table (
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
        select u, 2::smallint, h.event_time, 0::smallint, '', '', 0::smallint, 0::smallint, 0::smallint, 0::smallint,
            h.commit_time, true
        from unnest(p_recipients) as u cross join lateral handed_over(p_delivery_id, u) h
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
