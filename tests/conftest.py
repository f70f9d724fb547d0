"""Of every test: its place in the order, databases, and two watchmen that let none leave something behind unnoticed."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import pytest

from tests.support import postgres

LEAK_GRACE_SECONDS = 30.0
TIERS = ("tests/acceptance", "tests/integration", "tests/unit")
"""From the longest files to the shortest."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the longest files: where several run at once, none is then left that one process works on alone."""
    items.sort(key=lambda item: [not item.nodeid.startswith(tier) for tier in TIERS])


Makers = WeakKeyDictionary[asyncio.Task[Any], ReferenceType[asyncio.Task[Any]]]


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


@pytest.fixture(scope="session", autouse=True)
async def makers_of_tasks() -> Makers:
    """Which task each task was made by."""
    makers = Makers()

    def make(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **more: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **more)
        if (maker := asyncio.current_task(loop)) is not None:
            makers[task] = ref(maker)
        return task

    asyncio.get_running_loop().set_task_factory(make)  # type: ignore[arg-type]  # takes what the loop gives it
    return makers


@pytest.fixture(autouse=True)
async def no_leaked_task(makers_of_tasks: Makers) -> AsyncIterator[None]:
    """Fails a test that leaves an asyncio task running. What is about to end gets a moment to do so."""
    before = asyncio.all_tasks()
    yield
    leaked = {
        task
        for task in asyncio.all_tasks() - before - {asyncio.current_task()}
        # A running server makes one for each call it takes. It may belong to a fixture of several tests, and cancelling
        # it would crash the interpreter.
        if not _is_of_server(task)
        # A worker of such a fixture makes one for each of its waits: to await them would be to wait with it.
        and not ((maker := makers_of_tasks.get(task)) and (by := maker()) in before and not _is_of_server(by))
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


def _is_of_server(task: asyncio.Task[Any] | None) -> bool:
    return task is not None and getattr(task.get_coro(), "__qualname__", "").startswith("AioServer.")
