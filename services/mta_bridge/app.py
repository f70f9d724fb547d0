"""The composition root of the bridge: what it is made of, and in which order it starts and stops."""

import asyncio
import logging
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from campaign.delivery.v1 import role_pb2 as role_pb
from campaign.feedback.v1 import feedback_service_pb2_grpc as feedback_grpc
from campaign.mta.v1 import relay_service_pb2 as relay_pb
from campaign.mta.v1 import relay_service_pb2_grpc as relay_grpc
from mta_bridge.domain.postfix_log import PostfixLog
from mta_bridge.domain.tokens import Tokens
from mta_bridge.feedback.queue import FeedbackQueue, Ticket
from mta_bridge.inbound.bounce_box import BounceBox
from mta_bridge.inbound.correlation import Correlation
from mta_bridge.inbound.log_tail import LogTail, StandardInput
from mta_bridge.inbound.webhooks import Webhooks
from mta_bridge.metrics import BridgeMetrics
from mta_bridge.outbound.expiry import Expiry
from mta_bridge.outbound.relay import RELAY_ERRORS, Relay
from mta_bridge.outbound.sender import Sender
from mta_bridge.outbound.signer import dkim_signer, unsigned
from mta_bridge.settings import Settings
from mta_bridge.store.journal import Journal
from mta_bridge.store.log_place import LogPlaces
from mta_bridge.store.parked import Parked
from mta_side.status_stream import StatusStream
from service_runtime.access import AccessPolicy, TokenVerifier, required_roles
from service_runtime.admin_http import AdminHttp
from service_runtime.client import TokenFile, open_channel
from service_runtime.clock import Clock, SystemClock
from service_runtime.errors import ErrorTranslator
from service_runtime.interceptors import ServeCalls
from service_runtime.server import GrpcServer, ServerLimits
from service_runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)

SERVICE: Final = relay_pb.DESCRIPTOR.services_by_name["RelayService"]
ERROR_DOMAIN: Final = "campaign"
PRUNE_SECONDS: Final = 60.0
STANDARD_INPUT: Final = "-"


class App:
    """One process of the bridge. Make it inside a running event loop.

    `process_fault` is called if it can't go on: the process should stop.
    """

    def __init__(self, settings: Settings, process_fault: Callable[[str], None], clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock = clock or SystemClock()
        registry = CollectorRegistry()
        self.metrics = BridgeMetrics(registry)
        tokens = Tokens(read_secrets(settings.token_key_file))
        sign = unsigned
        if settings.dkim_key_file is not None:
            sign = dkim_signer(settings.dkim_key_file, settings.dkim_selector, settings.dkim_domain)
        self.journal = Journal(
            settings.journal,
            synchronous=settings.journal_synchronous,
            on_failure=lambda error: process_fault(f"journal: {error}"),
        )
        self.parked = Parked(self.journal.database, settings.parked_max, settings.parked_bytes_max)
        self.sender = Sender(settings, self.journal, tokens, sign, self.metrics, clock)
        on_ended = self.journal.ended if settings.expire_command else None
        self.queue = FeedbackQueue(settings.pending_events_max, self.metrics, clock, on_ended)
        self._tasks = BackgroundTasks(process_fault)

        self._channel = open_channel(settings.feedback_target, None)
        stub = feedback_grpc.FeedbackServiceStub(self._channel)
        token_file = TokenFile(settings.token_file)
        self._streams = [
            StatusStream[Ticket](f"{settings.source_id}-{number}", stub, token_file, self.queue, clock)
            for number in range(1, settings.streams + 1)
        ]
        self.metrics.watch_streams(lambda: sum(stream.connected for stream in self._streams))

        correlation = Correlation(tokens, self.journal)
        self._bounce_box = BounceBox(settings, correlation, self.queue, self.parked, self.metrics, clock)
        self._webhooks: Webhooks | None = None
        if settings.webhook_listen and settings.webhook_secret_file is not None:
            secrets = read_secrets(settings.webhook_secret_file)
            self._webhooks = Webhooks(
                settings, secrets, correlation, self.queue, self.parked, self.journal, self.metrics, clock
            )
        self._log = self._log_reader(tokens)

        verifier = TokenVerifier([settings.jwt_public_key_file.read_bytes()], clock)
        policy = AccessPolicy(required_roles(SERVICE, role_pb.required_role, _role_name), implied={})
        calls = ServeCalls(verifier, policy, ErrorTranslator(RELAY_ERRORS, ERROR_DOMAIN), registry, clock)
        self.server = GrpcServer(calls, ServerLimits(receive_bytes_max=settings.receive_bytes_max))
        relay = Relay(settings, self.journal, self.sender, self.metrics, clock)
        self.server.add_service(SERVICE.full_name, partial(relay_grpc.add_RelayServiceServicer_to_server, relay))
        # What is being sent gets its answer while its stream is still there to carry it.
        self.server.on_drain(lambda: self.sender.stop(settings.shutdown_grace_seconds))
        self.server.on_drain(relay.all_answered)
        self._admin_host, self._admin_port = _host_and_port(settings.admin_listen)
        self._admin = AdminHttp(registry, lambda: self.server.is_serving, host=self._admin_host)
        self.addresses: dict[str, str] = {}

    async def start(self) -> None:
        """Takes messages and reports from when it returns."""
        settings = self._settings
        resend = settings.unknown_messages == "resend"
        if left := self.journal.recover(self._clock.now_us(), resend=resend):
            told = {"action": "recover_journal", "messages": left, "resent": resend}
            log.warning("messages were being sent when the process ended: accepted or not, nobody can know", extra=told)
        try:
            for number, stream in enumerate(self._streams, 1):
                self._tasks.start(f"feedback stream {number}", stream.run())
            if settings.bounce_listen:
                host, port = _host_and_port(settings.bounce_listen)
                self.addresses["bounce_address"] = f"{host}:{await self._bounce_box.start(host, port)}"
            if self._webhooks is not None:
                host, port = _host_and_port(settings.webhook_listen)
                self.addresses["webhook_address"] = f"{host}:{await self._webhooks.start(host, port)}"
            if self._log is not None:
                self._tasks.start("postfix log", self._log.run())
            if settings.expire_command:
                expiry = Expiry(
                    settings.expire_command,
                    settings.expire_seconds,
                    settings.expire_command_seconds_max,
                    self.journal,
                    self.metrics,
                    self._clock,
                )
                self._tasks.start("expiry", expiry.run())
            self._tasks.start("sender", self.sender.run())
            self._tasks.start("prune journal", self._prune())
            host, port = _host_and_port(settings.listen)
            self.addresses["address"] = f"{host}:{await self.server.start(host, port)}"
            self.addresses["admin_address"] = f"{self._admin_host}:{self._admin.start(self._admin_port)}"
            await self.server.serving(True)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Messages first: queued ones are put off, those on their way get their answer. Then the inputs, whose senders
        keep what is not acknowledged; then the feedback streams, and the journal last."""
        grace_seconds = self._settings.shutdown_grace_seconds
        await self.server.stop(grace_seconds, notice_seconds=self._settings.shutdown_notice_seconds)
        if self._webhooks is not None:
            await self._webhooks.stop()
        await self._bounce_box.stop(grace_seconds / 2)
        await self._tasks.stop()
        await self._channel.close()
        await asyncio.to_thread(self._admin.stop)
        self.journal.close()

    async def _prune(self) -> None:
        while True:
            self.journal.prune(self._clock.now_us())
            await self._clock.sleep(PRUNE_SECONDS * random.uniform(0.5, 1.5))

    def _log_reader(self, tokens: Tokens) -> LogTail | StandardInput | None:
        settings = self._settings
        if not settings.postfix_log:
            return None
        parser = PostfixLog(tokens, self.journal.message_of, self.journal.message_of_queue_id, None)
        if settings.postfix_log == STANDARD_INPUT:
            return StandardInput(parser, self.queue, self.journal, self._clock)
        places = LogPlaces(self.journal.database)
        poll_seconds = settings.postfix_log_poll_seconds
        return LogTail(Path(settings.postfix_log), parser, self.queue, self.journal, places, poll_seconds, self._clock)


def read_secrets(path: Path) -> list[bytes]:
    """The lines of a file, without those that are empty or begin with #."""
    lines = (line.strip() for line in path.read_bytes().splitlines())
    secrets = [line for line in lines if line and not line.startswith(b"#")]
    if not secrets or any(len(secret) < 16 for secret in secrets):
        raise ValueError(f"{path} must have a secret of at least 16 bytes in each line: write one")
    return secrets


def _role_name(number: int) -> str:
    return role_pb.Role.Name(role_pb.Role.ValueType(number)).removeprefix("ROLE_").lower().replace("_", "-")


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
