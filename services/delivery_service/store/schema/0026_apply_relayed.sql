-- The apply path's own way for what is most of a send: the hand-over of a part's messages, all RELAYED and nothing more
-- to say about any. What it does is what apply_slot does with the same observations, row by row the same.
--
-- Three things make it twice as fast: one scan of the part's range finds the rows (the columns of apply_slot are joined,
-- with a look into the index for each); columns that would be zero don't travel, nor are they put together again; and
-- the counters move by three counts, since a row that RELAYED wins over is PREPARED, CANCELED or RELAYED itself, none of
-- which has a failure type.
--
-- p_event_times_us has an entry for each recipient from p_first on; 0: not handed over. All are of one part of the slot,
-- and none is a proof. Gives the recipients that did not win, null if every one did; they are keep_late's.
create function apply_relayed (
    p_delivery_id bigint, p_slot smallint, p_now timestamptz, p_first integer, p_event_times_us bigint[]
) returns integer[] language plpgsql as $$
declare
    v_revision bigint;
    v_losers integer[];
begin
    select revision + 1 into v_revision
    from delivery_counter where delivery_id = p_delivery_id and slot = p_slot for no key update;
    if not found then
        return array(select p_first + o.i::integer - 1
            from unnest(p_event_times_us) with ordinality as o (us, i) where o.us <> 0);
    end if;

    with changed as (
        update send_log l
        set outcome = 2, failure_type = 0, reason = 0, smtp_code = 0, enhanced_code = '', diagnostic = '', attempt = 0,
            event_time = timestamptz 'epoch'
                + p_event_times_us[l.recipient - p_first + 1] * interval '1 microsecond',
            update_time = p_now
        where l.delivery_id = p_delivery_id
            and l.recipient >= p_first and l.recipient < p_first + cardinality(p_event_times_us)
            and p_event_times_us[l.recipient - p_first + 1] <> 0
            and (l.outcome, l.event_time, l.failure_type, l.reason, l.smtp_code, l.enhanced_code, l.diagnostic,
                l.attempt)
              < (2, timestamptz 'epoch' + p_event_times_us[l.recipient - p_first + 1] * interval '1 microsecond',
                0, 0, 0, '', '', 0)
        returning l.recipient, old.outcome as before, new.event_time
    ), logged as (
        insert into transition (delivery_id, revision, recipient, slot, before, outcome, failure_type, reason,
            smtp_code, attempt, rules_version, event_time, commit_time, enhanced_code, diagnostic)
        select p_delivery_id, v_revision, recipient, p_slot, before, 2, 0, 0, 0, 0, 0, event_time, p_now, '', ''
        from changed
    ), total as (
        select count(*)::integer as n, (count(*) filter (where before = 0))::integer as prepared,
            (count(*) filter (where before = 1))::integer as canceled,
            (count(*) filter (where before = 2))::integer as relayed, max(event_time) as newest_event_time
        from changed
    )
    update delivery_counter c
    set revision = v_revision, prepared = c.prepared - t.prepared, canceled = c.canceled - t.canceled,
        relayed = c.relayed + t.n - t.relayed, commit_time = p_now,
        newest_event_time = greatest(c.newest_event_time, t.newest_event_time)
    from total t
    where c.delivery_id = p_delivery_id and c.slot = p_slot and t.n > 0
    returning case when t.n < cardinality(array_remove(p_event_times_us, 0)) then
        array(select p_first + o.i::integer - 1
            from unnest(p_event_times_us) with ordinality as o (us, i) where o.us <> 0
            except select recipient from changed) end
    into v_losers;
    if not found then
        return array(select p_first + o.i::integer - 1
            from unnest(p_event_times_us) with ordinality as o (us, i) where o.us <> 0);
    end if;
    return v_losers;
end $$;
