"""One child process: started, listened to for its JSON lines, stopped with grace. What it says goes to a log file."""

import asyncio
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeAlias

from campaign_cli.errors import CommandFailed

Report: TypeAlias = dict[str, Any]
"""One JSON line of a child's standard output."""

LOG_LINES_SHOWN = 15
LINE_BYTES_MAX = 1024 * 1024


class ChildDied(CommandFailed):
    """A child ended that should not have; carries the end of its log."""

    def __init__(self, name: str, exit_code: int, log_path: Path) -> None:
        how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with status {exit_code}"
        super().__init__(f"{name} {how}", [f"log: {log_path}"], log=tail(log_path))


class Child:
    """A running process. It leads a session of its own: a Ctrl-C of the terminal reaches the command only."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, log_path: Path, on_report: Callable[[Report], None] | None
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._process = process
        self._on_report = on_report
        self._listening: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read_reports(), name=f"read {name}")

    @classmethod
    async def start(
        cls,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
        on_report: Callable[[Report], None] | None = None,
    ) -> Self:
        """Runs `python -m module arguments…`. `on_report` is called with every JSON line that it prints."""
        with log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "campaign_cli.bound", str(os.getpid()), module, *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                limit=LINE_BYTES_MAX,
            )
        return cls(name, process, log_path, on_report)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def listening(self, timeout_seconds: float) -> Report:
        """Waits for its line `{"action": "listening", …}`; raises if it ends or takes too long instead."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.shield(self._listening)
        except TimeoutError:
            message = f"{self.name} did not start within {timeout_seconds:g} s"
            raise CommandFailed(message, [f"log: {self.log_path}"], log=tail(self.log_path)) from None

    async def died(self) -> ChildDied:
        """Returns once it has ended, with what to say if that was unexpected."""
        exit_code = await self.wait()
        return ChildDied(self.name, exit_code, self.log_path)

    async def wait(self) -> int:
        """Returns its exit status, after everything it said was read."""
        exit_code = await self._process.wait()
        await asyncio.shield(self._reading)
        return exit_code

    async def stop(self, grace_seconds: float) -> None:
        """Asks it to stop, and after the grace ends it with everything it has started."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(grace_seconds):
                await self.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self.wait()

    async def _read_reports(self) -> None:
        assert self._process.stdout is not None
        with self.log_path.open("ab") as log:
            while line := await self._next_line(self._process.stdout):
                self._take_line(line, log)
        exit_code = await self._process.wait()
        if not self._listening.done():
            self._listening.set_exception(ChildDied(self.name, exit_code, self.log_path))
            self._listening.exception()  # it may be that nobody waits for it

    async def _next_line(self, stream: asyncio.StreamReader) -> bytes:
        while True:
            try:
                return await stream.readline()
            except ValueError:  # longer than the limit; the stream has dropped it
                continue

    def _take_line(self, line: bytes, log: BinaryIO) -> None:
        log.write(line)
        log.flush()
        try:
            report = json.loads(line)
        except ValueError:
            return
        if not isinstance(report, dict):
            return
        if report.get("action") == "listening" and not self._listening.done():
            self._listening.set_result(report)
        if self._on_report is not None:
            self._on_report(report)


def tail(path: Path, lines: int = LOG_LINES_SHOWN) -> list[str]:
    """The last lines of a log, or none if there is no log."""
    with suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=lines)]
    return []
