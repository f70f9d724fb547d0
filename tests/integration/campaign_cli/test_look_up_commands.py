"""`campaign render`, `messages`, `breakdown`, `tracking`, `changes` and `dead-letters` against a running service."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from campaign.delivery.v1 import delivery_pb2, send_log_pb2
from tests.support.delivery_stack import DeliveryStack, Fact, Observed, delivery_stack, people
from tests.support.terminal import Terminal

LINK = "https://shop.test/fair"


@dataclass
class Command:
    """The command on a delivery to three: one delivered and clicked, one bounced."""

    terminal: Terminal
    stack: DeliveryStack
    folder: Path
    delivery_id: str

    async def text(self, *arguments: str, status: int = 0) -> str:
        token_file = self.folder / "reader.token"
        token_file.write_text(self.stack.keys.sign("reader", ["read", "administration"]))
        where = ("--target", self.stack.target, "--token-file", str(token_file))
        result = await self.terminal.run(*arguments, *where)
        assert result.exit_code == status, result.stderr
        return result.stdout + result.stderr

    async def rows(self, *arguments: str) -> list[dict[str, Any]]:
        lines = (await self.text(*arguments)).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture
async def command(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Command]:
    content = delivery_pb2.Content(subject="Hello {{ first_name }}", text="Hi.", from_address="fair@shop.test")
    async with delivery_stack(database, tmp_path) as stack:
        yield Command(Terminal(monkeypatch), stack, tmp_path, await _sent(stack, content))


async def _sent(stack: DeliveryStack, content: delivery_pb2.Content) -> str:
    delivery_id = await stack.sent(3, label="Autumn fair", content=content)
    await stack.apply(
        Observed(f"{delivery_id}-1", send_log_pb2.OUTCOME_DELIVERED),
        Observed(
            f"{delivery_id}-2",
            send_log_pb2.OUTCOME_BOUNCED,
            failure_type=send_log_pb2.FAILURE_TYPE_HARD,
            reason=send_log_pb2.REASON_USER_UNKNOWN,
            smtp_code=550,
        ),
        Observed("somebody-elses", send_log_pb2.OUTCOME_DELIVERED),
    )
    await stack.track(Fact(f"{delivery_id}-1", send_log_pb2.TIMELINE_ENTRY_KIND_CLICK, url=LINK))
    return delivery_id


async def test_a_message_is_shown_as_its_recipient_got_it(command: Command) -> None:
    person = people(1)[0]
    shown = await command.text("render", command.delivery_id, "1")
    assert f"Subject: Hello {person.attributes['first_name']}" in shown
    assert f"To: {person.address}" in shown
    (rendered,) = await command.rows("render", command.delivery_id, "1", "--json")
    assert (rendered["text"], rendered["handed_over"]) == ("Hi.", True)


async def test_the_messages_of_one_person_are_found_by_profile_or_address(command: Command) -> None:
    person = people(2)[1]
    shown = await command.text("messages", "--profile", person.profile_id)
    assert "Autumn fair" in shown
    assert "user unknown" in shown
    (by_address,) = await command.rows("messages", "--address", person.address, "--json")
    assert by_address["send_log"]["recipient"] == "2"
    assert "--profile or by --address" in await command.text("messages", status=2)


async def test_the_figures_are_divided_by_reason(command: Command) -> None:
    shown = await command.text("breakdown", command.delivery_id, "--by", "reason")
    assert [line.split()[:3] for line in shown.splitlines()[1:]] == [["none", "2", "1"], ["user", "unknown", "1"]]
    (found,) = await command.rows("breakdown", command.delivery_id, "--by", "recipient-domain", "--json")
    assert sum(int(group["volume"]) for group in found["groups"]) == 3


async def test_clicks_are_listed_with_their_links(command: Command) -> None:
    assert LINK in await command.text("tracking", command.delivery_id, "1", "--kind", "click")
    assert await command.rows("tracking", command.delivery_id, "--kind", "complaint", "--json") == []


async def test_the_log_of_changes_goes_on_where_it_was_left(command: Command) -> None:
    told = await command.text("changes", command.delivery_id)
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert sorted((line["recipient"], line["outcome"]) for line in lines) == [
        ("1", "OUTCOME_DELIVERED"),
        ("1", "OUTCOME_RELAYED"),
        ("2", "OUTCOME_BOUNCED"),
        ("2", "OUTCOME_RELAYED"),
        ("3", "OUTCOME_RELAYED"),
    ]
    token = told.split("--since ")[1].strip()
    await command.stack.apply(Observed(f"{command.delivery_id}-3", send_log_pb2.OUTCOME_DELIVERED))
    (last,) = await command.rows("changes", command.delivery_id, "--since", token)
    assert (last["recipient"], last["before"]) == ("3", "OUTCOME_RELAYED")


async def test_reports_about_unknown_messages_are_listed(command: Command) -> None:
    shown = await command.text("dead-letters")
    assert "somebody-elses" in shown
    assert "delivered" in shown
