import asyncio
import gc
import os
import resource
import signal
import subprocess
import sys

import pytest

from service_runtime.process import raise_open_files_limit, relax_garbage_collection, run

TWO_SIGNALS = """
import asyncio, os, signal
from service_runtime.process import run

async def main(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    await stop.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.Event().wait()

run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("use_uvloop", [False, True])
def test_a_signal_sets_the_stop_event_and_main_ends_its_own_way(number: signal.Signals, use_uvloop: bool) -> None:
    ended: list[str] = []

    async def main(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), number)
        await stop.wait()
        ended.append("in order")

    run(main, use_uvloop=use_uvloop)
    assert ended == ["in order"]


def test_a_second_signal_ends_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWO_SIGNALS], check=False, timeout=90, env=_environment())
    assert done.returncode == 128 + signal.SIGTERM


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_the_limit_of_open_files_is_raised_and_never_lowered() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert raise_open_files_limit(512) == 512
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 512
        assert raise_open_files_limit(128) == 512
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_full_collections_become_rare() -> None:
    before = gc.get_threshold()
    try:
        relax_garbage_collection()
        assert gc.get_threshold() == (50_000, 50, 1_000)
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
