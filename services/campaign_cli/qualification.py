"""rules, undefined and requalify: what the qualification rules are, what they can't read, and applying new ones."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import click
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from campaign.delivery.v1.requalification_service_pb2 import QualificationChange
from campaign.delivery.v1.send_log_pb2 import (
    OUTCOME_BOUNCED,
    OUTCOME_DEFERRED,
    OUTCOME_EXPIRED,
    FailureType,
    Outcome,
    Reason,
    TimelineEntry,
)
from campaign.delivery.v1.undefined_failure_pb2 import ListUndefinedFailuresRequest, ListUndefinedFailuresResponse
from campaign.feedback.v1.feedback_service_pb2 import (
    MTA_EVENT_KIND_BOUNCE,
    MTA_EVENT_KIND_EXPIRATION,
    MTA_EVENT_KIND_TRANSIENT_FAILURE,
    MtaEventKind,
)
from campaign.feedback.v1.qualification_service_pb2 import (
    ListRulesRequest,
    QualificationRule,
    QualifyRequest,
    RequalificationResult,
    RequalifyRequest,
)
from campaign_cli import logs
from campaign_cli.client import CALL_SECONDS_MAX, Target, connect, connect_qualification
from campaign_cli.errors import CommandFailed
from campaign_cli.options import Moment, feedback_options, json_option, target_options
from campaign_cli.running import open_console, run
from campaign_cli.words import label, local_time, plural

_KIND_OF_OUTCOME: Final[dict[int, MtaEventKind.ValueType]] = {
    OUTCOME_DEFERRED: MTA_EVENT_KIND_TRANSIENT_FAILURE,
    OUTCOME_EXPIRED: MTA_EVENT_KIND_EXPIRATION,
    OUTCOME_BOUNCED: MTA_EVENT_KIND_BOUNCE,
}


@click.command()
@json_option
@feedback_options
def rules(as_json: bool, **where: Any) -> None:
    """Lists the qualification rules in their order, with where they come from: the first that matches decides."""

    async def work() -> None:
        console = open_console()
        async with connect_qualification(Target(**where)) as stub:
            found = await stub.ListRules(ListRulesRequest(), timeout=CALL_SECONDS_MAX)
        if as_json:
            for rule in found.rules:
                logs.print_json(console, rule)
            return
        console.print(f"Version {found.rules_version} of the rules.", highlight=False)
        console.print(_render_rules(found.rules))

    run(work())


@click.command()
@click.option("--since", type=Moment(), default="7d", show_default=True, help="From this time, or this long ago.")
@click.option("--until", type=Moment(), help="Until this time.  [default: now]")
@click.option("--delivery", "delivery_ids", metavar="ID", multiple=True, help="Only of this delivery; may be repeated.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=20, show_default=True)
@json_option
@target_options
def undefined(
    since: datetime, until: datetime | None, delivery_ids: tuple[str, ...], limit: int, as_json: bool, **where: Any
) -> None:
    """Lists what MTAs said that no qualification rule reads, most frequent first."""
    request = ListUndefinedFailuresRequest(
        since_time=_timestamp(since), until_time=_timestamp(until), delivery_ids=delivery_ids, page_size=limit
    )

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            found = await client.call(client.stub.ListUndefinedFailures, request)
        if as_json:
            for failure in found.failures:
                logs.print_json(console, failure)
        else:
            _show_undefined(console, found)

    run(work())


@click.command()
@click.option("--since", type=Moment(), required=True, help="From this time, or this long ago, by the MTAs' clocks.")
@click.option("--until", type=Moment(), help="Until this time.  [default: now]")
@click.option("--delivery", "delivery_ids", metavar="ID", multiple=True, help="Only of this delivery; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Change nothing, only tell what would change.")
@click.option("--yes", is_flag=True, help="Do not ask before changing anything.")
@json_option
@feedback_options
def requalify(
    since: datetime, until: datetime | None, delivery_ids: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool,
    **where: Any,
) -> None:  # fmt: skip
    """Reads the failures of a time again by the rules of FeedbackService, and corrects how they count.

    Outcomes stay. From then on older rules are refused for these deliveries: upgrade all replicas of FeedbackService
    first. Stopped at any time, the same command does the rest.
    """
    if not dry_run and not yes:
        click.confirm("This corrects send logs, KPIs and what feeds the quarantine. Go on?", abort=True)
    request = RequalifyRequest(
        since_time=_timestamp(since), until_time=_timestamp(until), delivery_ids=delivery_ids, validate_only=dry_run
    )

    async def work() -> None:
        console, progress = open_console(), open_console(stderr=True)
        result: RequalificationResult | None = None
        async with connect_qualification(Target(**where)) as stub:
            async for response in stub.Requalify(request):
                if response.HasField("result"):
                    result = response.result
                elif progress.is_terminal:
                    told = response.progress
                    line = f"{told.deliveries:,} done, {plural(told.reports, 'report')} read: {told.delivery_id}"
                    progress.print(line, end="\r", highlight=False)
        if result is None:
            raise CommandFailed("the run ended without a result", ["run the same command again: it does the rest"])
        if as_json:
            logs.print_json(console, result)
        else:
            _show_result(console, result, dry_run=dry_run)

    run(work())


async def rules_that_read(target: Target, entries: Sequence[TimelineEntry]) -> list[str]:
    """For each entry, the rule that reads it by the present version; empty where no rule has a say."""
    told: list[str] = []
    async with connect_qualification(target) as stub:
        for entry in entries:
            kind = entry.mta_event_kind or _KIND_OF_OUTCOME.get(entry.outcome, 0)
            if not entry.rules_version or not kind:
                told.append("")
                continue
            request = QualifyRequest(
                kind=MtaEventKind.ValueType(kind),
                smtp_code=entry.smtp_code,
                enhanced_code=entry.enhanced_code,
                diagnostic=entry.diagnostic,
                vendor_class=entry.vendor_class,
            )
            answer = await stub.Qualify(request, timeout=CALL_SECONDS_MAX)
            verdict = _counts(answer.failure_type, answer.reason)
            told.append(f"{answer.rule} (version {answer.rules_version}): {verdict}")
    return told


def _show_undefined(console: Console, found: ListUndefinedFailuresResponse) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Reports", "Messages"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("Code", "Last"):
        table.add_column(heading, no_wrap=True)
    table.add_column("What was said", overflow="fold")
    table.add_column("Such as", no_wrap=True)
    for failure in found.failures:
        table.add_row(
            f"{failure.count:,}",
            f"{failure.messages:,}",
            " ".join(filter(None, (str(failure.smtp_code or ""), failure.enhanced_code))),
            local_time(failure.last_time, seconds=False),
            Text(failure.text or "(nothing)"),
            f"{failure.example_delivery_id} {failure.example_recipient}",
        )
    console.print(table)
    looked = f"Looked at {plural(found.reports, 'report')} that no rule reads"
    console.print(f"{looked}; there are more." if found.truncated else f"{looked}.", highlight=False)


def _show_result(console: Console, result: RequalificationResult, *, dry_run: bool) -> None:
    console.print(
        f"By version {result.rules_version} of the rules: {plural(result.reports, 'report')} read again, "
        f"of {'1 delivery' if result.deliveries == 1 else f'{result.deliveries:,} deliveries'}.",
        highlight=False,
    )
    if not result.changes:
        console.print("Nothing would change." if dry_run else "Nothing has changed.")
        return
    console.print("What would change:" if dry_run else "What has changed:")
    console.print(_render_changes(result.changes))
    if result.rules:
        console.print("By rule: " + ", ".join(f"{use.rule} {use.reports:,}" for use in result.rules), highlight=False)


def _render_changes(changes: Sequence[QualificationChange]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Outcome", "From", "To"):
        table.add_column(heading, no_wrap=True)
    for heading in ("Send logs", "Reports"):
        table.add_column(heading, justify="right", no_wrap=True)
    for change in changes:
        table.add_row(
            label(Outcome, change.outcome),
            _counts(change.failure_type_before, change.reason_before),
            _counts(change.failure_type, change.reason),
            f"{change.send_logs:,}",
            f"{change.reports:,}",
        )
    return table


def _render_rules(rules: Sequence[QualificationRule]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Rule", no_wrap=True)
    table.add_column("Counts as", no_wrap=True)
    table.add_column("While temporary", no_wrap=True)
    table.add_column("Comes from", overflow="fold")
    for rule in rules:
        table.add_row(
            rule.name,
            _counts(rule.failure_type, rule.reason),
            _counts(rule.failure_type_if_temporary, rule.reason_if_temporary),
            rule.source,
        )
    return table


def _counts(failure_type: FailureType.ValueType, reason: Reason.ValueType) -> str:
    return ": ".join(filter(None, (label(FailureType, failure_type), label(Reason, reason))))


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
