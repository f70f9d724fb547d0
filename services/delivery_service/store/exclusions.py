"""Reading exclusion logs, in pages with a bound on the rows read."""

from dataclasses import dataclass

import asyncpg

from delivery_service.domain.delivery import ExclusionCause
from delivery_service.store.queries import query
from delivery_service.store.send_logs import arrays


@dataclass(frozen=True, slots=True)
class ExclusionPage:
    """Some exclusions, and the recipient number to go on behind; None: that was all."""

    rows: list[asyncpg.Record]
    next_after: int | None


class Exclusions:
    """Reads who was excluded."""

    def __init__(self, pool: asyncpg.Pool, rows_scanned_per_page_max: int) -> None:
        self._pool = pool
        self._scan_max = rows_scanned_per_page_max

    async def page(self, delivery_id: int, after: int, causes: frozenset[ExclusionCause], size: int) -> ExclusionPage:
        """At most `size` exclusions for these causes (none given: any) behind recipient `after`."""
        scan = self._scan_max if causes else size + 1
        rows = await self._pool.fetch(query("list_exclusions"), delivery_id, after, scan, *arrays(causes))
        shown = [row for row in rows if row["shown"]]
        if len(shown) > size:
            return ExclusionPage(shown[:size], shown[size - 1]["recipient"])
        return ExclusionPage(shown, rows[-1]["recipient"] if len(rows) == scan else None)
