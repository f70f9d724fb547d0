-- Approval by a second person, and pacing.

alter table delivery
    add column requires_approval boolean not null default false,
    -- In force while approved_digest is the plan's.
    add column approver text not null default '',
    add column approve_time timestamptz,
    add column approved_digest text not null default '',
    -- Null: as fast as it goes.
    add column messages_per_hour integer,
    add column first_wave_count integer not null default 0,
    -- How many messages the pacing has let go so far, the last recipient among them, and up to when it has counted.
    add column pace_granted bigint not null default 0,
    add column pace_through integer not null default 0,
    add column pace_time timestamptz;

-- Makes the rows of a proof under the next free numbers below 1; the delivery is held, so that two proofs get different
-- ones, and so that its state is one in which proofs may be sent. Null: it is not, or that would be more than p_max.
create function add_proof (
    p_delivery_id bigint, p_states smallint[], p_max integer, p_profile_ids text[], p_addresses text[],
    p_attributes text[], p_now timestamptz
) returns integer language plpgsql as $$
declare
    v_lowest integer;
begin
    perform from delivery where delivery_id = p_delivery_id and state = any (p_states) for no key update;
    if not found then
        return null;
    end if;
    select least(min(recipient), 0) into v_lowest from recipient where delivery_id = p_delivery_id and recipient < 1;
    if cardinality(p_addresses) - v_lowest > p_max then
        return null;
    end if;
    insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
    select p_delivery_id, v_lowest - p.number, 0, p.profile_id, p.address, p.attributes
    from unnest(p_profile_ids, p_addresses, p_attributes) with ordinality
        as p (profile_id, address, attributes, number);
    insert into send_log (delivery_id, recipient, outcome, event_time, update_time)
    select p_delivery_id, v_lowest - number, 0, p_now, p_now from generate_series(1, cardinality(p_addresses)) as number;
    return v_lowest - 1;
end $$;
