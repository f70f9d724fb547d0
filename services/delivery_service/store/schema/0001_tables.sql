-- The tables (design, section 10).
--
-- Keys begin with delivery_id everywhere on the hot path, so that tables can be range-partitioned for retention and
-- distributed by it: no unique key without it, no foreign key across it. Nothing on a hot row is NULL: comparisons of
-- the lattice must always have an answer. Small numbers are the enums of domain/ (outcome: its rank).

create table delivery (
    delivery_id bigint primary key,
    label text not null,
    channel smallint not null,
    feedback_mode smallint not null,
    subject text not null,
    html text not null,
    body_text text not null,
    from_address text not null,
    from_name text not null,
    reply_to_address text not null,
    validity_period interval not null,
    state smallint not null,
    -- Raised by every write: writers compare it before they set (no lock is held while anyone thinks).
    version bigint not null default 1,
    creator text not null,
    create_time timestamptz not null,
    update_time timestamptz not null,
    recipient_count integer not null default 0,
    audience_digest bytea not null default '',
    -- 0 before the first preparation, then never changed: it decides where a recipient's counters live.
    slot_count smallint not null default 0,
    -- The preparation under way: who asked, which worker holds it (a token fences off a worker that lost its lease),
    -- until when, and the last recipient dealt with (-1: the exclusions are not computed yet).
    preparer text not null default '',
    preparation_token uuid,
    preparation_lease_time timestamptz,
    prepared_through integer not null default -1,
    plan jsonb,
    -- The confirmation in force; all of them are in the table confirmation.
    confirm_request_id text,
    start_time timestamptz,
    finish_time timestamptz,
    validity_end_time timestamptz,
    settled_time timestamptz
);
-- What workers look for: PREPARING, START_PENDING, IN_PROGRESS. Few rows at any time.
create index delivery_at_work on delivery (state, delivery_id) where state in (2, 5, 6);

-- Every confirmation ever given, by request: the same request gets the same answer even after the delivery moved on.
create table confirmation (
    delivery_id bigint not null,
    request_id text not null,
    plan_digest text not null,
    confirmer text not null,
    confirm_time timestamptz not null,
    primary key (delivery_id, request_id)
);

-- The audience; immutable.
create table recipient (
    delivery_id bigint not null,
    recipient integer not null,
    address_problem smallint not null,
    profile_id text not null,
    address text collate "C" not null,
    attributes text not null,  -- a JSON object of strings, as it travels: nothing here looks into it
    primary key (delivery_id, recipient)
);
create index recipient_address on recipient (delivery_id, address);

-- How far each upload of recipients has come.
create table recipient_upload (
    delivery_id bigint not null,
    upload_id text not null,
    last_chunk bigint not null,
    added_count bigint not null,
    primary key (delivery_id, upload_id)
);

create table exclusion_log (
    delivery_id bigint not null,
    recipient integer not null,
    cause smallint not null,
    primary key (delivery_id, recipient)
);

-- Where each message stands. Narrow; free space on the page and no index on what changes keep updates HOT. The hand-over
-- updates all rows of a page in one transaction, so more than half of a page must be free, or a third of these updates
-- would leave the page and bloat the index.
create table send_log (
    delivery_id bigint not null,
    recipient integer not null,
    outcome smallint not null,
    failure_type smallint not null default 0,
    reason smallint not null default 0,
    smtp_code smallint not null default 0,
    attempt smallint not null default 0,
    event_time timestamptz not null,
    update_time timestamptz not null,
    enhanced_code text collate "C" not null default '',
    diagnostic text collate "C" not null default '',
    primary key (delivery_id, recipient)
) with (fillfactor = 45);

-- Every accepted change of outcome, append-only. Within a slot, the order of revisions is the order of commits.
create table transition (
    delivery_id bigint not null,
    revision bigint not null,
    recipient integer not null,
    slot smallint not null,
    before smallint not null,
    outcome smallint not null,
    failure_type smallint not null,
    reason smallint not null,
    smtp_code smallint not null,
    attempt smallint not null,
    rules_version smallint not null,
    event_time timestamptz not null,
    commit_time timestamptz not null,
    enhanced_code text collate "C" not null,
    diagnostic text collate "C" not null
);
create index transition_log on transition (delivery_id, slot, revision);
create index transition_recipient on transition (delivery_id, recipient);

-- Observations that did not win, each once: with the transitions they are all that was ever reported.
create table late_observation (
    delivery_id bigint not null,
    recipient integer not null,
    outcome smallint not null,
    failure_type smallint not null,
    reason smallint not null,
    smtp_code smallint not null,
    attempt smallint not null,
    rules_version smallint not null,
    event_time timestamptz not null,
    commit_time timestamptz not null,
    enhanced_code text collate "C" not null,
    diagnostic text collate "C" not null
);
create index late_observation_recipient on late_observation (delivery_id, recipient);

-- The counters, in a few slots per delivery; a writer locks the slot first, so rows can't deadlock. Slot 0 exists from
-- the creation on and carries the revisions of the delivery's own changes.
create table delivery_counter (
    delivery_id bigint not null,
    slot smallint not null,
    revision bigint not null default 0,
    prepared integer not null default 0,
    canceled integer not null default 0,
    relayed integer not null default 0,
    deferred integer not null default 0,
    expired integer not null default 0,
    delivered integer not null default 0,
    bounced integer not null default 0,
    deferred_hard integer not null default 0,
    expired_hard integer not null default 0,
    bounced_hard integer not null default 0,
    deferred_ignored integer not null default 0,
    expired_ignored integer not null default 0,
    bounced_ignored integer not null default 0,
    commit_time timestamptz,
    newest_event_time timestamptz,
    primary key (delivery_id, slot)
) with (fillfactor = 25);

-- A drift that ComputeStatistics found and repaired. There must be none.
create table counter_correction (
    delivery_id bigint not null,
    slot smallint not null,
    correct_time timestamptz not null,
    counter text not null,
    counted bigint not null,
    found bigint not null
);
create index counter_correction_delivery on counter_correction (delivery_id);

-- Opens, clicks and the like: facts beside the outcome, each exactly once.
create table tracking_log (
    delivery_id bigint not null,
    recipient integer not null,
    kind smallint not null,
    event_time timestamptz not null,
    commit_time timestamptz not null,
    url text not null
);
-- A link may be longer than an index entry: its hash stands for it.
create unique index tracking_log_fact on tracking_log (delivery_id, recipient, kind, event_time, md5(url));

-- Opens and clicks as last counted, and since when that is out of date.
create table engagement (
    delivery_id bigint primary key,
    opened integer not null default 0,
    clicked integer not null default 0,
    opens bigint not null default 0,
    clicks bigint not null default 0,
    opened_with_efs integer not null default 0,
    clicked_with_efs integer not null default 0,
    delivered_with_efs integer not null default 0,
    opened_without_efs integer not null default 0,
    clicked_without_efs integer not null default 0,
    delivered_without_efs integer not null default 0,
    as_of_time timestamptz,
    stale_since_time timestamptz
);
create index engagement_stale on engagement (stale_since_time) where stale_since_time is not null;

-- The work of relaying: a range of recipients each, claimed with a lease. available_time is the end of the lease, or
-- of a back-off. claim_count fences off a worker that lost its lease.
create table relay_part (
    delivery_id bigint not null,
    part integer not null,
    prepared_count integer not null,
    done boolean not null default false,
    claim_count integer not null default 0,
    lease_holder text not null default '',
    available_time timestamptz not null default '-infinity',
    primary key (delivery_id, part)
) with (fillfactor = 60);
create index relay_part_open on relay_part (delivery_id, part) where not done;

-- MTA events whose message does not exist. A ring: the oldest go.
create table dead_letter (
    dead_letter_id bigint generated always as identity primary key,
    message_id text not null,
    source_id text not null,
    outcome smallint not null,
    tracking_kind smallint not null,
    event_time timestamptz not null,
    create_time timestamptz not null,
    smtp_code smallint not null,
    diagnostic text not null,
    detail text not null
);

-- Which MTA sources each replica of FeedbackService has; a replica that falls silent is forgotten.
create table feedback_source (
    replica_id text not null,
    source_id text not null,
    report_time timestamptz not null,
    primary key (replica_id, source_id)
);
