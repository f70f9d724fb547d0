"""`campaign logs`, `log`, `list` and `kpis`: what is known, as tables for people or as JSON lines for programs."""

import json
from collections.abc import AsyncIterator, Iterable

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.delivery_pb2 import Delivery, DeliveryState, FeedbackMode
from campaign.delivery.v1.send_log_pb2 import (
    TIMELINE_ENTRY_KIND_TRANSITION,
    FailureType,
    Outcome,
    Reason,
    SendLog,
    SendLogStatus,
    TimelineEntry,
    TimelineEntryKind,
)
from campaign_cli.client import DeliveryClient
from campaign_cli.words import label, local_time

PAGE_SIZE_MAX = 1_000
STATUS_STYLES = {"sent": "green", "failed": "red", "pending": "blue", "canceled": "bright_black"}


async def read_send_logs(client: DeliveryClient, request: pb.ListSendLogsRequest, limit: int) -> AsyncIterator[SendLog]:
    """Up to `limit` send logs, page after page. A filtered page may be empty and still not be the last."""
    left = limit
    while left > 0:
        # With a filter, a page reads a bounded number of rows and gives those that match: ask for large ones.
        request.page_size = PAGE_SIZE_MAX if _is_filtered(request) else min(left, PAGE_SIZE_MAX)
        page = await client.call(client.stub.ListSendLogs, request)
        for send_log in page.send_logs[:left]:
            yield send_log
        left -= len(page.send_logs)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return


async def read_deliveries(client: DeliveryClient, limit: int, parent: str = "") -> list[Delivery]:
    """The newest deliveries, newest first: those that are no children, or the children of one."""
    found: list[Delivery] = []
    request = pb.ListDeliveriesRequest(parent_delivery_id=parent)
    while len(found) < limit:
        request.page_size = min(limit - len(found), PAGE_SIZE_MAX)
        page = await client.call(client.stub.ListDeliveries, request)
        found += page.deliveries
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    return found


def print_json(console: Console, message: Message) -> None:
    """One message as one line of JSON, names as in the contract, zeros included."""
    fields = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    console.out(json.dumps(fields, ensure_ascii=False), highlight=False)


def render_send_logs(send_logs: Iterable[SendLog], *, wide: bool) -> RenderableType:
    """A table of send logs; `wide` adds what the MTA said, and to whom."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("Address", overflow="fold")
    for heading in ("Status", "Outcome", "Failure", "Time"):
        table.add_column(heading, no_wrap=True)
    if wide:
        table.add_column("Profile", overflow="fold")
        table.add_column("Code", no_wrap=True)
        table.add_column("Diagnostic", overflow="fold")
    for each in send_logs:
        more = (Text(each.profile_id), _codes(each.smtp_code, each.enhanced_code), Text(each.diagnostic, "dim"))
        table.add_row(
            str(each.recipient),
            Text(each.address),
            _status(each.status),
            label(Outcome, each.outcome),
            _failure(each.failure_type, each.reason),
            local_time(each.event_time),
            *(more if wide else ()),
        )
    return table


def render_timeline(entries: Iterable[TimelineEntry]) -> RenderableType:
    """Everything known about one message, in the order in which it happened."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Time", "What", "Failure", "Code", "Attempt"):
        table.add_column(heading, no_wrap=True)
    table.add_column("Diagnostic", overflow="fold")
    for entry in entries:
        table.add_row(
            local_time(entry.event_time),
            _what(entry),
            _failure(entry.failure_type, entry.reason),
            _codes(entry.smtp_code, entry.enhanced_code),
            str(entry.attempt or ""),
            Text(entry.diagnostic or entry.url, "dim"),
        )
    return table


def render_deliveries(deliveries: Iterable[Delivery]) -> RenderableType:
    """A table of deliveries."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Delivery", no_wrap=True)
    table.add_column("Label", overflow="fold")
    for heading in ("State", "Mode"):
        table.add_column(heading, no_wrap=True)
    table.add_column("To deliver", justify="right", no_wrap=True)
    table.add_column("Created", no_wrap=True)
    for each in deliveries:
        table.add_row(
            each.delivery_id,
            Text(each.label),
            label(DeliveryState, each.state),
            label(FeedbackMode, each.feedback_mode),
            f"{each.plan.to_deliver:,}" if each.HasField("plan") else "",
            local_time(each.create_time, seconds=False),
        )
    return table


def _is_filtered(request: pb.ListSendLogsRequest) -> bool:
    return bool(request.statuses or request.failure_types or request.reasons or request.address)


def _status(number: SendLogStatus.ValueType) -> Text:
    name = label(SendLogStatus, number)
    return Text(name, STATUS_STYLES.get(name, ""))


def _failure(failure_type: FailureType.ValueType, reason: Reason.ValueType) -> str:
    return ": ".join(filter(None, (label(FailureType, failure_type), label(Reason, reason))))


def _codes(smtp_code: int, enhanced_code: str) -> str:
    return " ".join(filter(None, (str(smtp_code or ""), enhanced_code)))


def _what(entry: TimelineEntry) -> str:
    outcomes = " → ".join(filter(None, (label(Outcome, entry.before), label(Outcome, entry.outcome))))
    if entry.kind == TIMELINE_ENTRY_KIND_TRANSITION:
        return outcomes
    return ": ".join(filter(None, (label(TimelineEntryKind, entry.kind), outcomes)))
