"""The commands and their arguments; what they do is elsewhere."""

import json
import sys
from email.utils import parseaddr
from pathlib import Path
from typing import Any

import click

from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.audience_pb2 import AudienceOptions
from campaign.delivery.v1.delivery_pb2 import (
    FEEDBACK_MODE_UNSPECIFIED,
    FEEDBACK_MODE_WITH_EFS,
    FEEDBACK_MODE_WITHOUT_EFS,
    Content,
)
from campaign.delivery.v1.explanation_pb2 import ExplainDeliveryRequest, ExplainRecipientRequest
from campaign.delivery.v1.role_pb2 import Role
from campaign.delivery.v1.schedule_pb2 import AGGREGATION_PERIOD_NONE, Recurrence, Schedule
from campaign.delivery.v1.send_log_feed_pb2 import ExportSendLogsRequest
from campaign.delivery.v1.send_log_pb2 import FailureType, Reason, SendLogStatus
from campaign_cli import life, logs, look_ups
from campaign_cli.addresses import allowlist, denylist, quarantine
from campaign_cli.alerts import alerts
from campaign_cli.client import SEND_PATIENCE_SECONDS, Target, connect
from campaign_cli.control import approve, pause, resume, stop
from campaign_cli.display import render_kpis, render_modes
from campaign_cli.erase_profile import erase_profile
from campaign_cli.exclusions import exclusions
from campaign_cli.explain import render_delivery, render_recipient
from campaign_cli.export import FORMATS, export_send_logs
from campaign_cli.occurrences import occurrences
from campaign_cli.options import data_option, json_option, target_options
from campaign_cli.qualification import requalify, rules, rules_that_read, undefined
from campaign_cli.qualify import qualify
from campaign_cli.retry import retry_failed
from campaign_cli.running import is_wide, open_console, run
from campaign_cli.send import Draft, run_send
from campaign_cli.suppression import suppression
from campaign_cli.watch import watch_until_over
from campaign_cli.words import choices, plural

MODES = {"with-efs": FEEDBACK_MODE_WITH_EFS, "without-efs": FEEDBACK_MODE_WITHOUT_EFS}
DEFAULT_SENDER = "Campaign <campaign@example.com>"
MODE = click.Choice(sorted(MODES))
ROLE = click.Choice(list(choices(Role)))
WAY = click.Choice(["dsn", "log", "both"])


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def campaign() -> None:
    """Runs Campaign Delivery on this machine, sends to a list of recipients, and shows what becomes of it."""


for command in (
    life.show, life.confirm, life.unconfirm, life.cancel, life.decline, life.delete, life.duplicate, life.proof,
    occurrences, alerts, approve, pause, resume, stop, exclusions, retry_failed, suppression, erase_profile, qualify,
    requalify, rules, undefined, look_ups.render, look_ups.messages, look_ups.breakdown, look_ups.tracking,
    look_ups.changes, look_ups.dead_letters, quarantine, denylist, allowlist,
):  # fmt: skip
    campaign.add_command(command)


@campaign.command()
@data_option
@click.option("--port-delivery", default=50051, show_default=True, help="DeliveryService; 0: any free port.")
@click.option("--port-delivery-admin", default=9051, show_default=True, help="Its metrics and health, over HTTP.")
@click.option("--port-feedback", default=50052, show_default=True, help="FeedbackService.")
@click.option("--port-feedback-admin", default=9052, show_default=True, help="Its metrics and health, over HTTP.")
@click.option("--port-mta", default=50053, show_default=True, help="The simulated MTA.")
@click.option("--mta", type=click.Choice(["simulator", "postfix"]), default="simulator", show_default=True,
              help="postfix: a real one, which you install; it delivers to a scripted sink.")  # fmt: skip
@click.option("--feedback", "way", type=WAY, default="both", show_default=True,
              help="With --mta postfix: whether its reports come by mail, by its log, or both.")  # fmt: skip
@click.argument("simulator_options", nargs=-1, type=click.UNPROCESSED)
def up(folder: Path, mta: str, way: Any, simulator_options: tuple[str, ...], **ports: int) -> None:
    """Runs Postgres, both services and a simulated MTA until Ctrl-C.

    Options after -- go to the simulator: campaign up -- --duplicates 0.1 (see python -m mta_simulator --help).
    """
    # Imported here, as in two more commands: what signs tokens takes half a second, which the others can do without.
    from campaign_cli.ports import Ports
    from campaign_cli.stack import StackSettings
    from campaign_cli.up import run_up

    chosen = Ports(**{name.removeprefix("port_"): port for name, port in ports.items()})
    if mta == "postfix" and simulator_options:
        raise click.UsageError("Options after -- are the simulator's: leave them out with --mta postfix.")
    settings = StackSettings(folder, chosen, simulator_options, postfix=way if mta == "postfix" else None)
    run(run_up(settings, open_console()), interrupted_status=0)


@campaign.command()
@click.option("--recipients", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True,
              help="A CSV file with a header: email (or address), profile_id (or id), and attributes.")  # fmt: skip
@click.option("--subject", required=True, help="A template, such as: Hello {{ first_name }}")
@click.option("--html", help="The HTML body, a template, or @FILE.")
@click.option("--text", help="The plain-text body, a template, or @FILE.")
@click.option("--from", "sender", default=DEFAULT_SENDER, show_default=True, help="The sender.")
@click.option("--label", default="", help="A name for the delivery.  [default: the subject]")
@click.option("--mode", type=MODE, default="with-efs", show_default=True, help="Whether statuses follow the MTA.")
@click.option("--at", "local_time", metavar="TIME", help="When it starts: 2026-12-24T09:00.  [default: at once]")
@click.option("--zone", help="The IANA zone of --at: Europe/Paris.")
@click.option("--repeat", "rule", metavar="RULE", help="Repeat it from --at on, by this RFC 5545 rule: FREQ=DAILY.")
@click.option("--ask-each-time", is_flag=True, help="With --repeat: each occurrence waits for campaign confirm.")
@click.option("--control-group", "share", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="SHARE",
              help="Send nothing to this share of them, such as 0.1, to compare with.")  # fmt: skip
@click.option("--suppression-list", "suppression_lists", multiple=True, metavar="NAME",
              help="Send nothing to who is on this list.")  # fmt: skip
@click.option("--rejects", "rejects_path", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the bad lines of the CSV file to this file.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask before sending.")
@target_options
def send(
    recipients: Path, subject: str, html: str | None, text: str | None, sender: str, label: str, mode: str,
    local_time: str | None, zone: str | None, rule: str | None, ask_each_time: bool, share: float | None,
    suppression_lists: tuple[str, ...], rejects_path: Path | None, yes: bool, **where: Any,
) -> None:  # fmt: skip
    """Sends to the recipients of a CSV file, once you have seen the plan and agreed."""
    if html is None and text is None:
        raise click.UsageError("Give the message with --html or --text.")
    if (local_time is None) != (zone is None) or (rule is not None and local_time is None):
        raise click.UsageError("Give --at and --zone together, and both with --repeat.")
    if ask_each_time and rule is None:
        raise click.UsageError("--ask-each-time is of --repeat.")
    schedule = Schedule(local_time=local_time, time_zone=zone) if local_time is not None and zone is not None else None
    if schedule is not None and rule is not None:
        recurrence = Recurrence(
            rule=rule, aggregation_period=AGGREGATION_PERIOD_NONE, request_confirmation=ask_each_time
        )
        schedule.recurrence.CopyFrom(recurrence)
    name, address = parseaddr(sender)
    content = Content(
        subject=subject, html=_read_text(html), text=_read_text(text), from_address=address or sender, from_name=name
    )
    options = AudienceOptions(suppression_lists=suppression_lists)
    if share is not None:
        options.control_group.share = share
    draft = Draft(recipients, content, label or subject[:200], MODES[mode], schedule, options)
    run(run_send(Target(**where), draft, rejects_path, yes, open_console()))


@campaign.command()
@click.argument("delivery_ids", nargs=-1, required=True, metavar="ID...")
@target_options
def watch(delivery_ids: tuple[str, ...], **where: Any) -> None:
    """Shows the KPIs of deliveries live, until their end."""

    async def work() -> None:
        target = Target(**where)
        async with connect(target, SEND_PATIENCE_SECONDS) as client:
            titles = {each: (await client.get_delivery(each)).label for each in delivery_ids}
            await watch_until_over(client, titles, open_console(), target.options)

    run(work())


@campaign.command("logs")
@click.argument("delivery_id", metavar="ID")
@click.option("--status", "statuses", type=click.Choice(list(choices(SendLogStatus))), multiple=True)
@click.option("--failure-type", "failure_types", type=click.Choice(list(choices(FailureType))), multiple=True)
@click.option("--reason", "reasons", type=click.Choice(list(choices(Reason))), multiple=True)
@click.option("--address", "recipient_address", default="", help="Only this address.")
@click.option("--mode", type=MODE, help="Show statuses as in this mode.  [default: the delivery's]")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@json_option
@target_options
def show_logs(
    delivery_id: str, statuses: tuple[str, ...], failure_types: tuple[str, ...], reasons: tuple[str, ...],
    recipient_address: str, mode: str | None, limit: int, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Lists send logs: where each message stands."""
    request = pb.ListSendLogsRequest(
        delivery_id=delivery_id,
        feedback_mode=MODES[mode] if mode else FEEDBACK_MODE_UNSPECIFIED,
        statuses=[choices(SendLogStatus)[each] for each in statuses],
        failure_types=[choices(FailureType)[each] for each in failure_types],
        reasons=[choices(Reason)[each] for each in reasons],
        address=recipient_address,
    )

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            found = logs.read_send_logs(client, request, limit)
            if as_json:
                async for each in found:
                    logs.print_json(console, each)
            else:
                console.print(logs.render_send_logs([each async for each in found], wide=is_wide(console)))

    run(work())


@campaign.command("log")
@click.argument("delivery_id", metavar="ID")
@click.argument("recipient", type=click.IntRange(1))
@click.option("--mode", type=MODE, help="Show the status as in this mode.  [default: the delivery's]")
@json_option
@target_options
def show_log(delivery_id: str, recipient: int, mode: str | None, as_json: bool, **where: Any) -> None:
    """Shows everything known about one message, by the RECIPIENT's number."""

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            request = pb.GetSendLogRequest(
                delivery_id=delivery_id,
                recipient=recipient,
                feedback_mode=MODES[mode] if mode else FEEDBACK_MODE_UNSPECIFIED,
            )
            found = await client.call(client.stub.GetSendLog, request)
            if as_json:
                logs.print_json(console, found)
                return
            console.print(logs.render_send_logs([found.send_log], wide=is_wide(console)))
            console.print()
            console.print(logs.render_timeline(found.timeline))

    run(work())


@campaign.command("list")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@click.option("--parent", default="", metavar="ID", help="The children of this recurring delivery.")
@json_option
@target_options
def show_list(limit: int, parent: str, as_json: bool, **where: Any) -> None:
    """Lists deliveries, newest first."""

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            found = await logs.read_deliveries(client, limit, parent)
        if as_json:
            for each in found:
                logs.print_json(console, each)
        else:
            console.print(logs.render_deliveries(found))

    run(work())


@campaign.command()
@click.argument("delivery_id", metavar="ID")
@json_option
@target_options
def kpis(delivery_id: str, as_json: bool, **where: Any) -> None:
    """Shows the KPIs of a delivery once, in both modes."""

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            request = pb.GetKpisRequest(delivery_id=delivery_id)
            found = (await client.call(client.stub.GetKpis, request)).kpis
        if as_json:
            logs.print_json(console, found)
        else:
            console.print(render_kpis(found))
            console.print()
            console.print(render_modes(found))

    run(work())


@campaign.command()
@click.argument("delivery_id", metavar="ID")
@json_option
@target_options
def statistics(delivery_id: str, as_json: bool, **where: Any) -> None:
    """Recounts send logs, opens and clicks, and tells the drift of the counters."""

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            request = pb.ComputeStatisticsRequest(delivery_id=delivery_id)
            found = await client.call(client.stub.ComputeStatistics, request)
        if as_json:
            logs.print_json(console, found)
        else:
            console.print(render_kpis(found.kpis))
            console.print(f"Recounted {plural(found.recounted, 'send log')}; drift {found.drift}.", highlight=False)

    run(work())


@campaign.command()
@data_option
@click.option("--role", "roles", type=ROLE, multiple=True, required=True, help="May be repeated.")
@click.option("--subject", help="Whom the token names.  [default: you]")
@click.option("--hours", type=click.FloatRange(0, min_open=True), default=24.0, show_default=True)
def token(folder: Path, roles: tuple[str, ...], subject: str | None, hours: float) -> None:
    """Prints a token for development."""
    from campaign_cli.credentials import sign_token

    async def work() -> None:
        click.echo(sign_token(folder, subject, roles, hours * 3_600))

    run(work())


@campaign.command()
@click.option("--recipients", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed, the same fates.")
@click.option("--mode", type=MODE, default="with-efs", show_default=True)
@json_option
def demo(recipients: int, seed: int, mode: str, as_json: bool) -> None:
    """Sends through an MTA that misbehaves, and compares the figures with the truth."""
    from campaign_cli.demo import DemoOptions, run_demo

    options = DemoOptions(recipients=recipients, seed=seed, mode=MODES[mode])

    async def work() -> None:
        result = await run_demo(options, open_console())
        if as_json:
            click.echo(json.dumps(result.as_json()))
        if not result.is_exact:
            sys.exit(1)

    run(work())


@campaign.command()
@click.argument("delivery_id", metavar="ID")
@click.option("--format", "file_format", type=click.Choice(list(FORMATS)), default="csv", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, writable=True, path_type=Path), required=True)
@click.option("--since", metavar="TOKEN", default="", help="Only what changed since: the token of an earlier export.")
@click.option("--status", "statuses", type=click.Choice(list(choices(SendLogStatus))), multiple=True)
@click.option("--mode", type=MODE, help="Show statuses as in this mode.  [default: the delivery's]")
@json_option
@target_options
def export(
    delivery_id: str, file_format: str, output: Path, since: str, statuses: tuple[str, ...], mode: str | None,
    as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Writes the send logs of a delivery to a file, and tells the token for the next, incremental export."""
    request = ExportSendLogsRequest(
        delivery_id=delivery_id,
        feedback_mode=MODES[mode] if mode else FEEDBACK_MODE_UNSPECIFIED,
        statuses=[choices(SendLogStatus)[each] for each in statuses],
        resume_token=since,
    )

    async def work() -> None:
        target = Target(**where)
        async with connect(target, SEND_PATIENCE_SECONDS) as client:
            result = await export_send_logs(client, request, file_format, output)
        if as_json:
            click.echo(json.dumps({"send_logs": result.send_logs, "resume_token": result.resume_token}))
            return
        click.echo(f"{plural(result.send_logs, 'send log')} written to {output}.")
        if result.resume_token:
            again = f"campaign export {delivery_id} --format {file_format} --since {result.resume_token}"
            click.echo(f"What changes from now on: {again} --output FILE{target.options}")

    run(work())


@campaign.command()
@click.argument("delivery_id", metavar="ID")
@click.argument("recipient", type=click.IntRange(1), required=False)
@click.option("--rules", "with_rules", is_flag=True, help="Say which rule reads each failure; asks FeedbackService.")
@click.option("--feedback-target", metavar="HOST:PORT", help="With --rules: call another FeedbackService.")
@json_option
@target_options
def explain(
    delivery_id: str, recipient: int | None, with_rules: bool, feedback_target: str | None, as_json: bool, **where: Any
) -> None:
    """Says what a delivery waits for; with a RECIPIENT's number, what became of every report about that message."""

    if with_rules and (recipient is None or as_json):
        raise click.UsageError("--rules goes with a RECIPIENT, and not with --json: ask Qualify of FeedbackService.")

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            if recipient is None:
                request = ExplainDeliveryRequest(delivery_id=delivery_id)
                of_delivery = await client.call(client.stub.ExplainDelivery, request)
                logs.print_json(console, of_delivery) if as_json else console.print(render_delivery(of_delivery))
                return
            of_one = await client.call(
                client.stub.ExplainRecipient, ExplainRecipientRequest(delivery_id=delivery_id, recipient=recipient)
            )
            read_by = []
            if with_rules:
                asked = Target(**{**where, "address": feedback_target})
                read_by = await rules_that_read(asked, [event.entry for event in of_one.events])
            logs.print_json(console, of_one) if as_json else console.print(render_recipient(of_one, read_by))

    run(work())


@campaign.command("demo-postfix")
@click.option("--recipients", type=click.IntRange(1), default=2_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed, the same fates.")
@click.option("--feedback", "way", type=WAY, help="By mail, by the log of Postfix, or both.  [default: one by one]")
@json_option
def demo_postfix(recipients: int, seed: int, way: Any, as_json: bool) -> None:
    """Sends real mails through a real Postfix to a scripted sink, and compares the figures with the truth."""
    from campaign_cli.bridged_postfix import WAYS
    from campaign_cli.demo_postfix import run_demo_postfix

    async def work() -> None:
        exact = True
        for each in [way] if way else WAYS:
            result = await run_demo_postfix(recipients, seed, each, open_console())
            exact &= result.is_exact
            if as_json:
                click.echo(json.dumps({"feedback": each, **result.as_json()}))
        if not exact:
            sys.exit(1)

    run(work())


def _read_text(value: str | None) -> str:
    """The value itself, or with @ before it the content of the file that it names."""
    if value is None or not value.startswith("@"):
        return value or ""
    try:
        return Path(value[1:]).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{value[1:]} can't be read: {error}") from None
