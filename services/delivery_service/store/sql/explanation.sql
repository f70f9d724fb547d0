-- Explanations: what is known about a delivery's progress, and about one recipient.

-- name: delivery_situation
-- Everything but the parts. Times of leases are by the database's clock, which also says what time it is.
select d.state, d.recipient_count, d.prepared_through, d.preparation_token is not null as preparation_held,
    d.preparation_lease_time, d.update_time, d.contact_time, d.start_time, d.finish_time, d.validity_end_time,
    d.settled_time, f.confirm_time, d.pace_granted,
    d.messages_per_hour is not null and d.pace_through < d.recipient_count as paced, c.*, clock_timestamp() as time
from delivery d
left join confirmation f on f.delivery_id = d.delivery_id and f.request_id = d.confirm_request_id
join lateral (
    select sum(prepared)::bigint as prepared, sum(relayed)::bigint as relayed, sum(deferred)::bigint as deferred,
        max(newest_event_time) as newest_event_time
    from delivery_counter where delivery_id = $1
) c on true
where d.delivery_id = $1;

-- name: open_parts
-- The parts that are not done, by who holds them: free, leased (one row per process), put off, or with nothing left but
-- messages to paused domains.
select count(*) as parts, sum(prepared_count)::bigint as messages, max(claim_count) as claim_count,
    case when available_time > clock_timestamp() then lease_holder else '' end as holder,
    available_time > clock_timestamp() as held, min(available_time) as available_time,
    held_version = (select domain_pause_version from delivery where delivery_id = $1)
        and available_time <= clock_timestamp() as waits_for_domains,
    sum(held_count)::bigint as messages_to_paused_domains
from relay_part where delivery_id = $1 and not done
group by 4, 5, 7 order by 5, 7, 4;

-- name: report_mta_contact
-- What this process sees of the MTA side; forgets processes that fell silent.
with gone as (
    delete from mta_contact where holder <> $1 and report_time < $3::timestamptz - $4::interval
)
insert into mta_contact (holder, away_since_time, report_time) values ($1, $2, $3)
on conflict (holder) do update set away_since_time = $2, report_time = $3;

-- name: mta_contacts_lost
-- Processes that reported lately, and can't reach the MTA side.
select holder, away_since_time from mta_contact
where away_since_time is not null and report_time >= $1::timestamptz - $2::interval
order by away_since_time, holder;

-- name: sources_heard
-- MTA sources connected to any replica that reported lately, and when one was last heard of.
select count(distinct source_id) filter (where report_time >= $1::timestamptz - $2::interval) as connected,
    max(report_time) as report_time
from feedback_source;

-- name: recipient_exclusion
-- One recipient, with the cause of its exclusion if there is one.
select r.profile_id, r.address, e.cause
from recipient r left join exclusion_log e using (delivery_id, recipient)
where r.delivery_id = $1 and r.recipient = $2;
