"""approve, pause, resume and stop: commands of those who look after a send."""

from typing import Any

import click

from campaign.delivery.v1 import before_the_send_pb2, domain_pause_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign_cli import logs
from campaign_cli.client import Target, connect
from campaign_cli.options import json_option, target_options
from campaign_cli.running import open_console, run
from campaign_cli.words import plural


@click.command()
@click.argument("delivery_id", metavar="ID")
@click.argument("plan_digest", metavar="DIGEST")
@json_option
@target_options
def approve(delivery_id: str, plan_digest: str, as_json: bool, **where: Any) -> None:
    """Approves the plan with this digest, as a second person: neither who prepared it nor who will confirm it."""

    async def work() -> None:
        console = open_console()
        request = before_the_send_pb2.ApproveDeliveryRequest(delivery_id=delivery_id, plan_digest=plan_digest)
        async with connect(Target(**where)) as client:
            approved = await client.call(client.stub.ApproveDelivery, request)
        if as_json:
            logs.print_json(console, approved)
        else:
            console.print(f"Approved by {approved.delivery.approval.approver}.", highlight=False)

    run(work())


domain_option = click.option("--domain", metavar="DOMAIN", help="Only messages to this recipient domain.")


@click.command()
@click.argument("delivery_id", metavar="ID")
@domain_option
@json_option
@target_options
def pause(delivery_id: str, domain: str | None, as_json: bool, **where: Any) -> None:
    """Lets no more messages of a delivery leave, for now."""

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            paused: pb.PauseDeliveryResponse | domain_pause_pb2.PauseDomainResponse
            if domain is None:
                paused = await client.call(client.stub.PauseDelivery, pb.PauseDeliveryRequest(delivery_id=delivery_id))
            else:
                request = domain_pause_pb2.PauseDomainRequest(delivery_id=delivery_id, recipient_domain=domain)
                paused = await client.call(client.stub.PauseDomain, request)
        if as_json:
            logs.print_json(console, paused)
        else:
            console.print(f"Paused; {plural(paused.in_flight_count, 'message')} in flight.", highlight=False)

    run(work())


@click.command()
@click.argument("delivery_id", metavar="ID")
@domain_option
@json_option
@target_options
def resume(delivery_id: str, domain: str | None, as_json: bool, **where: Any) -> None:
    """Goes on with a paused delivery, or with a paused recipient domain of one."""

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            resumed: pb.ResumeDeliveryResponse | domain_pause_pb2.ResumeDomainResponse
            if domain is None:
                request = pb.ResumeDeliveryRequest(delivery_id=delivery_id)
                resumed = await client.call(client.stub.ResumeDelivery, request)
            else:
                of_domain = domain_pause_pb2.ResumeDomainRequest(delivery_id=delivery_id, recipient_domain=domain)
                resumed = await client.call(client.stub.ResumeDomain, of_domain)
        if as_json:
            logs.print_json(console, resumed)
        else:
            console.print("Resumed.")

    run(work())


@click.command()
@click.argument("delivery_id", metavar="ID")
@click.confirmation_option("--yes", prompt="What has not left will never leave. Stop the delivery?")
@json_option
@target_options
def stop(delivery_id: str, as_json: bool, **where: Any) -> None:
    """Stops a delivery for good: what has not left is canceled."""

    async def work() -> None:
        console = open_console()
        async with connect(Target(**where)) as client:
            stopped = await client.call(client.stub.StopDelivery, pb.StopDeliveryRequest(delivery_id=delivery_id))
        if as_json:
            logs.print_json(console, stopped)
            return
        in_flight = plural(stopped.delivery.stop.in_flight_count, "message")
        console.print(f"Stopped; {in_flight} in flight.", highlight=False)
        if not stopped.delivery.stop.complete:
            console.print("The MTA is being asked what has left; campaign kpis shows it.")

    run(work())
