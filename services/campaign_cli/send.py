"""`campaign send`: from a CSV file to a finished send, with a person's yes in between."""

import asyncio
import signal
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.audience_pb2 import AudienceOptions
from campaign.delivery.v1.delivery_pb2 import (
    DELIVERY_STATE_PREPARATION_FAILED,
    DELIVERY_STATE_PREPARING,
    DELIVERY_STATE_READY,
    Content,
    Delivery,
    DeliveryState,
    FeedbackMode,
)
from campaign.delivery.v1.schedule_pb2 import Schedule
from campaign_cli.client import SEND_PATIENCE_SECONDS, DeliveryClient, Target, connect
from campaign_cli.display import render_plan
from campaign_cli.errors import CommandFailed
from campaign_cli.recipients_csv import HeaderProblem
from campaign_cli.upload import Rejects, read_chunks, upload_recipients
from campaign_cli.watch import watch_until_over
from campaign_cli.words import local_time, plural

PREPARE_POLL_SECONDS = (0.05, 0.1, 0.2, 0.5)
"""Small audiences are ready at once; the last pause repeats."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What to send to whom."""

    recipients: Path
    content: Content
    label: str
    feedback_mode: FeedbackMode.ValueType
    schedule: Schedule | None = None
    """None: at once."""
    audience_options: AudienceOptions | None = None


async def run_send(target: Target, draft: Draft, rejects_path: Path | None, yes: bool, console: Console) -> None:
    """Everything from the file to the end of the send, with a question in between unless `yes`."""
    async with connect(target, SEND_PATIENCE_SECONDS) as client:
        with ExitStack() as files:
            rejects = Rejects()
            if rejects_path is not None:
                # What is not UTF-8 goes out as it came in, so that it can be mended.
                output = rejects_path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n")
                rejects.output = files.enter_context(output)
            delivery = await prepare_send(client, draft, rejects, console)
        await send_prepared(client, delivery, yes, console, target.options, is_scheduled=draft.schedule is not None)


async def send_prepared(
    client: DeliveryClient, delivery: Delivery, yes: bool, console: Console, options: str, *, is_scheduled: bool = False
) -> None:
    """From the plan that was shown to the end of the send, or to its start if that is later; asks unless `yes`."""
    if not yes and not await _ask(f"Send {plural(delivery.plan.to_deliver, 'message')}?"):
        raise CommandFailed("not sent", [f"delivery {delivery.delivery_id} stays ready to be confirmed"])
    confirmed = await confirm_send(client, delivery)
    if is_scheduled:
        console.print(
            f"Confirmed; it starts at {local_time(confirmed.start_time)}. "
            f"Take it back with: campaign unconfirm {delivery.delivery_id}{options}",
            highlight=False,
        )
        return
    await watch_until_over(client, {delivery.delivery_id: delivery.label}, console, options)


async def prepare_send(client: DeliveryClient, draft: Draft, rejects: Rejects, console: Console) -> Delivery:
    """Creates, fills and prepares a delivery, and shows its plan; `CommandFailed` if it is not READY then."""
    delivery = Delivery(
        label=draft.label,
        content=draft.content,
        feedback_mode=draft.feedback_mode,
        schedule=draft.schedule,
        audience_options=draft.audience_options,
    )
    created = (await client.stub.CreateDelivery(pb.CreateDeliveryRequest(delivery=delivery), timeout=30.0)).delivery
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task("Reading the recipients", total=None)
        try:
            added = await upload_recipients(
                client,
                created.delivery_id,
                str(uuid.uuid4()),
                lambda: read_chunks(draft.recipients, rejects),
                lambda sent: progress.update(task, completed=sent),
            )
        except HeaderProblem as problem:
            raise CommandFailed(f"{draft.recipients}: {problem}") from None
        progress.update(task, description="Preparing", completed=added, total=None)
        prepared = await prepare(client, created.delivery_id)
    show_rejects(console, rejects)
    console.print(render_plan(prepared))
    require_ready(prepared)
    return prepared


def require_ready(prepared: Delivery) -> None:
    """`CommandFailed` if it can't be confirmed."""
    if prepared.state == DELIVERY_STATE_PREPARATION_FAILED:
        errors = [f"{issue.field}: {issue.description}" for issue in prepared.plan.errors]
        raise CommandFailed(f"delivery {prepared.delivery_id} can't be sent as it is", errors)
    if prepared.state != DELIVERY_STATE_READY:
        raise CommandFailed(f"delivery {prepared.delivery_id} was changed by someone else: its state is "
                            f"{DeliveryState.Name(prepared.state)}")  # fmt: skip


async def prepare(client: DeliveryClient, delivery_id: str) -> Delivery:
    """Prepares a delivery and waits until that has ended, one way or the other."""
    request = pb.PrepareDeliveryRequest(delivery_id=delivery_id)
    delivery = (await client.call(client.stub.PrepareDelivery, request)).delivery
    pauses = iter(PREPARE_POLL_SECONDS)
    while delivery.state == DELIVERY_STATE_PREPARING:
        await asyncio.sleep(next(pauses, PREPARE_POLL_SECONDS[-1]))
        delivery = await client.get_delivery(delivery_id)
    return delivery


async def confirm_send(client: DeliveryClient, delivery: Delivery) -> pb.ConfirmSendResponse:
    """Confirms exactly the plan that was shown. One request id, so that a repeated attempt is no second send."""
    request = pb.ConfirmSendRequest(
        delivery_id=delivery.delivery_id, plan_digest=delivery.plan.plan_digest, request_id=str(uuid.uuid4())
    )
    return await client.call(client.stub.ConfirmSend, request)


def show_rejects(console: Console, rejects: Rejects) -> None:
    """Says which lines of the file were left out, and why."""
    if rejects.count == 0:
        return
    console.print(f"[yellow]{plural(rejects.count, 'line')} left out:[/]", highlight=False)
    for bad in rejects.first:
        console.print(f"  line {bad.line}: {escape(bad.cause)}", highlight=False)
    if more := rejects.count - len(rejects.first):
        console.print(f"  … and {more:,} more (--rejects FILE writes them all)", style="dim", highlight=False)


async def _ask(question: str) -> bool:
    # Ctrl-C must end the waiting for an answer, during which the event loop, whose business it is else, stands still.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return click.confirm(question)
    finally:
        signal.signal(signal.SIGINT, before)
