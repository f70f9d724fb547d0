"""`campaign demo`: a whole send through an MTA that misbehaves, and the proof that the figures are right."""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.delivery_pb2 import DELIVERY_STATE_FINISHED, Content, FeedbackMode
from campaign.delivery.v1.kpis_pb2 import Kpis
from campaign_cli.client import SEND_PATIENCE_SECONDS, DeliveryClient, Target, connect
from campaign_cli.demo_recipients import write_recipients
from campaign_cli.demo_result import DemoResult, Truth, render_result
from campaign_cli.display import outcome_counts
from campaign_cli.processes import Report
from campaign_cli.send import Draft, confirm_send, prepare_send
from campaign_cli.stack import StackSettings
from campaign_cli.up import run_stack_shown
from campaign_cli.upload import Rejects
from campaign_cli.watch import follow, open_screen
from campaign_cli.words import plural
from service_runtime.clock import SystemClock

MISBEHAVIOUR = (
    "--duplicates", "0.05",
    "--reorder",
    "--cut-streams", "20",
    "--delay-acks-ms", "50",
    "--unknown-messages", "0.002",
    "--malformed", "0.002",
    "--try-later", "0.02",
    "--silent", "0.005",
)  # fmt: skip
"""All at once. None of it may show in the figures."""

ENVIRONMENT = {"DELIVERY_RELAY_RETRY_SECONDS": "0.25"}
"""Nobody wants to watch a polite pause before each repetition of what the MTA has put off."""

QUIET_SECONDS_MAX = 30.0
"""Nothing has changed for so long: what is not right by then will not become so."""

CONTENT = Content(
    subject="{{ first_name }}, the autumn fair comes to {{ city }}",
    html=(
        "<h1>Hello {{ first_name }} {{ last_name }}</h1><p>The fair opens its doors in {{ city }} on Friday.</p>"
        '<p><a href="https://fair.example/unsubscribe">Unsubscribe</a></p>'
    ),
    text="Hello {{ first_name }}, the fair opens in {{ city }} on Friday.\nhttps://fair.example/unsubscribe\n",
    from_address="news@fair.example",
    from_name="Autumn Fair",
)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to demonstrate."""

    recipients: int
    seed: int
    mode: FeedbackMode.ValueType
    simulator_arguments: Sequence[str] = MISBEHAVIOUR


class Scene:
    """What both sides say at the moment: the simulator its truth, the service its KPIs."""

    def __init__(self) -> None:
        self.truth: Truth | None = None
        self.kpis: Kpis | None = None
        self._changed = asyncio.Event()

    def take_report(self, report: Report) -> None:
        """Takes a line of the simulator."""
        if report.get("action") == "truth":
            self.truth = Truth(report)
            self._changed.set()

    def take_kpis(self, kpis: Kpis) -> bool:
        """Takes a message of the watch, which is never to end by itself."""
        self.kpis = kpis
        self._changed.set()
        return False

    async def settled(self) -> None:
        """Returns once all is played and acknowledged and the KPIs say the same, or once nothing changes any more."""
        try:
            while not self._agrees():
                async with asyncio.timeout(QUIET_SECONDS_MAX):
                    await self._changed.wait()
                self._changed.clear()
        except TimeoutError:
            return  # the report will say what is not right

    def _agrees(self) -> bool:
        if self.truth is None or self.kpis is None or not self.truth.idle:
            return False
        return (
            self.kpis.state == DELIVERY_STATE_FINISHED
            and self.truth.answered == self.kpis.to_deliver
            and self.truth.outcomes == outcome_counts(self.kpis.outcomes)
        )


async def run_demo(options: DemoOptions, console: Console) -> DemoResult:
    """Runs it from nothing to the report."""
    clock = SystemClock()
    started = clock.monotonic()
    scene = Scene()
    with tempfile.TemporaryDirectory(prefix="campaign-demo-", ignore_cleanup_errors=True) as folder:
        recipients = Path(folder) / "recipients.csv"
        write_recipients(recipients, options.recipients, options.seed)
        draft = Draft(recipients, CONTENT, "Autumn fair", options.mode)
        settings = StackSettings(
            Path(folder) / "data",
            simulator_arguments=("--seed", str(options.seed), *options.simulator_arguments),
            environment=ENVIRONMENT,
            on_simulator_report=scene.take_report,
        )
        async with run_stack_shown(settings, console) as stack:
            console.print(f"Everything runs. Sending to {plural(options.recipients, 'made-up recipient')}.")
            result = await stack.while_alive(play(stack.folder, draft, scene, console))
            result = replace(result, seconds=clock.monotonic() - started)
            console.print(render_result(result))
    return result


async def play(folder: Path, draft: Draft, scene: Scene, console: Console) -> DemoResult:
    async with connect(Target(folder), SEND_PATIENCE_SECONDS) as client:
        delivery = await prepare_send(client, draft, Rejects(), console)
        await confirm_send(client, delivery)
        await _watch_until_settled(client, delivery.delivery_id, scene, console)
        request = pb.ComputeStatisticsRequest(delivery_id=delivery.delivery_id)
        statistics = await client.call(client.stub.ComputeStatistics, request)
        return DemoResult(statistics.kpis, statistics.drift, scene.truth or Truth({}))


async def _watch_until_settled(client: DeliveryClient, delivery_id: str, scene: Scene, console: Console) -> None:
    with open_screen(console, {delivery_id: "Autumn fair"}) as screen:
        watching = asyncio.create_task(follow(client, [delivery_id], screen, scene.take_kpis))
        settled = asyncio.create_task(scene.settled())
        try:
            done, _ = await asyncio.wait([watching, settled], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (watching, settled):
                task.cancel()
            await asyncio.gather(watching, settled, return_exceptions=True)
