"""A running DeliveryService for each test; the laws are checked after every one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.delivery_stack import DeliveryStack, delivery_stack
from tests.support.invariants import assert_laws


@pytest.fixture
async def stack(database: str, tmp_path: Path) -> AsyncIterator[DeliveryStack]:
    """DeliveryService with its workers, on a fresh database, with an MTA side that accepts everything."""
    async with delivery_stack(database, tmp_path) as running:
        yield running
    await assert_laws(database)
