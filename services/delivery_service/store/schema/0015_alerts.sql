-- Alerts, each raised once a day for a delivery and a cause.

create table alert (
    delivery_id bigint not null,
    cause smallint not null,
    day date not null,
    alert_id bigint not null,
    label text not null,
    raise_time timestamptz not null,
    detail text not null,
    -- For the webhook: when it took the alert, and when to try (again).
    notify_time timestamptz,
    next_try_time timestamptz not null,
    tries integer not null default 0,
    primary key (delivery_id, cause, day)
);
create index alert_by_id on alert (alert_id);
create index alert_to_notify on alert (next_try_time) where notify_time is null;
create sequence alert_id;

-- What alerts may be about: deliveries that are not over, and drafts whose preparation failed.
create index delivery_watched_for_alerts on delivery (delivery_id)
where settled_time is null and not recurring and state in (3, 5, 6, 7, 8, 9);

-- Raises alerts, unless they were raised this day. One at a time: whoever has read an alert has been able to read all
-- with smaller ids, since they were committed before. Gives how many are new.
create function raise_alerts (
    p_delivery_ids bigint[], p_causes smallint[], p_labels text[], p_details text[], p_now timestamptz
) returns smallint[] language plpgsql as $$
declare
    v_causes smallint[];
begin
    perform pg_advisory_xact_lock(hashtextextended('raise_alerts', 0));
    with raised as (
        insert into alert (delivery_id, cause, day, alert_id, label, raise_time, detail, next_try_time)
        select a.delivery_id, a.cause, (p_now at time zone 'UTC')::date, nextval('alert_id'), a.label, p_now, a.detail,
            p_now
        from unnest(p_delivery_ids, p_causes, p_labels, p_details) as a (delivery_id, cause, label, detail)
        where not exists (
            select from alert k where k.delivery_id = a.delivery_id and k.cause = a.cause
                and k.day = (p_now at time zone 'UTC')::date)
        on conflict do nothing
        returning cause
    )
    select coalesce(array_agg(cause), '{}') into v_causes from raised;
    return v_causes;
end $$;
