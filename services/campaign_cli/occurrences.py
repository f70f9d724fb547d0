"""occurrences: what a recurring delivery has sent and will send, in all and one by one."""

from typing import Any

import click
from rich.table import Table

from campaign.delivery.v1 import occurrence_pb2 as pb
from campaign.delivery.v1.schedule_pb2 import LocalTimeKind
from campaign_cli import logs
from campaign_cli.client import Target, connect
from campaign_cli.options import json_option, target_options
from campaign_cli.running import open_console, run
from campaign_cli.words import fraction, label, local_time, percent


@click.command()
@click.argument("delivery_id", metavar="ID")
@click.option("--next", "upcoming", type=click.IntRange(1, 100), help="Tell so many that are to come instead.")
@click.option("--totals", is_flag=True, help="Tell the counts over all of them instead.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=20, show_default=True)
@json_option
@target_options
def occurrences(delivery_id: str, upcoming: int | None, totals: bool, limit: int, as_json: bool, **where: Any) -> None:
    """Lists the occurrences of a recurring delivery that have come, newest first, and what became of each."""
    if upcoming is not None and totals:
        raise click.UsageError("Give --next or --totals, not both.")

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            answer: pb.PreviewOccurrencesResponse | pb.GetRecurrenceTotalsResponse | pb.ListOccurrencesResponse
            if upcoming is not None:
                preview = pb.PreviewOccurrencesRequest(delivery_id=delivery_id, count=upcoming)
                answer = await client.call(client.stub.PreviewOccurrences, preview)
            elif totals:
                of_all = pb.GetRecurrenceTotalsRequest(delivery_id=delivery_id)
                answer = await client.call(client.stub.GetRecurrenceTotals, of_all)
            else:
                listing = pb.ListOccurrencesRequest(delivery_id=delivery_id, page_size=limit)
                answer = await client.call(client.stub.ListOccurrences, listing)
        if as_json:
            logs.print_json(console, answer)
        elif isinstance(answer, pb.PreviewOccurrencesResponse):
            console.print(_to_come(answer))
        elif isinstance(answer, pb.GetRecurrenceTotalsResponse):
            console.print(_totals(answer.totals))
        else:
            console.print(_that_came(answer))

    run(work())


def _to_come(answer: pb.PreviewOccurrencesResponse) -> Table:
    table = _table("Local time", "Here", "The clocks")
    for each in answer.occurrences:
        kind = label(LocalTimeKind, each.local_time_kind)
        clocks = "have changed" if each.offset_changed else ""
        table.add_row(each.local_time, local_time(each.due_time), clocks if kind == "unique" else f"{kind} {clocks}")
    return table


def _that_came(answer: pb.ListOccurrencesResponse) -> Table:
    table = _table("Local time", "What became of it", "Delivery")
    for each in answer.occurrences:
        table.add_row(each.local_time, label(pb.OccurrenceState, each.state), each.child_delivery_id)
    return table


def _totals(totals: pb.RecurrenceTotals) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    table.add_row("Children", f"{totals.children:,}")
    table.add_row("Occurrences skipped", f"{totals.skipped_occurrences:,}")
    table.add_row("To deliver", f"{totals.to_deliver:,}")
    for name, mode in (("with EFS", totals.with_efs), ("without EFS", totals.without_efs)):
        table.add_row(f"Delivered, {name}", percent(mode.delivered), fraction(mode.delivered))
        errors = mode.bounces_and_errors
        table.add_row(f"Bounces and errors, {name}", percent(errors), fraction(errors))
    table.add_row("People who opened", f"{totals.unique_opened:,}", f"{totals.opens:,} times")
    table.add_row("People who clicked", f"{totals.unique_clicked:,}", f"{totals.clicks:,} times")
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table
