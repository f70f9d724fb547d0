-- Retries of deliveries that are over; the draft and the copying are functions (schema/0019_retry.sql).

-- name: lock_retry
-- One count per delivery at a time; held until the transaction ends. False: another one runs.
select pg_try_advisory_xact_lock(hashtextextended('retry', $1));

-- name: count_failed
-- All failed recipients that pass the filters, by failure type and reason. $2: the last recipient's number.
select failure_type, reason, count(*) as volume from failed_recipients($1, 0, $2, $3, $4, $5, $6)
group by failure_type, reason order by count(*) desc, failure_type, reason;

-- name: retry_failed
select retry_failed($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: get_retry
-- What a request has made, if it did.
select retry_id, outcomes, failure_types, reasons, recipient_domains, failures, undecided_count
from retry where delivery_id = $1 and request_id = $2;

-- name: retries_of
-- Drafts and deliveries that are there, made by retries of $1, $2 aside; oldest first.
select delivery_id from delivery where retry_of_id = $1 and delivery_id <> $2 order by delivery_id limit $3;
