"""Looking things up after a send: `campaign render`, `messages`, `breakdown`, `tracking`, `changes`, `dead-letters`."""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import click
from google.protobuf.message import Message
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1 import look_ups_pb2, send_log_feed_pb2
from campaign.delivery.v1.delivery_pb2 import DeliveryState
from campaign.delivery.v1.send_log_pb2 import (
    TIMELINE_ENTRY_KIND_AUTO_REPLY,
    TIMELINE_ENTRY_KIND_OPEN,
    Outcome,
    Reason,
    SendLogStatus,
    TimelineEntryKind,
)
from campaign_cli import logs
from campaign_cli.client import SEND_PATIENCE_SECONDS, DeliveryClient, Target, connect
from campaign_cli.options import json_option, limit_option, target_options
from campaign_cli.running import open_console, run
from campaign_cli.words import choices, label, local_time

PAGE_SIZE_MAX = 1_000
TRACKING_KINDS = {
    name: number
    for name, number in choices(TimelineEntryKind).items()
    if TIMELINE_ENTRY_KIND_OPEN <= number <= TIMELINE_ENTRY_KIND_AUTO_REPLY
}


@click.command()
@click.argument("delivery_id", metavar="ID")
@click.argument("recipient", type=click.IntRange(1))
@json_option
@target_options
def render(delivery_id: str, recipient: int, as_json: bool, **where: Any) -> None:
    """Shows the message that one recipient was sent, or will be."""
    request = look_ups_pb2.RenderMessageRequest(delivery_id=delivery_id, recipient=recipient)

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            found = await client.call(client.stub.RenderMessage, request)
        if as_json:
            logs.print_json(console, found)
            return
        sender = f"{found.from_name} <{found.from_address}>" if found.from_name else found.from_address
        headers = {"To": found.address, "From": sender, "Reply-To": found.reply_to_address, "Subject": found.subject}
        for name, value in headers.items():
            if value:
                console.out(f"{name}: {value}", highlight=False)
        for body in filter(None, (found.text, found.html)):
            console.out(f"\n{body}", highlight=False)

    run(work())


@click.command()
@click.option("--profile", "profile_id", default="", metavar="ID", help="The caller's key of the person.")
@click.option("--address", "recipient_address", default="", help="Or the address written to.")
@limit_option
@json_option
@target_options
def messages(profile_id: str, recipient_address: str, limit: int, as_json: bool, **where: Any) -> None:
    """Lists every message of one person over all deliveries, newest first."""
    if bool(profile_id) == bool(recipient_address):
        raise click.UsageError("Give the person by --profile or by --address.")
    request = look_ups_pb2.ListProfileMessagesRequest(profile_id=profile_id, address=recipient_address)

    async def work() -> None:
        async with connect(Target(**where)) as client:
            found = await _read(client.call, client.stub.ListProfileMessages, request, "messages", limit)
        _show(found, as_json, _messages)

    run(work())


@click.command()
@click.argument("delivery_id", metavar="ID")
@click.option("--by", type=click.Choice(list(choices(look_ups_pb2.KpiBreakdownBy))), required=True)
@click.option("--limit", type=click.IntRange(1, PAGE_SIZE_MAX), default=20, show_default=True)
@json_option
@target_options
def breakdown(delivery_id: str, by: str, limit: int, as_json: bool, **where: Any) -> None:
    """Divides the KPIs of a delivery by recipient domain, reason or hour."""
    request = look_ups_pb2.GetKpiBreakdownRequest(
        delivery_id=delivery_id, by=choices(look_ups_pb2.KpiBreakdownBy)[by], groups_max=limit
    )

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            found = await client.call(client.stub.GetKpiBreakdown, request)
        logs.print_json(console, found) if as_json else console.print(_breakdown(found))

    run(work())


@click.command()
@click.argument("delivery_id", metavar="ID")
@click.argument("recipient", type=click.IntRange(1), required=False)
@click.option("--kind", "kinds", type=click.Choice(list(TRACKING_KINDS)), multiple=True)
@limit_option
@json_option
@target_options
def tracking(
    delivery_id: str, recipient: int | None, kinds: tuple[str, ...], limit: int, as_json: bool, **where: Any
) -> None:
    """Lists opens, clicks, unsubscribes, complaints and auto-replies one by one; of one RECIPIENT, or of all."""
    request = look_ups_pb2.ListTrackingEventsRequest(
        delivery_id=delivery_id, recipient=recipient or 0, kinds=[TRACKING_KINDS[kind] for kind in kinds]
    )

    async def work() -> None:
        async with connect(Target(**where)) as client:
            found = await _read(client.call, client.stub.ListTrackingEvents, request, "events", limit)
        _show(found, as_json, _tracking)

    run(work())


@click.command()
@click.argument("delivery_id", metavar="ID")
@click.option("--since", "resume_token", metavar="TOKEN", default="", help="Only what came behind this resume token.")
@click.option("--follow", is_flag=True, help="Go on until the delivery is settled, or until Ctrl-C.")
@target_options
def changes(delivery_id: str, resume_token: str, follow: bool, **where: Any) -> None:
    """Prints the accepted changes of the send logs in commit order, as JSON lines; then the token to go on from."""

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where), SEND_PATIENCE_SECONDS) as client:
            async for told in _changes(client, delivery_id, resume_token):
                for change in told.changes:
                    logs.print_json(console, change)
                if told.caught_up and not follow:
                    break
            click.echo(f"What changes from now on: --since {told.resume_token}", err=True)

    run(work())


@click.command("dead-letters")
@limit_option
@json_option
@target_options
def dead_letters(limit: int, as_json: bool, **where: Any) -> None:
    """Lists what MTAs reported about messages that do not exist, newest first."""

    async def work() -> None:
        async with connect(Target(**where)) as client:
            request = pb.ListDeadLettersRequest()
            found = await _read(client.call, client.stub.ListDeadLetters, request, "dead_letters", limit)
        _show(found, as_json, _dead_letters)

    run(work())


async def _changes(
    client: DeliveryClient, delivery_id: str, resume_token: str
) -> AsyncIterator[send_log_feed_pb2.SendLogChanges]:
    request = send_log_feed_pb2.WatchSendLogsRequest(delivery_id=delivery_id, resume_token=resume_token)
    async for response in client.stub.WatchSendLogs(request):
        if response.HasField("changes"):
            yield response.changes


async def _read(call: Any, method: Any, request: Any, field: str, limit: int) -> list[Any]:
    """Up to `limit` of a list, page after page. A page may be short, or empty, and still not be the last."""
    found: list[Any] = []
    while len(found) < limit:
        request.page_size = min(limit - len(found), PAGE_SIZE_MAX)
        page = await call(method, request)
        found += getattr(page, field)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    return found


def _show(found: Iterable[Message], as_json: bool, table_of: Callable[[Any], RenderableType]) -> None:
    console = open_console()
    if as_json:
        for each in found:
            logs.print_json(console, each)
    else:
        console.print(table_of(found))


def _table(*headings: str, folded: str = "") -> Table:
    """A table with these columns, and a last one that may take several lines."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    if folded:
        table.add_column(folded, overflow="fold")
    return table


def _messages(found: Iterable[look_ups_pb2.ProfileMessage]) -> RenderableType:
    table = _table("Delivery", "#", "State", "Status", "Outcome", "Reason", "Time", folded="Label")
    for each in found:
        log = each.send_log
        table.add_row(
            log.delivery_id,
            str(log.recipient),
            label(DeliveryState, each.state),
            label(SendLogStatus, log.status),
            label(Outcome, log.outcome),
            label(Reason, log.reason),
            local_time(log.event_time),
            Text(each.label),
        )
    return table


def _breakdown(found: look_ups_pb2.GetKpiBreakdownResponse) -> RenderableType:
    table = _table("Group")
    for heading in ("Send logs", "Sent", "Pending", "Failed", "Canceled"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups = [(_name(group), group) for group in found.groups]
    if found.other_groups:
        groups.append((f"{found.other_groups:,} others", found.other))
    for name, group in groups:
        counts = group.statuses
        figures = (group.volume, counts.sent, counts.pending, counts.failed, counts.canceled)
        table.add_row(Text(name), *(f"{figure:,}" for figure in figures))
    return table


def _name(group: look_ups_pb2.KpiGroup) -> str:
    match group.WhichOneof("key"):
        case "recipient_domain":
            return group.recipient_domain
        case "reason":
            return label(Reason, group.reason)
        case "hour_start_time":
            return local_time(group.hour_start_time, seconds=False)
        case _:
            return "none"


def _tracking(found: Iterable[look_ups_pb2.TrackingEvent]) -> RenderableType:
    table = _table("#", "What", "Time", folded="Link")
    for each in found:
        kind = label(TimelineEntryKind, each.kind)
        table.add_row(str(each.recipient), kind, local_time(each.event_time), Text(each.url))
    return table


def _dead_letters(found: Iterable[pb.DeadLetter]) -> RenderableType:
    table = _table("Kept", "Source", "What", folded="Message, and why it is here")
    for each in found:
        what = label(Outcome, each.outcome) or label(TimelineEntryKind, each.tracking_kind)
        message = Text(f"{each.message_id}: {each.detail}")
        table.add_row(local_time(each.create_time), Text(each.source_id), what, message)
    return table
