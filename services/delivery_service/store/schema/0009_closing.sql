-- The end of a delivery: stopped, out of time, settled.

alter table delivery
    -- Who stopped it and when; what was in flight then; the vector of slot revisions then, so that the log can tell how
    -- many messages turned out to have left; and that number, once everything is decided.
    add column stop_time timestamptz,
    add column stopper text not null default '',
    add column stop_in_flight integer,
    add column stop_revisions bigint[],
    add column stop_left integer,
    -- When the end of the validity period was dealt with: nothing waits for a retry any more.
    add column validity_closed_time timestamptz,
    -- Which worker closes it, until when (a token fences off one that lost its lease).
    add column closing_token uuid,
    add column closing_lease_time timestamptz;

-- What the closing worker looks for, each by what makes it due.
create index delivery_stopping on delivery (delivery_id) where state = 8 and finish_time is null;
create index delivery_validity on delivery (validity_end_time) where validity_closed_time is null;
create index delivery_settling on delivery (finish_time) where settled_time is null;
