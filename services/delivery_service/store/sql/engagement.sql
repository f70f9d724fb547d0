-- Opens, clicks and the like, as last counted.

-- name: mark_outdated_engagement
-- Marks those whose base has moved since they were counted: a rate is over what is delivered, which changes without any
-- open. Reads all counters, so it is asked for now and then alone.
update engagement e set stale_since_time = $1
from (
    select delivery_id, sum(delivered) as with_efs, sum(relayed + deferred + delivered) as without_efs
    from delivery_counter group by delivery_id
) base
where base.delivery_id = e.delivery_id and e.as_of_time is not null and e.stale_since_time is null
    and (e.delivered_with_efs <> base.with_efs or e.delivered_without_efs <> base.without_efs)
    -- Of those whose log was dropped, nothing can be counted any more.
    and not exists (select from delivery d where d.delivery_id = e.delivery_id and d.log_dropped_time is not null);
