"""Fixtures of every test: databases, and two watchmen that let no test leave something behind unnoticed."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support import postgres

LEAK_GRACE_SECONDS = 30.0


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The DSN of a Postgres server on which databases may be made."""
    with postgres.server() as dsn:
        yield dsn


@pytest.fixture(scope="session")
async def database_factory(postgres_server: str) -> AsyncIterator[postgres.DatabaseFactory]:
    """Gives fresh databases to a test that needs several."""
    async with postgres.DatabaseFactory.on(postgres_server) as factory:
        yield factory


@pytest.fixture
async def database(database_factory: postgres.DatabaseFactory) -> AsyncIterator[str]:
    """The DSN of a fresh database with all migrations, dropped after the test."""
    async with database_factory.fresh() as dsn:
        yield dsn


@pytest.fixture(autouse=True)
async def no_leaked_task() -> AsyncIterator[None]:
    """Fails a test that leaves an asyncio task running. What is about to end gets a moment to do so."""
    before = asyncio.all_tasks()
    yield
    leaked = {
        task
        for task in asyncio.all_tasks() - before - {asyncio.current_task()}
        # A running server makes one for each call it takes. It may belong to a fixture of several tests, and cancelling
        # it would crash the interpreter.
        if not getattr(task.get_coro(), "__qualname__", "").startswith("AioServer.")
    }
    if leaked:
        _, leaked = await asyncio.wait(leaked, timeout=LEAK_GRACE_SECONDS)
    found = [repr(task) for task in leaked]
    for task in leaked:
        task.cancel()
    assert not found, "tasks left running"


@pytest.fixture(autouse=True)
def no_unexpected_error(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails a test that logs at level ERROR, or above, unless it is marked `expects_errors`."""
    yield
    if request.node.get_closest_marker("expects_errors"):
        return
    records = [record for when in ("setup", "call", "teardown") for record in caplog.get_records(when)]
    errors = [record.getMessage() for record in records if record.levelno >= logging.ERROR]
    assert not errors, f"logged at level ERROR: {errors}"
