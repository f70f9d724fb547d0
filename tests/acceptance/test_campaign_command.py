"""The `campaign` command as a person uses it: processes, files, a terminal's signals."""

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually

CAMPAIGN = [sys.executable, "-m", "campaign_cli"]
START_SECONDS_MAX = 120.0
RECIPIENTS = 300
FREE_PORTS = [
    part
    for name in ("delivery", "delivery-admin", "feedback", "feedback-admin", "mta")
    for part in (f"--port-{name}", "0")
]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.timeout(600),
]


def campaign(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CAMPAIGN, *arguments], capture_output=True, text=True, timeout=240, check=False)


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def processes_of(folder: Path) -> list[str]:
    """The processes that have to do with `folder`, by arguments, environment or working folder."""
    found: list[str] = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            known = words + os.fsencode(os.readlink(process / "cwd"))
        except OSError:
            continue  # it has ended meanwhile
        if os.fsencode(folder) in known:
            found.append(f"{process.name} {(process / 'cmdline').read_bytes()!r}")
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


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not below pytest's own folder: each new run of pytest closes that one to other users, and Postgres is another user
    # when root runs the tests.
    with tempfile.TemporaryDirectory(prefix="campaign-tests-") as parent:
        yield Path(parent) / "data"
        assert processes_of(Path(parent)) == []


@pytest.fixture
def people(tmp_path: Path) -> Path:
    path = tmp_path / "people.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("profile_id", "email", "first_name"))
        writer.writerows((f"P{n}", f"person{n}@mail.test", f"Person {n}") for n in range(1, RECIPIENTS - 3))
        writer.writerow(("P-refused", "bad+hard@mail.test", "Bad"))
        writer.writerow(("P-empty", "", "Empty"))
        writer.writerow(("P-malformed", "no address", "Malformed"))
        writer.writerow(("P-duplicate", "person1@mail.test", "Twin"))
        file.write("only one value\n")
    return path


async def test_a_send_from_start_to_end_and_again_after_a_restart(folder: Path, people: Path) -> None:
    data = ("--data", str(folder))
    async with up(folder, "--silent", "0") as process:
        sent = await asyncio.to_thread(
            campaign, "send", *data, "--recipients", str(people), "--yes",
            "--subject", "Hello {{ first_name }}", "--html", "<p>Hello {{ first_name }}</p>",
        )  # fmt: skip
        assert sent.returncode == 0, sent.stderr
        lines = [" ".join(line.split()) for line in sent.stdout.splitlines()]
        for line in (
            "1 line left out:",
            f"line {RECIPIENTS + 2}: 1 value, but the header has 3 columns",
            f"Targeted {RECIPIENTS}",
            "excluded: address empty -1",
            "excluded: address malformed -1",
            "excluded: duplicate -1",
            f"To deliver {RECIPIENTS - 3}",
        ):
            assert line in lines, sent.stdout
        (delivery,) = rows(campaign("list", *data, "--json"))
        name = delivery["delivery_id"]
        assert delivery["state"] == "DELIVERY_STATE_FINISHED"

        watched = await asyncio.to_thread(campaign, "watch", name, *data)
        assert f"handed over {RECIPIENTS - 3} of {RECIPIENTS - 3}" in watched.stdout
        logs = rows(campaign("logs", name, *data, "--limit", "1000", "--json"))
        assert len(logs) == RECIPIENTS - 3
        failed = rows(campaign("logs", name, *data, "--status", "failed", "--address", "bad+hard@mail.test", "--json"))
        assert [(each["profile_id"], each["outcome"]) for each in failed] == [("P-refused", "OUTCOME_BOUNCED")]
        (log,) = rows(campaign("log", name, failed[0]["recipient"], *data, "--json"))
        assert log["timeline"][-1]["outcome"] == "OUTCOME_BOUNCED"
        (statistics,) = rows(campaign("statistics", name, *data, "--json"))
        assert (statistics["drift"], statistics["recounted"]) == ("0", str(RECIPIENTS - 3))
        (kpis,) = rows(campaign("kpis", name, *data, "--json"))

        second = campaign("up", *data)
        assert second.returncode == 1
        assert "running on the folder" in second.stderr
        missing = campaign("kpis", "99", *data)
        assert missing.returncode == 1
        assert "reason: DELIVERY_NOT_FOUND" in missing.stderr
        assert "Traceback" not in missing.stderr
    assert process.returncode == 0
    assert processes_of(folder) == []
    assert "nothing is running" in campaign("list", *data).stderr

    async with up(folder, "--silent", "0"):
        (again,) = rows(campaign("kpis", name, *data, "--json"))
        assert again["outcomes"] == kpis["outcomes"]


async def test_leaving_the_watch_leaves_the_send(folder: Path, people: Path) -> None:
    async with up(folder, "--silent", "0.9"):
        sending = await asyncio.create_subprocess_exec(
            *(*CAMPAIGN, "send", "--data", str(folder), "--recipients", str(people), "--yes"),
            *("--subject", "Hello", "--text", "Hello"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert sending.stdout is not None
        said = b""
        while b"FINISHED" not in said:
            said = await asyncio.wait_for(sending.stdout.readline(), START_SECONDS_MAX)
            assert said, "the command ended before the send was over"
        sending.send_signal(signal.SIGINT)
        rest, _ = await asyncio.wait_for(sending.communicate(), START_SECONDS_MAX)
        assert sending.returncode == 130
        assert f"--data {folder}" in rest.decode().split("campaign watch ")[1]
        (delivery,) = rows(campaign("list", "--data", str(folder), "--json"))
        assert delivery["state"] == "DELIVERY_STATE_FINISHED"


async def test_a_part_that_dies_stops_everything_and_is_named(folder: Path) -> None:
    async with up(folder) as process:
        (victim,) = [each for each in processes_of(folder) if "feedback_service" in each]
        os.kill(int(victim.split()[0]), signal.SIGKILL)
        _, stderr = await asyncio.wait_for(process.communicate(), START_SECONDS_MAX)
    assert process.returncode == 1
    assert b"feedback_service was killed by signal 9" in stderr
    assert b"feedback_service.log" in stderr


async def test_killing_the_command_leaves_no_process_behind(folder: Path) -> None:
    async with up(folder) as process:
        process.kill()
        await eventually(lambda: not processes_of(folder), timeout_seconds=START_SECONDS_MAX)
    async with up(folder):
        assert rows(campaign("list", "--data", str(folder), "--json")) == []


def test_the_demo_is_exact() -> None:
    done = campaign("demo", "--recipients", "2000", "--seed", "7", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["truth"] == result["outcomes"]
    assert sum(result["outcomes"].values()) == result["to_deliver"]
    assert (result["drift"], result["duplicates_sent"]) == (0, 0)
    assert result["opened"] > result["clicked"] > 0
    delivered = result["with_efs"]["delivered"]
    assert delivered == {
        "count": result["outcomes"]["delivered"],
        "base": result["to_deliver"],
        "rate": delivered["count"] / delivered["base"],
    }
    assert result["without_efs"]["processed"] == result["without_efs"]["delivered"]["base"]
