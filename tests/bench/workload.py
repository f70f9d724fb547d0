"""Processes that make load: they prepare everything, say so, begin on a word, and report one JSON object at the end."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
READY_SECONDS_MAX: Final = 180.0
RUN_SECONDS_MAX: Final = 240.0
STOP_SECONDS_MAX: Final = 10.0
_LINE_BYTES_MAX: Final = 64 * 1_024 * 1_024

Report = dict[str, Any]


class WorkloadFailed(Exception):
    """A process that makes load did not do what it should. Carries the end of what it said."""


class Workload:
    """One such process, seen from the bench."""

    def __init__(self, module: str, process: asyncio.subprocess.Process) -> None:
        self._module = module
        self._process = process
        self.ready: Report = {}

    @property
    def process_id(self) -> int:
        return self._process.pid

    async def say(self, word: str) -> None:
        """Says one line to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        await self._process.stdin.drain()

    async def hear(self, timeout_seconds: float = RUN_SECONDS_MAX) -> Report:
        """Its next report."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_seconds):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise WorkloadFailed(f"{self._module} took more than {timeout_seconds:g} s") from None
        if not line:
            raise WorkloadFailed(f"{self._module} ended with status {await self._process.wait()}")
        report: Report = json.loads(line)
        return report

    async def go(self, timeout_seconds: float = RUN_SECONDS_MAX) -> Report:
        """Lets it run, and gives its report."""
        await self.say("go")
        return await self.hear(timeout_seconds)

    async def stop(self) -> None:
        """Ends it, if it has not ended by itself."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def workload(module: str, **options: Any) -> AsyncIterator[Workload]:
    """Starts `python -m tests.bench.<module>` with these options, and yields once it is ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"tests.bench.{module}", json.dumps(options)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
        limit=_LINE_BYTES_MAX,
    )
    running = Workload(module, process)
    try:
        running.ready = await running.hear(READY_SECONDS_MAX)
        yield running
    finally:
        await running.stop()


class Bench:
    """The bench, seen from such a process."""

    def __init__(self, lines: asyncio.StreamReader) -> None:
        self._lines = lines

    async def word(self) -> str:
        """The next line of the bench; empty at its end."""
        return (await self._lines.readline()).decode().strip()

    def report(self, **fields: Any) -> None:
        """One report to the bench."""
        print(json.dumps(fields), flush=True)


def main(work: Callable[[Bench, Report], Coroutine[Any, Any, None]]) -> None:
    """Runs `work` with the options of the command line."""

    async def run() -> None:
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        await work(Bench(lines), json.loads(sys.argv[1]))

    asyncio.run(run())
