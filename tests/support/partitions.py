"""Partitions, for tests that look at what Postgres did with a table: they know it by its own name."""

import re
from typing import Final

PARTITION: Final = r"_(first|from_\d{8}|n\d+)$"
"""How the name of a partition differs from its table's; also as Postgres reads it."""


def table_of(relation: str) -> str:
    """The table that a relation is, or is a partition of."""
    return re.sub(PARTITION, "", relation)
