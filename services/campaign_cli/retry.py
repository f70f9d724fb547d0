"""`campaign retry-failed`: whom a delivery did not reach, and once one agrees, a send to them."""

import uuid
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.table import Table

from campaign.delivery.v1 import retry_pb2 as pb
from campaign.delivery.v1.send_log_pb2 import FailureType, Outcome, Reason
from campaign_cli import logs
from campaign_cli.client import SEND_PATIENCE_SECONDS, Target, connect
from campaign_cli.display import render_plan
from campaign_cli.options import json_option, target_options
from campaign_cli.running import open_console, run
from campaign_cli.send import prepare, require_ready, send_prepared
from campaign_cli.words import choices, label, plural

OUTCOMES = {name: number for name, number in choices(Outcome).items() if name in ("expired", "bounced")}


@click.command("retry-failed")
@click.argument("delivery_id", metavar="ID")
@click.option("--outcome", "outcomes", type=click.Choice(list(OUTCOMES)), multiple=True)
@click.option("--failure-type", "failure_types", type=click.Choice(list(choices(FailureType))), multiple=True)
@click.option("--reason", "reasons", type=click.Choice(list(choices(Reason))), multiple=True)
@click.option("--domain", "domains", multiple=True, help="Only addresses of this domain.")
@click.option("--label", "label_text", default="", help="A name for the new delivery.  [default: that of the delivery]")
@click.option("--dry-run", is_flag=True, help="Only say whom it would be for.")
@click.option("--yes", is_flag=True, help="Do not ask before sending.")
@json_option
@target_options
def retry_failed(
    delivery_id: str, outcomes: tuple[str, ...], failure_types: tuple[str, ...], reasons: tuple[str, ...],
    domains: tuple[str, ...], label_text: str, dry_run: bool, yes: bool, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Sends once more to those whom a delivery that is over did not reach, once you have seen the plan and agreed."""
    if as_json and not dry_run:
        raise click.UsageError("--json is for --dry-run alone.")
    request = pb.RetryFailedRequest(
        delivery_id=delivery_id,
        label=label_text,
        filter=pb.RetryFilter(
            outcomes=[OUTCOMES[each] for each in outcomes],
            failure_types=[choices(FailureType)[each] for each in failure_types],
            reasons=[choices(Reason)[each] for each in reasons],
            recipient_domains=domains,
        ),
    )
    run(run_retry(Target(**where), request, dry_run, yes, as_json, open_console()))


async def run_retry(
    target: Target, request: pb.RetryFailedRequest, dry_run: bool, yes: bool, as_json: bool, console: Console
) -> None:
    """Counts; unless that is all, makes the draft, prepares it, and sends it after a question unless `yes`."""
    async with connect(target, SEND_PATIENCE_SECONDS) as client:
        request.validate_only = True
        told = await client.call(client.stub.RetryFailed, request)
        if as_json:
            logs.print_json(console, told)
            return
        console.print(render_failures(told))
        if dry_run:
            return
        request.validate_only = False
        request.request_id = str(uuid.uuid4())  # a repeated attempt makes no second draft
        made = (await client.call(client.stub.RetryFailed, request)).delivery
        prepared = await prepare(client, made.delivery_id)
        console.print(render_plan(prepared))
        require_ready(prepared)
        await send_prepared(client, prepared, yes, console, target.options)


def render_failures(told: pb.RetryFailedResponse) -> RenderableType:
    """The failures by type and reason, and what one should know beside them."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    for each in told.failures:
        kind = ": ".join(filter(None, (label(FailureType, each.failure_type), label(Reason, each.reason))))
        table.add_row(kind or "expired", f"{each.volume:,}")
    table.add_row("To retry", f"{told.recipient_count:,}", style="bold")
    if told.undecided_count:
        table.add_row(f"{plural(told.undecided_count, 'message')} of it undecided yet", "", style="yellow")
    for earlier in told.earlier_delivery_ids:
        table.add_row(f"retried before, by delivery {earlier}", "", style="yellow")
    return table
