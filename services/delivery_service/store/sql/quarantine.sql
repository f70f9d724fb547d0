-- The quarantine, derived and changed by hand; the steps that read the log are functions (schema/0027_quarantine.sql).

-- name: slots_to_collect
-- Slots whose log goes on behind where it was read, those that have waited longest first.
select c.delivery_id, c.slot
from delivery_counter c left join address_scan s on s.delivery_id = c.delivery_id and s.slot = c.slot
where c.revision > coalesce(s.revision, 0)
order by c.commit_time nulls first, c.delivery_id, c.slot limit $1;

-- name: collect_address_facts
select collect_address_facts($1, $2, $3, $4, $5, $6, $7);

-- name: take_address_news
select take_address_news($1, $2, $3);

-- name: addresses_to_judge
-- Addresses whose facts have changed, with all that the verdict rests on, as columns.
select h.channel, h.address, h.fact_version,
    (select true from allowlist a where a.channel = h.channel and a.address = h.address) is not null as allowed,
    e.event_times, e.failure_types, e.reasons, e.delivery_ids, e.recipients, e.outcomes, g.begin_times, g.end_times
from (
    select channel, address, domain, fact_version, release_time from address_health
    where judged_version <> fact_version order by channel, address limit $1
) h
cross join lateral (
    select array_agg(e.event_time) as event_times, array_agg(e.failure_type) as failure_types,
        array_agg(e.reason) as reasons, array_agg(e.delivery_id) as delivery_ids,
        array_agg(e.recipient) as recipients, array_agg(e.outcome) as outcomes
    from address_event e
    where e.channel = h.channel and e.address = h.address and e.event_time > h.release_time
) e
left join lateral (
    select array_agg(g.begin_time) as begin_times, array_agg(g.end_time) as end_times
    from outage_guard g where g.domain = h.domain
) g on h.domain <> '';

-- name: set_verdicts
-- Writes verdicts on the facts that they are of: on others they say nothing, nor on what someone quarantined by hand.
-- Facts that no verdict needs any more are forgotten. Gives the reasons of those that are quarantined now and were not.
with verdict as (
    select * from unnest($1::smallint[], $2::text[], $3::integer[], $4::smallint[], $5::smallint[], $6::smallint[],
        $7::smallint[], $8::timestamptz[], $9::bigint[], $10::integer[], $11::smallint[], $12::timestamptz[])
        as v (channel, address, fact_version, status, error_count, failure_type, reason, error_time, delivery_id,
            recipient, outcome, forget_before)
), written as (
    update address_health h
    set judged_version = v.fact_version, status = v.status, error_count = v.error_count,
        failure_type = v.failure_type, reason = v.reason, error_time = v.error_time, delivery_id = v.delivery_id,
        recipient = v.recipient, update_time = $13, forget_time = $14,
        diagnostic = case when v.status < 2 then '' else coalesce((
            select t.diagnostic from transition t
            where t.delivery_id = v.delivery_id and t.recipient = v.recipient and t.outcome = v.outcome
                and t.event_time = v.error_time
            order by t.diagnostic limit 1), (
            select k.diagnostic from late_observation k
            where k.delivery_id = v.delivery_id and k.recipient = v.recipient and k.outcome = v.outcome
                and k.event_time = v.error_time
            order by k.diagnostic limit 1), h.diagnostic) end
    from verdict v
    where h.channel = v.channel and h.address = v.address collate "C" and h.fact_version = v.fact_version
        and h.adder = ''
    returning h.channel, h.address, old.status as before, new.status, new.reason, v.forget_before
), by_hand as (
    update address_health h set judged_version = v.fact_version
    from verdict v
    where h.channel = v.channel and h.address = v.address collate "C" and h.fact_version = v.fact_version
        and h.adder <> ''
), forgotten as (
    delete from address_event e using written w
    where e.channel = w.channel and e.address = w.address and e.event_time < w.forget_before
)
select reason from written where status = 3 and before <> 3;

-- name: forget_addresses
-- Forgets at most $2 addresses that are not quarantined and have not been reported on for long, and their facts.
with gone as (
    delete from address_health h
    using (
        select channel, address from address_health
        where status < 3 and forget_time < $1 and judged_version = fact_version
        order by forget_time limit $2 for update skip locked
    ) o
    where h.channel = o.channel and h.address = o.address
    returning h.channel, h.address
), facts as (
    delete from address_event e using gone g where e.channel = g.channel and e.address = g.address
)
select count(*) from gone;

-- name: forget_scans
-- Of deliveries that are no more.
delete from address_scan s where not exists (
    select from delivery_counter c where c.delivery_id = s.delivery_id and c.slot = s.slot);

-- name: quarantine_counts
-- How much is waiting to be judged.
select count(*) from (select from address_health where judged_version <> fact_version limit 100000) w;

-- name: get_address_health
select * from address_health where channel = $1 and address = $2;

-- name: get_address_events
select outcome, event_time, failure_type, reason, delivery_id, recipient from address_event
where channel = $1 and address = $2 order by event_time desc, delivery_id desc, recipient desc limit $3;

-- name: list_address_health
-- The next $3 addresses behind ($1, $2), and which of them pass the filters (0, '' and empty: any).
select h.*,
    h.status > 0 and ($4::smallint = 0 or h.channel = $4)
    and (cardinality($5::smallint[]) = 0 or h.status = any ($5))
    and (cardinality($6::smallint[]) = 0 or h.reason = any ($6))
    and ($7::text = '' or h.domain = $7)
    and ($8::text = '' or position(lower($8) in lower(h.diagnostic)) > 0)
    and ($9::timestamptz is null or h.error_time >= $9) and ($10::timestamptz is null or h.error_time < $10) as shown
from (
    select * from address_health where (channel, address) > ($1::smallint, $2::text collate "C")
    order by channel, address limit $3
) h
order by h.channel, h.address;

-- name: addresses_with_error
-- The next $4 addresses behind ($1, $2, $3) that are quarantined, provisionally or not, by the time of the error that
-- did it, before $5; and which of them pass the filters (0, '' and empty: any).
select h.error_time, h.channel, h.address,
    ($6::smallint = 0 or h.channel = $6) and (cardinality($7::smallint[]) = 0 or h.status = any ($7))
    and (cardinality($8::smallint[]) = 0 or h.reason = any ($8))
    and ($9::text = '' or h.domain = $9)
    and ($10::text = '' or position(lower($10) in lower(h.diagnostic)) > 0) as shown
from (
    select error_time, channel, address, domain, status, reason, diagnostic from address_health
    where status >= 2 and (error_time, channel, address) > ($1::timestamptz, $2::smallint, $3::text collate "C")
        and error_time < $5
    order by error_time, channel, address limit $4
) h
order by h.error_time, h.channel, h.address;

-- name: quarantine_by_hand
-- Gives those that were not allowed to be: they are on the allowlist.
with given as (
    select u.address collate "C" as address, exists (
        select from allowlist a where a.channel = $1 and a.address = u.address collate "C") as allowed
    from unnest($2::text[]) as u (address)
), added as (
    insert into address_health as h (channel, address, domain, status, error_time, adder, note, update_time,
        judged_version)
    select $1, address, case when $1 = 1 then split_part(address, '@', -1) else '' end, 3, $5, $3, $4, $5, 1
    from given where not allowed order by address
    on conflict (channel, address) do update
    set status = 3, adder = excluded.adder, note = excluded.note, update_time = excluded.update_time,
        error_time = case when h.status >= 2 then h.error_time else excluded.error_time end
)
select address from given where allowed order by address;

-- name: release_addresses
-- What was reported of a time up to now counts no more. Gives how many were quarantined, provisionally or not.
with released as (
    update address_health h
    set status = 0, error_count = 0, failure_type = 0, reason = 0, error_time = null, delivery_id = null,
        recipient = null, diagnostic = '', adder = '', note = '', release_time = $3, update_time = $3,
        fact_version = h.fact_version + 1
    from unnest($1::smallint[], $2::text[]) as r (channel, address)
    where h.channel = r.channel and h.address = r.address collate "C"
    returning old.status as before
)
select count(*) filter (where before >= 2) from released;

-- name: add_to_allowlist
-- Such an address is released as well. Gives how many are new.
with added as (
    insert into allowlist (channel, address, add_time, adder, note)
    select $1, u.address, $5, $3, $4 from unnest($2::text[]) as u (address) order by u.address collate "C"
    on conflict do nothing returning address
), released as (
    update address_health h
    set status = 0, error_count = 0, failure_type = 0, reason = 0, error_time = null, delivery_id = null,
        recipient = null, diagnostic = '', adder = '', note = '', release_time = $5, update_time = $5,
        fact_version = h.fact_version + 1
    where h.channel = $1 and h.address = any ($2::text[] collate "C")
)
select count(*) from added;

-- name: remove_from_allowlist
-- What was reported while it was on it is forgotten: it begins anew. Gives how many were on it.
with removed as (
    delete from allowlist where channel = $1 and address = any ($2::text[] collate "C") returning address
), anew as (
    insert into address_health as h (channel, address, domain, update_time, release_time)
    select $1, address, case when $1 = 1 then split_part(address, '@', -1) else '' end, $3, $3
    from removed order by address
    on conflict (channel, address) do update
    set release_time = excluded.release_time, update_time = excluded.update_time, fact_version = h.fact_version + 1
)
select count(*) from removed;

-- name: get_allowlist_entry
select * from allowlist where channel = $1 and address = $2;

-- name: list_allowlist
select * from allowlist where (channel, address) > ($1::smallint, $2::text collate "C")
order by channel, address limit $3;

-- name: deny
-- Puts addresses (kind 1) or profiles (2) on the denylist by hand. Gives how many were not on it.
with denied as (
    insert into denylist as n (channel, kind, value, denied, cause, change_time, changer, note)
    select $1, $2, u.value, true, 3, $6, $4, $5 from unnest($3::text[]) as u (value) order by u.value collate "C"
    on conflict (channel, kind, value) do update
    set denied = true, cause = 3, change_time = excluded.change_time, changer = excluded.changer,
        note = excluded.note, delivery_id = null, recipient = null
    where not n.denied
    returning value
)
select count(*) from denied;

-- name: undeny
-- Takes them off; the rows stay, so that what was reported before does not put them back. Gives how many were on it.
with freed as (
    update denylist set denied = false, change_time = $5, changer = $4
    where channel = $1 and kind = $2 and value = any ($3::text[] collate "C") and denied
    returning value
)
select count(*) from freed;

-- name: get_denial
select * from denylist where channel = $1 and kind = $2 and value = $3 and denied;

-- name: list_denylist
select * from denylist
where denied and (channel, kind, value) > ($1::smallint, $2::smallint, $3::text collate "C")
order by channel, kind, value limit $4;

-- name: recent_domain_results
-- Domains with at least $2 hard bounces in the steps of time $1, with what became of their messages.
select r.domain, sum(r.delivered)::bigint as delivered, sum(r.hard)::bigint as hard
from domain_result r
where r.bucket_time = any ($1::timestamptz[])
group by r.domain
having sum(r.hard) >= $2;

-- name: usual_domain_results
-- What became of the messages to these domains in these steps of time.
select r.domain, sum(r.delivered)::bigint as delivered, sum(r.hard)::bigint as hard
from domain_result r
where r.bucket_time = any ($1::timestamptz[]) and r.domain = any ($2::text[] collate "C")
group by r.domain;

-- name: guard_domains
-- Begins to guard these domains, or goes on. What bounced since $2 is judged again.
with guarded as (
    insert into outage_guard as g (domain, begin_time, last_trip_time)
    select u.domain, greatest($2, (select max(o.end_time) from outage_guard o where o.domain = u.domain collate "C")),
        $3
    from unnest($1::text[]) as u (domain) order by u.domain collate "C"
    on conflict (domain) where end_time is null do update set last_trip_time = excluded.last_trip_time
    returning new.domain, old.domain is null as is_new
), judged_again as (
    update address_health h set fact_version = h.fact_version + 1
    from guarded g where g.is_new and h.status >= 2 and h.error_time >= $2 and h.domain = g.domain and h.adder = ''
)
select domain from guarded where is_new;

-- name: end_guards
-- Ends those that have not tripped since $1.
update outage_guard set end_time = $2 where end_time is null and last_trip_time < $1 returning domain;

-- name: forget_domain_results
delete from domain_result where bucket_time < $1;

-- name: forget_guards
delete from outage_guard where end_time < $1;
