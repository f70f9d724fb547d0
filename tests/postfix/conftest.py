"""Both services, the bridge and the scripted sink as processes, and a real Postfix in between."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from campaign_cli.bridged_postfix import FeedbackWay, bridge_environment
from campaign_cli.demo_postfix import make_enterable_folder
from campaign_cli.errors import CommandFailed
from campaign_cli.ports import free_ports, local
from campaign_cli.postfix import Postfix, PostfixOptions, check_installed
from campaign_cli.processes import Child
from tests.support.invariants import assert_laws
from tests.support.process_stack import START_SECONDS_MAX, ProcessStack

TAGS = ("hard", "full", "spam", "deferred", "expired")
"""One in 25 each, so that every run of 1,000 has 40 of each; the others are delivered at once."""


def tagged(number: int) -> str:
    """The address of a recipient, with its fate in it."""
    place = number % 25
    return f"p{number}+{TAGS[place]}@mail{number % 7}.test" if place < len(TAGS) else f"p{number}@mail{number % 7}.test"


class PostfixStack(ProcessStack):
    """The bridge in the simulator's place; the sink tells the truth."""

    def __init__(
        self, folder: Path, dsn: str, way: FeedbackWay, settings: dict[str, Any], postfix: dict[str, Any]
    ) -> None:
        super().__init__(folder, dsn, (), {"DELIVERY_RELAY_RETRY_SECONDS": "0.2"})
        smtp_port, self.bounce_port, self.sink_port = free_ports(3)
        options = {"relay_port": self.sink_port, "bounce_port": self.bounce_port, **postfix}
        self.postfix = Postfix(PostfixOptions(str(folder / "postfix"), smtp_port, **options))
        self.way = way
        self.settings = {"bounce_listen": local(self.bounce_port)} if way != "log" else {}
        self.settings |= settings

    async def start(self, name: str) -> Child:
        arguments, environment = self._command(name)
        child = await Child.start(
            name,
            "campaign_cli.mail_sink" if name == "mail_sink" else name,
            arguments,
            log_path=self.folder / f"{name}.log",
            environment=environment,
            on_report=self._heard if name == "mail_sink" else None,
        )
        self.children[name] = child
        await child.listening(START_SECONDS_MAX)
        return child

    async def start_postfix(self) -> None:
        await asyncio.to_thread(self.postfix.prepare)
        await asyncio.to_thread(self.postfix.start)

    def _command(self, name: str) -> tuple[list[str], dict[str, str]]:
        if name == "mail_sink":
            return [str(self.sink_port)], {}
        if name == "mta_bridge":
            return [], bridge_environment(
                self.folder,
                self.way,
                local(self.ports.mta),
                local(self.ports.feedback),
                self._credentials,
                self.postfix,
                **self.settings,
            )
        return super()._command(name)

    def log_of(self, queue_id: str) -> list[str]:
        """What Postfix has logged about a message."""
        lines = self.postfix.log.read_text("utf-8", "replace").splitlines()
        return [line for line in lines if queue_id in line]

    def queue_ids(self) -> dict[str, set[str]]:
        """By return path, under which names Postfix has had its message: more than one, and we gave it twice."""
        found: dict[str, set[str]] = {}
        for line in self.postfix.log.read_text("utf-8", "replace").splitlines():
            if "/qmgr[" in line and ": from=<b+" in line:
                queue_id, _, rest = line.partition("]: ")[2].partition(": from=<")
                found.setdefault(rest.partition(">")[0].lower(), set()).add(queue_id)
        return found


RunPostfix: TypeAlias = Callable[..., AbstractAsyncContextManager[PostfixStack]]


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    """These tests are asked for by name: without Postfix, or root, they fail and say so."""
    try:
        check_installed()
    except CommandFailed as failure:
        pytest.fail("\n".join([failure.message, *failure.details]))


@pytest.fixture
def run_postfix(database: str) -> RunPostfix:
    @asynccontextmanager
    async def run(
        way: FeedbackWay = "both", *, postfix: dict[str, Any] | None = None, **settings: Any
    ) -> AsyncIterator[PostfixStack]:
        folder = make_enterable_folder()
        stack = PostfixStack(folder, database, way, settings, postfix or {})
        try:
            await stack.start("mail_sink")
            await stack.start_postfix()
            for name in ("delivery_service", "feedback_service", "mta_bridge"):
                await stack.start(name)
            yield stack
        finally:
            await asyncio.to_thread(stack.postfix.stop)
            await stack.stop()
            shutil.rmtree(folder, ignore_errors=True)
        await assert_laws(database)

    return run
