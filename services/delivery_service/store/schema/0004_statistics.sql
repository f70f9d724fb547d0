-- Recounts, and the refresh of opens and clicks.

-- Repairs counters that a recount found to differ from the rows, by adding the difference: what was committed since
-- the recount stays in. Logs each correction. The columns: one entry per slot and counter.
create function correct_counters (
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
