"""Every metric of the bridge, declared in one place."""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

VERDICTS: Final = ("ACCEPTED", "REFUSED", "TRY_LATER", "WITHDRAWN")
SOURCES: Final = ("mail", "log", "webhook", "unsubscribe")


class BridgeMetrics:
    """What the process counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        answered = Counter("bridge_messages_answered", "Messages answered.", ("verdict",), registry=registry)
        self._answered = {verdict: answered.labels(verdict) for verdict in VERDICTS}
        self.repeated = Counter("bridge_messages_repeated", "Repetitions answered again.", registry=registry)
        self._unknown = Gauge(
            "bridge_messages_unknown",
            "Messages whose connection ended between the final dot and its answer, as far as the journal goes back.",
            registry=registry,
        )
        self._queued = Gauge("bridge_messages_queued", "Messages taken and not answered yet.", registry=registry)
        self._connections = Gauge("bridge_smtp_connections", "Open connections to the mail server.", registry=registry)
        self.connect_failures = Counter(
            "bridge_smtp_connect_failures", "Times that the mail server could not be reached.", registry=registry
        )
        self.pauses = Counter(
            "bridge_smtp_pauses", "Times that the mail server asked for less (421, 4.3.x).", registry=registry
        )
        reported = Counter("bridge_events_reported", "Events acknowledged.", ("source",), registry=registry)
        self._reported = {source: reported.labels(source) for source in SOURCES}
        self.rejected = Counter(
            "bridge_events_rejected", "Events that FeedbackService did not take.", ("reason",), registry=registry
        )
        parked = Counter("bridge_parked", "Mails and events parked.", ("source",), registry=registry)
        self._parked = {source: parked.labels(source) for source in SOURCES}
        self._pending = Gauge("bridge_events_pending", "Events not acknowledged yet.", registry=registry)
        self._connected = Gauge(
            "bridge_feedback_streams_connected", "Streams that FeedbackService has accepted.", registry=registry
        )
        self.expired = Counter(
            "bridge_messages_expired", "Messages that the mail server was asked to expire.", registry=registry
        )
        self.expire_failures = Counter(
            "bridge_expire_failures", "Runs of the expiry command that failed.", registry=registry
        )

    def count_answer(self, verdict: str) -> None:
        self._answered[verdict].inc()

    def count_reported(self, source: str, events: int) -> None:
        self._reported[source].inc(events)

    def count_parked(self, source: str) -> None:
        self._parked[source].inc()

    def watch_unknown(self, count: Callable[[], float]) -> None:
        self._unknown.set_function(count)

    def watch_queued(self, count: Callable[[], float]) -> None:
        self._queued.set_function(count)

    def watch_connections(self, count: Callable[[], float]) -> None:
        self._connections.set_function(count)

    def watch_pending(self, count: Callable[[], float]) -> None:
        self._pending.set_function(count)

    def watch_streams(self, count: Callable[[], float]) -> None:
        self._connected.set_function(count)
