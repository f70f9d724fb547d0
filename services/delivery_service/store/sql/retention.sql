-- Retention: ranges, and what is dropped. The functions are in schema/0031_partitions.sql and 0032_retention.sql.

-- name: lock_retention
-- One replica at a time, until its connection ends. False: another one is at it.
select pg_try_advisory_lock(hashtextextended('retention', 0));

-- name: open_ranges
-- The open range of each kind, and the newest delivery if it is in there already.
select r.kind, r.begin_id, (select max(d.delivery_id) from delivery d where d.delivery_id >= r.begin_id) as newest_id
from retention_range r where r.end_id is null order by r.kind;

-- name: add_range
select add_range($1, $2, $3);

-- name: ranges_before
-- The ranges of a kind that end before the id $2, and are not being dropped; oldest first.
select begin_id, end_id, suffix from retention_range
where kind = $1 and end_id <= $2 and drop_time is null order by begin_id;

-- name: announce_log_drop
select announce_log_drop($1, $2, $3, $4);

-- name: announce_delivery_drop
select announce_delivery_drop($1, $2, $3, $4);

-- name: range_to_drop
-- The oldest one that is being dropped.
select kind, begin_id, suffix from retention_range where drop_time is not null order by kind, begin_id limit 1;

-- name: next_drop_step
-- The statement that brings dropping the range of kind $1 called $2 one step further, as the catalog says now: a partition
-- is detached (to its end, if someone was stopped in the middle), or dropped. No row: none is left. $3: concurrently.
select case
    when i.inhrelid is null then format('drop table %I', c.relname)
    when i.inhdetachpending then format('alter table %I detach partition %I finalize', t.table_name, c.relname)
    else format('alter table %I detach partition %I %s', t.table_name, c.relname,
        case when $3::boolean then 'concurrently' else '' end)
    end as statement
from retained_table t
join pg_class c on c.relname = t.table_name || '_' || $2 and c.relnamespace = current_schema()::regnamespace
left join pg_inherits i on i.inhrelid = c.oid
where t.kind = $1 order by t.place limit 1;

-- name: forget_range
delete from retention_range where kind = $1 and begin_id = $2 and drop_time is not null;

-- name: partition_tables
-- The partitioned tables: Postgres never analyses them by itself, only their partitions.
select format('analyze only %I', table_name) as statement from retained_table order by kind, place;

-- name: log_dropped_time
select delivery_id, log_dropped_time from delivery where delivery_id = $1;
