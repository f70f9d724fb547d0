-- The apply path; the functions are in schema/0030_apply_literals.sql and schema/0028_hand_over_log.sql. Columns of
-- observations come as literals of arrays (array_literals.py), an empty one for a column of zeros.

-- name: apply_slots
select layer, recipient from apply_slots($1::bigint[], $2::smallint[], $3::timestamptz,
    $4::text::text[], $5::text::text[], $6::text::text[], $7::text::text[], $8::text::text[],
    $9::text::text[], $10::text::text[], $11::text::text[], $12::text::text[], $13::text::text[]);

-- name: apply_slot
select apply_slot($1::bigint, $2::smallint, $3::timestamptz,
    $4::text, $5::text, $6::text, $7::text, $8::text, $9::text, $10::text, $11::text, $12::text, $13::text);

-- name: apply_relayed
select apply_relayed($1, $2, $3, $4, $5, $6);

-- name: apply_relayed_at_once
-- The same for $5 recipients in a row, all accepted at $6: nothing has to be encoded for each.
select apply_relayed_at_once($1, $2, $3, $4, $5, $6, $7);

-- name: keep_late
select delivery_id, recipient from keep_late($1, $2, $3, $4,
    $5::text::integer[], $6::text::smallint[], $7::text::bigint[], $8::text::smallint[], $9::text::smallint[],
    $10::text::smallint[], $11::text::text[], $12::text::text[], $13::text::smallint[], $14::text::smallint[]);

-- name: apply_tracking
select apply_tracking($1, $2, $3, $4, $5, $6);

-- name: add_dead_letters
-- A ring: keeps about $10 of the newest.
with added as (
    insert into dead_letter (message_id, source_id, outcome, tracking_kind, event_time, create_time, smtp_code,
        diagnostic, detail)
    select f.message_id, f.source_id, f.outcome, f.tracking_kind,
        timestamptz 'epoch' + f.event_time_us * interval '1 microsecond', $6, f.smtp_code, f.diagnostic, f.detail
    from unnest($1::text[], $2::text[], $3::smallint[], $4::smallint[], $5::bigint[], $7::smallint[], $8::text[],
            $9::text[])
        as f (message_id, source_id, outcome, tracking_kind, event_time_us, smtp_code, diagnostic, detail)
    returning dead_letter_id
)
delete from dead_letter where dead_letter_id <= (select max(dead_letter_id) from added) - $10::bigint;

-- name: list_dead_letters
-- Newest first, below the id of the previous page's last.
select * from dead_letter where dead_letter_id < $1 order by dead_letter_id desc limit $2;

-- name: report_sources
-- What one replica of FeedbackService has connected, as a whole; and forgets replicas that fell silent.
with gone as (
    delete from feedback_source
    where (replica_id = $1 and not source_id = any ($2::text[])) or report_time < $3::timestamptz - $4::interval
)
insert into feedback_source (replica_id, source_id, report_time)
select $1, u, $3 from unnest($2::text[]) as u
on conflict (replica_id, source_id) do update set report_time = excluded.report_time;

-- name: sources_connected
select count(distinct source_id) from feedback_source where report_time >= $1::timestamptz - $2::interval;
