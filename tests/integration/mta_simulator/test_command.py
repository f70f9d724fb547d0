"""`python -m mta_simulator` as a process: its lines, its signals, and what a kill -9 leaves behind."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from campaign.delivery.v1 import delivery_pb2 as delivery_pb
from campaign.mta.v1 import relay_service_pb2 as relay_pb
from campaign.mta.v1 import relay_service_pb2_grpc as relay_grpc
from service_runtime.client import StaticToken, open_channel
from service_runtime.development_keys import PUBLIC_KEY_FILE, DevelopmentKeys
from tests.support.eventually import eventually
from tests.support.feedback_double import FeedbackDouble

MESSAGES = 300
SERVICES = Path(__file__).resolve().parents[3] / "services"


@pytest.fixture
async def feedback() -> AsyncIterator[FeedbackDouble]:
    double = FeedbackDouble()
    await double.start()
    yield double
    double.acknowledging.set()
    await double.stop()


class Command:
    """A running simulator process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return line

    async def end(self, number: signal.Signals) -> list[dict[str, Any]]:
        self._process.send_signal(number)
        out, _ = await self._process.communicate()
        return [json.loads(line) for line in out.splitlines()]

    async def complaint(self) -> str:
        _, complaint = await self._process.communicate()
        assert self._process.returncode == 1
        return complaint.decode()


@asynccontextmanager
async def started(folder: Path, feedback: FeedbackDouble, *options: str) -> AsyncIterator[Command]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mta_simulator", "--listen", "127.0.0.1:0", "--time-scale", "0.01"),
        *("--feedback-target", f"127.0.0.1:{feedback.port}", "--token-file", str(folder / "token")),
        *options,
        env=os.environ
        | {"PYTHONPATH": str(SERVICES), "MTA_SIMULATOR_JWT_PUBLIC_KEY_FILE": str(folder / PUBLIC_KEY_FILE)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def relay(address: str, token: str) -> relay_pb.RelayResponse:
    async with open_channel(address, StaticToken(token)) as channel:
        call = relay_grpc.RelayServiceStub(channel).Relay()
        content = delivery_pb.Content(subject="Hi", text="Hi")
        await call.write(relay_pb.RelayRequest(template=relay_pb.RelayTemplate(delivery_id="7", content=content)))
        batch = relay_pb.RelayBatch(sequence=1, delivery_id="7")
        for number in range(MESSAGES):
            batch.messages.add(message_id=f"m{number}", address=f"person{number}@mail.test")
        await call.write(relay_pb.RelayRequest(batch=batch))
        response = await call.read()
        await call.done_writing()
        assert isinstance(response, relay_pb.RelayResponse)
        return response


async def test_a_killed_simulator_goes_on_from_its_journal_and_ends_on_sigterm(
    tmp_path: Path, feedback: FeedbackDouble
) -> None:
    keys = DevelopmentKeys.generate()
    keys.write(tmp_path)
    (tmp_path / "token").write_text(keys.sign("mta", ["mta"]))
    token, journal = keys.sign("relay", ["relay"]), ("--journal", str(tmp_path / "journal.db"))
    feedback.acknowledging.clear()
    async with started(tmp_path, feedback, *journal) as command:
        listening = await command.line()
        assert listening["action"] == "listening"
        first = await relay(listening["address"], token)
        await eventually(lambda: feedback.arrived)
        await command.end(signal.SIGKILL)
    feedback.acknowledging.set()
    async with started(tmp_path, feedback, *journal) as command:
        assert await relay((await command.line())["address"], token) == first
        truth = await command.line()
        assert (truth["action"], truth["idle"], truth["repeated"]) == ("truth", True, MESSAGES)
        assert truth["accepted"] + truth["refused"] == MESSAGES
        assert await command.end(signal.SIGTERM) == [truth]
    accepted = {f"m{number}" for number in range(MESSAGES) if first.verdicts[number] == relay_pb.RELAY_VERDICT_ACCEPTED}
    assert {event.message_id for event in feedback.committed} == accepted


async def test_a_journal_of_another_script_is_refused_with_a_sentence(tmp_path: Path, feedback: FeedbackDouble) -> None:
    keys = DevelopmentKeys.generate()
    keys.write(tmp_path)
    (tmp_path / "token").write_text(keys.sign("mta", ["mta"]))
    journal = ("--journal", str(tmp_path / "journal.db"))
    async with started(tmp_path, feedback, *journal) as command:
        await command.line()
        assert [line["action"] for line in await command.end(signal.SIGINT)] == ["truth"]
    async with started(tmp_path, feedback, *journal, "--seed", "2") as command:
        assert "use the same options" in await command.complaint()
