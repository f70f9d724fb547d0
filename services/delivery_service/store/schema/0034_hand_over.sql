-- A hand-over costs less: messages that were all accepted at one time need no array with that time for each, and a part
-- that left as a whole is done with the same commit.

-- From here on event_times_us has one entry if all recipients follow one another and were accepted at the same time.
create or replace function hand_over_times (p_event_times_us bigint[], p_recipient_count integer) returns bigint[]
language sql immutable parallel safe as $$
    select case when cardinality(p_event_times_us) = 1 then array_fill(p_event_times_us[1], array[p_recipient_count])
        else p_event_times_us end
$$;

-- As in 0028_hand_over_log.sql, for both forms.
create or replace function handed_over (p_delivery_id bigint, p_recipient integer) returns table (
    slot smallint, revision bigint, event_time timestamptz, commit_time timestamptz
) language sql stable as $$
    select h.slot, h.revision,
        timestamptz 'epoch' + (hand_over_times(h.event_times_us, h.recipient_count))[p_recipient - h.first_recipient + 1]
            * interval '1 microsecond',
        h.commit_time
    from hand_over_log h
    where h.delivery_id = p_delivery_id and h.part = p_recipient / 1024
        and (hand_over_times(h.event_times_us, h.recipient_count))[p_recipient - h.first_recipient + 1] > 0
$$;

create or replace function handed_over_after (
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
    cross join lateral unnest(hand_over_times(h.event_times_us, h.recipient_count))
        with ordinality as o (event_time_us, place)
    -- Of the first, any part may be behind the place.
    where h.count_before < p_limit + 1024 and o.event_time_us > 0
        and (h.revision > p_from_revision or h.first_recipient + o.place - 1 > p_after_recipient)
    order by 1, 2 limit p_limit
$$;

create or replace view every_transition as
select delivery_id, revision, recipient, slot, before, outcome, failure_type, reason, smtp_code, attempt, rules_version,
    event_time, commit_time, enhanced_code, diagnostic, correction
from transition
union all
select h.delivery_id, h.revision, (h.first_recipient + o.place - 1)::integer, h.slot, 0::smallint, 2::smallint,
    0::smallint, 0::smallint, 0::smallint, 0::smallint, 0::smallint,
    timestamptz 'epoch' + o.event_time_us * interval '1 microsecond', h.commit_time, '', '', false
from hand_over_log h
cross join lateral unnest(hand_over_times(h.event_times_us, h.recipient_count))
    with ordinality as o (event_time_us, place)
where o.event_time_us > 0;

-- What a hand-over of p_count messages adds to the log and moves in the counters, once their rows are changed.
--
-- p_claim_count: if these are all messages that the part ever had, it is done with that claim, in the same commit: its
-- holder needs no second one. 0: its holder will release it.
create or replace function log_hand_over (
    p_delivery_id bigint, p_slot smallint, p_now timestamptz, p_revision bigint, p_first integer, p_count integer,
    p_event_times_us bigint[], p_newest_event_time timestamptz, p_claim_count integer
) returns void language plpgsql as $$
begin
    insert into hand_over_log (delivery_id, slot, revision, part, first_recipient, recipient_count, commit_time,
        event_times_us)
    values (p_delivery_id, p_slot, p_revision, p_first / 1024, p_first, p_count, p_now, p_event_times_us);
    update delivery_counter c
    set revision = p_revision, prepared = c.prepared - p_count, relayed = c.relayed + p_count, commit_time = p_now,
        newest_event_time = greatest(c.newest_event_time, p_newest_event_time)
    where c.delivery_id = p_delivery_id and c.slot = p_slot;
    if p_claim_count > 0 then
        update relay_part
        set done = true, lease_holder = '', held_count = 0, held_version = 0
        where delivery_id = p_delivery_id and part = p_first / 1024 and claim_count = p_claim_count
            and prepared_count = p_count;
    end if;
end $$;

-- As in 0028_hand_over_log.sql, and ends the claim.
create or replace function apply_relayed (
    p_delivery_id bigint, p_slot smallint, p_now timestamptz, p_first integer, p_event_times_us bigint[],
    p_claim_count integer
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
        perform log_hand_over(p_delivery_id, p_slot, p_now, v_revision, p_first, cardinality(v_recipients),
            p_event_times_us, v_newest_event_time, p_claim_count);
    end if;
    return v_others;
end $$;

-- What replicas of the version before call: they release their claims.
create or replace function apply_relayed (
    p_delivery_id bigint, p_slot smallint, p_now timestamptz, p_first integer, p_event_times_us bigint[]
) returns integer[] language sql as $$
    select apply_relayed(p_delivery_id, p_slot, p_now, p_first, p_event_times_us, 0)
$$;

-- The same for p_count recipients in a row, from p_first on, all accepted at p_event_time_us. A function of its own: the
-- look into an array of times for each row, and its place in the log, were a quarter of the other one's cost.
create or replace function apply_relayed_at_once (
    p_delivery_id bigint, p_slot smallint, p_now timestamptz, p_first integer, p_count integer, p_event_time_us bigint,
    p_claim_count integer
) returns integer[] language plpgsql as $$
declare
    v_event_time timestamptz := timestamptz 'epoch' + p_event_time_us * interval '1 microsecond';
    v_event_times_us bigint[] := array[p_event_time_us];
    v_revision bigint;
    v_recipients integer[];
    v_others integer[];
begin
    select revision + 1 into v_revision
    from delivery_counter where delivery_id = p_delivery_id and slot = p_slot for no key update;

    if found then
        with changed as (
            update send_log l set outcome = 2, update_time = p_now, event_time = v_event_time
            where l.delivery_id = p_delivery_id
                and l.recipient >= p_first and l.recipient < p_first + p_count and l.outcome = 0
            returning l.recipient
        )
        select array_agg(recipient) into v_recipients from changed;
    end if;

    if coalesce(cardinality(v_recipients), 0) < p_count then
        select array_agg(u order by u) filter (where r is null),
            array_agg(case when r is null then 0 else p_event_time_us end order by u)
        into v_others, v_event_times_us
        from generate_series(p_first, p_first + p_count - 1) as u left join unnest(v_recipients) as r on r = u;
    end if;

    if v_recipients is not null then
        perform log_hand_over(p_delivery_id, p_slot, p_now, v_revision, p_first, cardinality(v_recipients),
            v_event_times_us, v_event_time, p_claim_count);
    end if;
    return v_others;
end $$;
