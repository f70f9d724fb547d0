-- Suppression lists; what changes entries is functions (schema/0018_audience.sql).

-- name: create_suppression_list
insert into suppression_list (name, channel, description, creator, create_time, update_time)
values ($1, $2, $3, $4, $5, $5)
on conflict do nothing
returning *;

-- name: get_suppression_list
select * from suppression_list where name = $1;

-- name: list_suppression_lists
select * from suppression_list where name > $1 order by name limit $2;

-- name: delete_suppression_list
select delete_suppression_list($1, $2);

-- name: deleted_suppression_lists
select list_id from deleted_suppression_list order by list_id limit $1;

-- name: purge_suppression_list
select purge_suppression_list($1, $2);

-- name: add_suppression_entries
select add_suppression_entries($1, $2, $3, $4, $5);

-- name: remove_suppression_entries
select remove_suppression_entries($1, $2, $3, $4);

-- name: list_suppression_entries
select kind, value, add_time from suppression_entry
where list_id = $1 and (kind, value) > ($2, $3) order by kind, value limit $4;

-- name: suppression_list_channels
-- Of those of these lists that exist.
select name, channel from suppression_list where name = any ($1::text[]);
