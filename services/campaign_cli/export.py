"""`campaign export`: the send logs of a delivery as a file, whole or what changed since the last one.

The file appears whole or not at all: it is written beside its place, and an export that is cut begins again. Its token
goes with it: whoever has the file needs it for the next one.
"""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from campaign.delivery.v1.send_log_feed_pb2 import ExportedSendLog, ExportSendLogsRequest
from campaign.delivery.v1.send_log_pb2 import FailureType, Outcome, Reason, SendLogStatus
from campaign_cli.client import DeliveryClient, Patience
from campaign_cli.errors import CommandFailed

ROW_GROUP_ROWS: Final = 50_000
"""Rows held before a part of a Parquet file is written."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What an export came to. `resume_token`: for the next one; empty before the start of the delivery."""

    send_logs: int
    resume_token: str


class RowWriter(ABC):
    """Writes rows in one format."""

    @abstractmethod
    def write(self, row: Row) -> None:
        """One more row."""


class _CsvWriter(RowWriter):
    def __init__(self, file: TextIO) -> None:
        self._writer = csv.DictWriter(file, COLUMNS)
        self._writer.writeheader()

    def write(self, row: Row) -> None:
        self._writer.writerow({name: _text(value) for name, value in row.items()})


class _JsonLinesWriter(RowWriter):
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: Row) -> None:
        fields = {name: _text(value) if isinstance(value, datetime) else value for name, value in row.items()}
        self._file.write(json.dumps(fields, ensure_ascii=False) + "\n")


class _ParquetWriter(RowWriter):
    def __init__(self, path: Path) -> None:
        self._arrow, parquet = _pyarrow()
        self._schema = self._arrow.schema([(name, self._type(name)) for name in COLUMNS])
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[Row] = []

    def write(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) >= ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()

    def _type(self, name: str) -> Any:
        match name:
            case "recipient" | "smtp_code" | "attempt":
                return self._arrow.int32()
            case "event_time" | "update_time":
                return self._arrow.timestamp("us", tz="UTC")
            case "event_time_ahead":
                return self._arrow.bool_()
            case _:
                return self._arrow.string()


@contextmanager
def _csv(path: Path) -> Iterator[RowWriter]:
    with path.open("w", encoding="utf-8", newline="") as file:
        yield _CsvWriter(file)


@contextmanager
def _json_lines(path: Path) -> Iterator[RowWriter]:
    with path.open("w", encoding="utf-8") as file:
        yield _JsonLinesWriter(file)


@contextmanager
def _parquet(path: Path) -> Iterator[RowWriter]:
    writer = _ParquetWriter(path)
    try:
        yield writer
    finally:
        writer.close()


FORMATS: Final[Mapping[str, Callable[[Path], Any]]] = {"csv": _csv, "jsonl": _json_lines, "parquet": _parquet}
"""What an export can be written as."""


async def export_send_logs(
    client: DeliveryClient, request: ExportSendLogsRequest, file_format: str, path: Path
) -> Result:
    """Writes the file, from the beginning again whenever the stream was cut. `CommandFailed`: no library for it."""
    if file_format == "parquet":
        _pyarrow()
    draft = path.with_name(f"{path.name}.part")
    patience = Patience(client.patience_seconds)
    try:
        while True:
            try:
                result = await _export_once(client, request, file_format, draft, patience)
            except grpc.aio.AioRpcError as error:
                await patience.wait_after(error)
                continue
            draft.replace(path)
            return result
    finally:
        draft.unlink(missing_ok=True)


async def _export_once(
    client: DeliveryClient, request: ExportSendLogsRequest, file_format: str, path: Path, patience: Patience
) -> Result:
    count, token = 0, ""
    with FORMATS[file_format](path) as writer:
        async for response in client.stub.ExportSendLogs(request):
            patience.reset()
            for exported in response.send_logs:
                writer.write(row_of(exported))
            count += len(response.send_logs)
            token = response.resume_token
    return Result(count, token)


def row_of(exported: ExportedSendLog) -> Row:
    """One send log as a row: enums by name without prefix, empty where there is none."""
    log = exported.send_log
    return {
        "recipient": log.recipient,
        "profile_id": log.profile_id,
        "address": log.address,
        "status": _name(SendLogStatus, log.status),
        "status_with_efs": _name(SendLogStatus, exported.status_with_efs),
        "status_without_efs": _name(SendLogStatus, exported.status_without_efs),
        "outcome": _name(Outcome, log.outcome),
        "failure_type": _name(FailureType, log.failure_type),
        "reason": _name(Reason, log.reason),
        "smtp_code": log.smtp_code,
        "enhanced_code": log.enhanced_code,
        "diagnostic": log.diagnostic,
        "attempt": log.attempt,
        "event_time": _moment(log.event_time),
        "update_time": _moment(log.update_time),
        "event_time_ahead": log.event_time_ahead,
        "message_id": log.message_id,
    }


def _name(enum: Any, number: int) -> str:
    values = enum.DESCRIPTOR.values_by_number
    if number == 0:
        return ""
    if number not in values:
        return str(number)  # of a newer service
    return str(values[number].name).removeprefix(values[0].name.removesuffix("UNSPECIFIED"))


def _moment(time: Timestamp) -> datetime:
    return time.ToDatetime(tzinfo=UTC)


def _text(value: object) -> object:
    """Times in RFC 3339, truth values in lower case; everything else as it is."""
    match value:
        case datetime():
            return value.isoformat(timespec="microseconds").replace("+00:00", "Z")
        case bool():
            return str(value).lower()
        case _:
            return value


def _pyarrow() -> tuple[Any, Any]:
    """The library that writes Parquet. An extra of the package: it is large, and most need it never."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise CommandFailed(
            "Parquet needs the package pyarrow, which is not installed",
            ["install it with: pip install 'campaign-delivery[parquet]'", "or export with --format csv or jsonl"],
        ) from None
    return pyarrow, parquet


COLUMNS: Final = tuple(row_of(ExportedSendLog()))
"""The columns of an export, in order."""
