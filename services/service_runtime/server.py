"""A grpc.aio server with health, reflection and the interceptor, that starts and stops in the right order."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service_runtime.interceptors import ServeCalls

log = logging.getLogger(__name__)

NOTICE_SECONDS = 0.25
HEALTH_CHANGE_SECONDS_MAX = 1.0
HANDLERS_END_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What the transport allows. Limits on what a call may cost belong to the services."""

    receive_bytes_max: int = 4 * 1_024 * 1_024
    send_bytes_max: int = 4 * 1_024 * 1_024
    stream_window_bytes: int = 512 * 1_024
    """Unread data that one stream may bring; grpc's own default lets some 4 MiB pile up per stream."""
    pending_calls_max: int = 20_000
    """Calls waiting to be accepted. grpc's default of 1,000 refuses a reconnect storm with CANCELLED."""
    keepalive_seconds: int = 30
    ping_timeout_seconds: int = 10
    """A dead peer is noticed after both together."""
    client_ping_interval_seconds_min: int = 10
    connection_age_seconds_max: int = 1_800
    """Connections are renewed so that load spreads over new replicas; streams resume."""
    connection_age_grace_seconds: int = 300
    share_port: bool = False
    """Whether other processes may listen on the same port. If not, a port taken twice is an error."""

    def options(self) -> list[tuple[str, Any]]:
        """The channel arguments of a grpc server."""
        return [
            ("grpc.max_receive_message_length", self.receive_bytes_max),
            ("grpc.max_send_message_length", self.send_bytes_max),
            ("grpc.server.max_pending_requests", self.pending_calls_max),
            ("grpc.server.max_pending_requests_hard_limit", 2 * self.pending_calls_max),
            # The look-ahead counts only with the bandwidth probe off.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", self.stream_window_bytes),
            ("grpc.keepalive_time_ms", self.keepalive_seconds * 1_000),
            ("grpc.keepalive_timeout_ms", self.ping_timeout_seconds * 1_000),
            # Without this one, keep-alive takes a minute to notice whatever the two above say.
            ("grpc.http2.ping_timeout_ms", self.ping_timeout_seconds * 1_000),
            ("grpc.http2.min_ping_interval_without_data_ms", self.client_ping_interval_seconds_min * 1_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.max_connection_age_ms", self.connection_age_seconds_max * 1_000),
            ("grpc.max_connection_age_grace_ms", self.connection_age_grace_seconds * 1_000),
            ("grpc.so_reuseport", int(self.share_port)),
        ]


class GrpcServer:
    """One listening server. Make it inside a running event loop: grpc.aio binds to the loop at once."""

    def __init__(
        self,
        calls: ServeCalls,
        limits: ServerLimits | None = None,
        *,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.calls = calls
        self.port = 0
        self.is_serving = False
        self._credentials = credentials
        self._server = grpc.aio.server(interceptors=[calls], options=(limits or ServerLimits()).options())
        self._health = health.aio.HealthServicer()
        self._names: list[str] = []
        self._drains: list[Callable[[], Awaitable[None]]] = []

    def add_service(self, name: str, add_to_server: Callable[[grpc.aio.Server], None]) -> None:
        """Serves `name` (`package.Service`); `add_to_server` is the generated function with its servicer bound."""
        add_to_server(self._server)
        self._names.append(name)

    def on_drain(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Calls `callback` when stopping, while calls are still served: the place to end streams one's own way."""
        self._drains.append(callback)

    async def start(self, host: str, port: int) -> int:
        """Listens on `host`:`port` (0: any free one) and returns the port. Health says NOT_SERVING until `serving`."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self.serving(False)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self._credentials)
        await self._server.start()
        log.info("grpc server listens", extra={"action": "start_server", "host": host, "port": self.port})
        return self.port

    async def serving(self, value: bool) -> None:
        """Tells health checkers, of every service and of the server as a whole, whether to send calls here."""
        self.is_serving = value
        response = health_pb2.HealthCheckResponse
        for name in ("", *self._names):
            await self._health.set(name, response.SERVING if value else response.NOT_SERVING)

    async def stop(self, grace_seconds: float, *, notice_seconds: float = NOTICE_SECONDS) -> None:
        """Stops in order, and returns when no handler runs any more: only then may their resources be closed.

        Health says NOT_SERVING, and clients get `notice_seconds` to look elsewhere; the drain callbacks run; streams
        end with UNAVAILABLE; no new calls, and `grace_seconds` in all for those that run; what is left is cancelled
        and awaited.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_seconds
        self.is_serving = False
        # A health watcher that doesn't read could hold the servicer's lock: it must not hold up the stop.
        await _bounded("health", self._health.enter_graceful_shutdown(), HEALTH_CHANGE_SECONDS_MAX)
        await asyncio.sleep(min(notice_seconds, grace_seconds))
        for drain in self._drains:
            await _bounded("drain", drain(), max(0.0, deadline - loop.time()))
        self.calls.end_streams()
        await self._server.stop(max(0.0, deadline - loop.time()))
        await _bounded("handlers", self.calls.wait_idle(), HANDLERS_END_SECONDS_MAX)
        log.info("grpc server stopped", extra={"action": "stop_server", "handlers_left": self.calls.running})


async def _bounded(step: str, work: Awaitable[None], seconds: float) -> None:
    """Awaits one step of the stop. Neither its failure nor its length may keep the next steps from happening."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        log.warning("a step of the stop took too long", extra={"action": "stop_server", "step": step})
    except Exception:
        log.exception("a step of the stop failed", extra={"action": "stop_server", "step": step})
