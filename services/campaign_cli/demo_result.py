"""What came out of the demo, beside what should have."""

from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from campaign.delivery.v1.kpis_pb2 import KpiProjection, Kpis, OutcomeCounts, Rate
from campaign_cli.display import outcome_counts, render_modes
from campaign_cli.processes import Report


class Truth:
    """The simulator's own account: one line of it."""

    def __init__(self, report: Report) -> None:
        self._report = report

    @property
    def idle(self) -> bool:
        """Everything was played, and acknowledged."""
        return bool(self._report.get("idle"))

    @property
    def answered(self) -> int:
        """Messages that have their answer from the relay."""
        return self._number("accepted") + self._number("refused")

    @property
    def outcomes(self) -> dict[str, int]:
        """What the messages come to in the end, by name as in `OutcomeCounts`."""
        counts = self._report.get("outcomes") or {}
        return {field.name: int(counts.get(field.name.upper(), 0)) for field in OutcomeCounts.DESCRIPTOR.fields}

    @property
    def opened(self) -> int:
        """Recipients who opened."""
        return self._number("opened")

    @property
    def clicked(self) -> int:
        """Recipients who clicked."""
        return self._number("clicked")

    @property
    def duplicates_sent(self) -> int:
        """Messages that left for their recipient more than once."""
        return self._number("duplicates_sent")

    @property
    def mischief(self) -> dict[str, int]:
        """What was done to the services meanwhile."""
        rejected = self._report.get("events_rejected") or {}
        return {
            "events reported": self._number("events_played"),
            "batches sent again": self._number("batches_resent"),
            "streams cut": self._number("streams_cut"),
            "events that made no sense": sum(rejected.values()),
            "messages put off": self._number("put_off"),
        }

    def _number(self, name: str) -> int:
        return int(self._report.get(name) or 0)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The figures and the truth."""

    kpis: Kpis
    drift: int
    truth: Truth
    seconds: float = 0.0

    @property
    def checks(self) -> dict[str, bool]:
        """Everything that must be so."""
        return {
            "every outcome is the true one": outcome_counts(self.kpis.outcomes) == self.truth.outcomes,
            "the outcomes add up to all messages": sum(self.truth.outcomes.values()) == self.kpis.to_deliver,
            "opens and clicks are the true ones": (self.kpis.engagement.opened, self.kpis.engagement.clicked)
            == (self.truth.opened, self.truth.clicked),
            "the counters have not drifted from the rows": self.drift == 0,
            "no message was sent twice": self.truth.duplicates_sent == 0,
        }

    @property
    def is_exact(self) -> bool:
        """Whether every check holds."""
        return all(self.checks.values())

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "to_deliver": self.kpis.to_deliver,
            "outcomes": outcome_counts(self.kpis.outcomes),
            "truth": self.truth.outcomes,
            "with_efs": _projection_as_json(self.kpis.with_efs),
            "without_efs": _projection_as_json(self.kpis.without_efs),
            "drift": self.drift,
            "opened": self.kpis.engagement.opened,
            "clicked": self.kpis.engagement.clicked,
            "duplicates_sent": self.truth.duplicates_sent,
            "seconds": round(self.seconds, 1),
        }


def render_result(result: DemoResult) -> RenderableType:
    """The report: both modes, the truth beside the outcomes, and the checks."""
    mischief = ", ".join(f"{name} {count:,}" for name, count in result.truth.mischief.items())
    return Group(
        Rule("The same rows, seen in both modes", align="left", style="dim"),
        render_modes(result.kpis),
        Rule("The outcomes, and what really happened", align="left", style="dim"),
        _render_truth(result),
        Text(f"In spite of: {mischief}.", "dim"),
        Rule("Checks", align="left", style="dim"),
        *(_render_check(name, holds) for name, holds in result.checks.items()),
        Text(f"{result.seconds:.1f} seconds, from nothing to here.", "dim"),
    )


def _render_truth(result: DemoResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for heading in ("Counted", "Truth", ""):
        table.add_column(heading, justify="right")
    counted = {
        **outcome_counts(result.kpis.outcomes),
        "opened": result.kpis.engagement.opened,
        "clicked": result.kpis.engagement.clicked,
    }
    true = {**result.truth.outcomes, "opened": result.truth.opened, "clicked": result.truth.clicked}
    for name, count in counted.items():
        table.add_row(name, f"{count:,}", f"{true[name]:,}", _mark(count == true[name]), style="" if count else "dim")
    return table


def _render_check(name: str, holds: bool) -> Text:
    return Text.assemble(_mark(holds), f" {name}")


def _mark(holds: bool) -> Text:
    return Text("✓", "bold green") if holds else Text("✗", "bold red")


def _projection_as_json(projection: KpiProjection) -> dict[str, Any]:
    return {
        "processed": projection.processed,
        "delivered": _rate_as_json(projection.delivered),
        "bounces_and_errors": _rate_as_json(projection.bounces_and_errors),
    }


def _rate_as_json(rate: Rate) -> dict[str, Any]:
    return {"count": rate.count, "base": rate.base, "rate": rate.rate if rate.HasField("rate") else None}
