"""`campaign suppression`, `exclusions`, `retry-failed`, `erase-profile`, the options of `send`: each on a service."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from campaign.delivery.v1 import delivery_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.audience_pb2 import AudienceOptions, ControlGroup, ProfileList
from campaign_cli.running import INTERRUPTED_STATUS
from tests.support.delivery_stack import DeliveryStack, Observed, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.terminal import Terminal


@dataclass
class Command:
    """The command of someone who may send."""

    terminal: Terminal
    stack: DeliveryStack
    folder: Path
    before: int = 0
    """Deliveries that are there before it sends one."""

    async def __call__(
        self,
        *arguments: str,
        given: str = "",
        status: int = 0,
        sends: bool = False,
        roles: tuple[str, ...] = ("start-deliveries", "administration"),
    ) -> tuple[str, str]:
        """What it says on stdout and stderr. One that `sends` watches for a week: it is left once all has been sent."""
        token_file = self.folder / "sender.token"
        token_file.write_text(self.stack.keys.sign("sender", roles))
        where = ("--target", self.stack.target, "--token-file", str(token_file))
        ending = asyncio.create_task(self.terminal.run(*arguments, *where, given=given))
        if sends:
            try:
                await eventually(self._finished)
            finally:
                self.terminal.interrupt()
            status = INTERRUPTED_STATUS
        result = await ending
        assert result.exit_code == status, result.stderr
        return result.stdout, result.stderr

    async def newest(self) -> delivery_pb2.Delivery:
        return (await self.stack.stub.ListDeliveries(pb.ListDeliveriesRequest())).deliveries[0]

    async def _finished(self) -> bool:
        listed = (await self.stack.stub.ListDeliveries(pb.ListDeliveriesRequest())).deliveries
        return len(listed) > self.before and listed[0].state == delivery_pb2.DELIVERY_STATE_FINISHED


@pytest.fixture
async def command(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Command]:
    async with delivery_stack(database, tmp_path / "service") as stack:
        yield Command(Terminal(monkeypatch), stack, tmp_path)
    await assert_laws(database)


async def test_a_suppression_list_is_made_filled_from_a_file_shown_and_deleted(command: Command) -> None:
    file = command.folder / "entries.txt"
    file.write_text("".join(f"a{i:04}@example.com\n" for i in range(4_500)) + "\nno address\n")

    await command("suppression", "create", "left", "--description", "who has left")
    added, _ = await command("suppression", "add", "left", "b@example.com", "--file", str(file))
    again, _ = await command("suppression", "add", "left", "--file", str(file))
    domains, _ = await command(
        "suppression", "add", "left", "--domains", "--file", "-", given="One.example\ntwo.example\n"
    )
    removed, _ = await command("suppression", "remove", "left", "a0001@example.com", "unknown@example.com")

    assert added.splitlines() == ["4,501 entries added to left.", "1 entry left out, being malformed:", "  no address"]
    assert again.startswith("0 entries added to left.\n")
    assert domains == "2 entries added to left.\n"
    assert removed == "1 entry removed from left.\n"
    shown, _ = await command("suppression", "show", "left", "--limit", "10000")
    assert shown.splitlines()[-3:] == ["b@example.com", "@one.example", "@two.example"]
    assert len(shown.splitlines()) == 4_502
    first, _ = await command("suppression", "show", "left", "--limit", "1", "--json")
    assert json.loads(first)["address"] == "a0000@example.com"
    listed, _ = await command("suppression", "list")
    assert listed.splitlines()[1].split()[:4] == ["left", "email", "4,500", "2"]
    as_json, _ = await command("suppression", "list", "--json")
    assert json.loads(as_json)["domain_count"] == "2"

    await command("suppression", "delete", "left", "--yes")
    _, stderr = await command("suppression", "show", "left", status=1)
    assert "SUPPRESSION_LIST_NOT_FOUND" in stderr


async def test_a_send_leaves_out_whom_it_is_told_to(command: Command) -> None:
    await command("suppression", "create", "never")
    await command("suppression", "add", "never", "--domains", "never.example")
    file = command.folder / "people.csv"
    file.write_text(
        "email\n"
        + "".join(f"a{i}@example.com\n" for i in range(300))
        + "".join(f"b{i}@never.example\n" for i in range(30))
    )

    said, _ = await command(
        "send", "--recipients", str(file), "--subject", "Hello", "--text", "unsubscribe", "--yes",
        "--control-group", "0.3", "--suppression-list", "never", sends=True,
    )  # fmt: skip

    delivery = await command.newest()
    volumes = {each.cause: each.volume for each in delivery.plan.exclusions if each.volume}
    drawn = volumes[delivery_pb2.EXCLUSION_CAUSE_CONTROL_GROUP]
    suppressed = volumes[delivery_pb2.EXCLUSION_CAUSE_SUPPRESSED_DOMAIN]
    assert 40 <= drawn <= 160
    assert 1 <= suppressed <= 30
    assert f"excluded: control group {-drawn:,}".split() in [line.split() for line in said.splitlines()]
    assert len(command.stack.mta.addresses) == 330 - drawn - suppressed
    assert not [address for address in command.stack.mta.addresses if address.endswith("@never.example")]
    excluded, _ = await command("exclusions", delivery.delivery_id, "--cause", "suppressed-domain")
    assert len(excluded.splitlines()) == 1 + suppressed
    assert all(line.endswith("suppressed domain") and "@never.example" in line for line in excluded.splitlines()[1:])
    as_json, _ = await command("exclusions", delivery.delivery_id, "--limit", "10000", "--json")
    assert len(as_json.splitlines()) == drawn + suppressed


async def failed(stack: DeliveryStack) -> str:
    """A delivery to twelve, three of whom got nothing; one is in the control group."""
    group = ControlGroup(profiles=ProfileList(profile_ids=["p12"]))
    delivery_id = await stack.create(audience_options=AudienceOptions(control_group=group))
    await stack.add(delivery_id, people(12))
    await stack.confirm(await stack.prepare(delivery_id))
    await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    await stack.apply(
        *(Observed(f"{delivery_id}-{i}", send_log_pb2.OUTCOME_BOUNCED, failure_type=1, reason=6) for i in (2, 3)),
        Observed(f"{delivery_id}-5", send_log_pb2.OUTCOME_BOUNCED, failure_type=2, reason=2),
        *(Observed(f"{delivery_id}-{i}", send_log_pb2.OUTCOME_DELIVERED) for i in (1, 4, 6, 7, 8, 9, 10)),
    )
    return delivery_id


async def test_a_dry_run_of_a_retry_only_counts(command: Command) -> None:
    delivery_id = await failed(command.stack)

    said, _ = await command("retry-failed", delivery_id, "--dry-run")
    as_json, _ = await command("retry-failed", delivery_id, "--dry-run", "--failure-type", "hard", "--json")

    assert [line.split() for line in said.splitlines()] == [
        ["soft:", "mailbox", "full", "2"],
        ["hard:", "user", "unknown", "1"],
        ["To", "retry", "3"],
        ["1", "message", "of", "it", "undecided", "yet"],
    ]
    assert json.loads(as_json)["recipient_count"] == "1"
    assert len((await command.stack.stub.ListDeliveries(pb.ListDeliveriesRequest())).deliveries) == 1


async def test_a_retry_is_shown_asked_about_and_sent(command: Command) -> None:
    stack = command.stack
    delivery_id = await failed(stack)
    before = stack.mta.addresses.copy()

    _, refused = await command("retry-failed", delivery_id, "--reason", "user-unknown", given="n\n", status=1)
    command.before = 2
    said, _ = await command(
        "retry-failed", delivery_id, "--failure-type", "soft", "--label", "again", "--yes", sends=True
    )

    assert "not sent" in refused
    assert "retried before, by delivery" in said
    assert stack.mta.addresses - before == {"person2@example.com": 1, "person3@example.com": 1}
    retried = await command.newest()
    assert (retried.label, retried.retry_of_delivery_id) == ("again", delivery_id)
    assert retried.state == delivery_pb2.DELIVERY_STATE_FINISHED


async def test_addresses_are_quarantined_shown_released_and_allowed(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "left.txt"
    file.write_text("b@example.com\nno address\n")
    added, _ = await command("quarantine", "add", "a@example.com", "--file", str(file), "--note", "asked")
    assert "2 entries quarantined." in added
    assert "left out: no address" in added

    listed, _ = await command("quarantine", "list", "--status", "quarantined", "--domain", "example.com", "--json")
    assert [json.loads(line)["address"] for line in listed.splitlines()] == ["a@example.com", "b@example.com"]
    shown, _ = await command("quarantine", "show", "a@example.com")
    assert "by hand" in shown
    assert "asked" in shown

    released, _ = await command("quarantine", "release", "a@example.com")
    assert "1 entry released." in released
    many = ("quarantine", "release-many", "--since", "1d", "--until", "2100-01-01")
    counted, _ = await command(*many, "--dry-run")
    assert "1 address would be released." in counted
    done, _ = await command(*many, "--yes")
    assert "1 address released." in done

    allowed, _ = await command("allowlist", "add", "a@example.com", "--note", "ours")
    assert "1 entry added." in allowed
    refused, _ = await command("quarantine", "add", "a@example.com")
    assert "left out: a@example.com (on the allowlist)" in refused
    assert "a@example.com" in (await command("allowlist", "list"))[0]
    assert "On the allowlist" in (await command("quarantine", "show", "a@example.com"))[0]
    assert "1 entry removed." in (await command("allowlist", "remove", "a@example.com"))[0]


async def test_the_denylist_takes_addresses_and_profiles(command: Command) -> None:
    assert "1 entry added." in (await command("denylist", "add", "a@example.com"))[0]
    assert "2 entries added." in (await command("denylist", "add", "--profiles", "p1", "p2", "--note", "letter"))[0]
    listed, _ = await command("denylist", "list")
    assert "p2" in listed
    assert "letter" in listed
    assert "On the denylist: by hand" in (await command("quarantine", "show", "a@example.com"))[0]
    assert "1 entry removed." in (await command("denylist", "remove", "--profiles", "p1"))[0]
    kept, _ = await command("denylist", "list", "--json")
    assert [json.loads(line).get("profile_id", "") for line in kept.splitlines()] == ["", "p2"]


async def test_a_profile_is_erased_once_one_agrees(command: Command) -> None:
    stack = command.stack
    delivery_id = await stack.sent(3)
    whole = ("erase-profile", "p2")

    would, _ = await command(*whole, "--dry-run", "--json", roles=("administration",))
    await command(*whole, given="n\n", status=1, roles=("administration",))
    assert (await stack.send_log(delivery_id, 2)).send_log.profile_id == "p2"
    said, _ = await command(*whole, given="y\n", roles=("administration",))
    again, _ = await command(*whole, "--yes", "--json", roles=("administration",))
    _, refused = await command(*whole, "--yes", status=1, roles=("start-deliveries",))

    assert json.loads(would)["recipient_count"] == "1"
    erased = (await stack.send_log(delivery_id, 2)).send_log
    assert erased.profile_id.startswith("erased-")
    assert erased.profile_id in said
    assert ["erase", "again", "once", "settled", delivery_id] in [line.split() for line in said.splitlines()]
    assert "erasure_id" not in {key for key, value in json.loads(again).items() if value}
    assert "administration" in refused
