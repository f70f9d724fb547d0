"""Both services and the simulator as processes of their own, on a test database: to be killed and started again."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from campaign.delivery.v1 import delivery_pb2, kpis_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from campaign_cli.credentials import Credentials, issue_credentials
from campaign_cli.demo_result import Truth
from campaign_cli.ports import Ports, local
from campaign_cli.processes import Child, Report
from service_runtime.client import TokenFile, open_channel
from tests.support.delivery_stack import CONTENT
from tests.support.eventually import eventually

START_SECONDS_MAX = 90.0
RUN_SECONDS_MAX = 180.0
CHUNK = 2_000
MISBEHAVIOUR = (
    *("--duplicates", "0.05", "--reorder", "--cut-streams", "15", "--unknown-messages", "0.002"),
    *("--malformed", "0.002", "--try-later", "0.01", "--time-scale", "0.3"),
)


class ProcessStack:
    """`kill` is kill -9; `start` takes a killed process's place, on the same port."""

    def __init__(self, folder: Path, dsn: str, simulator_arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.folder = folder
        self.dsn = dsn
        self.ports = Ports().chosen()
        self.children: dict[str, Child] = {}
        self.truth: Truth | None = None
        self._simulator_arguments = simulator_arguments
        self._environment = environment
        self._credentials: Credentials = issue_credentials(folder)
        self.channel: grpc.aio.Channel = open_channel(
            local(self.ports.delivery), TokenFile(self._credentials.token_file("user"))
        )
        self.stub = DeliveryServiceStub(self.channel)

    async def start(self, name: str) -> Child:
        """Starts one process and waits until it listens."""
        arguments, environment = self._command(name)
        child = await Child.start(
            name,
            name,
            arguments,
            log_path=self.folder / f"{name}.log",
            environment=environment,
            on_report=self._heard if name == "mta_simulator" else None,
        )
        self.children[name] = child
        await child.listening(START_SECONDS_MAX)
        return child

    async def kill(self, name: str) -> None:
        """Ends a process without any warning."""
        child = self.children.pop(name)
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()

    async def stop(self) -> None:
        await self.channel.close()
        for child in reversed(self.children.values()):
            await child.stop(START_SECONDS_MAX)

    def _heard(self, report: Report) -> None:
        if report.get("action") == "truth":
            self.truth = Truth(report)

    def _command(self, name: str) -> tuple[list[str], dict[str, str]]:
        ports, key = self.ports, str(self._credentials.public_key)
        if name == "delivery_service":
            return [], {
                "DELIVERY_DATABASE_URL": self.dsn,
                "DELIVERY_QUARANTINE_CHECK_SECONDS": "1000000",  # off: the same addresses bounce again and again
                "DELIVERY_LISTEN": local(ports.delivery),
                "DELIVERY_ADMIN_LISTEN": "127.0.0.1:0",
                "DELIVERY_RELAY_TARGET": local(ports.mta),
                "DELIVERY_TOKEN_FILE": str(self._credentials.token_file("delivery")),
                "DELIVERY_JWT_PUBLIC_KEY_FILE": key,
                # A killed worker's leases end soon, so that the tests do.
                "DELIVERY_RELAY_LEASE_SECONDS": "2",
                "DELIVERY_PREPARATION_LEASE_SECONDS": "2",
                # So do the pauses before what the MTA has put off, or what has failed, is relayed again.
                "DELIVERY_RELAY_RETRY_SECONDS": "0.1",
                "DELIVERY_RELAY_RETRY_MAX_SECONDS": "1",
                **self._environment,
            }
        if name == "feedback_service":
            return [], {
                "FEEDBACK_LISTEN": local(ports.feedback),
                "FEEDBACK_ADMIN_LISTEN": "127.0.0.1:0",
                "FEEDBACK_DELIVERY_TARGET": local(ports.delivery),
                "FEEDBACK_TOKEN_FILE": str(self._credentials.token_file("feedback")),
                "FEEDBACK_JWT_PUBLIC_KEY_FILE": key,
                "FEEDBACK_RECONNECT_SECONDS_MAX": "0.5",
            }
        return [
            *("--listen", local(ports.mta), "--feedback-target", local(ports.feedback)),
            *("--token-file", str(self._credentials.token_file("mta")), "--jwt-public-key-file", key),
            *("--reconnect-seconds-max", "0.5"),
            *self._simulator_arguments,
        ], {}

    async def prepared(
        self, recipients: int, address: Callable[[int], str] = "p{}@example.com".format, **fields: Any
    ) -> delivery_pb2.Delivery:
        """A delivery to that many, READY."""
        draft = delivery_pb2.Delivery(label="acceptance", content=CONTENT, **fields)
        created = await self.stub.CreateDelivery(pb.CreateDeliveryRequest(delivery=draft))
        delivery_id = created.delivery.delivery_id

        async def requests() -> AsyncIterator[pb.AddRecipientsRequest]:
            opened = pb.RecipientUploadOpen(delivery_id=delivery_id, upload_id=str(uuid4()))
            yield pb.AddRecipientsRequest(open=opened)
            for number, begin in enumerate(range(0, recipients, CHUNK), start=1):
                people = [
                    pb.NewRecipient(profile_id=str(i), address=address(i), attributes={"first_name": f"N{i}"})
                    for i in range(begin, min(begin + CHUNK, recipients))
                ]
                yield pb.AddRecipientsRequest(chunk=pb.RecipientChunk(number=number, recipients=people))

        await self.stub.AddRecipients(requests())
        await self.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))
        return await self.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_READY)

    async def confirm(self, delivery: delivery_pb2.Delivery) -> None:
        await self.stub.ConfirmSend(
            pb.ConfirmSendRequest(
                delivery_id=delivery.delivery_id, plan_digest=delivery.plan.plan_digest, request_id=str(uuid4())
            )
        )

    async def in_state(
        self, delivery_id: str, state: "delivery_pb2.DeliveryState.ValueType", within_seconds: float = RUN_SECONDS_MAX
    ) -> delivery_pb2.Delivery:
        async def reached() -> delivery_pb2.Delivery:
            request = pb.GetDeliveryRequest(delivery_id=delivery_id)
            delivery = (await self.stub.GetDelivery(request, wait_for_ready=True)).delivery
            assert delivery.state == state, delivery_pb2.DeliveryState.Name(delivery.state)
            return delivery

        return await eventually(reached, timeout_seconds=within_seconds)

    async def kpis(self, delivery_id: str) -> kpis_pb2.Kpis:
        response = await self.stub.GetKpis(pb.GetKpisRequest(delivery_id=delivery_id), wait_for_ready=True)
        return response.kpis

    async def until(self, delivery_id: str, *, handed_over: int = 0, reported: int = 0) -> None:
        """Waits until so many messages are handed over, or have feedback."""

        async def reached() -> bool:
            kpis = await self.kpis(delivery_id)
            with_feedback = kpis.handed_over - kpis.outcomes.relayed
            assert kpis.handed_over >= handed_over, kpis.outcomes
            assert with_feedback >= reported, kpis.outcomes
            return True

        await eventually(reached, timeout_seconds=RUN_SECONDS_MAX)

    async def healthy(self, *, serving: bool) -> None:
        """Waits until DeliveryService's health says that it serves, or that it does not."""
        stub: Any = health_pb2_grpc.HealthStub(self.channel)

        async def reached() -> bool:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            return bool((answer.status == health_pb2.HealthCheckResponse.SERVING) == serving)

        await eventually(reached, timeout_seconds=START_SECONDS_MAX)

    async def truth_reached(self, delivery_id: str) -> kpis_pb2.Kpis:
        """Waits until the delivery is finished, all feedback is acked, and the KPIs are the simulator's truth."""
        await self.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)

        async def equal() -> kpis_pb2.Kpis:
            assert self.truth is not None, "the simulator has said nothing"
            assert self.truth.idle, "the simulator is busy"
            kpis = await self.kpis(delivery_id)
            assert self.truth.answered == kpis.to_deliver
            counted = {field.name: getattr(kpis.outcomes, field.name) for field in kpis.outcomes.DESCRIPTOR.fields}
            assert counted == self.truth.outcomes
            return kpis

        kpis = await eventually(equal, timeout_seconds=RUN_SECONDS_MAX)
        statistics = await self.stub.ComputeStatistics(pb.ComputeStatisticsRequest(delivery_id=delivery_id))
        assert statistics.drift == 0
        assert self.truth is not None
        assert (statistics.kpis.engagement.opened, statistics.kpis.engagement.clicked) == (
            self.truth.opened,
            self.truth.clicked,
        )
        assert self.truth.duplicates_sent == 0
        return kpis


@asynccontextmanager
async def process_stack(
    folder: Path, dsn: str, *simulator_arguments: str, **environment: str
) -> AsyncIterator[ProcessStack]:
    """All processes, running."""
    stack = ProcessStack(folder, dsn, simulator_arguments, environment)
    async with AsyncExitStack() as exits:
        exits.push_async_callback(stack.stop)
        # Each waits for the next one by itself.
        await asyncio.gather(*map(stack.start, ("delivery_service", "feedback_service", "mta_simulator")))
        yield stack
