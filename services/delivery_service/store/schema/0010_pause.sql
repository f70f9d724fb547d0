-- Who or what paused a delivery.

alter table delivery
    add column pause_time timestamptz,
    add column pauser text not null default '',
    -- domain/breaker.py has the numbers; 1: a command.
    add column pause_cause smallint not null default 0,
    add column pause_detail text not null default '',
    -- Causes that someone has resumed over: the breaker does not pause for them again.
    add column overruled_causes smallint[] not null default '{}';

-- Complaints are rare, and counted while a delivery is being sent.
create index tracking_log_complaint on tracking_log (delivery_id, recipient) where kind = 6;
