"""Every metric of FeedbackService, declared in one place."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from feedback_service.domain.vocabulary import MtaEventKind

APPLY_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class FeedbackMetrics:
    """What the process counts. A label's children are made at once: looking one up costs more than counting."""

    def __init__(self, registry: CollectorRegistry) -> None:
        received = Counter("feedback_events_received", "Well-formed MTA events.", ("kind",), registry=registry)
        self._received_of_kind = {int(kind): received.labels(kind.name) for kind in MtaEventKind}
        rejected = Counter(
            "feedback_events_rejected", "MTA events that were not taken.", ("reason",), registry=registry
        )
        self._malformed = rejected.labels("MALFORMED")
        self._rejected_by_delivery_service = {1: rejected.labels("UNKNOWN_MESSAGE"), 2: self._malformed}
        self._rejected_otherwise = rejected.labels("OTHER")
        self.acked = Counter(
            "feedback_events_acked", "MTA events acknowledged, rejected ones included.", registry=registry
        )
        self._not_defined = Counter(
            "feedback_failures_not_defined",
            "Failures that no rule could tell apart: to be qualified.",
            registry=registry,
        )
        self.apply_seconds = Histogram(
            "feedback_apply_seconds",
            "From sending a batch of observations to its acknowledgement.",
            registry=registry,
            buckets=APPLY_SECONDS_BUCKETS,
        )
        self.apply_batch_observations = Histogram(
            "feedback_apply_batch_observations",
            "Observations and facts in a batch.",
            registry=registry,
            buckets=(1, 10, 50, 100, 250, 500, 1_000, 2_000, 5_000),
        )
        self.apply_streams_ended = Counter(
            "feedback_apply_streams_ended",
            "Streams to DeliveryService that ended. INVALID_ARGUMENT is a defect.",
            ("code",),
            registry=registry,
        )
        self.delivery_service_connected = Gauge(
            "feedback_delivery_service_connected", "1 while the stream to DeliveryService is open.", registry=registry
        )
        self.rules_outdated = Gauge(
            "feedback_rules_outdated",
            "1 once DeliveryService has refused the rules of this process: replace it by one with newer rules.",
            registry=registry,
        )
        self._unacked = Gauge("feedback_events_unacked", "Events held until they are committed.", registry=registry)
        self._streams = Gauge("feedback_streams_open", "Open streams of MTAs.", registry=registry)

    def count_received(self, by_kind: Sequence[int], malformed: int, not_defined: int) -> None:
        """Counts what came in; once per batch, since counting an event at a time would cost as much as reading it."""
        for kind, child in self._received_of_kind.items():
            if by_kind[kind]:
                child.inc(by_kind[kind])
        self._malformed.inc(malformed)
        self._not_defined.inc(not_defined)

    def count_rejection(self, reason: int) -> None:
        """Counts a rejection by DeliveryService; `reason` is a RejectionReason, perhaps a newer one."""
        self._rejected_by_delivery_service.get(reason, self._rejected_otherwise).inc()

    def watch_unacked(self, count: Callable[[], float]) -> None:
        """Reads the number of un-acked events when it is asked for."""
        self._unacked.set_function(count)

    def watch_streams(self, count: Callable[[], float]) -> None:
        """Reads the number of open streams when it is asked for."""
        self._streams.set_function(count)
