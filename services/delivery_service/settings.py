"""The settings of DeliveryService: every limit and every wait, with its unit in its name. Read once, in __main__."""

from datetime import timedelta
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Set by the environment: DELIVERY_ and the name in capitals, e.g. DELIVERY_DATABASE_URL."""

    model_config = SettingsConfigDict(env_prefix="DELIVERY_", frozen=True, extra="forbid")

    database_url: str
    """How to reach Postgres, e.g. postgresql://user@host/database."""
    listen: str = "127.0.0.1:50051"
    """host:port of the gRPC server; port 0: any free one."""
    admin_listen: str = "127.0.0.1:9051"
    """host:port of /metrics, /healthz and /readyz."""
    relay_target: str = "127.0.0.1:50053"
    """The MTA side, as a gRPC target."""
    token_file: Path
    """A file with the bearer token shown to the MTA side (role relay)."""
    jwt_public_key_file: Path
    """The Ed25519 public key that callers' tokens are signed with (PEM)."""

    shutdown_notice_seconds: float = Field(0.25, ge=0)
    """How long a stop lets health checkers see that it stops, and clients look elsewhere, before it ends anything."""
    shutdown_grace_seconds: float = Field(10.0, gt=0)
    """How long a stop waits for calls under way, notice included."""

    # The database.
    pool_connections_max: int = Field(10, ge=2)
    statement_timeout_seconds: float = Field(10.0, gt=0)
    long_statement_timeout_seconds: float = Field(600.0, gt=0)
    """For preparation steps and recounts."""
    idle_in_transaction_timeout_seconds: float = Field(10.0, gt=0)

    # The apply path.
    apply_writers: int = Field(2, ge=1, le=64)
    """Connections that write observations; about one per CPU."""
    apply_batch_size_max: int = Field(5_000, ge=1, le=5_000)
    """Observations in one statement, and in one request of the Apply stream."""
    apply_pending_observations_max: int = Field(100_000, ge=1)
    apply_outstanding_batches_max: int = Field(4, ge=1)
    """Un-acked batches per Apply stream."""
    apply_streams_max: int = Field(64, ge=1)
    dead_letters_max: int = Field(100_000, ge=1)
    source_silence_seconds: float = Field(15.0, gt=0)
    """A replica of FeedbackService that has not reported its sources for so long is taken to be gone."""
    event_time_ahead_tolerance_seconds: float = Field(60.0, ge=0)
    """An event time further ahead of our clock is flagged."""

    # Deliveries and their audience.
    recipients_per_delivery_max: int = Field(10_000_000, ge=1, le=2_000_000_000)
    recipients_per_chunk_max: int = Field(5_000, ge=1)
    label_characters_max: int = 200
    subject_characters_max: int = 1_000
    body_bytes_max: int = 512 * 1024
    address_characters_max: int = 320
    profile_id_characters_max: int = 200
    attributes_per_recipient_max: int = 100
    attribute_key_characters_max: int = 100
    attributes_bytes_max: int = 16 * 1024
    control_group_bytes_max: int = Field(512 * 1024, ge=200, le=512 * 1024)
    """Profiles of a control group that is a list; they travel with the delivery."""
    suppression_lists_per_delivery_max: int = Field(20, ge=1, le=100)
    suppression_entries_per_call_max: int = Field(5_000, ge=1, le=10_000)
    suppression_entries_per_list_max: int = Field(10_000_000, ge=1)
    retry_domains_max: int = Field(100, ge=1)
    """Recipient domains that a retry may be for."""
    page_size_max: int = 1_000
    page_size_default: int = 100
    rows_scanned_per_page_max: int = Field(20_000, ge=1)
    timeline_entries_max: int = Field(1_000, ge=1)

    # Preparation.
    slots_per_delivery: int = Field(4, ge=1, le=1_024)
    """Counter slots of a delivery prepared from now on: as many writers can work on it at once."""
    preparation_recipients_per_step: int = Field(50 * 1_024, ge=1_024)
    preparation_writers: int = Field(2, ge=1, le=64)
    """Connections that write the send logs of a large delivery side by side; about one per CPU of the database."""
    preparation_lease_seconds: float = Field(30.0, gt=0)
    worker_poll_seconds: float = Field(0.2, gt=0)
    """How often workers look for deliveries to prepare, start or relay, beyond being woken."""

    # Relay.
    relay_parts_in_flight_max: int = Field(16, ge=1)
    """Parts of 1,024 recipients that this process relays at once: bounds memory and in-flight messages."""
    relay_batch_size_max: int = Field(1_024, ge=1, le=1_024)
    relay_batch_bytes_max: int = Field(1024 * 1024, ge=64 * 1024, le=2 * 1024 * 1024)
    """A batch must fit into one gRPC message, whatever the attributes."""
    relay_connections: int = Field(2, ge=1, le=64)
    """Connections that claim and read what is relayed; about one per CPU of the database."""
    relay_lease_seconds: float = Field(60.0, gt=1)
    relay_answer_timeout_seconds: float = Field(300.0, gt=0)
    relay_retry_seconds: float = Field(2.0, gt=0)
    """How long a part with messages that the MTA put off waits, unless the MTA asks for longer."""
    relay_retry_max_seconds: float = Field(300.0, gt=0)

    # The circuit breaker.
    breaker_hard_bounce_share: float = Field(0.05, ge=0, le=1)
    """Share of hard bounces among the messages handed over at which a delivery pauses by itself; 0: never."""
    breaker_complaint_share: float = Field(0.001, ge=0, le=1)
    """The same for recipients who complained."""
    breaker_sample_min: int = Field(1_000, ge=1)
    """Messages handed over below which the breaker does not judge."""
    breaker_check_seconds: float = Field(1.0, gt=0)
    breaker_domain_time_share_max: float = Field(0.02, gt=0, le=1)
    """The share of its time that this process may spend on looking at deliveries by recipient domain: the longer a look
    takes, the longer it is to the next one."""
    paused_domains_max: int = Field(100, ge=1, le=10_000)
    """Recipient domains of one delivery that may be paused at once."""

    # The quarantine.
    quarantine_check_seconds: float = Field(30.0, gt=0)
    """How often what was reported since is taken up by the quarantine and the denylist."""
    quarantine_errors_max: int = Field(5, ge=1, le=100)
    """The significant soft error that quarantines an address."""
    quarantine_significant_after_seconds: float = Field(86_400.0, ge=0)
    """A soft error sooner after the last significant one of its address does not count."""
    quarantine_reset_after_seconds: float = Field(10 * 86_400.0, gt=0)
    """Once the last significant error is so old, errors are counted from anew."""
    quarantine_mailbox_full_reset_after_seconds: float = Field(30 * 86_400.0, gt=0)
    """The same if that error was a full mailbox."""
    quarantine_late_seconds: float = Field(10 * 86_400.0, gt=0)
    """How late a report may come in and still count to the day, whatever has been reported since."""
    quarantine_transitions_per_step: int = Field(5_000, ge=5_000, le=100_000)
    """Transitions read in one statement. A revision holds at most 5,000."""
    quarantine_messages_per_step: int = Field(1_000, ge=1, le=10_000)
    """Messages with late reports, complaints or unsubscribes taken up in one statement."""
    quarantine_addresses_per_step: int = Field(1_000, ge=1, le=10_000)
    """Addresses judged, or forgotten, in one statement."""
    quarantine_deliveries_looked_back_max: int = Field(1_000, ge=1, le=100_000)
    """At the first error of an address, its successes since are looked for in so many deliveries, those with the newest
    reports first."""
    outage_guard_hard_bounces_min: int = Field(100, ge=0)
    """Hard bounces of a recipient domain in the last two windows below which no outage is suspected; 0: never."""
    outage_guard_share_min: float = Field(0.2, gt=0, le=1)
    """Share of hard bounces among its hard bounces and deliveries below which no outage is suspected."""
    outage_guard_factor: float = Field(5.0, ge=1)
    """How many times its usual share that must be."""
    outage_guard_window_seconds: float = Field(3_600.0, ge=60)
    outage_guard_baseline_seconds: float = Field(7 * 86_400.0, ge=3_600)
    """The time before these windows in which the usual share is seen."""
    outage_guard_quiet_seconds: float = Field(3_600.0, ge=0)
    """A guard ends once no outage has been suspected for so long."""
    outage_guards_kept_seconds: float = Field(180 * 86_400.0, ge=86_400)

    # Closing.
    validity_grace_seconds: float = Field(3_600.0, ge=0)
    """How long after the end of the validity period reports of that time may still come in, before it is closed."""
    settle_seconds: float = Field(7 * 86_400.0, ge=0)
    """How long after the last hand-over asynchronous bounces are waited for."""
    withdraw_timeout_seconds: float = Field(10.0, gt=0)
    """How long the MTA side may take to withdraw the messages of one part."""

    # Watching.
    watchers_max: int = Field(20_000, ge=1)
    watched_deliveries_per_call_max: int = Field(100, ge=1)
    watch_poll_seconds: float = Field(0.075, gt=0)
    """How often one statement looks for changes committed by other replicas."""
    watch_interval_default_seconds: float = Field(0.1, ge=0)
    watch_time_share_max: float = Field(0.05, gt=0, le=1)
    """Share of this process's time in which KPI watchers are told what is new; the more of them, the rarer the updates.
    1: as often as their intervals ask for."""
    watch_rest_seconds_max: float = Field(5.0, ge=0)
    """The longest time between two updates that keeping to the share may lead to."""
    watch_heartbeat_seconds: float = Field(15.0, gt=0)
    engagement_refresh_seconds: float = Field(3_600.0, ge=0)
    """How old opens and clicks may get; 0: live."""
    engagement_check_seconds: float = Field(60.0, gt=0)
    """How often rates are looked for whose base, the delivered, has moved since they were counted."""

    # Look-ups.
    send_log_watchers_max: int = Field(200, ge=1)
    """Open WatchSendLogs streams of this process; each may hold a page of the log."""
    send_log_page_rows_max: int = Field(5_000, ge=5_000)
    """Transitions read at once, for a watch or an export. A revision holds at most 5,000."""
    send_log_response_bytes_max: int = Field(1024 * 1024, ge=1_024, le=3 * 1024 * 1024)
    """About the size of one response of WatchSendLogs; the other side takes 4 MiB."""
    requalification_recipients_per_page: int = Field(1_000, ge=1, le=5_000)
    """Recipients whose reports are looked at for one page of a re-qualification."""
    undefined_reports_scanned_max: int = Field(100_000, ge=1)
    """Reports that no rule read, looked at by one ListUndefinedFailures; some 400 bytes of memory each."""
    exports_max: int = Field(8, ge=1)
    """Exports that this process runs at once."""
    profile_deliveries_scanned_per_page_max: int = Field(10_000, ge=1)
    """Deliveries looked at for one page of the messages of an address."""
    breakdown_groups_default: int = Field(20, ge=1)
    breakdown_groups_max: int = Field(1_000, ge=1)
    mta_contact_report_seconds: float = Field(5.0, gt=0)
    """How often this process says whether it reaches the MTA side; keep it well below source_silence_seconds."""

    # Alerts.
    alert_check_seconds: float = Field(60.0, gt=0)
    """How often all deliveries that are not over are looked at."""
    alert_start_pending_seconds: float = Field(1_200.0, gt=0)
    alert_soft_bounce_share: float = Field(0.05, ge=0, le=1)
    """Share of soft bounces among the messages handed over beyond which an alert is raised; 0: never."""
    alert_hard_bounce_share: float = Field(0.05, ge=0, le=1)
    alert_sample_min: int = Field(50, ge=1)
    """Messages handed over below which no share is judged."""
    alert_throughput_min_per_hour: int = Field(1_000, ge=0)
    """Messages an hour below which a send is too slow; 0: never. Of a paced one, at the most half of its own rate."""
    alert_throughput_after_seconds: float = Field(1_200.0, gt=0)
    """How long a send may take to get up to speed."""
    alert_throughput_below_share: float = Field(0.8, gt=0, le=1)
    """Only while less than this share of the messages has left."""
    alert_feedback_silent_seconds: float = Field(3_600.0, gt=0)
    alerts_kept_seconds: float = Field(30 * 86_400.0, ge=86_400)
    alert_watchers_max: int = Field(1_000, ge=1)
    alert_poll_seconds: float = Field(1.0, gt=0)
    """How often one statement looks for new alerts for all watchers."""
    alert_webhook_url: str = ""
    """Where alerts are posted as JSON; empty: nowhere."""
    alert_webhook_token_file: Path | None = None
    """The bearer token for the webhook; none: it is called without."""
    alert_webhook_timeout_seconds: float = Field(10.0, gt=0)
    alert_webhook_retry_seconds: float = Field(10.0, gt=0)
    """The wait after the first refusal; it doubles, up to an hour."""

    # Proofs.
    proofs_per_call_max: int = Field(50, ge=1, le=1_024)
    proofs_per_delivery_max: int = Field(1_000, ge=1)

    # Schedules and recurring deliveries, copies and deletions.
    schedule_days_ahead_max: int = Field(3_660, ge=1, le=20_000)
    """How far ahead a contact time may lie."""
    recurrence_rule_characters_max: int = Field(500, ge=20)
    recurrence_count_max: int = Field(10_000, ge=1)
    """COUNT of a recurrence rule: such a rule is expanded from its beginning each time."""
    recurrence_max_lateness_default_seconds: float = Field(3_600.0, ge=60)
    recurrence_max_lateness_limit_seconds: float = Field(30 * 86_400.0, ge=60)
    """The largest max_lateness that a delivery may ask for."""
    occurrences_recorded_per_step_max: int = Field(100, ge=1)
    """Occurrences of one delivery recorded in one statement: what was missed in a long downtime comes in steps."""
    occurrences_previewed_max: int = Field(100, ge=1)
    audience_copy_recipients_per_step: int = Field(20_000, ge=1)
    deletion_rows_per_step: int = Field(10_000, ge=1)
    """Rows removed from one table in one statement."""

    # Retention.
    retention_log_days: int = Field(182, ge=60)
    """How long the logs of a delivery are kept after it has settled."""
    retention_delivery_days: int = Field(730, ge=60)
    """How long a delivery is kept with its counters after it has settled."""
    retention_log_span_days: int = Field(91, ge=7)
    """The creation times of the deliveries whose logs are dropped together; what is open is locked by each statement,
    so many short ranges cost the apply path."""
    retention_delivery_span_days: int = Field(364, ge=7)
    retention_ahead_days: float = Field(7.0, ge=1, le=60)
    """How long before its first delivery a range is made."""
    retention_check_seconds: float = Field(3_600.0, gt=0)
    retention_lock_timeout_seconds: float = Field(0.5, gt=0)
    """How long making a range, or dropping one, may wait for a table (others wait behind it); then it tries again."""
    retention_detach_concurrently: bool = True
    """Off on Citus, which can't."""

    erasure_recipients_per_step: int = Field(500, ge=1, le=5_000)
    """Recipients of an erased profile that are looked at in one statement."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.shutdown_grace_seconds <= self.shutdown_notice_seconds:
            raise ValueError("shutdown_grace_seconds is not above shutdown_notice_seconds, which it includes: raise it")
        return self

    @property
    def source_silence(self) -> timedelta:
        return timedelta(seconds=self.source_silence_seconds)
