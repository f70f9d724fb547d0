"""A Postgres for the tests: one throw-away server a run, one freshly migrated database a test.

Databases are cloned from a template (some 20 ms), not rolled back: commit order, locks and crashes need real commits.
"""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from delivery_service.store.migrate import migrate
from service_runtime.embedded_postgres import THROWAWAY, EmbeddedPostgres

MEMORY, DISK = Path("/dev/shm"), Path("/tmp")
MEMORY_FREE_BYTES_MIN = 6 * 1024**3
"""The large world, its log and what several processes have beside it, twice."""


def folder_place() -> Path:
    """Where servers keep their files: in memory if there is room.

    A database is some 900 files, made and removed for each test: on a disk that alone can take a second.
    """
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= MEMORY_FREE_BYTES_MIN
    return MEMORY if roomy else DISK


@contextmanager
def server() -> Iterator[str]:
    """The DSN of a server to make databases on: that of TEST_DATABASE_URL, else one started for this."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    with (
        tempfile.TemporaryDirectory(prefix="campaign-tests-", dir=folder_place()) as folder,
        EmbeddedPostgres(Path(folder) / "postgres", THROWAWAY) as postgres,
    ):
        yield postgres.dsn


class DatabaseFactory:
    """Clones databases, by `fresh`, from a template that has all migrations."""

    def __init__(self, server_dsn: str, template: str) -> None:
        self._server_dsn = server_dsn
        self._template = template

    @classmethod
    @asynccontextmanager
    async def on(cls, server_dsn: str) -> AsyncIterator["DatabaseFactory"]:
        """Makes the template on that server, and drops it at the end."""
        async with _database(server_dsn, "") as dsn:
            await migrate(dsn)
            yield cls(server_dsn, _name_of(dsn))

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[str]:
        """The DSN of a new migrated database, dropped at the end, whoever is still connected to it."""
        async with _database(self._server_dsn, f"TEMPLATE {self._template}") as dsn:
            yield dsn


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own: to look behind the service, or to stand in its way."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def _database(server_dsn: str, options: str) -> AsyncIterator[str]:
    name = f"test_{uuid4().hex}"
    await _execute(server_dsn, f"CREATE DATABASE {name} {options}")
    try:
        yield urlsplit(server_dsn)._replace(path=f"/{name}").geturl()
    finally:
        await _execute(server_dsn, f"DROP DATABASE {name} WITH (FORCE)")


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _name_of(dsn: str) -> str:
    return urlsplit(dsn).path.removeprefix("/")
