"""`campaign export` against a running service: three formats of the same rows, incrementally, whole or not at all."""

import csv
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from click.testing import Result
from pyarrow import parquet

from campaign.delivery.v1 import send_log_pb2
from campaign.delivery.v1.send_log_feed_pb2 import ExportedSendLog, ExportSendLogsRequest, ExportSendLogsResponse
from campaign_cli import export
from campaign_cli.client import DeliveryClient
from campaign_cli.errors import CommandFailed
from campaign_cli.export import COLUMNS, export_send_logs, row_of
from tests.support.delivery_stack import DeliveryStack, Observed, delivery_stack
from tests.support.terminal import Terminal

TIME_US = 1_790_000_100_000_000


@dataclass
class Command:
    """The command of someone who may read."""

    terminal: Terminal
    stack: DeliveryStack
    folder: Path

    async def __call__(self, *arguments: str, command: str = "export") -> Result:
        token_file = self.folder / "reader.token"
        token_file.write_text(self.stack.keys.sign("reader", ["read"]))
        where = ("--target", self.stack.target, "--token-file", str(token_file))
        return await self.terminal.run(command, *arguments, *where)

    async def rows(self, delivery_id: str, name: str, *arguments: str) -> tuple[list[dict[str, Any]], str]:
        """The rows of an export, as read back from its file, and its token."""
        path = self.folder / name
        done = await self(delivery_id, "--output", str(path), "--format", path.suffix[1:], "--json", *arguments)
        assert done.exit_code == 0, done.stderr
        result = json.loads(done.stdout)
        found = read_back(path)
        assert len(found) == result["send_logs"]
        assert not path.with_name(f"{name}.part").exists()
        return found, result["resume_token"]


def read_back(path: Path) -> list[dict[str, Any]]:
    match path.suffix:
        case ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file))
        case ".jsonl":
            return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        case _:
            rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
            return rows


@pytest.fixture
async def command(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Command]:
    async with delivery_stack(database, tmp_path / "service") as stack:
        yield Command(Terminal(monkeypatch), stack, tmp_path)


async def test_the_formats_hold_what_the_service_tells(command: Command) -> None:
    stack = command.stack
    delivery_id = await stack.sent(30)
    await stack.apply(
        Observed(
            f"{delivery_id}-3", send_log_pb2.OUTCOME_BOUNCED, TIME_US, 2, 2, 550, "5.1.1", 'no "such", user\nü — ☂', 1
        )
    )
    told = [
        row_of(exported)
        async for response in stack.stub.ExportSendLogs(ExportSendLogsRequest(delivery_id=delivery_id))
        for exported in response.send_logs
    ]

    from_csv, token = await command.rows(delivery_id, "logs.csv")
    from_jsonl, _ = await command.rows(delivery_id, "logs.jsonl")
    from_parquet, _ = await command.rows(delivery_id, "logs.parquet")

    assert len(told) == 30
    assert from_parquet == told  # types included
    bounced = from_jsonl[2]
    assert tuple(bounced) == COLUMNS
    assert (bounced["recipient"], bounced["reason"], bounced["smtp_code"]) == (3, "USER_UNKNOWN", 550)
    assert (bounced["status"], bounced["status_with_efs"], bounced["event_time_ahead"]) == ("FAILED", "FAILED", False)
    assert datetime.fromisoformat(bounced["event_time"]) == datetime.fromtimestamp(TIME_US / 1e6, UTC)
    assert from_csv[2] == {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in bounced.items()
    }
    assert [row["recipient"] for row in from_csv] == [str(n) for n in range(1, 31)]
    assert token == (await stack.kpis(delivery_id)).resume_token


async def test_an_export_since_a_token_has_what_changed(command: Command) -> None:
    stack = command.stack
    delivery_id = await stack.sent(5)
    _, token = await command.rows(delivery_id, "all.csv")
    await stack.apply(Observed(f"{delivery_id}-4", send_log_pb2.OUTCOME_DELIVERED, TIME_US))

    changed, later = await command.rows(delivery_id, "changed.csv", "--since", token)
    nothing, _ = await command.rows(delivery_id, "nothing.csv", "--since", later)
    failed, _ = await command.rows(delivery_id, "failed.csv", "--status", "failed", "--mode", "without-efs")

    assert [(row["recipient"], row["status"]) for row in changed] == [("4", "SENT")]
    assert (nothing, failed) == ([], [])


async def test_the_command_tells_a_person_how_to_go_on(command: Command) -> None:
    delivery_id = await command.stack.sent(1)
    path = command.folder / "logs.csv"

    done = await command(delivery_id, "--output", str(path))

    assert done.exit_code == 0
    token = (await command.stack.kpis(delivery_id)).resume_token
    assert f"1 send log written to {path}." in done.stdout
    assert f"campaign export {delivery_id} --format csv --since {token} --output FILE --target" in done.stdout


async def test_the_command_explains_a_delivery_and_one_message_in_sentences(command: Command) -> None:
    stack = command.stack
    delivery_id = await stack.sent(2)
    await stack.apply(Observed(f"{delivery_id}-2", send_log_pb2.OUTCOME_BOUNCED, TIME_US, 2, 2))

    delivery = await command(delivery_id, command="explain")
    message = await command(delivery_id, "2", command="explain")
    as_json = await command(delivery_id, "2", "--json", command="explain")

    assert "1 message handed over that no MTA has reported on." in delivery.stdout
    assert "person2@example.com: FAILED" in message.stdout
    assert "Applied: BOUNCED (rank 6) is greater than RELAYED (rank 2)." in message.stdout
    assert json.loads(as_json.stdout)["events"][0]["verdict"] == "EVENT_VERDICT_APPLIED"


async def test_an_export_that_fails_leaves_the_file_of_before(command: Command) -> None:
    path = command.folder / "logs.csv"
    path.write_text("before")

    done = await command("12345", "--output", str(path))

    assert done.exit_code == 1
    assert "DELIVERY_NOT_FOUND" in done.stderr
    assert path.read_text() == "before"
    assert list(command.folder.glob("*.part")) == []


class CutOnce:
    """A service that is away after its first response, once."""

    def __init__(self) -> None:
        self.calls = 0

    def ExportSendLogs(self, request: ExportSendLogsRequest) -> AsyncIterator[ExportSendLogsResponse]:
        self.calls += 1
        return self._responses(cut=self.calls == 1)

    async def _responses(self, *, cut: bool) -> AsyncIterator[ExportSendLogsResponse]:
        for n in (1, 2):
            row = ExportedSendLog(send_log=send_log_pb2.SendLog(recipient=n))
            yield ExportSendLogsResponse(send_logs=[row])
            if cut:
                nothing = grpc.aio.Metadata()
                raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "going away")
        yield ExportSendLogsResponse(resume_token="token")


@pytest.mark.parametrize("name", ["logs.csv", "logs.jsonl", "logs.parquet"])
async def test_an_export_that_was_cut_begins_again(tmp_path: Path, name: str) -> None:
    service: Any = CutOnce()
    client = DeliveryClient(service, patience_seconds=5.0)
    path = tmp_path / name

    result = await export_send_logs(client, ExportSendLogsRequest(delivery_id="1"), path.suffix[1:], path)

    assert (service.calls, result.send_logs, result.resume_token) == (2, 2, "token")
    assert [int(row["recipient"]) for row in read_back(path)] == [1, 2]


async def test_without_its_library_parquet_is_refused_before_anything_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    stub: Any = None
    with pytest.raises(CommandFailed, match="pyarrow") as failure:
        await export_send_logs(
            DeliveryClient(stub), ExportSendLogsRequest(delivery_id="1"), "parquet", tmp_path / "logs.parquet"
        )
    assert "campaign-delivery[parquet]" in failure.value.details[0]
    assert list(tmp_path.iterdir()) == []


async def test_a_large_export_is_written_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ROW_GROUP_ROWS", 2)
    path = tmp_path / "logs.parquet"
    with export.FORMATS["parquet"](path) as writer:
        for n in range(5):
            writer.write(row_of(ExportedSendLog(send_log=send_log_pb2.SendLog(recipient=n))))

    assert parquet.ParquetFile(path).num_row_groups == 3
    assert [row["recipient"] for row in read_back(path)] == [0, 1, 2, 3, 4]
