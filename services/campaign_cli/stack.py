"""The whole system on one machine: Postgres, both services and the simulated MTA, each a process.

    Postgres ── DeliveryService ──▶ simulator ──▶ FeedbackService ──▶ DeliveryService

In the simulator's place there may be the bridge, in front of a real Postfix with a scripted sink behind it.

The ring starts all at once, since each of its parts waits for the next one by itself; it stops one by one.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from campaign_cli.bridged_postfix import BridgedPostfix, FeedbackWay
from campaign_cli.connection import Connection, hold_folder, write_connection
from campaign_cli.credentials import Credentials, issue_credentials
from campaign_cli.errors import CommandFailed
from campaign_cli.ports import Ports, local
from campaign_cli.processes import Child, Report
from service_runtime.client import TokenFile, open_channel

START_SECONDS_MAX = 60.0
GRACE_SECONDS = 20.0
"""More than the services' own: they end themselves in order, given the time."""
POSTGRES_GRACE_SECONDS = 60.0

SETTINGS = {"DELIVERY_ENGAGEMENT_REFRESH_SECONDS": "1"}
"""The product's hour between two counts of opens and clicks is long for someone who looks on."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StackSettings:
    """What to run, and where its data is kept."""

    folder: Path
    ports: Ports = field(default_factory=Ports)
    simulator_arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """For both services, on top of what the stack sets itself."""
    on_simulator_report: Callable[[Report], None] | None = None
    """Hears the simulator; with Postfix, the sink, which has the truth then."""
    postfix: FeedbackWay | None = None
    """Run the bridge and Postfix, and by which way its reports come; None: the simulator."""


class Stack:
    """The running system."""

    def __init__(self, folder: Path, mta_side: str) -> None:
        self.folder = folder
        self.mta_side = mta_side
        """What the MTA side is, for a person."""
        self._children: list[Child] = []
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        assert self._connection is not None, "the stack has not started yet"
        return self._connection

    async def while_alive(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs `work` to its end; raises `ChildDied` as soon as a process of the stack ends before that."""
        tasks = [asyncio.create_task(child.died(), name=f"watch {child.name}") for child in self._children]
        worker = asyncio.create_task(work)
        try:
            done, _ = await asyncio.wait([worker, *tasks], return_when=asyncio.FIRST_COMPLETED)
            if worker in done:
                return worker.result()
            raise next(task.result() for task in tasks if task in done)
        finally:
            for task in (worker, *tasks):
                task.cancel()
            await asyncio.gather(worker, *tasks, return_exceptions=True)


@asynccontextmanager
async def run_stack(settings: StackSettings, tell: Callable[[str], None]) -> AsyncIterator[Stack]:
    """Starts everything and yields once it is healthy; stops it in the opposite order, whatever happens.

    `tell` is called with what is being waited for.
    """
    folder = settings.folder.resolve()
    with hold_folder(folder):
        # The folder has keys in it, and may stand in a repository.
        (folder / ".gitignore").write_text("*\n", "utf-8")
        (folder / "logs").mkdir(exist_ok=True)
        starter = _Starter(folder, settings, issue_credentials(folder), tell)
        async with AsyncExitStack() as exits:
            real = "the bridge, Postfix, and a sink behind it: nothing leaves this machine"
            stack = Stack(folder, "simulated: sends nothing to anybody" if settings.postfix is None else real)
            stack._connection = await starter.start_all(stack._children, exits)
            write_connection(folder, stack.connection)
            yield stack


class _Starter:
    def __init__(
        self, folder: Path, settings: StackSettings, credentials: Credentials, tell: Callable[[str], None]
    ) -> None:
        self._tell = tell
        self._folder = folder
        self._settings = settings
        self._credentials = credentials

    async def start_all(self, children: list[Child], exits: AsyncExitStack) -> Connection:
        """Starts every process, adding it to `children`, and its stop to `exits`."""
        ports, token_file = self._settings.ports.chosen(), self._credentials.token_file

        self._tell("Postgres")
        postgres = await self._start("postgres", "campaign_cli.postgres", [str(self._folder / "postgres")])
        exits.push_async_callback(postgres.stop, POSTGRES_GRACE_SECONDS)
        database_url = str((await postgres.listening(START_SECONDS_MAX))["address"])
        self._tell("the database schema")
        await self._migrate({"DELIVERY_DATABASE_URL": database_url})

        self._tell("the services")
        delivery = await self._start(
            "delivery_service", "delivery_service",
            environment={
                "DELIVERY_DATABASE_URL": database_url,
                "DELIVERY_LISTEN": local(ports.delivery),
                "DELIVERY_ADMIN_LISTEN": local(ports.delivery_admin),
                "DELIVERY_RELAY_TARGET": local(ports.mta),
                "DELIVERY_TOKEN_FILE": str(token_file("delivery")),
                "DELIVERY_JWT_PUBLIC_KEY_FILE": str(self._credentials.public_key),
            },
        )  # fmt: skip
        exits.push_async_callback(delivery.stop, GRACE_SECONDS)
        feedback = await self._start(
            "feedback_service", "feedback_service",
            environment={
                "FEEDBACK_LISTEN": local(ports.feedback),
                "FEEDBACK_ADMIN_LISTEN": local(ports.feedback_admin),
                "FEEDBACK_DELIVERY_TARGET": local(ports.delivery),
                "FEEDBACK_TOKEN_FILE": str(token_file("feedback")),
                "FEEDBACK_JWT_PUBLIC_KEY_FILE": str(self._credentials.public_key),
            },
        )  # fmt: skip
        exits.push_async_callback(feedback.stop, GRACE_SECONDS)
        children += [postgres, delivery, feedback]
        if self._settings.postfix is None:
            side = [await self._start_simulator(ports, exits)]
        else:
            side = await BridgedPostfix(
                self._folder, self._settings.postfix, ports, self._credentials, self._start, self._tell
            ).start_all(exits, self._settings.on_simulator_report)
        children += side

        await delivery.listening(START_SECONDS_MAX)
        await self._healthy(delivery, local(ports.delivery))
        await feedback.listening(START_SECONDS_MAX)
        await self._healthy(feedback, local(ports.feedback))
        for child in side:
            await child.listening(START_SECONDS_MAX)
        return Connection(
            delivery=local(ports.delivery),
            delivery_admin=local(ports.delivery_admin),
            feedback=local(ports.feedback),
            feedback_admin=local(ports.feedback_admin),
            mta=local(ports.mta),
            token_file=str(token_file("user")),
            pid=os.getpid(),
        )

    async def _start_simulator(self, ports: Ports, exits: AsyncExitStack) -> Child:
        simulator = await self._start(
            "mta_simulator", "mta_simulator",
            [
                *("--listen", local(ports.mta)),
                *("--feedback-target", local(ports.feedback)),
                *("--token-file", str(self._credentials.token_file("mta"))),
                *("--jwt-public-key-file", str(self._credentials.public_key)),
                *("--journal", str(self._folder / "mta-journal.sqlite")),
                *self._settings.simulator_arguments,
            ],
            on_report=self._settings.on_simulator_report,
        )  # fmt: skip
        exits.push_async_callback(simulator.stop, GRACE_SECONDS)
        return simulator

    async def _start(
        self,
        name: str,
        module: str,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        on_report: Callable[[Report], None] | None = None,
    ) -> Child:
        log_path = self._folder / "logs" / f"{name}.log"
        everything = {**SETTINGS, **self._settings.environment, **(environment or {})}
        return await Child.start(
            name, module, arguments, log_path=log_path, environment=everything, on_report=on_report
        )

    async def _migrate(self, environment: Mapping[str, str]) -> None:
        migration = await self._start("migrate", "delivery_service", ["migrate"], environment=environment)
        try:
            if await migration.wait() != 0:
                raise await migration.died()
        finally:
            await migration.stop(GRACE_SECONDS)

    async def _healthy(self, child: Child, address: str) -> None:
        token = TokenFile(self._credentials.token_file("user"))
        async with open_channel(address, token) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=START_SECONDS_MAX, wait_for_ready=True)
            try:
                async for answer in watch:
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            except grpc.aio.AioRpcError as error:
                message = f"{child.name} did not become healthy: {error.code().name} {error.details()}"
                raise CommandFailed(message, [f"log: {child.log_path}"]) from None
            finally:
                watch.cancel()
        raise CommandFailed(f"{child.name} stopped before it was healthy", [f"log: {child.log_path}"])
