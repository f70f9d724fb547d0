"""A running DeliveryService for each test, or one for a module; the laws are checked after every test."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.support.delivery_stack import DeliveryStack, delivery_stack
from tests.support.invariants import assert_laws, assert_laws_over
from tests.support.postgres import DatabaseFactory, connected
from tests.support.quarantine_world import World, quarantine_world


@pytest.fixture
async def stack(database: str, tmp_path: Path) -> AsyncIterator[DeliveryStack]:
    """DeliveryService with its workers, on a fresh database, with an MTA side that accepts everything."""
    async with delivery_stack(database, tmp_path) as running:
        yield running
    await assert_laws(database)


@pytest.fixture(scope="module")
async def module_stack(
    database_factory: DatabaseFactory, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DeliveryStack]:
    """One DeliveryService for a whole module, whose tests keep to deliveries of their own; the laws are checked at its
    end, for hundreds of tests that only knock at doors."""
    async with database_factory.fresh() as dsn:
        async with delivery_stack(dsn, tmp_path_factory.mktemp("module")) as running:
            await running.sent()  # opens the relay stream: a task that must not seem to be left by the first test
            yield running
        await assert_laws(dsn)


@pytest.fixture(scope="module")
async def laws_connection(module_stack: DeliveryStack) -> AsyncIterator[asyncpg.Connection]:
    """Of the module, for the laws: a new one would take longer to look up the tables than to read them."""
    async with connected(module_stack.dsn) as connection:
        yield connection


@pytest.fixture
async def common(module_stack: DeliveryStack, laws_connection: asyncpg.Connection) -> AsyncIterator[DeliveryStack]:
    """The module's DeliveryService, with the laws checked after each test."""
    yield module_stack
    await assert_laws_over(laws_connection)


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[World]:
    """Two replicas that read the log for the quarantine."""
    async with quarantine_world(database, tmp_path) as running:
        yield running
