"""`campaign exclusions`: who gets no message of a delivery, and why."""

from collections.abc import Iterable
from typing import Any

import click
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from campaign.delivery.v1 import exclusion_pb2
from campaign.delivery.v1.delivery_pb2 import ExclusionCause
from campaign_cli import logs
from campaign_cli.client import DeliveryClient, Target, connect
from campaign_cli.options import json_option, limit_option, target_options
from campaign_cli.running import open_console, run
from campaign_cli.words import choices, label

PAGE_SIZE_MAX = 1_000


@click.command()
@click.argument("delivery_id", metavar="ID")
@click.option("--cause", "causes", type=click.Choice(list(choices(ExclusionCause))), multiple=True)
@limit_option
@json_option
@target_options
def exclusions(delivery_id: str, causes: tuple[str, ...], limit: int, as_json: bool, **where: Any) -> None:
    """Lists who was excluded by the preparation, and why."""

    async def work() -> None:
        request = exclusion_pb2.ListExclusionsRequest(
            delivery_id=delivery_id, causes=[choices(ExclusionCause)[each] for each in causes]
        )
        console = open_console()
        async with connect(Target(**where)) as client:
            found = await _read_exclusions(client, request, limit)
        if as_json:
            for each in found:
                logs.print_json(console, each)
        else:
            console.print(_render_exclusions(found))

    run(work())


async def _read_exclusions(
    client: DeliveryClient, request: exclusion_pb2.ListExclusionsRequest, limit: int
) -> list[exclusion_pb2.Exclusion]:
    """Up to `limit`, page after page. A filtered page may be empty and still not be the last."""
    found: list[exclusion_pb2.Exclusion] = []
    while len(found) < limit:
        request.page_size = min(limit - len(found), PAGE_SIZE_MAX)
        page = await client.call(client.stub.ListExclusions, request)
        found += page.exclusions
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    return found


def _render_exclusions(found: Iterable[exclusion_pb2.Exclusion]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("Address", overflow="fold")
    table.add_column("Profile", overflow="fold")
    table.add_column("Excluded as", no_wrap=True)
    for each in found:
        table.add_row(str(each.recipient), Text(each.address), Text(each.profile_id), label(ExclusionCause, each.cause))
    return table
