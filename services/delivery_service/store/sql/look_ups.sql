-- Look-ups. Lists give every row that they looked at, with whether it is to be shown: so a page reads a bounded number
-- of rows, and its reader knows where to go on.

-- name: recipient_message
-- What one message is made from; without a row if there is no such send log.
select r.address, r.attributes, s.outcome
from send_log s join recipient r using (delivery_id, recipient)
where s.delivery_id = $1 and s.recipient = $2;

-- name: profile_messages
-- The next $4 recipients with profile $1 below ($2, $3), the newest delivery first; of channel $5, or 0: of any.
with scanned as (
    select delivery_id, recipient, profile_id, address from recipient
    where profile_id collate "C" = $1 and profile_id <> '' and (delivery_id, recipient) < ($2, $3)
    order by profile_id collate "C" desc, delivery_id desc, recipient desc limit $4
)
select k.delivery_id as place, k.recipient as place_recipient, s.*, k.profile_id, k.address, d.label, d.channel,
    d.state, d.feedback_mode, d.start_time,
    s.recipient is not null and d.state not in (1, 2, 3) and d.log_dropped_time is null
        and ($5::smallint = 0 or d.channel = $5) as shown
from scanned k
join delivery d on d.delivery_id = k.delivery_id
left join send_log s on s.delivery_id = k.delivery_id and s.recipient = k.recipient
order by k.delivery_id desc, k.recipient desc;

-- name: address_messages
-- The recipients with an address among the next $4 deliveries from $2 on downwards, in that one below recipient $3. An
-- email's address is $1, another one's $6. A delivery without such a recipient gives a row as well.
with scanned as (
    select delivery_id, label, channel, state, feedback_mode, start_time, log_dropped_time
    from delivery where delivery_id <= $2 order by delivery_id desc limit $4
)
select d.delivery_id as place, coalesce(r.recipient, 0) as place_recipient, s.*, r.profile_id, r.address, d.label,
    d.channel, d.state, d.feedback_mode, d.start_time,
    s.recipient is not null and d.state not in (1, 2, 3) and d.log_dropped_time is null
        and ($5::smallint = 0 or d.channel = $5) as shown
from scanned d
left join recipient r on r.delivery_id = d.delivery_id and r.address = case d.channel when 1 then $1 else $6 end
    and (r.delivery_id < $2 or r.recipient < $3)
left join send_log s on s.delivery_id = r.delivery_id and s.recipient = r.recipient
order by d.delivery_id desc, r.recipient desc nulls last;

-- name: tracking_events
-- The next $7 tracking facts of recipients through $6 behind a place, by the index that keeps each fact once; of kinds
-- $8, or of any.
select t.recipient, t.kind, t.event_time, t.commit_time, t.url, md5(t.url) as url_hash,
    cardinality($8::smallint[]) = 0 or t.kind = any ($8::smallint[]) as shown
from tracking_log t
where t.delivery_id = $1 and (t.recipient, t.kind, t.event_time, md5(t.url)) > ($2, $3, $4, $5) and t.recipient <= $6
order by t.recipient, t.kind, t.event_time, md5(t.url) limit $7;

-- name: lock_breakdown
-- One break-down per delivery at a time; held until the transaction ends. False: another one runs.
select pg_try_advisory_xact_lock(hashtextextended('kpi_breakdown', $1));

-- name: kpi_breakdown
-- A delivery's rows by group and outcome, in one statement, so in one snapshot with its counters. $2: by 1 domain,
-- 2 reason, 3 hour; $3: the outcomes whose reason is shown; $4: how many groups are told, the largest first. The others
-- are one row with place 0. One row at least: without groups, it has no volume.
with keyed as (
    select l.outcome, case $2::smallint
            when 1 then case when strpos(r.address, '@') > 0 then lower(split_part(r.address, '@', -1)) else '' end
            when 2 then case when l.outcome = any ($3::smallint[]) then l.reason else 0 end::text
            else case when l.outcome = 0 then ''
                else extract(epoch from date_trunc('hour', l.event_time, 'UTC'))::bigint::text end
        end as key
    from send_log l
    left join recipient r on $2::smallint = 1 and r.delivery_id = l.delivery_id and r.recipient = l.recipient
    where l.delivery_id = $1 and l.recipient > 0
), grouped as (
    select coalesce(key, '') as key, count(*) as volume,
        count(*) filter (where outcome = 0) as prepared, count(*) filter (where outcome = 1) as canceled,
        count(*) filter (where outcome = 2) as relayed, count(*) filter (where outcome = 3) as deferred,
        count(*) filter (where outcome = 4) as expired, count(*) filter (where outcome = 5) as delivered,
        count(*) filter (where outcome = 6) as bounced
    from keyed group by 1
), ranked as (
    select *, row_number() over (order by volume desc, key) as place from grouped
), told as (
    select case when place <= $4 then place else 0 end as place,
        case when place <= $4 then key else '' end as key, count(*) as groups, sum(volume)::bigint as volume,
        sum(prepared)::bigint as prepared, sum(canceled)::bigint as canceled, sum(relayed)::bigint as relayed,
        sum(deferred)::bigint as deferred, sum(expired)::bigint as expired, sum(delivered)::bigint as delivered,
        sum(bounced)::bigint as bounced
    from ranked group by 1, 2
), counter as (
    select array_agg(revision order by slot) as slot_revisions, sum(prepared)::bigint as prepared_counted,
        sum(canceled)::bigint as canceled_counted, sum(relayed)::bigint as relayed_counted,
        sum(deferred)::bigint as deferred_counted, sum(expired)::bigint as expired_counted,
        sum(delivered)::bigint as delivered_counted, sum(bounced)::bigint as bounced_counted
    from delivery_counter where delivery_id = $1
)
select c.*, t.* from counter c left join told t on true order by t.place;
