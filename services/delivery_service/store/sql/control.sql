-- Pause, resume and stop. Each compares the state, and raises slot 0's revision, so that watchers see it.

-- name: pause_delivery
-- By someone, or for a cause ($4) that the breaker found and nobody has resumed over.
with changed as (
    update delivery
    set state = 7, version = version + 1, update_time = $2, pause_time = $2, pauser = $3, pause_cause = $4,
        pause_detail = $5
    where delivery_id = $1 and state = 6 and $4::smallint <> all (overruled_causes)
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $2
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: resume_delivery
with changed as (
    update delivery
    set state = 6, version = version + 1, update_time = $2, pause_time = null, pauser = '', pause_cause = 0,
        pause_detail = '',
        -- A command is no cause of the breaker's.
        overruled_causes = case when pause_cause > 1 then overruled_causes || pause_cause else overruled_causes end
    where delivery_id = $1 and state = 7
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $2
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: stop_delivery
-- Waits for a claim that holds the state; after it, none can be made.
with changed as (
    update delivery
    set state = 8, version = version + 1, update_time = $2, stop_time = $2, stopper = $3,
        stop_revisions = (
            select array_agg(c.revision order by c.slot) from delivery_counter c where c.delivery_id = $1)
    where delivery_id = $1 and state in (5, 6, 7)
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $2
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: set_domain_pauses
-- The paused domains of the version that was read, while it is being sent. Waits for a claim that holds the state; what
-- is read under an older version of them is given up. Of a paced delivery, the messages that were held ($6: a domain was
-- resumed) are let go again one after the other, beginning with the first part that has some.
with changed as (
    update delivery d
    set paused_domains = $4, overruled_domains = $5, domain_pause_version = d.domain_pause_version + 1,
        version = d.version + 1, update_time = $3,
        pace_through = case when $6 and d.messages_per_hour is not null then least(d.pace_through, h.before)
            else d.pace_through end,
        pace_granted = case when $6 and d.messages_per_hour is not null and h.before < d.pace_through then (
                select sum(k.canceled + k.relayed + k.deferred + k.expired + k.delivered + k.bounced)
                from delivery_counter k where k.delivery_id = $1)
            else d.pace_granted end
    from (
        select min(p.part) * 1024 - 1 as before from relay_part p
        where p.delivery_id = $1 and not p.done and p.held_count > 0
    ) h
    where d.delivery_id = $1 and d.version = $2 and d.state in (6, 7)
    returning d.delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $3
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: breaker_samples
-- Of the deliveries in progress: how many messages were handed over, and what speaks for a pause.
select d.delivery_id, d.overruled_causes, d.channel = 1 as has_domains, c.handed_over, c.hard_bounces,
    (select count(distinct t.recipient) from tracking_log t
        where t.delivery_id = d.delivery_id and t.kind = 6 and t.recipient > 0) as complained
from delivery d
join lateral (
    select sum(k.relayed + k.deferred + k.expired + k.delivered + k.bounced) as handed_over,
        sum(k.deferred_hard + k.expired_hard + k.bounced_hard) as hard_bounces
    from delivery_counter k where k.delivery_id = d.delivery_id
) c on c.handed_over >= $1
where d.state = 6 and d.state in (2, 5, 6);

-- name: in_flight
-- Messages that someone holds and may have given away: still PREPARED, in a part that is claimed now to be relayed.
select count(*) from relay_part p
join send_log s on s.delivery_id = p.delivery_id
    and s.recipient >= p.part * 1024 and s.recipient < (p.part + 1) * 1024 and s.outcome = 0
where p.delivery_id = $1 and not p.done and p.lease_holder <> '' and not starts_with(p.lease_holder, 'closing: ')
    and p.available_time > clock_timestamp();

-- name: in_flight_to_domain
select count(*) from relay_part p
join send_log s on s.delivery_id = p.delivery_id
    and s.recipient >= p.part * 1024 and s.recipient < (p.part + 1) * 1024 and s.outcome = 0
join recipient r on r.delivery_id = s.delivery_id and r.recipient = s.recipient
where p.delivery_id = $1 and not p.done and p.lease_holder <> '' and not starts_with(p.lease_holder, 'closing: ')
    and p.available_time > clock_timestamp()
    and split_part(r.address, '@', -1) = $2;

-- name: domain_failures
-- Hard bounces and complaints by recipient domain: the $4 domains with the most of them that have at least $2 of the
-- one or $3 of the other. From the few messages that have failed, each looked up by its key.
select f.recipient_domain, f.hard_bounces, f.complained from (
    select split_part(r.address, '@', -1) as recipient_domain, sum(b.hard)::bigint as hard_bounces,
        sum(b.complaint)::bigint as complained
    from (
        select h.recipient, 1 as hard, 0 as complaint
        from (select distinct t.recipient from transition t
            where t.delivery_id = $1 and t.failure_type = 2 and t.recipient > 0) h
        cross join lateral (
            select from send_log s
            where s.delivery_id = $1 and s.recipient = h.recipient and s.failure_type = 2 and s.outcome in (3, 4, 6)
            limit 1) s
        union all
        select distinct k.recipient, 0, 1 from tracking_log k
        where k.delivery_id = $1 and k.kind = 6 and k.recipient > 0
    ) b
    cross join lateral (
        select c.address from recipient c where c.delivery_id = $1 and c.recipient = b.recipient limit 1) r
    group by 1
) f
where f.hard_bounces >= $2 or f.complained >= $3
order by f.hard_bounces + f.complained desc, f.recipient_domain limit $4;

-- name: handed_over_by_domain
-- How many messages to these domains were handed over. Reads the recipients of the parts that were ever claimed, one
-- part after the other, and each message to these domains by its key: a generic plan of a join would compare each message
-- of a part with each recipient of it.
select h.recipient_domain, count(*) as handed_over
from relay_part p
cross join lateral (
    select split_part(r.address, '@', -1) as recipient_domain
    from recipient r
    cross join lateral (
        select from send_log s where s.delivery_id = $1 and s.recipient = r.recipient and s.outcome >= 2 limit 1) s
    where r.delivery_id = $1 and r.recipient >= p.part * 1024 and r.recipient < (p.part + 1) * 1024
        and r.recipient > 0 and split_part(r.address, '@', -1) = any ($2::text[])
    offset 0
) h
where p.delivery_id = $1 and p.claim_count > 0
group by 1;

-- name: note_stop_in_flight
-- Once: a repeated stop tells the first number again.
update delivery set stop_in_flight = $2 where delivery_id = $1 and stop_in_flight is null;
