-- Recounts.

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
