"""Columns as literals of arrays: what Postgres reads is what was written."""

from collections.abc import Callable
from typing import Any

import pytest

from delivery_service.store import array_literals
from tests.support.postgres import connected

TRICKY_TEXTS = [
    *("", "NULL", "null", " a ", "a,b", ",", "{", "}", "{}", "'", '"', "\\", '\\"', "\\\\x"),
    *("\n\t", "\u00e9", "\U0001f98a"),
]


@pytest.mark.parametrize(
    ("literal", "array", "values"),
    [
        (array_literals.integers, "smallint[]", [0, 1, -32_768, 32_767]),
        (array_literals.integers, "integer[]", [0, 1, -(2**31), 2**31 - 1]),
        (array_literals.integers, "bigint[]", [0, 1, -(2**63), 2**63 - 1]),
        (array_literals.integers, "integer[]", []),
        (array_literals.texts, "text[]", []),
        (array_literals.texts, "text[]", TRICKY_TEXTS + TRICKY_TEXTS),
        (array_literals.texts, "text[]", [a + b for a in TRICKY_TEXTS for b in TRICKY_TEXTS]),
    ],
)
async def test_postgres_reads_the_values_that_were_written(
    database: str, literal: Callable[[Any], str], array: str, values: list[Any]
) -> None:
    async with connected(database) as connection:
        assert await connection.fetchval(f"select $1::text::{array}", literal(values)) == values
