-- The transitions of a hand-over as one row: a part that the MTA side took is a thousand rows of the log that say the
-- same, and writing them, with two index entries each, was more than half of what relaying costs Postgres.

-- A range of recipients that went from PREPARED to RELAYED in one revision of their slot. The log is this and the table
-- transition together (the view every_transition): whoever reads transitions to RELAYED, or from PREPARED, reads both.
-- A message is in it once at most, and then it is the first that its log has: nothing ever becomes PREPARED again.
create table hand_over_log (
    delivery_id bigint not null,
    slot smallint not null,
    revision bigint not null,
    part integer not null,  -- all recipients are of one
    first_recipient integer not null,
    recipient_count integer not null,
    commit_time timestamptz not null,
    -- When each was accepted, from the first recipient on: microseconds since the epoch. 0: not one of them.
    event_times_us bigint[] not null,
    primary key (delivery_id, part, revision)
);
-- All of them, but only for queries that say so: a generic plan would take it for a look-up by part just as well, since
-- a delivery of average size has few.
create index hand_over_log_slot on hand_over_log (delivery_id, slot, revision) where revision > 0;
