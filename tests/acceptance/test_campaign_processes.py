"""The processes of `campaign up`: none dies unnoticed, and none outlives the command."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support.campaign_process import START_SECONDS_MAX, processes_of, up
from tests.support.eventually import eventually
from tests.support.terminal import Terminal

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.timeout(600),
]


async def test_a_part_that_dies_stops_everything_and_is_named(folder: Path) -> None:
    async with up(folder) as process:
        (victim,) = [each for each in processes_of(folder) if "feedback_service" in each]
        os.kill(int(victim.split()[0]), signal.SIGKILL)
        _, stderr = await asyncio.wait_for(process.communicate(), START_SECONDS_MAX)
    assert process.returncode == 1
    assert b"feedback_service was killed by signal 9" in stderr
    assert b"feedback_service.log" in stderr


async def test_killing_the_command_leaves_no_process_behind(folder: Path, terminal: Terminal) -> None:
    async with up(folder) as process:
        process.kill()
        await eventually(lambda: not processes_of(folder), timeout_seconds=START_SECONDS_MAX)
    async with up(folder):
        assert await terminal.rows("list", "--data", str(folder)) == []
