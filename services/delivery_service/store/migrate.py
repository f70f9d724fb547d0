"""Brings a database's schema up to date: applies the numbered files of `schema/`, each once, in order."""

import logging
import re
from importlib.resources import files
from typing import Final

import asyncpg
from asyncpg.pool import PoolConnectionProxy

_FILE: Final = re.compile(r"(\d{4})_\w+\.sql")
_LOCK_KEY: Final = 0x63616D706169676E  # "campaign": two migrations of one database wait for each other

log = logging.getLogger(__name__)


def migrations() -> dict[int, str]:
    """The migrations by number, in order."""
    found = {}
    for entry in files("delivery_service.store").joinpath("schema").iterdir():
        if match := _FILE.fullmatch(entry.name):
            found[int(match[1])] = entry.read_text(encoding="utf-8")
    return dict(sorted(found.items()))


async def migrate(dsn: str) -> int:
    """Applies what is missing, all or nothing; gives the version reached. Safe to run again, and on many machines."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock($1)", _LOCK_KEY)
            await connection.execute(
                "create table if not exists schema_version ("
                "version integer primary key, apply_time timestamptz not null default now())"
            )
            at = await connection.fetchval("select coalesce(max(version), 0) from schema_version")
            for version, script in migrations().items():
                if version > at:
                    await connection.execute(script)
                    await connection.execute("insert into schema_version (version) values ($1)", version)
                    log.info("applied a migration", extra={"action": "migrate", "version": version})
                    at = version
            return int(at)
    finally:
        await connection.close()


async def schema_version(connection: asyncpg.Connection | PoolConnectionProxy) -> int:
    """The version a database is at; 0 if it was never migrated."""
    if await connection.fetchval("select to_regclass('schema_version')") is None:
        return 0
    return int(await connection.fetchval("select coalesce(max(version), 0) from schema_version"))
