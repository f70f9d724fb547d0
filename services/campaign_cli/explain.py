"""`campaign explain`: what a delivery waits for, or what became of every report about one message, in sentences."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from campaign.delivery.v1.explanation_pb2 import ExplainDeliveryResponse, ExplainRecipientResponse
from campaign.delivery.v1.send_log_pb2 import TimelineEntryKind
from campaign_cli.words import label, local_time


def render_delivery(explained: ExplainDeliveryResponse) -> RenderableType:
    """One line per fact."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    for fact in explained.facts:
        table.add_row(Text(fact.sentence))
    return table


def render_recipient(explained: ExplainRecipientResponse, read_by: Sequence[str] = ()) -> RenderableType:
    """Where the message stands, and one line per report; with the rule that reads each, if that was asked for."""
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title=Text(f"{explained.recipient} {explained.address}: {explained.sentence}"),
        title_justify="left",
    )
    for heading in ("Time", "Report"):
        table.add_column(heading, no_wrap=True)
    table.add_column("What became of it", overflow="fold")
    if read_by:
        table.add_column("Read now by", overflow="fold")
    for index, event in enumerate(explained.events):
        kind = label(TimelineEntryKind, event.entry.kind)
        table.add_row(local_time(event.entry.event_time), kind, Text(event.sentence), *read_by[index : index + 1])
    return table
