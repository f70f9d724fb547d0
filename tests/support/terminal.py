"""The `campaign` command in the test's own process: one of its own takes a second or more to start, for each call."""

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner, Result

from campaign_cli.commands import campaign

Value = TypeVar("Value")


class Terminal:
    """Runs commands, one at a time: what they write to is the process's.

    Their coroutines run on the test's loop, as grpc.aio's calls do: several loops in a process get in each other's way.
    The loop's signals stay the test's own; what a command would do about them is kept, for `interrupt`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_signal: dict[int, Callable[[], object]] = {}
        monkeypatch.setattr(asyncio, "run", self._run_here)
        monkeypatch.setattr(self._loop, "add_signal_handler", self._keep_handler)

    async def run(self, *arguments: str, given: str = "") -> Result:
        """What it says and how it ends, with `given` on its stdin. What it does not catch is raised here."""
        self._on_signal.clear()
        runner = CliRunner(catch_exceptions=False)
        return await asyncio.to_thread(runner.invoke, campaign, arguments, input=given, prog_name="campaign")

    async def rows(self, *arguments: str) -> list[dict[str, Any]]:
        """The JSON lines of a command that must succeed."""
        result = await self.run(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    def interrupt(self) -> None:
        """Ctrl-C for the command that runs."""
        self._on_signal[signal.SIGINT]()

    def _run_here(self, work: Coroutine[Any, Any, Value]) -> Value:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _keep_handler(self, number: int, callback: Callable[..., object], *arguments: object) -> None:
        self._on_signal[number] = lambda: callback(*arguments)
