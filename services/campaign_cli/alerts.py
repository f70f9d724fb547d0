"""alerts: what somebody who looks after the sends should know."""

from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from campaign.delivery.v1 import alert_pb2 as pb
from campaign_cli import logs
from campaign_cli.client import Target, connect
from campaign_cli.options import json_option, target_options
from campaign_cli.running import open_console, run
from campaign_cli.words import label, local_time


@click.command()
@click.option("--delivery", "delivery_id", default="", metavar="ID", help="Only of this delivery.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=20, show_default=True)
@click.option("--watch", is_flag=True, help="Show them as they are raised, of all deliveries, until Ctrl-C.")
@json_option
@target_options
def alerts(delivery_id: str, limit: int, watch: bool, as_json: bool, **where: Any) -> None:
    """Lists alerts, newest first."""
    if watch and delivery_id:
        raise click.UsageError("--watch is of all deliveries: leave --delivery out.")

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            if not watch:
                request = pb.ListAlertsRequest(delivery_id=delivery_id, page_size=limit)
                _show(console, (await client.call(client.stub.ListAlerts, request)).alerts, as_json)
                return
            async for response in client.stub.WatchAlerts(pb.WatchAlertsRequest()):
                if response.alerts:
                    _show(console, response.alerts, as_json)

    run(work())


def _show(console: Console, found: Iterable[pb.Alert], as_json: bool) -> None:
    if as_json:
        for each in found:
            logs.print_json(console, each)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Raised", "Delivery", "Cause"):
        table.add_column(heading, no_wrap=True)
    table.add_column("Detail", overflow="fold")
    for each in found:
        cause = label(pb.AlertCause, each.cause)
        table.add_row(local_time(each.raise_time), each.delivery_id, cause, Text(each.detail))
    console.print(table)
