"""The composition root of DeliveryService: makes every part, starts them in order, stops them in order."""

import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from secrets import token_hex
from uuid import uuid4

from prometheus_client import CollectorRegistry

from campaign.delivery.v1 import (
    address_health_service_pb2,
    delivery_service_pb2,
    observation_service_pb2,
    requalification_service_pb2,
    role_pb2,
)
from campaign.delivery.v1.address_health_service_pb2_grpc import add_AddressHealthServiceServicer_to_server
from campaign.delivery.v1.observation_service_pb2_grpc import add_ObservationServiceServicer_to_server
from campaign.delivery.v1.requalification_service_pb2_grpc import add_RequalificationServiceServicer_to_server
from campaign.mta.v1 import relay_service_pb2
from campaign.mta.v1.relay_service_pb2_grpc import RelayServiceStub
from delivery_service.api.address_health import AddressHealthCalls
from delivery_service.api.alerts import AlertCalls
from delivery_service.api.before_the_send import BeforeTheSendCalls
from delivery_service.api.commands import CommandCalls
from delivery_service.api.control import ControlCalls
from delivery_service.api.deliveries import DeliveryCalls
from delivery_service.api.erasures import ErasureCalls
from delivery_service.api.errors import DOMAIN, ERROR_TABLE
from delivery_service.api.exclusions import ExclusionCalls
from delivery_service.api.explanations import ExplanationCalls
from delivery_service.api.exports import ExportCalls
from delivery_service.api.kpi_hub import KpiHub
from delivery_service.api.kpis import KpiCalls
from delivery_service.api.look_ups import LookUpCalls
from delivery_service.api.observations import ObservationCalls
from delivery_service.api.occurrences import OccurrenceCalls
from delivery_service.api.recipients import RecipientCalls
from delivery_service.api.requalification import RequalificationCalls
from delivery_service.api.retries import RetryCalls
from delivery_service.api.send_log_changes import SendLogChangeCalls
from delivery_service.api.send_log_feed import SendLogFeed
from delivery_service.api.send_logs import SendLogCalls
from delivery_service.api.servicer import AfterTheSend, AudienceCalls, Servicer, add_to_server
from delivery_service.api.suppressions import SuppressionCalls
from delivery_service.api.undefined_failures import UndefinedFailureCalls
from delivery_service.metrics import Metrics
from delivery_service.settings import Settings
from delivery_service.store.address_health import AddressHealth
from delivery_service.store.alerts import Alerts
from delivery_service.store.apply_writer import ApplySettings, ApplyWriter
from delivery_service.store.before_the_send import BeforeTheSend
from delivery_service.store.closing import Closing
from delivery_service.store.commands import Commands
from delivery_service.store.control import Control
from delivery_service.store.database import DatabaseSettings, open_pool, open_relay_pool
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.erasures import Erasures
from delivery_service.store.exclusions import Exclusions
from delivery_service.store.explanations import Explanations
from delivery_service.store.feedback import FeedbackStore
from delivery_service.store.kpis import KpiStore
from delivery_service.store.look_ups import LookUps
from delivery_service.store.quarantine import CollectLimits, Quarantine
from delivery_service.store.recipients import Recipients
from delivery_service.store.recurrences import Recurrences
from delivery_service.store.relay_parts import RelayParts
from delivery_service.store.requalification import Requalification
from delivery_service.store.retention import Retention
from delivery_service.store.retries import Retries
from delivery_service.store.send_logs import SendLogs
from delivery_service.store.suppressions import Suppressions
from delivery_service.store.transition_log import TransitionLog
from delivery_service.workers.alerts import AlertWebhookWorker, AlertWorker
from delivery_service.workers.barred import BarredMessages
from delivery_service.workers.breaker import BreakerWorker
from delivery_service.workers.closing import ClosingWorker
from delivery_service.workers.domain_breaker import DomainBreakerWorker
from delivery_service.workers.engagement import EngagementWorker
from delivery_service.workers.housekeeping import AudienceCopyWorker, DeletionWorker
from delivery_service.workers.mta_contact import MtaContactWorker
from delivery_service.workers.pacing import PacingWorker
from delivery_service.workers.poll import PollLoop
from delivery_service.workers.preparation import PreparationWorker
from delivery_service.workers.quarantine import QuarantineWorker, rules_of
from delivery_service.workers.recurrence import RecurrenceWorker
from delivery_service.workers.relay import RelayWorker
from delivery_service.workers.relay_stream import RelayCall, open_relay
from delivery_service.workers.retention import RetentionWorker
from delivery_service.workers.start import StartWorker
from service_runtime.access import AccessPolicy, TokenVerifier, required_roles
from service_runtime.admin_http import AdminHttp
from service_runtime.client import TokenFile, open_channel
from service_runtime.clock import Clock, SystemClock
from service_runtime.errors import ErrorTranslator
from service_runtime.interceptors import ServeCalls
from service_runtime.server import GrpcServer, ServerLimits
from service_runtime.tasks import BackgroundTasks

_DELIVERY_SERVICE = delivery_service_pb2.DESCRIPTOR.services_by_name["DeliveryService"]
_OBSERVATION_SERVICE = observation_service_pb2.DESCRIPTOR.services_by_name["ObservationService"]
_ADDRESS_HEALTH_SERVICE = address_health_service_pb2.DESCRIPTOR.services_by_name["AddressHealthService"]
_REQUALIFICATION_SERVICE = requalification_service_pb2.DESCRIPTOR.services_by_name["RequalificationService"]
_ROLE_PREFIX = "ROLE_"
IMPLIED_ROLES = {
    "start-deliveries": frozenset({"prepare-deliveries"}),
    "prepare-deliveries": frozenset({"read"}),
}
"""Role to the roles that it includes (role.proto). Administration includes none of them."""


class App:
    """One process of DeliveryService. `start` returns once it serves; `stop` once nothing of it runs any more.

    `process_fault` is called if a background task dies: the process should stop.
    """

    def __init__(self, settings: Settings, process_fault: Callable[[str], None], clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._tasks = BackgroundTasks(process_fault)
        self._closing: list[Callable[[], Awaitable[None]]] = []
        self._loops: list[PollLoop] = []
        self._open = False
        """Between the end of the start and the beginning of the stop."""
        self.server: GrpcServer | None = None
        self.admin: AdminHttp | None = None
        self.hub: KpiHub | None = None
        self._feed: SendLogFeed | None = None

    async def start(self) -> None:
        """Opens the database, then the workers, then the doors. Undone if it fails half-way."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Doors first, then the workers, then the database."""
        self._open = False
        if self.server is not None:
            settings = self._settings
            await self.server.stop(settings.shutdown_grace_seconds, notice_seconds=settings.shutdown_notice_seconds)
        await self._tasks.stop()
        for close in reversed(self._closing):
            await close()
        self._closing.clear()
        if self.admin is not None:
            self.admin.stop()

    async def _start(self) -> None:
        settings, clock = self._settings, self._clock
        registry = CollectorRegistry()
        metrics = Metrics(registry)
        database = DatabaseSettings(
            dsn=settings.database_url,
            pool_size_max=settings.pool_connections_max,
            statement_timeout_seconds=settings.statement_timeout_seconds,
            idle_in_transaction_timeout_seconds=settings.idle_in_transaction_timeout_seconds,
            long_statement_timeout_seconds=settings.long_statement_timeout_seconds,
        )
        pool = await open_pool(database)
        self._closing.append(pool.close)

        deliveries = Deliveries(pool)
        feedback = FeedbackStore(pool, settings.dead_letters_max, settings.source_silence)
        kpis = KpiStore(pool, settings.long_statement_timeout_seconds)
        hub = self.hub = KpiHub(kpis, feedback, settings, clock)
        writer = ApplyWriter(
            pool,
            database,
            ApplySettings(
                writers=settings.apply_writers,
                batch_size_max=settings.apply_batch_size_max,
                pending_observations_max=settings.apply_pending_observations_max,
            ),
            clock,
            self._committed,
        )
        for name, run in writer.runs():
            self._tasks.start(name, run)
        self._tasks.start("watch-feed", hub.run())
        self._tasks.start("watch-heartbeats", hub.run_heartbeats())
        transitions = TransitionLog(pool, settings.send_log_page_rows_max)
        feed = self._feed = SendLogFeed(transitions, settings)
        self._tasks.start("send-log-feed", feed.run())
        self._tasks.start("feedback-sources", hub.run_sources(self._database_reached))

        token = TokenFile(settings.token_file)
        channel = open_channel(settings.relay_target, None)
        self._closing.append(channel.close)

        def open_relay_call() -> RelayCall:
            # Not by an interceptor: those put a queue and a task between us and the stream.
            return open_relay(channel, (("authorization", f"Bearer {token.token()}"),))

        async def withdraw(request: relay_service_pb2.WithdrawRequest) -> relay_service_pb2.WithdrawResponse:
            metadata = (("authorization", f"Bearer {token.token()}"),)
            timeout = settings.withdraw_timeout_seconds
            return await RelayServiceStub(channel).Withdraw(request, metadata=metadata, timeout=timeout)

        holder = f"{socket.gethostname()}-{os.getpid()}-{token_hex(4)}"
        relay_pool = await open_relay_pool(database, settings.relay_connections)
        self._closing.append(relay_pool.close)
        parts = RelayParts(relay_pool, holder, timedelta(seconds=settings.relay_lease_seconds))
        barred = BarredMessages(withdraw, writer, clock)
        relay = RelayWorker(deliveries, parts, open_relay_call, writer, barred, settings, clock, metrics, self._changed)
        self._closing.append(relay.close)
        self._tasks.start("relay-leases", relay.run_leases())
        preparation = PreparationWorker(deliveries, database, settings, clock, metrics, self._changed)
        start = StartWorker(deliveries, clock, self._changed)
        engagement = EngagementWorker(
            kpis,
            timedelta(seconds=settings.engagement_refresh_seconds),
            settings.engagement_check_seconds,
            clock,
            self._changed,
        )
        closing = ClosingWorker(
            deliveries,
            Closing(pool, uuid4(), timedelta(seconds=settings.relay_lease_seconds)),
            parts,
            withdraw,
            writer,
            settings,
            clock,
            self._changed,
        )
        explanations = Explanations(pool, settings.source_silence)
        contact = MtaContactWorker(explanations, holder, channel.get_state, clock, settings.mta_contact_report_seconds)
        control = Control(pool, settings.long_statement_timeout_seconds)
        before = BeforeTheSend(pool)
        alerts = Alerts(pool)
        alert_calls = AlertCalls(alerts, settings, clock)
        self._tasks.start("alert-feed", alert_calls.run())
        breaker = BreakerWorker(control, settings, clock, metrics, self._changed)
        domain_breaker = DomainBreakerWorker(deliveries, control, settings, clock, metrics, self._changed)
        quarantine = Quarantine(
            pool,
            CollectLimits(
                settings.quarantine_transitions_per_step,
                settings.quarantine_messages_per_step,
                settings.quarantine_deliveries_looked_back_max,
            ),
            bucket=timedelta(seconds=settings.outage_guard_window_seconds),
            baseline=timedelta(seconds=settings.outage_guard_baseline_seconds),
        )
        commands = Commands(pool)
        suppressions = Suppressions(pool, settings.suppression_entries_per_list_max)
        recurrences = Recurrences(pool, settings.long_statement_timeout_seconds)
        recurrence = RecurrenceWorker(deliveries, recurrences, commands, settings, clock, metrics, self._changed)
        retention = Retention(
            database,
            settings.retention_lock_timeout_seconds,
            concurrently=settings.retention_detach_concurrently,
        )
        poll = settings.worker_poll_seconds
        for name, work in (
            ("preparation", preparation.work),
            ("start", start.work),
            ("relay", relay.work),
            ("relay-states", relay.look_at_states),
            ("closing", closing.work),
            ("breaker", breaker.work),
            ("domain-breaker", domain_breaker.work),
            ("quarantine", QuarantineWorker(quarantine, settings, clock, metrics).work),
            ("alerts", AlertWorker(alerts, settings, clock, metrics).work),
            ("alert-webhook", AlertWebhookWorker(alerts, settings, clock, metrics).work),
            ("pacing", PacingWorker(before, clock, self._wake_workers).work),
            ("engagement", engagement.work),
            ("mta-contact", contact.work),
            ("recurrence", recurrence.work),
            ("audience-copy", AudienceCopyWorker(commands, settings, self._changed).work),
            ("retention", RetentionWorker(retention, settings, clock, metrics).work),
            ("deletion", DeletionWorker(commands, suppressions, settings).work),
        ):
            loop = PollLoop(name, work, poll, clock)
            self._loops.append(loop)
            self._tasks.start(name, loop.run())

        send_logs = SendLogs(pool, settings.rows_scanned_per_page_max)
        look_ups = LookUps(
            pool,
            settings.rows_scanned_per_page_max,
            settings.profile_deliveries_scanned_per_page_max,
            settings.long_statement_timeout_seconds,
        )
        requalification = Requalification(pool, settings.requalification_recipients_per_page)
        servicer = Servicer(
            DeliveryCalls(deliveries, settings, clock, self._wake_workers),
            RecipientCalls(Recipients(pool, settings.recipients_per_delivery_max), settings, clock),
            ControlCalls(deliveries, control, settings, clock, self._changed),
            KpiCalls(kpis, deliveries, hub, settings, clock, metrics),
            SendLogCalls(deliveries, send_logs, feedback, settings),
            AfterTheSend(
                SendLogChangeCalls(deliveries, transitions, feed, settings, clock),
                ExportCalls(deliveries, send_logs, transitions, settings),
                LookUpCalls(deliveries, look_ups, settings),
                ExplanationCalls(deliveries, send_logs, explanations, settings, clock),
                UndefinedFailureCalls(requalification, settings, clock),
            ),
            CommandCalls(deliveries, commands, settings, clock, self._changed),
            OccurrenceCalls(deliveries, recurrences, settings, clock),
            BeforeTheSendCalls(deliveries, before, relay.send_proof, settings, clock, self._changed),
            alert_calls,
            AudienceCalls(
                SuppressionCalls(suppressions, settings, clock),
                ExclusionCalls(deliveries, Exclusions(pool, settings.rows_scanned_per_page_max), settings),
                RetryCalls(
                    deliveries,
                    Retries(pool, settings.long_statement_timeout_seconds),
                    kpis,
                    settings,
                    clock,
                    self._changed,
                ),
                ErasureCalls(Erasures(pool, settings.erasure_recipients_per_step), settings, clock, self._changed),
            ),
        )
        await self._open_doors(
            servicer,
            ObservationCalls(writer, feedback, requalification, settings, clock, metrics),
            RequalificationCalls(requalification, settings, clock, self._committed),
            AddressHealthCalls(
                AddressHealth(pool, settings.rows_scanned_per_page_max), rules_of(settings), settings, clock
            ),
            registry,
        )

    async def _open_doors(
        self,
        servicer: Servicer,
        observations: ObservationCalls,
        requalification: RequalificationCalls,
        address_health: AddressHealthCalls,
        registry: CollectorRegistry,
    ) -> None:
        """Serves callers and operators; the last step of the start."""
        settings = self._settings
        verifier = TokenVerifier([settings.jwt_public_key_file.read_bytes()], self._clock)
        calls = ServeCalls(verifier, access_policy(), ErrorTranslator(ERROR_TABLE, DOMAIN), registry, self._clock)
        server = self.server = GrpcServer(calls, ServerLimits())
        server.add_service(_DELIVERY_SERVICE.full_name, lambda grpc_server: add_to_server(servicer, grpc_server))
        server.add_service(
            _OBSERVATION_SERVICE.full_name,
            lambda grpc_server: add_ObservationServiceServicer_to_server(observations, grpc_server),
        )
        server.add_service(
            _REQUALIFICATION_SERVICE.full_name,
            lambda grpc_server: add_RequalificationServiceServicer_to_server(requalification, grpc_server),
        )
        server.add_service(
            _ADDRESS_HEALTH_SERVICE.full_name,
            lambda grpc_server: add_AddressHealthServiceServicer_to_server(address_health, grpc_server),
        )
        host, _, port = settings.listen.rpartition(":")
        await server.start(host, int(port))
        admin_host, _, admin_port = settings.admin_listen.rpartition(":")
        self.admin = AdminHttp(registry, lambda: server.is_serving, host=admin_host)
        self.admin.start(int(admin_port))
        await server.serving(True)
        self._open = True

    async def _database_reached(self, value: bool) -> None:
        """Health follows the database: without it, no call can be served here."""
        if self._open and self.server is not None and self.server.is_serving != value:
            await self.server.serving(value)

    def _wake_workers(self) -> None:
        for loop in self._loops:
            loop.wake()

    def _changed(self, delivery_id: int) -> None:
        """A worker has changed a delivery: others may have something to do, and watchers something to see."""
        self._committed([delivery_id])
        self._wake_workers()

    def _committed(self, delivery_ids: Iterable[int]) -> None:
        """Something of these deliveries was committed here: watchers have something to see."""
        for feed in (self.hub, self._feed):
            if feed is not None:
                feed.touch(delivery_ids)


def access_policy() -> AccessPolicy:
    """Who may call what, as the contract says."""
    required: dict[str, frozenset[str]] = {}
    for descriptor in (_DELIVERY_SERVICE, _OBSERVATION_SERVICE, _REQUALIFICATION_SERVICE, _ADDRESS_HEALTH_SERVICE):
        required |= required_roles(descriptor, role_pb2.required_role, role_name)
    return AccessPolicy(required, IMPLIED_ROLES)


def role_name(number: int) -> str:
    """The name of a role in a token: `prepare-deliveries` for ROLE_PREPARE_DELIVERIES."""
    return role_pb2.Role.Name(role_pb2.Role.ValueType(number)).removeprefix(_ROLE_PREFIX).lower().replace("_", "-")
