"""The commands for the life of a delivery, against a running DeliveryService."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result

from campaign.delivery.v1 import delivery_pb2
from tests.support.clock import SetClock
from tests.support.delivery_stack import ALL_ROLES, DeliveryStack, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.mta_side import LATER
from tests.support.terminal import Terminal

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


class Command:
    """`campaign …` on a service; it must succeed."""

    def __init__(self, terminal: Terminal, stack: DeliveryStack, folder: Path, clock: SetClock) -> None:
        self.terminal, self.stack, self.folder, self.clock = terminal, stack, folder, clock
        (folder / "user.token").write_text(stack.keys.sign("anna", ALL_ROLES, 10**9))

    async def result(self, name: str, *arguments: str) -> Result:
        where = ("--target", self.stack.target, "--token-file", str(self.folder / "user.token"))
        return await self.terminal.run(name, *arguments, *where)

    async def __call__(self, name: str, *arguments: str) -> str:
        result = await self.result(name, *arguments)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    async def scheduled(self, *more: str) -> str:
        """Sends by the command at a time to come; gives the delivery's id."""
        audience = self.folder / "people.csv"
        audience.write_text("email,first_name\njo@example.com,Jo\nkim@other.example,Kim\n")
        content = ("--recipients", str(audience), "--subject", "Hello {{ first_name }}", "--text", "Hi")
        when = ("--at", "2026-03-02T11:00", "--zone", "Europe/Paris")
        await self("send", *content, *when, *more, "--yes")
        (line,) = (await self("list", "--limit", "1", "--json")).splitlines()
        return str(json.loads(line)["delivery_id"])


@pytest.fixture
async def command(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Command]:
    clock = SetClock(NOW)
    async with delivery_stack(database, tmp_path, clock=clock, alert_check_seconds=0.02) as stack:
        yield Command(Terminal(monkeypatch), stack, tmp_path, clock)
    await assert_laws(database)


async def test_a_scheduled_send_is_taken_back_confirmed_again_and_starts_at_its_time(command: Command) -> None:
    delivery_id = await command.scheduled()
    shown = await command("show", delivery_id)
    assert "start pending" in shown
    assert "Scheduled for 2026-03-02T11:00:00 Europe/Paris." in shown
    assert "is ready" in await command("unconfirm", delivery_id)
    assert "Confirmed; it starts at" in await command("confirm", delivery_id, "--yes")
    command.clock.set(NOW + timedelta(hours=1))  # 11:00 in Paris
    await command.stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)


async def test_a_proof_a_copy_and_its_deletion(command: Command) -> None:
    delivery_id = await command.scheduled()
    proofs = await command("proof", delivery_id, "proof@example.com", "--attribute", "first_name=Jo")
    assert "proof@example.com" in proofs
    assert "accepted" in proofs
    copy = json.loads(await command("duplicate", delivery_id, "--label", "again", "--with-audience", "--json"))
    assert (copy["label"], copy["state"], "schedule" in copy) == ("again", "DELIVERY_STATE_EDITING", False)

    async def copied() -> bool:
        return (await command.result("delete", copy["delivery_id"], "--yes")).exit_code == 0

    await eventually(copied)
    assert (await command.result("show", copy["delivery_id"])).exit_code == 1


async def test_one_domain_is_paused_and_resumed(command: Command) -> None:
    delivery_id = await command.scheduled()
    command.stack.mta.decide = lambda _: LATER
    command.clock.set(NOW + timedelta(hours=1))
    await command.stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_IN_PROGRESS)
    assert "Paused" in await command("pause", delivery_id, "--domain", "Other.example")
    assert "Messages to other.example are held by anna." in await command("show", delivery_id)
    assert "Messages to other.example are held" in await command("explain", delivery_id)
    assert "Resumed" in await command("resume", delivery_id, "--domain", "other.example")
    assert "held" not in await command("show", delivery_id)


async def test_a_recurring_send_whose_occurrences_are_confirmed_or_declined_one_by_one(command: Command) -> None:
    delivery_id = await command.scheduled("--repeat", "FREQ=DAILY;COUNT=2", "--ask-each-time")
    upcoming = await command("occurrences", delivery_id, "--next", "5")
    assert ["2026-03-02T11:00:00" in upcoming, "2026-03-03T11:00:00" in upcoming, "03-04" in upcoming] == [1, 1, 0]

    async def waiting_child() -> str:
        for line in (await command("list", "--parent", delivery_id, "--json")).splitlines():
            child = json.loads(line)
            if child["state"] == "DELIVERY_STATE_READY":
                return str(child["delivery_id"])
        return ""

    command.clock.set(NOW + timedelta(hours=1))
    first = await eventually(waiting_child)
    await command("confirm", first, "--yes")
    await command.stack.in_state(first, delivery_pb2.DELIVERY_STATE_FINISHED)
    command.clock.set(NOW + timedelta(days=1, hours=1))
    second = await eventually(waiting_child)
    assert "is stopped" in await command("decline", second, "--yes")
    listed = await command("occurrences", delivery_id)
    assert first in listed
    assert second in listed
    assert "Children" in await command("occurrences", delivery_id, "--totals")


async def test_alerts_are_listed(command: Command) -> None:
    stack = command.stack
    delivery_id = await stack.create(content=delivery_pb2.Content(text="no subject", from_address="news@example.com"))
    await stack.add(delivery_id, people(1))
    await stack.prepare(delivery_id)

    async def listed() -> bool:
        return "preparation failed" in await command("alerts")

    await eventually(listed)
    (alert,) = (
        json.loads(line) for line in (await command("alerts", "--delivery", delivery_id, "--json")).splitlines()
    )
    assert (alert["delivery_id"], alert["cause"]) == (delivery_id, "ALERT_CAUSE_PREPARATION_FAILED")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("proof", "1", "a@example.com", "--attribute", "nothing"), "NAME=VALUE"),
        (("occurrences", "1", "--next", "2", "--totals"), "not both"),
        (("alerts", "--watch", "--delivery", "1"), "--delivery"),
    ],
)
async def test_options_that_do_not_go_together_are_refused(
    command: Command, arguments: tuple[str, ...], said: str
) -> None:
    result = await command.result(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
