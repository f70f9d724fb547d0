-- Queries on the table delivery. Every change compares the version that its author read, or the state; none holds a
-- lock while anyone thinks. A change of state also raises slot 0's revision, so that KPI watchers see it: the counter
-- is updated FROM the changed row, so after it (lock order: delivery, then slots).

-- name: create_delivery
-- With its slot 0, whose revision begins at 1.
with created as (
    insert into delivery (delivery_id, label, channel, feedback_mode, subject, html, body_text, from_address, from_name,
        reply_to_address, validity_period, state, creator, create_time, update_time, schedule, contact_time, recurring,
        requires_approval, messages_per_hour, first_wave_count, control_group_share, control_group_profile_ids,
        suppression_lists)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14, $15, $16, $17, $18, $19, $20, $21, $22,
        $23)
    on conflict do nothing
    returning delivery_id
)
insert into delivery_counter (delivery_id, slot, revision, commit_time) select delivery_id, 0, 1, $14 from created
returning delivery_id;

-- name: get_delivery
select d.*, c.plan_digest as confirm_plan_digest, c.confirmer, c.confirm_time
from delivery d
left join confirmation c on c.delivery_id = d.delivery_id and c.request_id = d.confirm_request_id
where d.delivery_id = $1;

-- name: list_deliveries
-- Newest first, below the id of the previous page's last: the children of $4, or without one, deliveries that are no
-- children. Without the bodies and the profiles of control groups: a page of them would be hundreds of MB.
select d.delivery_id, d.label, d.channel, d.feedback_mode, d.subject, '' as html, '' as body_text, d.from_address,
    d.from_name, d.reply_to_address, d.validity_period, d.state, d.version, d.creator, d.create_time, d.update_time,
    d.recipient_count, d.audience_digest, d.preparer, d.plan, d.confirm_request_id, d.start_time, d.finish_time,
    d.validity_end_time, d.schedule, d.contact_time, d.parent_id, d.occurrence_local_time, d.confirm_by_time,
    d.system_confirms, d.pause_time, d.pauser, d.pause_cause, d.pause_detail, d.stop_time, d.stopper, d.stop_in_flight,
    d.stop_left, d.validity_closed_time, d.settled_time, d.requires_approval, d.approver, d.approve_time,
    d.approved_digest, d.messages_per_hour, d.first_wave_count, d.paused_domains, d.overruled_domains,
    d.control_group_share,
    case when d.control_group_profile_ids is not null then '{}'::text[] end as control_group_profile_ids,
    d.suppression_lists, d.retry_of_id, d.audience_source_id, d.log_dropped_time, c.plan_digest as confirm_plan_digest, c.confirmer,
    c.confirm_time
from delivery d
left join confirmation c on c.delivery_id = d.delivery_id and c.request_id = d.confirm_request_id
where d.delivery_id < $1 and (d.parent_id = $4 or $4::bigint is null and d.parent_id is null)
    and (cardinality($2::smallint[]) = 0 or d.state = any ($2::smallint[]))
order by d.delivery_id desc limit $3;

-- name: update_delivery
-- The editable fields and the state, if the version is still the one that was read. An edit that leads to EDITING takes
-- the plan away, and with it the counters of the old send logs: T is only fixed by a preparation.
with changed as (
    update delivery
    set label = $3, feedback_mode = $4, subject = $5, html = $6, body_text = $7, from_address = $8, from_name = $9,
        reply_to_address = $10, validity_period = $11, state = $12, update_time = $13, version = version + 1,
        schedule = $14, contact_time = $15, recurring = $16, requires_approval = $17, messages_per_hour = $18,
        first_wave_count = $19, control_group_share = $20, control_group_profile_ids = $21, suppression_lists = $22,
        plan = case when $12::smallint = 1 then null else plan end
    where delivery_id = $1 and version = $2
    returning delivery_id, state
), counted as (
    update delivery_counter c
    set revision = c.revision + 1, commit_time = $13, prepared = case when d.state = 1 then 0 else c.prepared end
    from changed d where c.delivery_id = d.delivery_id and (c.slot = 0 or d.state = 1)
    returning c.delivery_id
)
select delivery_id from changed where (select count(*) from counted) >= 0;

-- name: begin_preparation
-- READY or EDITING to PREPARING; a worker takes it from there.
with changed as (
    update delivery
    set state = 2, version = version + 1, update_time = $3, preparer = $4, plan = null, prepared_through = -1,
        preparation_token = null, preparation_lease_time = null
    where delivery_id = $1 and version = $2
    returning delivery_id
), counted as (
    update delivery_counter c set revision = c.revision + 1, commit_time = $3, prepared = 0
    from changed d where c.delivery_id = d.delivery_id
    returning c.delivery_id
)
select delivery_id from changed where (select count(*) from counted) >= 0;

-- name: confirm_send
-- READY to START_PENDING with the confirmation, if the version is still the one that was read.
with changed as (
    update delivery
    set state = 5, version = version + 1, update_time = $5, confirm_request_id = $3, next_occurrence_time = null
    where delivery_id = $1 and version = $2 and state = 4
    returning delivery_id
), confirmed as (
    insert into confirmation (delivery_id, request_id, plan_digest, confirmer, confirm_time, start_time)
    select delivery_id, $3, $4, $6, $5, $7 from changed
    returning delivery_id
), counted as (
    update delivery_counter c set revision = c.revision + 1, commit_time = $5
    from changed d where c.delivery_id = d.delivery_id and c.slot = 0
    returning c.delivery_id
)
select delivery_id from confirmed where (select count(*) from counted) >= 0;

-- name: get_confirmation
select plan_digest, confirmer, confirm_time, request_id, start_time
from confirmation where delivery_id = $1 and request_id = $2;

-- name: start_delivery
-- START_PENDING to IN_PROGRESS, not before its time. One that was to start when it was confirmed did so then. A
-- recurring delivery has no validity period: its children have.
with changed as (
    update delivery d
    set state = 6, version = version + 1, update_time = $2, start_time = s.start_time,
        validity_end_time = case when not d.recurring
            then s.start_time + least(d.validity_period, interval '84 hours') end
    from (
        select c.delivery_id, c.request_id,
            case when d.contact_time > c.confirm_time then $2 else c.confirm_time end as start_time
        from delivery d join confirmation c on c.delivery_id = d.delivery_id and c.request_id = d.confirm_request_id
        where d.delivery_id = $1
    ) as s
    where d.delivery_id = $1 and d.state = 5 and d.confirm_request_id = s.request_id
        and coalesce(d.contact_time, '-infinity') <= $2
    returning d.delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $2
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: deliveries_to_start
-- Confirmed, and their time has come; the one that has waited longest first.
select delivery_id from delivery where state = 5 and coalesce(contact_time, '-infinity') <= $1
order by coalesce(contact_time, '-infinity') limit $2;

-- name: finish_delivery
-- IN_PROGRESS to FINISHED once every part is done, so once no PREPARED row is left; but not if that is so because all
-- has expired without ever being handed over: close_validity says then that it FAILED.
with changed as (
    update delivery
    set state = 9, version = version + 1, update_time = $2, finish_time = $2
    where delivery_id = $1 and state = 6 and not recurring
        and not exists (select from relay_part p where p.delivery_id = $1 and not p.done)
        and (validity_end_time > $2 or exists (select from hand_over_log h where h.delivery_id = $1) or exists (
            select from transition t
            where t.delivery_id = $1 and t.recipient > 0 and not (t.before = 0 and t.outcome = 4)))
    returning delivery_id
)
update delivery_counter c set revision = c.revision + 1, commit_time = $2
from changed d where c.delivery_id = d.delivery_id and c.slot = 0
returning c.delivery_id;

-- name: deliveries_in_state
-- What a worker may have to do: recurring deliveries have nothing to relay, and one whose audience is being copied
-- can't be prepared yet.
select delivery_id from delivery
where state = $1 and state in (2, 5, 6) and not (state = 6 and recurring)
    and not (state = 2 and audience_source_id is not null)
order by delivery_id limit $2;

-- name: slot_counts_started
-- Of those that have been started: before that nothing has left, so nothing can be reported; and from then on the slot
-- count never changes.
select delivery_id, slot_count from delivery where delivery_id = any ($1::bigint[]) and state >= 6;

-- name: slot_count
select slot_count from delivery where delivery_id = $1;

-- name: slot_counts_prepared
-- Of those that have been prepared: their proofs may have left, and the slot count never changes any more.
select delivery_id, slot_count from delivery where delivery_id = any ($1::bigint[]) and slot_count > 0;
