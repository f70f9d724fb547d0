"""KPIs as a terminal shows them. Pure: a message in, something that rich can print out."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from campaign.delivery.v1.delivery_pb2 import (
    DELIVERY_STATE_FINISHED,
    FEEDBACK_MODE_WITHOUT_EFS,
    Delivery,
    DeliveryState,
    ExclusionCause,
)
from campaign.delivery.v1.kpis_pb2 import Freshness, KpiProjection, Kpis, OutcomeCounts, Rate
from campaign_cli.words import NONE, fraction, label, local_time, percent

OUTCOME_STYLES = {
    "delivered": "green",
    "bounced": "red",
    "expired": "magenta",
    "deferred": "yellow",
    "relayed": "blue",
    "prepared": "bright_black",
    "canceled": "white",
}
"""Every outcome, in the order of the bar: from what is certain to what is not known yet."""

BAR_WIDTH = 76
TILE_WIDTH = 19


class Tile(NamedTuple):
    """One figure with what it is made of."""

    title: str
    value: str
    detail: str
    style: str


def projection_of(kpis: Kpis) -> KpiProjection:
    """The figures in the mode that the delivery shows."""
    return kpis.without_efs if kpis.feedback_mode == FEEDBACK_MODE_WITHOUT_EFS else kpis.with_efs


def is_over(kpis: Kpis) -> bool:
    """Everything has been handed over, and no message's fate is open."""
    return kpis.state == DELIVERY_STATE_FINISHED and projection_of(kpis).final


def outcome_counts(outcomes: OutcomeCounts) -> dict[str, int]:
    """The counts by name, zeros included, in the order of the contract."""
    return {field.name: getattr(outcomes, field.name) for field in OutcomeCounts.DESCRIPTOR.fields}


def tiles(projection: KpiProjection, *, counted: bool) -> list[Tile]:
    """The four figures of one mode. `counted`: whether opens and clicks have been counted yet."""
    engagement = (
        [_tile("Opened", projection.opened, "cyan"), _tile("Clicked", projection.clicked, "cyan")]
        if counted
        else [Tile(title, NONE, "not counted yet", "cyan") for title in ("Opened", "Clicked")]
    )
    return [
        _tile("Delivered", projection.delivered, "green"),
        _tile("Bounces + errors", projection.bounces_and_errors, "red"),
        *engagement,
    ]


def render_kpis(kpis: Kpis, title: str = "") -> RenderableType:
    """The whole picture of one delivery."""
    mode = "without EFS" if kpis.feedback_mode == FEEDBACK_MODE_WITHOUT_EFS else "with EFS"
    heading = Text.assemble(
        (title or f"Delivery {kpis.delivery_id}", "bold"), "  ", (state_name(kpis), "bold cyan"), (f"  {mode}", "dim")
    )
    return Group(
        heading,
        _render_progress(kpis),
        render_tiles(tiles(projection_of(kpis), counted=kpis.engagement.HasField("as_of_time"))),
        render_outcomes(outcome_counts(kpis.outcomes)),
        Text(_freshness_line(kpis), style="dim"),
    )


def render_tiles(shown: Sequence[Tile]) -> RenderableType:
    """Tiles side by side; they wrap on a narrow terminal."""
    panels = [
        Panel(
            Text.assemble(
                f"{tile.title}\n", (f"{tile.value}\n", f"bold {tile.style}"), (tile.detail, "dim"), justify="center"
            ),
            border_style=tile.style,
            width=TILE_WIDTH,
            padding=0,
        )
        for tile in shown
    ]
    return Columns(panels, padding=(0, 1))


def render_outcomes(counts: dict[str, int]) -> RenderableType:
    """One bar of all outcomes, with the figures below it."""
    bar = Text(no_wrap=True)
    legend: list[Text] = []
    widths = bar_widths([counts[name] for name in OUTCOME_STYLES], BAR_WIDTH)
    for (name, style), width in zip(OUTCOME_STYLES.items(), widths, strict=True):
        bar.append("█" * width, style)
        dimmed = "" if counts[name] else "dim"
        legend.append(Text.assemble(("■ ", dimmed or style), (f"{name} {counts[name]:,}", dimmed)))
    return Group(bar if any(widths) else Text("░" * BAR_WIDTH, "dim"), Columns(legend, padding=(0, 2)))


def render_modes(kpis: Kpis) -> RenderableType:
    """Both projections of the same rows, side by side."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for heading in ("With EFS", "", "Without EFS", ""):
        table.add_column(heading, justify="right")
    for name, attribute in (
        ("Delivered", "delivered"),
        ("Bounces + errors", "bounces_and_errors"),
        ("Opened", "opened"),
        ("Clicked", "clicked"),
    ):
        cells: list[str] = []
        for projection in (kpis.with_efs, kpis.without_efs):
            rate = getattr(projection, attribute)
            cells += [percent(rate), f"[dim]{fraction(rate)}[/]"]
        table.add_row(name, *cells)
    processed = [["", f"{projection.processed:,}"] for projection in (kpis.with_efs, kpis.without_efs)]
    table.add_row("Processed/sent", *processed[0], *processed[1])
    return table


def render_plan(delivery: Delivery) -> RenderableType:
    """What a preparation found: the numbers that a person confirms."""
    plan = delivery.plan
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_row("Targeted", f"{plan.targeted:,}")
    for exclusion in plan.exclusions:
        cause = label(ExclusionCause, exclusion.cause)
        table.add_row(f"  excluded: {cause}", f"{-exclusion.volume:,}", style="" if exclusion.volume else "dim")
    table.add_row("To deliver", f"{plan.to_deliver:,}", style="bold")
    lines = [Text(f"Warning: {issue.field}: {issue.description}", "yellow") for issue in plan.warnings]
    heading = Text.assemble((delivery.label or "Plan", "bold"), (f"  delivery {delivery.delivery_id}", "dim"))
    footing = Text(f"plan {plan.plan_digest[:12]}" if plan.plan_digest else "no plan to confirm", "dim")
    return Group(heading, table, *lines, footing)


def plain_line(kpis: Kpis) -> str:
    """The same in one line, for a file or a pipe."""
    projection = projection_of(kpis)
    outcomes = " ".join(f"{name} {count:,}" for name, count in outcome_counts(kpis.outcomes).items() if count)
    return (
        f"{kpis.delivery_id} {state_name(kpis)}: handed over {kpis.handed_over:,} of {kpis.to_deliver:,}; "
        f"delivered {percent(projection.delivered)}, bounces and errors {percent(projection.bounces_and_errors)}, "
        f"opened {percent(projection.opened)}, clicked {percent(projection.clicked)}; {outcomes or 'no send logs'}"
    )


def state_name(kpis: Kpis) -> str:
    """The delivery's state as in the contract, without its prefix."""
    return DeliveryState.Name(kpis.state).removeprefix("DELIVERY_STATE_")


def bar_widths(counts: Sequence[int], width: int) -> list[int]:
    """Shares `width` out in proportion. What exists is at least one cell wide; the largest pays for it."""
    total = sum(counts)
    if total == 0:
        return [0] * len(counts)
    widths = [max(1, count * width // total) if count else 0 for count in counts]
    widths[widths.index(max(widths))] += width - sum(widths)
    return widths


def _tile(title: str, rate: Rate, style: str) -> Tile:
    return Tile(title, percent(rate), fraction(rate), style)


def _render_progress(kpis: Kpis) -> RenderableType:
    share = kpis.handed_over / kpis.to_deliver if kpis.to_deliver else 0.0
    grid = Table.grid(padding=(0, 1))
    grid.add_row(
        "Handed over",
        ProgressBar(total=max(kpis.to_deliver, 1), completed=kpis.handed_over, width=34),
        f"{kpis.handed_over:,} of {kpis.to_deliver:,}",
        f"{math.floor(share * 100)} %",  # 100 % only when it is so
    )
    return grid


def _freshness_line(kpis: Kpis) -> str:
    freshness: Freshness = kpis.freshness
    parts = [f"revision {kpis.revision:,}"]
    if freshness.HasField("commit_time"):
        parts.append(f"committed {local_time(freshness.commit_time)}")
    if freshness.HasField("lag"):
        parts.append(f"MTA lag {freshness.lag.ToMilliseconds() / 1_000:.1f} s")
    parts.append(f"MTA sources {freshness.sources_connected}")
    return " · ".join(parts)
