-- The relay workers' claims.

-- name: claim_parts
-- Takes up to $4 free parts of a delivery until $3 from now, by the database's clock. Holds the delivery's state FOR
-- SHARE in the same statement: with a plain read, messages could leave after a stop was answered. Of a paced delivery
-- only recipients up to pace_through may leave. A part that has nothing left but messages to paused domains waits for
-- another version of them.
with in_progress as (
    select delivery_id, case when messages_per_hour is null then 2147483647 else pace_through end as through,
        domain_pause_version, array(select d->>'recipient_domain' from jsonb_array_elements(paused_domains) d)
            as paused_domains
    from delivery where delivery_id = $1 and state = 6 and validity_end_time > $5 for share
), free as (
    select p.part
    from relay_part p join in_progress d on p.delivery_id = d.delivery_id
    where p.delivery_id = $1 and not p.done and p.available_time <= clock_timestamp() and p.part * 1024 <= d.through
        and p.held_version <> d.domain_pause_version
    order by p.part limit $4 for no key update of p skip locked
)
update relay_part p
set lease_holder = $2, available_time = clock_timestamp() + $3::interval, claim_count = p.claim_count + 1
-- As an array: a join would read all parts of the delivery for each of them, in a plan made for any delivery.
from in_progress d where p.delivery_id = $1 and p.part = any (array(select part from free))
returning p.part, p.claim_count, p.prepared_count, d.through, d.domain_pause_version, d.paused_domains;

-- name: claim_parts_to_close
-- As claim_parts, of a delivery that was stopped or whose validity is over: that is for ever, so its state needn't be
-- held. The holder is told apart from one that relays: of what it holds, nothing is in flight.
with free as (
    select part from relay_part
    where delivery_id = $1 and not done and available_time <= clock_timestamp()
    order by part limit $4 for no key update skip locked
)
update relay_part p
set lease_holder = 'closing: ' || $2::text, available_time = clock_timestamp() + $3::interval,
    claim_count = p.claim_count + 1
where p.delivery_id = $1 and p.part = any (array(select part from free))
returning p.part, p.claim_count;

-- name: prepared_of_part
select recipient from send_log
where delivery_id = $1 and recipient >= $2 and recipient < $3 and outcome = 0 order by recipient;

-- name: relayable
-- Those of some deliveries that may be relayed now.
select delivery_id, domain_pause_version from delivery
where delivery_id = any ($1::bigint[]) and state = 6 and validity_end_time > $2;

-- name: renew_parts
update relay_part set available_time = clock_timestamp() + $3::interval
where delivery_id = $1 and lease_holder = $2 and not done and part = any ($4::integer[]);

-- name: read_part
-- The messages of a part that have not left, as columns: a row for each would cost the driver more than its contents.
-- Both tables are told the range: else each recipient is looked up by itself, at twice the cost of the whole. Whether
-- any of them must not be written to on channel $4 any more is looked for in one scan each of the indexes, which costs a
-- fifth of a look for each message; who it is, and only if there are any, says read_part_apart.
with part as materialized (
    select array_agg(m.recipient) as recipients, array_agg(m.address) as addresses,
        array_agg(m.profile_id collate "C") as profile_ids, array_agg(m.attributes) as attributes
    from (
        select r.recipient, r.address, r.profile_id, r.attributes
        from send_log s join recipient r using (delivery_id, recipient)
        where s.delivery_id = $1 and s.recipient >= $2 and s.recipient < $3 and s.outcome = 0
            and r.delivery_id = $1 and r.recipient >= $2 and r.recipient < $3
        order by s.recipient
    ) m
)
select coalesce(p.recipients, '{}') as recipients, coalesce(p.addresses, '{}') as addresses,
    coalesce(p.attributes, '{}') as attributes,
    exists (
        select from denylist n
        where n.channel = $4 and n.kind = 1 and n.value = any (p.addresses) and n.denied)
    or exists (
        select from denylist n
        where n.channel = $4 and n.kind = 2 and n.value = any (p.profile_ids) and n.denied)
    or exists (
        select from address_health h
        where h.channel = $4 and h.address = any (p.addresses) and h.status = 3) as any_barred
from part p;

-- name: read_part_apart
-- The same without those who must not be written to, who are told apart with the reason, and without messages to the
-- domains $5, which are counted.
with message as materialized (
    select r.recipient, r.address, r.profile_id, r.attributes,
        split_part(r.address, '@', -1) = any ($5::text[]) as held
    from send_log s join recipient r using (delivery_id, recipient)
    where s.delivery_id = $1 and s.recipient >= $2 and s.recipient < $3 and s.outcome = 0
        and r.delivery_id = $1 and r.recipient >= $2 and r.recipient < $3
    order by s.recipient
), judged as materialized (
    select m.*, case
        when m.address = any (array(
                select n.value from denylist n
                where n.channel = $4 and n.kind = 1 and n.value = any (array(select address from message))
                    and n.denied))
            or m.profile_id collate "C" = any (array(
                select n.value from denylist n
                where n.channel = $4 and n.kind = 2 and n.denied
                    and n.value = any (array(select profile_id collate "C" from message)))) then 11
        when m.address = any (array(
                select h.address from address_health h
                where h.channel = $4 and h.address = any (array(select address from message)) and h.status = 3))
            then 10
        else 0 end as barred
    from message m
)
select coalesce(array_agg(recipient) filter (where barred = 0 and not held), '{}') as recipients,
    coalesce(array_agg(address) filter (where barred = 0 and not held), '{}') as addresses,
    coalesce(array_agg(attributes) filter (where barred = 0 and not held), '{}') as attributes,
    coalesce(array_agg(recipient) filter (where barred > 0 and not held), '{}') as barred,
    coalesce(array_agg(barred) filter (where barred > 0 and not held), '{}') as barred_reasons,
    count(*) filter (where held) as held
from judged;

-- name: release_part
-- Ends a claim: the part is done if no message in it is left PREPARED, else it is free again after a while; at once, if
-- it has $7 messages to paused domains, means once these are not those of version $8 any more. Only by the claim's own
-- worker. If as many messages left or bounced under it as the part ever had ($9), that none is left needs no look.
update relay_part p
set done = p.prepared_count = $9::integer or not exists (
        select from send_log s
        where s.delivery_id = $1 and s.recipient >= $5 and s.recipient < $6 and s.outcome = 0),
    lease_holder = '', available_time = clock_timestamp() + $4::interval,
    held_count = $7::integer, held_version = case when $7::integer > 0 and $4 = interval '0' then $8::integer else 0 end
where p.delivery_id = $1 and p.part = $2 and p.claim_count = $3
returning p.done;
