-- Erasing a profile: its rows stay, with their numbers and outcomes, so that every count stays exact; who it was goes.

-- Erasures under way. Rows are told apart by erasure_id from then on, so that people are still counted once each; it is
-- random, and once the erasure is complete nothing links it to the profile.
create table erasure (
    profile_id text collate "C" primary key,
    erasure_id text not null,
    begin_time timestamptz not null
);

-- What stands for texts that may tell who it was: for those of one recipient in their order, so that whatever was the
-- greater report still is, and two of them never become one.
create function erased_text (p_number bigint) returns text language sql immutable as $$
    select 'erased ' || lpad(p_number::text, 6, '0')
$$;

-- Erases some recipients of a delivery. As every writer it holds the delivery, then the slots; so nothing is reported
-- about them meanwhile, and a draft that was ready is edited before anyone confirms it: its message to them would have
-- no address. Null: it may not be (now), since a message of theirs is still to leave. Else how many reports and how many
-- tracking facts lost their texts.
create function erase_recipients (
    p_delivery_id bigint, p_recipients integer[], p_erasure_id text, p_now timestamptz
) returns table (reports bigint, tracking_facts bigint) language plpgsql as $$
declare
    v_delivery delivery;
    v_rows bigint;
begin
    select * into v_delivery from delivery where delivery_id = p_delivery_id for no key update;
    if v_delivery.state = 2 or v_delivery.state = 4 and v_delivery.parent_id is not null
        or v_delivery.state in (5, 6, 7) and exists (
            select from send_log
            where delivery_id = p_delivery_id and recipient = any (p_recipients) and recipient > 0 and outcome = 0)
    then
        return;
    end if;
    perform from delivery_counter where delivery_id = p_delivery_id order by slot for no key update;
    if v_delivery.state in (3, 4) then
        update delivery set state = 1, version = version + 1, update_time = p_now, plan = null
        where delivery_id = p_delivery_id;
        update delivery_counter set revision = revision + 1, commit_time = p_now, prepared = 0
        where delivery_id = p_delivery_id;
    end if;

    update recipient set profile_id = p_erasure_id, address = '', address_problem = 1, attributes = '{}'
    where delivery_id = p_delivery_id and recipient = any (p_recipients);

    with known as (
        select recipient, diagnostic from send_log
        where delivery_id = p_delivery_id and recipient = any (p_recipients) and diagnostic <> ''
        union
        select recipient, diagnostic from transition
        where delivery_id = p_delivery_id and recipient = any (p_recipients) and diagnostic <> ''
        union
        select recipient, diagnostic from late_observation
        where delivery_id = p_delivery_id and recipient = any (p_recipients) and diagnostic <> ''
    ), erased as (
        select recipient, diagnostic,
            erased_text(row_number() over (partition by recipient order by diagnostic collate "C")) as text
        from known
    ), of_row as (
        update send_log l set diagnostic = e.text from erased e
        where l.delivery_id = p_delivery_id and l.recipient = e.recipient and l.diagnostic = e.diagnostic
    ), of_transition as (
        update transition t set diagnostic = e.text from erased e
        where t.delivery_id = p_delivery_id and t.recipient = e.recipient and t.diagnostic = e.diagnostic
        returning 1
    ), of_late as (
        update late_observation k set diagnostic = e.text from erased e
        where k.delivery_id = p_delivery_id and k.recipient = e.recipient and k.diagnostic = e.diagnostic
        returning 1
    )
    select (select count(*) from of_transition) + (select count(*) from of_late) into v_rows;
    reports := v_rows;

    update observation_detail set vendor_class = ''
    where delivery_id = p_delivery_id and recipient = any (p_recipients) and vendor_class <> '';

    with erased as (
        select recipient, url, erased_text(row_number() over (partition by recipient order by url collate "C")) as text
        from (
            select distinct recipient, url from tracking_log
            where delivery_id = p_delivery_id and recipient = any (p_recipients) and url <> '') u
    )
    update tracking_log t set url = e.text from erased e
    where t.delivery_id = p_delivery_id and t.recipient = e.recipient and t.url = e.url;
    get diagnostics v_rows = row_count;
    tracking_facts := v_rows;
    return next;
end $$;
