-- Recounts, and the refresh of opens and clicks.

-- Recounts the rows of a delivery and its counters in one statement, so in one snapshot: exact without holding any
-- writer up. Repairs a difference by adding it (what was committed since stays in), and logs that. One run per
-- delivery at a time: the lock is the transaction's. Gives null if another run has it.
create function compute_statistics (p_delivery_id bigint, p_slot_count smallint, p_now timestamptz)
returns table (drift bigint, recounted bigint) language plpgsql as $$
declare
    v_difference jsonb;
begin
    if not pg_try_advisory_xact_lock(hashtextextended('compute_statistics', p_delivery_id)) then
        return;
    end if;
    with counted as (
        select (recipient / 1024 % p_slot_count)::smallint as slot, outcome, failure_type, count(*) as n
        from send_log where delivery_id = p_delivery_id and recipient > 0
        group by 1, 2, 3
    ), counted_by_counter as (
        select slot, (array['prepared', 'canceled', 'relayed', 'deferred', 'expired', 'delivered', 'bounced'])[outcome + 1]
            as counter, sum(n) as n
        from counted group by 1, 2
        union all
        select slot, (array['deferred', 'expired', '', 'bounced'])[outcome - 2]
            || case failure_type when 2 then '_hard' else '_ignored' end, sum(n)
        from counted where outcome in (3, 4, 6) and failure_type in (2, 3) group by 1, 2
    ), found_by_counter as (
        select c.slot, v.counter, v.n
        from delivery_counter c
        cross join lateral (values ('prepared', c.prepared), ('canceled', c.canceled), ('relayed', c.relayed),
            ('deferred', c.deferred), ('expired', c.expired), ('delivered', c.delivered), ('bounced', c.bounced),
            ('deferred_hard', c.deferred_hard), ('expired_hard', c.expired_hard), ('bounced_hard', c.bounced_hard),
            ('deferred_ignored', c.deferred_ignored), ('expired_ignored', c.expired_ignored),
            ('bounced_ignored', c.bounced_ignored)) as v (counter, n)
        where c.delivery_id = p_delivery_id
    ), difference as (
        select slot, counter, coalesce(c.n, 0) as counted, coalesce(f.n, 0) as found
        from counted_by_counter c full join found_by_counter f using (slot, counter)
        where coalesce(c.n, 0) <> coalesce(f.n, 0)
    )
    select coalesce((select jsonb_agg(to_jsonb(d)) from difference d), '[]'), (select coalesce(sum(n), 0) from counted)
    into v_difference, recounted;

    select coalesce(sum(abs(d.counted - d.found)), 0) into drift
    from jsonb_to_recordset(v_difference) as d (counted bigint, found bigint);
    if drift > 0 then
        insert into counter_correction (delivery_id, slot, correct_time, counter, counted, found)
        select p_delivery_id, d.slot, p_now, d.counter, d.counted, d.found
        from jsonb_to_recordset(v_difference) as d (slot smallint, counter text, counted bigint, found bigint);
        with by_slot as (
            select d.slot, jsonb_object_agg(d.counter, d.counted - d.found) as change
            from jsonb_to_recordset(v_difference) as d (slot smallint, counter text, counted bigint, found bigint)
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
    end if;
    return next;
end $$;

-- Counts opens and clicks, and of each mode's delivered those who opened or clicked, all in one snapshot: no rate
-- passes 100 %. A click implies an open. Raises slot 0's revision, so that watchers see it.
--
-- The engagement row is locked first: apply_tracking holds it while it writes, so the count below sees all that it
-- has committed, and what it commits later marks the row stale again.
create function refresh_engagement (p_delivery_id bigint, p_now timestamptz) returns void language plpgsql as $$
begin
    update engagement set stale_since_time = null, as_of_time = p_now where delivery_id = p_delivery_id;
    with fact as (
        select recipient, bool_or(kind = 4) as clicked, count(*) filter (where kind = 3) as opens,
            count(*) filter (where kind = 4) as clicks
        from tracking_log where delivery_id = p_delivery_id and kind in (3, 4) and recipient > 0
        group by recipient
    ), engaged as (
        select count(*) as opened, count(*) filter (where f.clicked) as clicked, coalesce(sum(f.opens), 0) as opens,
            coalesce(sum(f.clicks), 0) as clicks,
            count(*) filter (where l.outcome = 5) as opened_with_efs,
            count(*) filter (where l.outcome = 5 and f.clicked) as clicked_with_efs,
            count(*) filter (where l.outcome in (2, 3, 5)) as opened_without_efs,
            count(*) filter (where l.outcome in (2, 3, 5) and f.clicked) as clicked_without_efs
        from fact f join send_log l on l.delivery_id = p_delivery_id and l.recipient = f.recipient
    ), base as (
        select coalesce(sum(delivered), 0) as with_efs, coalesce(sum(relayed + deferred + delivered), 0) as without_efs
        from delivery_counter where delivery_id = p_delivery_id
    )
    update engagement e
    set opened = g.opened, clicked = g.clicked, opens = g.opens, clicks = g.clicks,
        opened_with_efs = g.opened_with_efs, clicked_with_efs = g.clicked_with_efs, delivered_with_efs = b.with_efs,
        opened_without_efs = g.opened_without_efs, clicked_without_efs = g.clicked_without_efs,
        delivered_without_efs = b.without_efs
    from engaged g, base b
    where e.delivery_id = p_delivery_id;
    update delivery_counter set revision = revision + 1 where delivery_id = p_delivery_id and slot = 0;
end $$;
