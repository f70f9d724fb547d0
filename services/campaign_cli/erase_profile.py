"""`campaign erase-profile`: erases one person's data everywhere, once one agrees."""

from typing import Any

import click
from rich.console import RenderableType
from rich.table import Table

from campaign.delivery.v1 import erasure_pb2 as pb
from campaign_cli import logs
from campaign_cli.client import Target, connect
from campaign_cli.options import json_option, target_options
from campaign_cli.running import open_console, run

TIMEOUT_SECONDS = 600.0


@click.command("erase-profile")
@click.argument("profile_id", metavar="PROFILE")
@click.option("--dry-run", is_flag=True, help="Only say what would be erased.")
@click.option("--yes", is_flag=True, help="Do not ask: it can't be taken back.")
@json_option
@target_options
def erase_profile(profile_id: str, dry_run: bool, yes: bool, as_json: bool, **where: Any) -> None:
    """Erases a profile from every delivery: address, attributes, what mail servers said. KPIs stay as they are."""

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            request = pb.EraseProfileRequest(profile_id=profile_id, validate_only=True)
            told = await client.stub.EraseProfile(request, timeout=TIMEOUT_SECONDS)
            if not dry_run:
                if not yes:
                    console.print(render_erasure(told))
                    click.confirm("Erase it for ever?", abort=True)
                request.validate_only = False
                told = await client.stub.EraseProfile(request, timeout=TIMEOUT_SECONDS)
            if as_json:
                logs.print_json(console, told)
            else:
                console.print(render_erasure(told))

    run(work())


def render_erasure(told: pb.EraseProfileResponse) -> RenderableType:
    """What was erased, or would be; and what is left to do."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right", overflow="fold")
    for name, count in (
        ("Deliveries", told.delivery_count),
        ("Recipients", told.recipient_count),
        ("Reports", told.report_count),
        ("Tracking facts", told.tracking_fact_count),
        ("Dead letters", told.dead_letter_count),
        ("Control groups", told.control_group_count),
    ):
        table.add_row(name, f"{count:,}")
    if told.erasure_id:
        table.add_row("Stands for it", told.erasure_id)
    for delivery_id in told.blocking_delivery_ids:
        table.add_row("refused while its message is still to leave", delivery_id, style="red")
    for delivery_id in told.unsettled_delivery_ids:
        table.add_row("erase again once settled", delivery_id, style="yellow")
    return table
