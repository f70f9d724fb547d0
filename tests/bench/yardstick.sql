-- The least that an apply path can be (design, section 10): nothing of the product's but the idea.
drop schema if exists yardstick cascade;
create schema yardstick;

create table yardstick.send_log (
    delivery_id bigint not null,
    recipient integer not null,
    outcome smallint not null,
    reason smallint,
    smtp_code smallint,
    event_time timestamptz,
    last_modified timestamptz,
    diagnostic text,
    primary key (delivery_id, recipient)
) with (fillfactor = 60);
create table yardstick.delivery_counter (
    delivery_id bigint,
    slot smallint,
    revision bigint default 0,
    relayed bigint default 0,
    deferred bigint default 0,
    expired bigint default 0,
    delivered bigint default 0,
    bounced bigint default 0,
    primary key (delivery_id, slot)
);
create table yardstick.transition (
    delivery_id bigint not null,
    slot smallint not null,
    revision bigint not null,
    recipient integer not null,
    before smallint,
    after smallint,
    event_time timestamptz,
    smtp_code smallint,
    reason smallint,
    diagnostic text
);
create index on yardstick.transition (delivery_id, slot, revision);
create index on yardstick.transition (delivery_id, recipient);

create function yardstick.apply (
    d bigint, s smallint, recipients integer[], outcomes smallint[], times_us bigint[], codes smallint[],
    reasons smallint[], texts text[]
) returns integer language plpgsql as $$
declare
    r bigint;
    n integer;
begin
    select revision + 1 into r from delivery_counter where delivery_id = d and slot = s for update;
    with observation as (
        select distinct on (recipient) *
        from unnest(recipients, outcomes, times_us, codes, reasons, texts)
            as o (recipient, outcome, time_us, smtp_code, reason, diagnostic)
        order by recipient, outcome desc, time_us desc, smtp_code desc, reason desc, diagnostic desc
    ), changed as (
        update send_log l
        set outcome = o.outcome, event_time = timestamptz 'epoch' + o.time_us * interval '1 microsecond',
            smtp_code = o.smtp_code, reason = o.reason,
            diagnostic = case when o.outcome = 5 then null else o.diagnostic end, last_modified = now()
        from observation o
        where l.delivery_id = d and l.recipient = o.recipient
            and (l.outcome, coalesce(l.event_time, '-infinity'))
                < (o.outcome, timestamptz 'epoch' + o.time_us * interval '1 microsecond')
        returning l.recipient, old.outcome as before, new.outcome as after, new.event_time, o.smtp_code, o.reason,
            o.diagnostic
    ), logged as (
        insert into transition select d, s, r, changed.* from changed
    ), delta as (
        select count(*) as n,
            count(*) filter (where after = 2) - count(*) filter (where before = 2) as relayed,
            count(*) filter (where after = 3) - count(*) filter (where before = 3) as deferred,
            count(*) filter (where after = 4) - count(*) filter (where before = 4) as expired,
            count(*) filter (where after = 5) - count(*) filter (where before = 5) as delivered,
            count(*) filter (where after = 6) - count(*) filter (where before = 6) as bounced
        from changed
    )
    update delivery_counter c
    set revision = r, relayed = c.relayed + x.relayed, deferred = c.deferred + x.deferred,
        expired = c.expired + x.expired, delivered = c.delivered + x.delivered, bounced = c.bounced + x.bounced
    from delta x
    where c.delivery_id = d and c.slot = s and x.n > 0
    returning x.n into n;
    return coalesce(n, 0);
end $$;
