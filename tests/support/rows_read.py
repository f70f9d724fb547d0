"""How many rows a statement reads: what is left to say about a plan when nobody looks at it."""

import asyncpg

from tests.support.partitions import PARTITION

_ROWS_READ = """
select regexp_replace(c.relname, $1, '') as name, sum(pg_stat_get_xact_tuples_returned(c.oid) + coalesce((
    select sum(pg_stat_get_xact_tuples_returned(i.indexrelid)) from pg_index i where i.indrelid = c.oid), 0)) as rows
from pg_class c where c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace
group by 1
"""


async def rows_read(connection: asyncpg.Connection) -> dict[str, int]:
    """Rows that this transaction has read, by table: from the table, or entries of its indexes."""
    return {row["name"]: int(row["rows"]) for row in await connection.fetch(_ROWS_READ, PARTITION)}
