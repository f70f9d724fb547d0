"""The `campaign` command as a person runs it: as a process, with the processes that it starts."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

CAMPAIGN = [sys.executable, "-m", "campaign_cli"]
START_SECONDS_MAX = 120.0
FREE_PORTS = [
    part
    for name in ("delivery", "delivery-admin", "feedback", "feedback-admin", "mta")
    for part in (f"--port-{name}", "0")
]


def campaign(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CAMPAIGN, *arguments], capture_output=True, text=True, timeout=240, check=False)


def processes_of(folder: Path) -> list[str]:
    """The processes that have to do with `folder`, by arguments, environment or working folder."""
    found: list[str] = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            words = (process / "cmdline").read_bytes()
            known = words + (process / "environ").read_bytes() + os.fsencode(os.readlink(process / "cwd"))
        except OSError:
            continue  # it has ended meanwhile
        if os.fsencode(folder) in known:
            found.append(f"{process.name} {words!r}")
    return found


@asynccontextmanager
async def up(folder: Path, *simulator_options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`campaign up` on `folder`, once other commands can find it; ended at the end whatever happened."""
    process = await asyncio.create_subprocess_exec(
        *(*CAMPAIGN, "up", "--data", str(folder), *FREE_PORTS, "--", "--time-scale", "0.2", *simulator_options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                await process.stdout.readuntil(b"Ctrl-C stops everything.")
        except asyncio.IncompleteReadError:
            pytest.fail((await process.communicate())[1].decode())
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), START_SECONDS_MAX)
