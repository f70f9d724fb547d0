-- Erasing a profile; what changes the rows of a delivery is a function (schema/0033_erasure.sql).

-- name: begin_erasure
-- The id of the profile's erasure: $2, or the one of an erasure that was begun before and is not complete.
with begun as (
    insert into erasure (profile_id, erasure_id, begin_time) values ($1, $2, $3)
    on conflict do nothing
    returning erasure_id
)
select coalesce((select erasure_id from begun), (select erasure_id from erasure where profile_id = $1));

-- name: complete_erasure
delete from erasure where profile_id = $1;

-- name: recipients_of_profile
-- The next $4 of them behind a place ($2, $3), with what says whether they may be erased.
select r.delivery_id, r.recipient, r.address, d.settled_time is null and d.state >= 5 as unsettled,
    d.state = 2 or d.state = 4 and d.parent_id is not null or d.state in (5, 6, 7) and r.recipient > 0 and exists (
        select from send_log l where l.delivery_id = r.delivery_id and l.recipient = r.recipient and l.outcome = 0)
        as to_leave
from (
    select delivery_id, recipient, address from recipient
    where profile_id collate "C" = $1 and profile_id <> '' and (delivery_id, recipient) > ($2, $3)
    order by profile_id collate "C", delivery_id, recipient limit $4
) r left join delivery d using (delivery_id)
order by r.delivery_id, r.recipient;

-- name: erase_recipients
select reports, tracking_facts from erase_recipients($1, $2, $3, $4);

-- name: wait_for_copies
-- Until no audience is being copied that was read before this.
select count(*) from (select from delivery where audience_source_id is not null for share) c;

-- name: erase_from_control_groups
-- Raises the version, so that nobody writes back what was read before.
with changed as (
    update delivery
    set control_group_profile_ids = array_replace(control_group_profile_ids, $1, $2), version = version + 1
    where control_group_profile_ids @> array[$1::text]
    returning 1
)
select count(*) from changed;

-- name: erase_from_dead_letters
-- Of these messages, or with one of these addresses anywhere in their texts. The table is a ring of bounded size.
with changed as (
    update dead_letter
    set diagnostic = case when diagnostic = '' then '' else 'erased' end,
        detail = case when detail = '' then '' else 'erased' end,
        message_id = case when exists (
            select from unnest($2::text[]) a where strpos(lower(message_id), a) > 0) then 'erased' else message_id end
    where message_id = any ($1::text[]) and (diagnostic, detail) <> ('erased', 'erased')
        and not (diagnostic in ('', 'erased') and detail in ('', 'erased'))
        or exists (
            select from unnest($2::text[]) a
            where strpos(lower(diagnostic), a) > 0 or strpos(lower(detail), a) > 0 or strpos(lower(message_id), a) > 0)
    returning 1
)
select count(*) from changed;

-- name: erase_from_address_health
-- Forgets what was reported about these messages. An address that is quarantined stays so, as if by hand: nobody is to
-- write to it again. Of any other address, what others' messages told stays and is judged anew; without any, it goes.
with message as (
    select * from unnest($1::bigint[], $2::integer[]) as m (delivery_id, recipient)
), facts as (
    delete from address_event e using message m
    where e.channel in (1, 2, 3) and e.address = any ($3::text[]) and e.delivery_id = m.delivery_id
        and e.recipient = m.recipient
), found as (
    select h.channel, h.address, h.status < 3 and h.release_time = '-infinity' and not exists (
        select from address_event e
        where e.channel = h.channel and e.address = h.address
            and not exists (select from message m where m.delivery_id = e.delivery_id and m.recipient = e.recipient))
        as empty
    from address_health h where h.channel in (1, 2, 3) and h.address = any ($3::text[])
), gone as (
    delete from address_health h using found f where f.empty and h.channel = f.channel and h.address = f.address
)
update address_health h
set adder = case when h.status = 3 and h.adder = '' then 'erasure' else h.adder end, diagnostic = '',
    delivery_id = null, recipient = null, fact_version = h.fact_version + 1
from found f
where not f.empty and h.channel = f.channel and h.address = f.address
    and (h.status < 3 or exists (
        select from message m where m.delivery_id = h.delivery_id and m.recipient = h.recipient));
