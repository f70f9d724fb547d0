"""The `campaign` command from start to end: a send, what it tells of it, and leaving its watch."""

import asyncio
import csv
import signal
import sys
from pathlib import Path

import pytest

from tests.support.campaign_process import CAMPAIGN, START_SECONDS_MAX, campaign, processes_of, up
from tests.support.terminal import Terminal

RECIPIENTS = 300

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.timeout(600),
]


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


async def test_a_send_from_start_to_end_and_again_after_a_restart(
    folder: Path, people: Path, terminal: Terminal
) -> None:
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
        (delivery,) = await terminal.rows("list", *data)
        name = delivery["delivery_id"]
        assert delivery["state"] == "DELIVERY_STATE_FINISHED"

        watched = await terminal.run("watch", name, *data)
        assert f"handed over {RECIPIENTS - 3} of {RECIPIENTS - 3}" in watched.stdout
        logs = await terminal.rows("logs", name, *data, "--limit", "1000")
        assert len(logs) == RECIPIENTS - 3
        failed = await terminal.rows("logs", name, *data, "--status", "failed", "--address", "bad+hard@mail.test")
        assert [(each["profile_id"], each["outcome"]) for each in failed] == [("P-refused", "OUTCOME_BOUNCED")]
        (log,) = await terminal.rows("log", name, failed[0]["recipient"], *data)
        assert log["timeline"][-1]["outcome"] == "OUTCOME_BOUNCED"
        (statistics,) = await terminal.rows("statistics", name, *data)
        assert (statistics["drift"], statistics["recounted"]) == ("0", str(RECIPIENTS - 3))
        (kpis,) = await terminal.rows("kpis", name, *data)

        second = campaign("up", *data)
        assert second.returncode == 1
        assert "running on the folder" in second.stderr
        missing = campaign("kpis", "99", *data)
        assert missing.returncode == 1
        assert "reason: DELIVERY_NOT_FOUND" in missing.stderr
        assert "Traceback" not in missing.stderr
    assert process.returncode == 0
    assert processes_of(folder) == []
    assert "nothing is running" in (await terminal.run("list", *data)).stderr

    async with up(folder, "--silent", "0"):
        (again,) = await terminal.rows("kpis", name, *data)
        assert again["outcomes"] == kpis["outcomes"]


async def test_leaving_the_watch_leaves_the_send(folder: Path, people: Path, terminal: Terminal) -> None:
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
        (delivery,) = await terminal.rows("list", "--data", str(folder))
        assert delivery["state"] == "DELIVERY_STATE_FINISHED"
