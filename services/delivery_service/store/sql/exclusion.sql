-- The exclusion log.

-- name: list_exclusions
-- The next $3 exclusions behind recipient $2, and which of them pass the filter on causes ($4; empty: all).
select e.recipient, e.cause, r.profile_id, r.address,
    cardinality($4::smallint[]) = 0 or e.cause = any ($4::smallint[]) as shown
from (
    select delivery_id, recipient, cause from exclusion_log
    where delivery_id = $1 and recipient > $2 order by recipient limit $3
) e
join recipient r using (delivery_id, recipient)
order by e.recipient;
