"""Connections to Postgres: a pool for commands and queries, single connections for writers and long work."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import asyncpg

from delivery_service.store.migrate import migrations, schema_version

_ANSWER_MARGIN_SECONDS: Final = 5.0

UNAVAILABLE_ERRORS: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InternalClientError,
    ConnectionError,
    OSError,
)
"""What the driver raises when the database is away, restarting or full: try again later."""

RETRYABLE_ERRORS: Final = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
)
"""What a statement may meet by bad luck: the same statement again is right."""


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """How to reach Postgres, and the limits on using it."""

    dsn: str
    pool_size_max: int = 10
    connect_timeout_seconds: float = 10.0
    statement_timeout_seconds: float = 10.0
    idle_in_transaction_timeout_seconds: float = 10.0
    long_statement_timeout_seconds: float = 600.0

    def session(self, statement_timeout_seconds: float) -> dict[str, str]:
        """The server settings of a connection. A process stopped between BEGIN and COMMIT must not hold its locks."""
        return {
            "application_name": "delivery_service",
            "timezone": "UTC",
            "statement_timeout": str(int(statement_timeout_seconds * 1_000)),
            "idle_in_transaction_session_timeout": str(int(self.idle_in_transaction_timeout_seconds * 1_000)),
        }


class SchemaOutdated(RuntimeError):
    """The database is not at the version that this program needs."""


async def open_pool(settings: DatabaseSettings) -> asyncpg.Pool:
    """The pool for commands and queries; SchemaOutdated if the database was not migrated."""
    pool = await _create_pool(settings, 1, settings.pool_size_max, settings.long_statement_timeout_seconds, {})
    async with pool.acquire() as connection:
        at, needed = await schema_version(connection), max(migrations())
    if at < needed:
        await pool.close()
        raise SchemaOutdated(
            f"the database is at version {at}, {needed} is needed: run `python -m delivery_service migrate`"
        )
    return pool


RELAY_PLANS: Final = {"plan_cache_mode": "force_generic_plan", "enable_nestloop": "off", "enable_seqscan": "off"}
"""How statements about parts are planned: once, and so that it is right also when the tables have grown since. A part
is a range of two tables by the same key, which are merged; addresses are looked for by index."""


async def open_relay_pool(settings: DatabaseSettings, size: int) -> asyncpg.Pool:
    """The pool for the parts that are relayed: few connections, since each plans its statements and loads the catalog
    for itself, which takes as long as reading dozens of parts."""
    timeout_seconds = settings.statement_timeout_seconds + _ANSWER_MARGIN_SECONDS
    return await _create_pool(settings, size, size, timeout_seconds, RELAY_PLANS)


async def _create_pool(
    settings: DatabaseSettings,
    size_min: int,
    size_max: int,
    command_timeout_seconds: float,
    server_settings: Mapping[str, str],
) -> asyncpg.Pool:
    return await asyncpg.create_pool(
        settings.dsn,
        min_size=size_min,
        max_size=size_max,
        timeout=settings.connect_timeout_seconds,
        command_timeout=command_timeout_seconds,
        server_settings={
            **settings.session(settings.statement_timeout_seconds),
            # Short statements, many of them: starting a parallel worker, or compiling, costs more than it can give.
            "max_parallel_workers_per_gather": "0",
            "jit": "off",
            **server_settings,
        },
        reset=_keep_session,
    )


async def _keep_session(_: object) -> None:
    """In place of the pool's RESET ALL after each use, a round trip of its own: nobody changes a session here, only
    transactions, and an open one is rolled back before this is called."""


WRITER_PLANS: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_mergejoin": "off",
    "enable_nestloop": "off",
    "enable_seqscan": "off",
    "jit": "off",
}
"""How statements of the apply path are planned. Generic plans: a new connection would spend seconds on custom plans,
made from the statistics of a delivery that was never analysed. They take a delivery for one of average size: so each
statement says itself which rows it is about, by key or range, for an index to find; and these are hashed, for whatever
they are joined with was in the same batch."""


async def connect_writer(settings: DatabaseSettings) -> asyncpg.Connection:
    """A connection for the apply path."""
    return await asyncpg.connect(
        settings.dsn,
        timeout=settings.connect_timeout_seconds,
        # The server's own limit comes first; this one is for a server that no longer answers.
        command_timeout=settings.statement_timeout_seconds + _ANSWER_MARGIN_SECONDS,
        server_settings={**settings.session(settings.statement_timeout_seconds), **WRITER_PLANS},
    )


async def connect_worker(settings: DatabaseSettings) -> asyncpg.Connection:
    """A connection for background work whose single statements may take long (preparation, recounts)."""
    return await asyncpg.connect(
        settings.dsn,
        timeout=settings.connect_timeout_seconds,
        server_settings={**settings.session(settings.long_statement_timeout_seconds), "work_mem": "64MB"},
    )


async def close_quietly(connection: asyncpg.Connection, timeout_seconds: float = 5.0) -> None:
    """Closes a connection that may be broken already."""
    try:
        await connection.close(timeout=timeout_seconds)
    except (TimeoutError, *UNAVAILABLE_ERRORS, asyncpg.PostgresError):
        connection.terminate()
