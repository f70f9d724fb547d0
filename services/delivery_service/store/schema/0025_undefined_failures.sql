-- What no rule could read, found without looking at anything else. On tables that are only appended to; nearly no row is
-- one of these, so all that the apply path pays is the look at two numbers.
create index transition_undefined on transition (delivery_id, event_time) where reason = 1 and failure_type = 1;
create index late_observation_undefined on late_observation (delivery_id, event_time)
where reason = 1 and failure_type = 1;
