-- Look-ups: what they need beside the tables that the sending needs.

-- Set by retention, and committed, before the logs of a delivery are dropped: a reader that finds it unset in the same
-- snapshot as its rows has them all.
alter table delivery add column log_dropped_time timestamptz;

-- One person's messages over all deliveries. Not led by delivery_id, as the only index: it is one probe per partition.
-- Without those who have no profile, and byte-wise, which is what is cheapest to keep.
create index recipient_profile on recipient ((profile_id collate "C"), delivery_id, recipient) where profile_id <> '';

-- What each process of DeliveryService last saw of its connection to the MTA side; one that falls silent is forgotten.
create table mta_contact (
    holder text primary key,
    away_since_time timestamptz,
    report_time timestamptz not null
);

-- Unsubscribes and complaints, beside opens and clicks.
alter table engagement
    add column unsubscribed integer not null default 0,
    add column unsubscribes bigint not null default 0,
    add column complained integer not null default 0,
    add column complaints bigint not null default 0,
    add column unsubscribed_with_efs integer not null default 0,
    add column complained_with_efs integer not null default 0,
    add column unsubscribed_without_efs integer not null default 0,
    add column complained_without_efs integer not null default 0;

-- Counts opens, clicks, unsubscribes and complaints, and of each mode's delivered those who did so, all in one snapshot:
-- no rate passes 100 %. A click implies an open. Raises slot 0's revision, so that watchers see it.
--
-- The engagement row is locked first: apply_tracking holds it while it writes, so the count below sees all that it
-- has committed, and what it commits later marks the row stale again.
create function refresh_engagement (p_delivery_id bigint, p_now timestamptz) returns void language plpgsql
as $$
begin
    update engagement set stale_since_time = null, as_of_time = p_now where delivery_id = p_delivery_id;
    with fact as (
        select recipient, bool_or(kind in (3, 4)) as opened, bool_or(kind = 4) as clicked,
            bool_or(kind = 5) as unsubscribed, bool_or(kind = 6) as complained,
            count(*) filter (where kind = 3) as opens, count(*) filter (where kind = 4) as clicks,
            count(*) filter (where kind = 5) as unsubscribes, count(*) filter (where kind = 6) as complaints
        from tracking_log where delivery_id = p_delivery_id and kind in (3, 4, 5, 6) and recipient > 0
        group by recipient
    ), engaged as (
        select count(*) filter (where f.opened) as opened, count(*) filter (where f.clicked) as clicked,
            count(*) filter (where f.unsubscribed) as unsubscribed, count(*) filter (where f.complained) as complained,
            coalesce(sum(f.opens), 0) as opens, coalesce(sum(f.clicks), 0) as clicks,
            coalesce(sum(f.unsubscribes), 0) as unsubscribes, coalesce(sum(f.complaints), 0) as complaints,
            count(*) filter (where l.outcome = 5 and f.opened) as opened_with_efs,
            count(*) filter (where l.outcome = 5 and f.clicked) as clicked_with_efs,
            count(*) filter (where l.outcome = 5 and f.unsubscribed) as unsubscribed_with_efs,
            count(*) filter (where l.outcome = 5 and f.complained) as complained_with_efs,
            count(*) filter (where l.outcome in (2, 3, 5) and f.opened) as opened_without_efs,
            count(*) filter (where l.outcome in (2, 3, 5) and f.clicked) as clicked_without_efs,
            count(*) filter (where l.outcome in (2, 3, 5) and f.unsubscribed) as unsubscribed_without_efs,
            count(*) filter (where l.outcome in (2, 3, 5) and f.complained) as complained_without_efs
        from fact f join send_log l on l.delivery_id = p_delivery_id and l.recipient = f.recipient
    ), base as (
        select coalesce(sum(delivered), 0) as with_efs, coalesce(sum(relayed + deferred + delivered), 0) as without_efs
        from delivery_counter where delivery_id = p_delivery_id
    )
    update engagement e
    set opened = g.opened, clicked = g.clicked, unsubscribed = g.unsubscribed, complained = g.complained,
        opens = g.opens, clicks = g.clicks, unsubscribes = g.unsubscribes, complaints = g.complaints,
        opened_with_efs = g.opened_with_efs, clicked_with_efs = g.clicked_with_efs,
        unsubscribed_with_efs = g.unsubscribed_with_efs, complained_with_efs = g.complained_with_efs,
        delivered_with_efs = b.with_efs,
        opened_without_efs = g.opened_without_efs, clicked_without_efs = g.clicked_without_efs,
        unsubscribed_without_efs = g.unsubscribed_without_efs, complained_without_efs = g.complained_without_efs,
        delivered_without_efs = b.without_efs
    from engaged g, base b
    where e.delivery_id = p_delivery_id;
    update delivery_counter set revision = revision + 1 where delivery_id = p_delivery_id and slot = 0;
end $$;
