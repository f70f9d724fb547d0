"""The metrics of DeliveryService: every name in one place. Calls are measured by the interceptor."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """Counted where it happens; scraped at /metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._observations = Counter(
            "delivery_observations", "Status observations committed, repetitions included.", registry=registry
        )
        self._facts = Counter(
            "delivery_tracking_facts", "Tracking facts committed, repetitions included.", registry=registry
        )
        self._rejections = Counter("delivery_rejections", "Observations and facts rejected singly.", registry=registry)
        self._dead_letters = Counter("delivery_dead_letters", "Events whose message does not exist.", registry=registry)
        self._apply_seconds = Histogram(
            "delivery_apply_seconds",
            "From a batch's arrival to its commit.",
            registry=registry,
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
        )
        self.relayed = Counter(
            "delivery_messages_relayed", "Messages answered by the MTA side.", ("verdict",), registry=registry
        )
        self.drift = Gauge("delivery_kpi_drift", "What the last recount found; must be 0.", registry=registry)
        self.drift_found = Counter(
            "delivery_kpi_drift_found", "Recounts that found a drift; must be 0.", registry=registry
        )
        self.watchers = Gauge("delivery_kpi_watchers", "Open WatchKpis streams.", registry=registry)
        self.breaker_trips = Counter(
            "delivery_breaker_trips", "Deliveries paused by the circuit breaker.", ("cause",), registry=registry
        )
        self.breaker_domain_trips = Counter(
            "delivery_breaker_domain_trips",
            "Recipient domains of a delivery paused by the circuit breaker.",
            ("cause",),
            registry=registry,
        )
        self.quarantined = Counter(
            "delivery_addresses_quarantined",
            "Addresses quarantined by what was reported.",
            ("reason",),
            registry=registry,
        )
        self.quarantine_transitions = Counter(
            "delivery_quarantine_transitions", "Transitions read for the quarantine.", registry=registry
        )
        self.addresses_to_judge = Gauge(
            "delivery_addresses_to_judge",
            "Addresses whose reports have changed and are not judged yet.",
            registry=registry,
        )
        self.outage_guards = Counter(
            "delivery_outage_guards", "Recipient domains that an outage was suspected of.", registry=registry
        )
        self.alerts = Counter("delivery_alerts", "Alerts raised.", ("cause",), registry=registry)
        self.alert_posts = Counter(
            "delivery_alert_posts", "Alerts posted to the webhook.", ("result",), registry=registry
        )
        self.prepared = Counter("delivery_preparations", "Preparations ended.", ("result",), registry=registry)
        self.occurrences = Counter(
            "delivery_occurrences", "Occurrences of recurring deliveries dealt with.", ("state",), registry=registry
        )

        self.ranges_dropped = Counter(
            "delivery_ranges_dropped", "Ranges of partitions dropped by retention.", ("kind",), registry=registry
        )
        self.range_overdue = Gauge(
            "delivery_range_overdue_seconds",
            "How long the oldest range could have been dropped, but for a delivery in it that is not over.",
            ("kind",),
            registry=registry,
        )

    def batch_applied(
        self, *, observations: int, facts: int, rejections: int, dead_letters: int, seconds: float
    ) -> None:
        """One batch of the Apply stream was committed."""
        self._observations.inc(observations)
        self._facts.inc(facts)
        self._rejections.inc(rejections)
        self._dead_letters.inc(dead_letters)
        self._apply_seconds.observe(seconds)
