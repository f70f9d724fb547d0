-- Recipient domains that are paused within a delivery.

alter table delivery
    -- domain/domain_pauses.py: an array of {recipient_domain, pauser, pause_time, cause, detail}, and the causes that
    -- someone has resumed each domain over, {recipient_domain: [cause]}.
    add column paused_domains jsonb not null default '[]',
    add column overruled_domains jsonb not null default '{}',
    -- Raised whenever a domain is paused or resumed. A relay worker gives up what it has read under an older version.
    add column domain_pause_version integer not null default 1;

-- A part of which nothing is left but messages to paused domains waits as long as the delivery has this version: any
-- change of the paused domains frees it, without a write to it.
alter table relay_part
    add column held_version integer not null default 0,
    add column held_count integer not null default 0;

-- Hard bounces are few, and looked at by the circuit breaker while a delivery is being sent. Rows of the log never
-- change: what became of such a message since is in its send log.
create index transition_hard on transition (delivery_id, recipient) where failure_type = 2;

-- Old alerts are dropped every minute.
create index alert_by_time on alert (raise_time);
