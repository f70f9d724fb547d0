"""The composition root of FeedbackService: what it is made of, and in which order it starts and stops."""

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc.aio
from prometheus_client import CollectorRegistry

from campaign.delivery.v1 import role_pb2 as role_pb
from campaign.delivery.v1.requalification_service_pb2_grpc import RequalificationServiceStub
from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from campaign.feedback.v1 import feedback_service_pb2_grpc as feedback_grpc
from campaign.feedback.v1 import qualification_service_pb2 as qualification_pb
from campaign.feedback.v1 import qualification_service_pb2_grpc as qualification_grpc
from feedback_service.api.errors import ERROR_DOMAIN, ERROR_TABLE
from feedback_service.api.qualification import QualificationCalls
from feedback_service.api.stream_status import StreamStatus
from feedback_service.delivery_client import DeliveryClient
from feedback_service.event_budget import EventBudget
from feedback_service.metrics import FeedbackMetrics
from feedback_service.settings import Settings
from service_runtime.access import AccessPolicy, TokenVerifier, required_roles
from service_runtime.admin_http import AdminHttp
from service_runtime.client import TokenFile, open_channel
from service_runtime.clock import Clock, SystemClock
from service_runtime.errors import ErrorTranslator
from service_runtime.interceptors import ServeCalls
from service_runtime.server import GrpcServer, ServerLimits
from service_runtime.tasks import BackgroundTasks

SERVICE = feedback_pb.DESCRIPTOR.services_by_name["FeedbackService"]
QUALIFICATION_SERVICE = qualification_pb.DESCRIPTOR.services_by_name["QualificationService"]
IMPLIED_ROLES = {
    "start-deliveries": frozenset({"prepare-deliveries"}),
    "prepare-deliveries": frozenset({"read"}),
}
"""Role to the roles that it includes (role.proto)."""


class App:
    """One process of FeedbackService. Make it inside a running event loop.

    `process_fault` is called if a background task dies: the process should stop.
    """

    def __init__(
        self,
        settings: Settings,
        process_fault: Callable[[str], None],
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._stopping = False
        clock = clock or SystemClock()
        registry = CollectorRegistry()
        self.metrics = FeedbackMetrics(registry)
        self.budget = EventBudget(settings.unacked_events_max)
        self._token = TokenFile(settings.token_file)
        self.client = DeliveryClient(
            settings,
            self._open_channel,
            self._token,
            self.budget,
            self.metrics,
            clock,
            jitter,
            replica_id=f"{socket.gethostname()}-{os.getpid()}",
            on_connection=self._on_connection,
            on_outdated=lambda: self.handler.refuse_as_outdated(),
        )
        self.handler = StreamStatus(settings, self.client, self.budget)
        self.metrics.watch_unacked(lambda: self.budget.held)
        self.metrics.watch_streams(lambda: self.handler.open_streams)
        verifier = TokenVerifier([settings.jwt_public_key_file.read_bytes()], clock)
        required = {
            method: roles
            for service in (SERVICE, QUALIFICATION_SERVICE)
            for method, roles in required_roles(service, role_pb.required_role, _role_name).items()
        }
        policy = AccessPolicy(required, IMPLIED_ROLES)
        calls = ServeCalls(verifier, policy, ErrorTranslator(ERROR_TABLE, ERROR_DOMAIN), registry, clock)
        limits = ServerLimits(
            receive_bytes_max=settings.receive_bytes_max,
            send_bytes_max=settings.send_bytes_max,
            stream_window_bytes=settings.stream_window_bytes,
        )
        self.server = GrpcServer(calls, limits)
        self.server.add_service(
            SERVICE.full_name,
            lambda server: feedback_grpc.add_FeedbackServiceServicer_to_server(self.handler, server),
        )
        qualification = QualificationCalls(settings, self._open_delivery_service, clock)
        self.server.add_service(
            QUALIFICATION_SERVICE.full_name,
            lambda server: qualification_grpc.add_QualificationServiceServicer_to_server(qualification, server),
        )
        self.server.on_drain(self.handler.drain)
        self._tasks = BackgroundTasks(process_fault)
        self._admin_host, self._admin_port = _host_and_port(settings.admin_listen)
        self._admin = AdminHttp(registry, lambda: self.server.is_serving, host=self._admin_host)
        self.address = ""
        self.admin_address = ""

    async def start(self) -> None:
        """Takes calls from when it returns. Health says SERVING while DeliveryService is connected."""
        host, port = _host_and_port(self._settings.listen)
        try:
            self.address = f"{host}:{await self.server.start(host, port)}"
            self.admin_address = f"{self._admin_host}:{self._admin.start(self._admin_port)}"
        except BaseException:
            await self.stop()
            raise
        self._tasks.start("delivery-client", self.client.run())

    async def stop(self) -> None:
        """No new streams; what was read is acked if DeliveryService answers in time; then everything is closed."""
        self._stopping = True
        settings = self._settings
        await self.server.stop(settings.shutdown_grace_seconds, notice_seconds=settings.shutdown_notice_seconds)
        await self._tasks.stop()
        await asyncio.to_thread(self._admin.stop)

    async def _on_connection(self, connected: bool) -> None:
        if not self._stopping:
            await self.server.serving(connected)

    @asynccontextmanager
    async def _open_delivery_service(self) -> AsyncIterator[RequalificationServiceStub]:
        """A connection of its own, for what is not the hot path."""
        async with open_channel(self._settings.delivery_target, self._token) as channel:
            yield RequalificationServiceStub(channel)

    def _open_channel(self) -> grpc.aio.Channel:
        return open_channel(self._settings.delivery_target, None)


def _role_name(number: int) -> str:
    return role_pb.Role.Name(role_pb.Role.ValueType(number)).removeprefix("ROLE_").lower().replace("_", "-")


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
