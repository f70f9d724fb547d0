"""Where the bench runs: a durable embedded Postgres, databases cloned from a template, services as processes."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import asyncpg

from campaign_cli.ports import local
from campaign_cli.processes import Child
from delivery_service.store.migrate import migrate
from service_runtime.development_keys import DevelopmentKeys
from tests.support.process_stack import ProcessStack

SERVICES: Final = ("delivery_service", "feedback_service")
START_SECONDS_MAX: Final = 60.0
_TEMPLATE: Final = "bench_template"
_TOKEN_SECONDS: Final = 24 * 3_600.0


class Services:
    """Running services on one database."""

    def __init__(self, stack: ProcessStack) -> None:
        self._stack = stack
        self.stub = stack.stub
        self.delivery_target = local(stack.ports.delivery)
        self.feedback_target = local(stack.ports.feedback)
        keys = DevelopmentKeys.read(stack.folder / "keys")
        self.mta_token = keys.sign("mta", ["mta"], _TOKEN_SECONDS)
        self.user_token = keys.sign("bench", ["start-deliveries", "administration"], _TOKEN_SECONDS)

    @property
    def processes(self) -> dict[str, int]:
        """The process id of each service."""
        return {name: child.pid for name, child in self._stack.children.items()}

    def resident_bytes(self, service: str, *, peak: bool = False) -> int:
        """What a service has in memory now, or had at most."""
        return memory_bytes(self._stack.children[service].pid, "VmHWM" if peak else "VmRSS")


class Stand:
    """One Postgres server for the whole run."""

    def __init__(self, folder: Path, server_dsn: str) -> None:
        self._folder = folder
        self._server_dsn = server_dsn
        self._databases = 0
        self.peak_bytes: dict[str, int] = dict.fromkeys(SERVICES, 0)
        """The largest resident size of each service so far, where it was asked to be counted."""

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path) -> AsyncIterator[Self]:
        """Starts Postgres as `campaign up` does, and makes the template."""
        server = await Child.start(
            "postgres", "campaign_cli.postgres", [str(folder / "postgres")], log_path=folder / "postgres.log"
        )
        try:
            stand = cls(folder, str((await server.listening(START_SECONDS_MAX))["address"]))
            await stand.execute(f"create database {_TEMPLATE}")
            await migrate(stand.dsn_of(_TEMPLATE))
            yield stand
        finally:
            await server.stop(START_SECONDS_MAX)

    @property
    def postgres_process(self) -> int:
        """The server's process, which has started all the others of it."""
        return int((self._folder / "postgres" / "cluster" / "postmaster.pid").read_text("ascii").split()[0])

    def dsn_of(self, database: str) -> str:
        """How to reach a database of this server."""
        return urlsplit(self._server_dsn)._replace(path=f"/{database}").geturl()

    async def execute(self, statement: str) -> None:
        """Runs one statement in the server's own database."""
        connection = await asyncpg.connect(self._server_dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The DSN of a fresh database with the product's schema, dropped at the end."""
        self._databases += 1
        name = f"bench_{self._databases}"
        await self.execute(f"create database {name} template {_TEMPLATE}")
        try:
            yield self.dsn_of(name)
        finally:
            await self.execute(f"drop database {name} with (force)")

    @asynccontextmanager
    async def services(
        self, dsn: str, *names: str, mta_port: int = 0, count_memory: bool = True, **environment: str
    ) -> AsyncIterator[Services]:
        """The services with their own defaults, listening. `mta_port`: who takes what is relayed."""
        folder = self._folder / f"services-{self._databases}-{os.urandom(3).hex()}"
        folder.mkdir()
        stack = ProcessStack(folder, dsn, (), {**_PRODUCT_LEASES, **environment})
        if mta_port:
            stack.ports = type(stack.ports)(**{**_ports(stack), "mta": mta_port})
        async with AsyncExitStack() as exits:
            exits.push_async_callback(stack.stop)
            await asyncio.gather(*map(stack.start, names or SERVICES))
            services = Services(stack)
            yield services
            for name in stack.children:
                if count_memory:
                    peak = services.resident_bytes(name, peak=True)
                    self.peak_bytes[name] = max(self.peak_bytes[name], peak)


_PRODUCT_LEASES: Final = {"DELIVERY_RELAY_LEASE_SECONDS": "60", "DELIVERY_PREPARATION_LEASE_SECONDS": "120"}
"""The services' own defaults, which the stack of the tests shortens."""


def _ports(stack: ProcessStack) -> dict[str, int]:
    return {name: getattr(stack.ports, name) for name in stack.ports.__dataclass_fields__}


def memory_bytes(process_id: int, field: str) -> int:
    """A size from /proc/PID/status."""
    status = Path(f"/proc/{process_id}/status").read_text("ascii")
    return int(status.partition(f"{field}:")[2].split()[0]) * 1_024


async def settle(dsn: str) -> None:
    """Writes out what seeding left behind, so that the clock does not run for it."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("vacuum analyze")
        await connection.execute("checkpoint")
    finally:
        await connection.close()
    await asyncio.sleep(0)
