"""The settings of FeedbackService: every limit and every wait, with its unit in its name. Read once, in __main__."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Set by the environment: FEEDBACK_ and the name in capitals, e.g. FEEDBACK_DELIVERY_TARGET."""

    model_config = SettingsConfigDict(env_prefix="FEEDBACK_", frozen=True, extra="forbid")

    listen: str = "127.0.0.1:50052"
    """Where MTAs connect, as host:port; port 0 is any free one."""
    admin_listen: str = "127.0.0.1:9052"
    """Where /metrics, /healthz and /readyz are served. It asks nobody who they are."""
    delivery_target: str = "127.0.0.1:50051"
    """DeliveryService, as gRPC names targets."""
    token_file: Path
    """The bearer token, with the role `feedback`, for DeliveryService. Read again when it changes."""
    jwt_public_key_file: Path
    """The key, as PEM, that the tokens of MTAs are verified with."""

    streams_max: int = Field(1_000, ge=1, le=1_000)
    """Open StreamStatus streams."""
    batch_size_max: int = Field(5_000, ge=1, le=5_000)
    """Events in one batch of an MTA."""
    outstanding_batches_max: int = Field(64, ge=1, le=10_000)
    """Batches of one stream that are held un-acked before no more are read."""
    unacked_events_max: int = Field(50_000, ge=1)
    """Events held un-acked by the process; some 400 bytes of memory each."""
    rejections_per_ack_max: int = Field(1_000, ge=1)
    """Rejections in one ack, to bound its size. A single batch with more is still acked at once."""
    apply_batch_size_preferred: int = Field(4_000, ge=1, le=5_000)
    """Observations in one batch for DeliveryService, or as many as it allows if that is less."""
    apply_batch_bytes_max: int = Field(2 * 1_024 * 1_024, ge=64 * 1_024)
    """Bytes of one batch for DeliveryService, which refuses messages above its own limit. Larger ones are divided."""
    flush_interval_ms: float = Field(3.0, gt=0, le=1_000)
    """How long a batch that is not full waits for more."""
    source_report_seconds: float = Field(5.0, gt=0)
    """How often DeliveryService is told which sources are connected, besides when that changes."""
    ack_seconds_max: float = Field(60.0, gt=0)
    """How long a batch may wait for DeliveryService's ack before the stream is given up and opened again."""
    reconnect_seconds_min: float = Field(0.1, gt=0)
    reconnect_seconds_max: float = Field(3.0, gt=0)
    """The first and the largest ceiling of the jittered wait before DeliveryService is tried again."""
    defect_pause_seconds: float = Field(5.0, gt=0)
    """The wait before a stream is tried again that DeliveryService refused as wrong: only an operator can help."""
    receive_bytes_max: int = Field(8 * 1_024 * 1_024, ge=1_024)
    """The largest message of an MTA: 5,000 events of 1.6 kB."""
    send_bytes_max: int = Field(4 * 1_024 * 1_024, ge=1_024)
    """The largest message to an MTA."""
    stream_window_bytes: int = Field(256 * 1_024, ge=64 * 1_024)
    """Unread bytes that each stream may bring, beside the budget of un-acked events."""
    requalification_corrections_max: int = Field(1_000, ge=1, le=5_000)
    """Reports corrected in one call of DeliveryService: as many send logs may change in one transaction."""
    requalification_call_seconds_max: float = Field(30.0, gt=0)
    """How long one call of DeliveryService may take while reports are qualified again."""
    drain_seconds: float = Field(5.0, ge=0)
    """How long a stop waits for what is un-acked."""
    shutdown_notice_seconds: float = Field(0.25, ge=0)
    """How long a stop lets health checkers see that it stops, and clients look elsewhere, before it ends anything."""
    shutdown_grace_seconds: float = Field(10.0, gt=0)
    """How long a stop takes at the most, notice and draining included."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.unacked_events_max < self.batch_size_max:
            raise ValueError(
                "unacked_events_max is below batch_size_max: raise it, or a full batch could never be taken"
            )
        if self.reconnect_seconds_max < self.reconnect_seconds_min:
            raise ValueError("reconnect_seconds_max is below reconnect_seconds_min: raise it")
        if self.shutdown_grace_seconds < self.shutdown_notice_seconds + self.drain_seconds:
            raise ValueError(
                "shutdown_grace_seconds is below shutdown_notice_seconds + drain_seconds, which it includes: raise it"
            )
        return self
