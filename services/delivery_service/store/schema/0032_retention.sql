-- Retention: which ranges may be dropped, and what is refused once the logs of a delivery are gone.

-- A delivery of the range that keeps its logs from being dropped, some one of them; null: none does. Over is what is
-- settled, or a draft that nobody touched, for as long as that. Besides, nothing reads its audience or has yet to be
-- counted in it.
create function log_keeper (p_begin_id bigint, p_end_id bigint, p_before timestamptz) returns bigint language sql stable
as $$
    select d.delivery_id from delivery d
    where d.delivery_id >= p_begin_id and d.delivery_id < p_end_id and d.log_dropped_time is null
        and (not coalesce(case when d.state in (1, 3, 4) then d.update_time else d.settled_time end <= p_before, false)
            or d.audience_source_id is not null
            or exists (select from delivery c where c.audience_source_id = d.delivery_id)
            or exists (
                select from engagement e where e.delivery_id = d.delivery_id and e.stale_since_time is not null))
    limit 1
$$;

-- Says of all deliveries of a range that their logs are gone, before any of them is: so a reader that finds the time
-- unset after it has read had everything. All of the range or none: null if it is so now, else a delivery that keeps it.
-- They are held meanwhile, and those that wait for one of them find another version.
create function announce_log_drop (p_begin_id bigint, p_end_id bigint, p_before timestamptz, p_now timestamptz)
returns bigint language plpgsql as $$
declare
    v_keeper bigint;
begin
    -- Nearly always that is all: without a lock.
    v_keeper := log_keeper(p_begin_id, p_end_id, p_before);
    if v_keeper is not null then
        return v_keeper;
    end if;
    perform from delivery where delivery_id >= p_begin_id and delivery_id < p_end_id order by delivery_id
    for no key update;
    perform from engagement where delivery_id >= p_begin_id and delivery_id < p_end_id order by delivery_id
    for no key update;
    v_keeper := log_keeper(p_begin_id, p_end_id, p_before);
    if v_keeper is not null then
        return v_keeper;
    end if;
    update delivery set log_dropped_time = p_now, version = version + 1
    where delivery_id >= p_begin_id and delivery_id < p_end_id and log_dropped_time is null;
    update retention_range set drop_time = p_now where kind = 1 and begin_id = p_begin_id and end_id = p_end_id;
    return null;
end $$;

-- The same for a range of deliveries themselves: their logs must be gone, not only announced to go.
create function announce_delivery_drop (p_begin_id bigint, p_end_id bigint, p_before timestamptz, p_now timestamptz)
returns bigint language plpgsql as $$
declare
    v_keeper bigint;
begin
    select d.delivery_id into v_keeper from delivery d
    where d.delivery_id >= p_begin_id and d.delivery_id < p_end_id
        and (d.log_dropped_time is null
            or coalesce(d.settled_time, d.update_time) > p_before
            or exists (
                select from retention_range r
                where r.kind = 1 and r.begin_id <= d.delivery_id and coalesce(r.end_id > d.delivery_id, true)))
    limit 1;
    if v_keeper is null then
        update retention_range set drop_time = p_now where kind = 2 and begin_id = p_begin_id and end_id = p_end_id;
    end if;
    return v_keeper;
end $$;

-- Counts opens, clicks, unsubscribes and complaints, and of each mode's delivered those who did so, all in one snapshot:
-- no rate passes 100 %. A click implies an open. Raises slot 0's revision, so that watchers see it.
--
-- The engagement row is locked first: apply_tracking holds it while it writes, so the count below sees all that it
-- has committed, and what it commits later marks the row stale again. Nothing is counted any more once the logs are
-- announced to go (announce_log_drop holds that row as well): what was counted last stays.
create or replace function refresh_engagement (p_delivery_id bigint, p_now timestamptz) returns void language plpgsql
as $$
begin
    update engagement set stale_since_time = null, as_of_time = p_now
    where delivery_id = p_delivery_id and not exists (
        select from delivery d where d.delivery_id = p_delivery_id and d.log_dropped_time is not null);
    if not found then
        return;
    end if;
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

-- Applies tracking facts (opens, clicks and the like), each exactly once. The caller orders them by delivery.
--
-- The engagement rows are locked first, in that order: so that refresh_engagement can't count past facts that are
-- about to be committed. Gives the indexes (from 1) of facts whose message does not exist: of a delivery that was not
-- started (state 6 and on, which no delivery leaves again) only proofs do yet, though it may have other send logs. None
-- does whose log is announced to go.
create or replace function apply_tracking (
    p_delivery_ids bigint[], p_recipients integer[], p_kinds smallint[], p_event_times_us bigint[], p_urls text[],
    p_now timestamptz
) returns integer[] language plpgsql as $$
declare
    v_unknown integer[];
begin
    perform from engagement
    where delivery_id = any (select distinct u from unnest(p_delivery_ids) as u)
    order by delivery_id for no key update;

    with kept as (
        insert into tracking_log (delivery_id, recipient, kind, event_time, commit_time, url)
        select f.delivery_id, f.recipient, f.kind, timestamptz 'epoch' + f.event_time_us * interval '1 microsecond',
            p_now, f.url
        from unnest(p_delivery_ids, p_recipients, p_kinds, p_event_times_us, p_urls)
            as f (delivery_id, recipient, kind, event_time_us, url)
        where exists (select from send_log l where l.delivery_id = f.delivery_id and l.recipient = f.recipient)
            and exists (
                select from delivery d where d.delivery_id = f.delivery_id and (d.state >= 6 or f.recipient < 1)
                    and d.log_dropped_time is null)
        on conflict do nothing
        returning delivery_id, recipient, kind
    ), news as (
        insert into address_news (delivery_id, recipient)
        select distinct k.delivery_id, k.recipient from kept k where k.kind in (5, 6)
    )
    update engagement e set stale_since_time = p_now
    where e.delivery_id = any (select distinct u from unnest(p_delivery_ids) as u) and e.stale_since_time is null
        and exists (select from kept);

    select array_agg(f.i) into v_unknown
    from unnest(p_delivery_ids, p_recipients) with ordinality as f (delivery_id, recipient, i)
    where not exists (select from send_log l where l.delivery_id = f.delivery_id and l.recipient = f.recipient)
        or not exists (
            select from delivery d where d.delivery_id = f.delivery_id and (d.state >= 6 or f.recipient < 1)
                and d.log_dropped_time is null);
    return v_unknown;
end $$;

-- Makes the rows of a proof under the next free numbers below 1; the delivery is held, so that two proofs get different
-- ones, and so that its state is one in which proofs may be sent. Null: it is not, or that would be more than p_max.
create or replace function add_proof (
    p_delivery_id bigint, p_states smallint[], p_max integer, p_profile_ids text[], p_addresses text[],
    p_attributes text[], p_now timestamptz
) returns integer language plpgsql as $$
declare
    v_lowest integer;
begin
    perform from delivery where delivery_id = p_delivery_id and state = any (p_states) and log_dropped_time is null
    for no key update;
    if not found then
        return null;
    end if;
    select least(min(recipient), 0) into v_lowest from recipient where delivery_id = p_delivery_id and recipient < 1;
    if cardinality(p_addresses) - v_lowest > p_max then
        return null;
    end if;
    insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
    select p_delivery_id, v_lowest - p.number, 0, p.profile_id, p.address, p.attributes
    from unnest(p_profile_ids, p_addresses, p_attributes) with ordinality
        as p (profile_id, address, attributes, number);
    insert into send_log (delivery_id, recipient, outcome, event_time, update_time)
    select p_delivery_id, v_lowest - number, 0, p_now, p_now from generate_series(1, cardinality(p_addresses)) as number;
    return v_lowest - 1;
end $$;

-- A draft with everything of another delivery but its schedule. The original is held, so that it can't be deleted in
-- between. With the audience, its copying begins. A retry has no control group: its recipients were chosen to get the
-- message. Gives the id. Null: it is taken, or the original or its audience is gone, or its own recipients are still
-- being copied by a retry, so that it is not known how many there will be.
create or replace function copy_draft (
    p_delivery_id bigint, p_original_id bigint, p_label text, p_creator text, p_now timestamptz,
    p_with_audience boolean, p_is_retry boolean
) returns bigint language plpgsql as $$
declare
    v_original delivery;
begin
    select * into v_original from delivery where delivery_id = p_original_id for share;
    if not found or p_with_audience and v_original.audience_source_id is not null
        and v_original.audience_source_id = v_original.retry_of_id
        or (p_with_audience or p_is_retry) and v_original.log_dropped_time is not null then
        return null;
    end if;
    insert into delivery (delivery_id, label, channel, feedback_mode, subject, html, body_text, from_address, from_name,
        reply_to_address, validity_period, state, creator, create_time, update_time, recipient_count, audience_digest,
        audience_source_id, audience_source_count, requires_approval, messages_per_hour, first_wave_count,
        control_group_share, control_group_profile_ids, suppression_lists, retry_of_id)
    values (p_delivery_id, case p_label when '' then v_original.label else p_label end, v_original.channel,
        v_original.feedback_mode, v_original.subject, v_original.html, v_original.body_text, v_original.from_address,
        v_original.from_name, v_original.reply_to_address, v_original.validity_period, 1, p_creator, p_now, p_now,
        case when p_with_audience then v_original.recipient_count else 0 end,
        case when p_with_audience then v_original.audience_digest else '' end,
        case when (p_with_audience or p_is_retry) and v_original.recipient_count > 0 then p_original_id end,
        case when p_with_audience or p_is_retry then v_original.recipient_count else 0 end,
        v_original.requires_approval, v_original.messages_per_hour, v_original.first_wave_count,
        case when not p_is_retry then v_original.control_group_share end,
        case when not p_is_retry then v_original.control_group_profile_ids end, v_original.suppression_lists,
        case when p_is_retry then p_original_id end)
    on conflict do nothing;
    if not found then
        return null;
    end if;
    insert into delivery_counter (delivery_id, slot, revision, commit_time) values (p_delivery_id, 0, 1, p_now);
    return p_delivery_id;
end $$;
