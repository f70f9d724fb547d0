"""show, confirm, unconfirm, cancel, decline, delete, duplicate and proof: the life of a delivery outside `send`."""

from collections.abc import Awaitable, Callable
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from campaign.delivery.v1 import before_the_send_pb2, commands_pb2
from campaign.delivery.v1.delivery_pb2 import Delivery, DeliveryState
from campaign_cli import logs
from campaign_cli.client import DeliveryClient, Target, connect
from campaign_cli.display import render_plan
from campaign_cli.errors import CommandFailed
from campaign_cli.options import json_option, target_options
from campaign_cli.running import open_console, run
from campaign_cli.send import confirm_send
from campaign_cli.words import label, local_time, plural


def _with_client(work: Callable[[DeliveryClient, Console], Awaitable[None]], where: dict[str, Any]) -> None:
    """Runs one command's work."""

    async def connected() -> None:
        async with connect(Target(**where)) as client:
            await work(client, open_console())

    run(connected())


def _show_state(console: Console, delivery: Delivery, as_json: bool) -> None:
    if as_json:
        logs.print_json(console, delivery)
    else:
        state = label(DeliveryState, delivery.state)
        console.print(f"Delivery {delivery.delivery_id} is {state}.", highlight=False)


@click.command()
@click.argument("delivery_id", metavar="ID")
@json_option
@target_options
def show(delivery_id: str, as_json: bool, **where: Any) -> None:
    """Shows one delivery: its state, its plan, and when it starts."""

    async def work(client: DeliveryClient, console: Console) -> None:
        delivery = await client.get_delivery(delivery_id)
        _show_state(console, delivery, as_json)
        if as_json:
            return
        if delivery.HasField("schedule"):
            schedule = delivery.schedule
            rule = f", {schedule.recurrence.rule}" if schedule.HasField("recurrence") else ""
            console.print(f"Scheduled for {schedule.local_time} {schedule.time_zone}{rule}.", highlight=False)
        for each in delivery.paused_domains:
            console.print(f"Messages to {each.recipient_domain} are held by {each.pause.pauser}.", highlight=False)
        if delivery.HasField("plan"):
            console.print(render_plan(delivery))
            console.print(f"Its whole digest: {delivery.plan.plan_digest}", style="dim", highlight=False)

    _with_client(work, where)


@click.command()
@click.argument("delivery_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@target_options
def confirm(delivery_id: str, yes: bool, as_json: bool, **where: Any) -> None:
    """Confirms a delivery that is ready, once you have seen its plan: a scheduled one, a child, an approved one."""

    async def work(client: DeliveryClient, console: Console) -> None:
        delivery = await client.get_delivery(delivery_id)
        if not as_json and delivery.HasField("plan"):
            console.print(render_plan(delivery))
        if not yes and not click.confirm(f"Send {plural(delivery.plan.to_deliver, 'message')}?"):
            raise CommandFailed("not confirmed", [f"delivery {delivery_id} is left as it was"])
        confirmed = await confirm_send(client, delivery)
        if as_json:
            logs.print_json(console, confirmed)
            return
        for warning in confirmed.warnings:
            console.print(f"Warning: {warning.description}", style="yellow", highlight=False)
        console.print(f"Confirmed; it starts at {local_time(confirmed.start_time)}.", highlight=False)

    _with_client(work, where)


@click.command()
@click.argument("delivery_id", metavar="ID")
@json_option
@target_options
def unconfirm(delivery_id: str, as_json: bool, **where: Any) -> None:
    """Takes the confirmation of a delivery back that has not started."""

    async def work(client: DeliveryClient, console: Console) -> None:
        request = commands_pb2.UnconfirmRequest(delivery_id=delivery_id)
        _show_state(console, (await client.call(client.stub.Unconfirm, request)).delivery, as_json)

    _with_client(work, where)


@click.command()
@click.argument("delivery_id", metavar="ID")
@json_option
@target_options
def cancel(delivery_id: str, as_json: bool, **where: Any) -> None:
    """Breaks a preparation off: the delivery is a draft again."""

    async def work(client: DeliveryClient, console: Console) -> None:
        request = commands_pb2.CancelPreparationRequest(delivery_id=delivery_id)
        _show_state(console, (await client.call(client.stub.CancelPreparation, request)).delivery, as_json)

    _with_client(work, where)


@click.command()
@click.argument("delivery_id", metavar="ID")
@click.confirmation_option("--yes", prompt="It will never be sent. Decline it?")
@json_option
@target_options
def decline(delivery_id: str, as_json: bool, **where: Any) -> None:
    """Declines a child of a recurring delivery that waits to be confirmed, for good."""

    async def work(client: DeliveryClient, console: Console) -> None:
        request = commands_pb2.DeclineRequest(delivery_id=delivery_id)
        _show_state(console, (await client.call(client.stub.Decline, request)).delivery, as_json)

    _with_client(work, where)


@click.command()
@click.argument("delivery_id", metavar="ID")
@click.confirmation_option("--yes", prompt="The draft and its audience will be gone. Delete it?")
@target_options
def delete(delivery_id: str, **where: Any) -> None:
    """Deletes a draft, with its audience."""

    async def work(client: DeliveryClient, console: Console) -> None:
        await client.call(client.stub.DeleteDelivery, commands_pb2.DeleteDeliveryRequest(delivery_id=delivery_id))
        console.print("Deleted.")

    _with_client(work, where)


@click.command()
@click.argument("delivery_id", metavar="ID")
@click.option("--label", "name", default="", help="Of the copy.  [default: the same]")
@click.option("--with-audience", is_flag=True, help="Copy the recipients too.")
@json_option
@target_options
def duplicate(delivery_id: str, name: str, with_audience: bool, as_json: bool, **where: Any) -> None:
    """Makes a new draft of a delivery, never with its schedule."""

    async def work(client: DeliveryClient, console: Console) -> None:
        request = commands_pb2.DuplicateDeliveryRequest(
            delivery_id=delivery_id, label=name, with_audience=with_audience
        )
        # Not repeated while the service is away: that could make two.
        copy = (await client.stub.DuplicateDelivery(request, timeout=30.0)).delivery
        _show_state(console, copy, as_json)

    _with_client(work, where)


@click.command()
@click.argument("delivery_id", metavar="ID")
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE", help="For the templates; repeatable.")
@json_option
@target_options
def proof(
    delivery_id: str, addresses: tuple[str, ...], attributes: tuple[str, ...], as_json: bool, **where: Any
) -> None:
    """Sends the message to test addresses, at once; it counts nowhere."""
    if any("=" not in each for each in attributes):
        raise click.UsageError("Give attributes as NAME=VALUE.")
    values = dict(each.split("=", 1) for each in attributes)

    async def work(client: DeliveryClient, console: Console) -> None:
        profiles = [before_the_send_pb2.TestProfile(address=each, attributes=values) for each in addresses]
        request = before_the_send_pb2.SendProofRequest(delivery_id=delivery_id, test_profiles=profiles)
        # Not repeated while the service is away: that could send twice.
        sent = await client.stub.SendProof(request, timeout=30.0)
        if as_json:
            logs.print_json(console, sent)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("#", "Address", "The MTA says", "Diagnostic"):
            table.add_column(heading)
        for each in sent.proofs:
            verdict = label(before_the_send_pb2.ProofVerdict, each.verdict)
            table.add_row(str(each.recipient), Text(each.address), verdict, Text(each.diagnostic, "dim"))
        console.print(table)

    _with_client(work, where)
