-- Retries: new drafts to those whom a delivery that is over did not reach.

alter table delivery add column retry_of_id bigint;
create index delivery_retries on delivery (retry_of_id, delivery_id) where retry_of_id is not null;

-- The retries of a delivery (delivery_id), by request: the same request gets the same answer. Empty filters: any.
create table retry (
    delivery_id bigint not null,
    request_id text not null,
    retry_id bigint not null,
    outcomes smallint[] not null,
    failure_types smallint[] not null,
    reasons smallint[] not null,
    recipient_domains text[] not null,
    -- As the first call told it: failures by type and reason, and how many messages were undecided.
    failures jsonb not null,
    undecided_count bigint not null,
    primary key (delivery_id, request_id)
);

-- The recipients from p_after + 1 to p_through who failed in one of these ways. Counted and copied by this alone.
create function failed_recipients (
    p_delivery_id bigint, p_after integer, p_through integer, p_outcomes smallint[], p_failure_types smallint[],
    p_reasons smallint[], p_recipient_domains text[]
) returns table (recipient integer, failure_type smallint, reason smallint) language sql stable as $$
    select s.recipient, s.failure_type, s.reason
    from send_log s
    where s.delivery_id = p_delivery_id and s.recipient > p_after and s.recipient <= p_through
        and s.outcome = any (p_outcomes)
        and (cardinality(p_failure_types) = 0 or s.failure_type = any (p_failure_types))
        and (cardinality(p_reasons) = 0 or s.reason = any (p_reasons))
        and (cardinality(p_recipient_domains) = 0 or exists (
            select from recipient r
            where r.delivery_id = s.delivery_id and r.recipient = s.recipient
                and split_part(r.address, '@', -1) = any (p_recipient_domains)));
$$;

-- A draft with everything of another delivery but its schedule. The original is held, so that it can't be deleted in
-- between. With the audience, its copying begins. A retry has no control group: its recipients were chosen to get the
-- message. Gives the id. Null: it is taken, or the original is gone, or its own recipients are still being copied by a
-- retry, so that it is not known how many there will be.
create function copy_draft (
    p_delivery_id bigint, p_original_id bigint, p_label text, p_creator text, p_now timestamptz,
    p_with_audience boolean, p_is_retry boolean
) returns bigint language plpgsql as $$
declare
    v_original delivery;
begin
    select * into v_original from delivery where delivery_id = p_original_id for share;
    if not found or p_with_audience and v_original.audience_source_id is not null
        and v_original.audience_source_id = v_original.retry_of_id then
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

-- The draft for a retry: the id of it, or of that which the same request has made before. Null: the id is taken. The
-- delivery is locked first: of two calls with one request at once, the second finds what the first has made.
create function retry_failed (
    p_delivery_id bigint, p_request_id text, p_retry_id bigint, p_label text, p_creator text, p_now timestamptz,
    p_outcomes smallint[], p_failure_types smallint[], p_reasons smallint[], p_recipient_domains text[],
    p_failures jsonb, p_undecided_count bigint
) returns bigint language plpgsql as $$
declare
    v_known bigint;
begin
    perform from delivery where delivery_id = p_delivery_id for no key update;
    select retry_id into v_known from retry where delivery_id = p_delivery_id and request_id = p_request_id;
    if found then
        return v_known;
    end if;
    if copy_draft(p_retry_id, p_delivery_id, p_label, p_creator, p_now, false, true) is null then
        return null;
    end if;
    insert into retry (delivery_id, request_id, retry_id, outcomes, failure_types, reasons, recipient_domains, failures,
        undecided_count)
    values (p_delivery_id, p_request_id, p_retry_id, p_outcomes, p_failure_types, p_reasons, p_recipient_domains,
        p_failures, p_undecided_count);
    return p_retry_id;
end $$;

-- Copies the next recipients of an audience that is being copied; true once it is complete, null if another replica is
-- at it, or has been. The counter of how far it has come is moved in the same transaction, so a range is copied once. A
-- retry takes the failed ones, under the next numbers that are free (recipients may be added meanwhile; the lock on the
-- delivery keeps the two apart), and its audience's digest is chained from who they are.
create or replace function copy_audience (p_delivery_id bigint, p_step integer) returns boolean language plpgsql as $$
declare
    v_copy delivery;
    v_retry retry;
    v_through integer;
    v_failed integer[];
begin
    select * into v_copy from delivery
    where delivery_id = p_delivery_id and audience_source_id is not null for no key update skip locked;
    if not found then
        return null;
    end if;
    v_through := least(v_copy.audience_copied_through + p_step, v_copy.audience_source_count);
    if v_copy.audience_source_id is distinct from v_copy.retry_of_id then
        insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
        select p_delivery_id, recipient, address_problem, profile_id, address, attributes
        from recipient
        where delivery_id = v_copy.audience_source_id and recipient > v_copy.audience_copied_through
            and recipient <= v_through;
    else
        select * into v_retry from retry where delivery_id = v_copy.retry_of_id and retry_id = p_delivery_id;
        v_failed := array(
            select f.recipient
            from failed_recipients(v_retry.delivery_id, v_copy.audience_copied_through, v_through, v_retry.outcomes,
                v_retry.failure_types, v_retry.reasons, v_retry.recipient_domains) f
            order by f.recipient);
        insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
        select p_delivery_id, v_copy.recipient_count + f.number, r.address_problem, r.profile_id, r.address,
            r.attributes
        from unnest(v_failed) with ordinality as f (recipient, number)
        join recipient r on r.delivery_id = v_retry.delivery_id and r.recipient = f.recipient;
        if cardinality(v_failed) > 0 then
            update delivery set recipient_count = recipient_count + cardinality(v_failed),
                audience_digest = sha256(audience_digest
                    || sha256(convert_to(v_retry.delivery_id || ' ' || array_to_string(v_failed, ' '), 'UTF8')))
            where delivery_id = p_delivery_id;
        end if;
    end if;
    update delivery set audience_copied_through = v_through,
        audience_source_id = case when v_through < audience_source_count then audience_source_id end
    where delivery_id = p_delivery_id;
    return v_through = v_copy.audience_source_count;
end $$;
