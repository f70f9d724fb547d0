"""The settings of the bridge: every limit and every wait, with its unit in its name. Read once, in __main__."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Set by the environment: BRIDGE_ and the name in capitals, e.g. BRIDGE_SMTP_HOST."""

    model_config = SettingsConfigDict(env_prefix="BRIDGE_", frozen=True, extra="forbid")

    listen: str = "127.0.0.1:50053"
    """Where RelayService listens, as host:port; port 0 is any free one."""
    admin_listen: str = "127.0.0.1:9053"
    """Where /metrics, /healthz and /readyz are served. It asks nobody who they are."""
    feedback_target: str = "127.0.0.1:50052"
    """FeedbackService, as gRPC names targets."""
    token_file: Path
    """The bearer token, with the role `mta`, for FeedbackService. Read again when it changes."""
    jwt_public_key_file: Path
    """The key, as PEM, that the tokens of those who relay are verified with."""
    source_id: str = Field("mta-bridge", min_length=1, max_length=190)
    """Names this MTA side; stable across restarts."""
    journal: Path
    """The SQLite file with the first answers. Where it survives: it is what makes a repetition one mail."""
    journal_synchronous: Literal["normal", "full"] = "normal"
    """`full` waits for the disk at each commit, so that a loss of power forgets nothing either."""
    unknown_messages: Literal["accepted", "resend"] = "accepted"
    """What to do about a message whose connection ended between the final dot and its answer: never send it twice, or
    never lose it. Counted either way."""

    bounce_domain: str
    """The domain of the return path, `b+TOKEN@` it. Its mail must come to the bounce mailbox."""
    token_key_file: Path
    """Keys of the tokens, one a line, at least 16 bytes each: the first signs, all are good."""
    unsubscribe_url: str = ""
    """For List-Unsubscribe, with {token} in it, https; empty: no such header."""
    dkim_key_file: Path | None = None
    """The private key (PEM) to sign with; none: no signature."""
    dkim_selector: str = ""
    dkim_domain: str = ""

    smtp_host: str = "127.0.0.1"
    smtp_port: int = Field(25, ge=1, le=65_535)
    smtp_tls: Literal["none", "starttls", "tls"] = "none"
    """Whether the connection is encrypted; if so, the certificate must be good for `smtp_host`."""
    smtp_ca_file: Path | None = None
    """Whom to trust instead of the system's authorities."""
    smtp_user: str = ""
    smtp_password: SecretStr = SecretStr("")
    smtp_hello: str = "localhost"
    """What we call ourselves in EHLO."""
    smtp_connections: int = Field(4, ge=1, le=100)
    """To the mail server, at the most."""
    smtp_connect_seconds_max: float = Field(30.0, gt=0)
    smtp_reply_seconds_max: float = Field(300.0, gt=0)
    smtp_final_reply_seconds_max: float = Field(600.0, gt=0)
    """For the answer to the final dot: giving up earlier makes unknown messages."""
    smtp_idle_seconds_max: float = Field(20.0, gt=0)
    """After so long without work, a connection is closed."""
    smtp_retry_seconds_min: float = Field(1.0, gt=0)
    smtp_retry_seconds_max: float = Field(60.0, gt=0)
    """The pause after the mail server was not reached or asked for less: doubled up to the second."""
    smtp_test_mode: bool = False
    """Up to RCPT, then RSET: nothing is sent, everything is answered as if."""
    dsn_notify: Literal["never", "failure", "failure,delay", "success,failure", "success,failure,delay"] = (
        "success,failure,delay"
    )
    """What the mail server is to report by mail. Without `success` deliveries must come by log or webhook."""
    domain_connections_max: int = Field(0, ge=0)
    """Transactions at the same time per recipient domain; 0: no limit."""
    domain_messages_per_second_max: float = Field(0.0, ge=0)
    """Per recipient domain; 0: no limit."""
    queued_messages_max: int = Field(8_192, ge=1_024)
    """Taken and not answered yet; beyond it the relay's streams are not read."""
    answer_seconds_max: float = Field(60.0, gt=0)
    """A message that has waited so long for its turn is put off."""

    bounce_listen: str = ""
    """Where the bounce mailbox listens, as host:port; empty: no mailbox."""
    bounce_protocol: Literal["smtp", "lmtp"] = "smtp"
    bounce_bytes_max: int = Field(10 * 1_024 * 1_024, ge=64 * 1_024)
    """The largest mail taken."""
    bounce_connections_max: int = Field(50, ge=1)
    mta_hostnames: str = ""
    """The names, separated by commas, under which our own mail server reports: its failures are in band."""
    parked_max: int = Field(10_000, ge=1)
    """Mails and events that can't be tied to a message, kept to be looked at; the oldest go first."""
    parked_bytes_max: int = Field(64 * 1_024, ge=1_024)
    """How much of each is kept."""

    postfix_log: str = ""
    """The log of Postfix to follow, or `-` for standard input; empty: none."""
    postfix_log_poll_seconds: float = Field(0.2, gt=0)

    webhook_listen: str = ""
    """Where webhooks, and one-click unsubscribes, are taken over HTTP, as host:port; empty: nowhere."""
    webhook_secret_file: Path | None = None
    """Secrets of the callers, one a line: a bearer token, or the key of an HMAC-SHA256 over the body."""
    webhook_bytes_max: int = Field(10 * 1_024 * 1_024, ge=1_024)
    webhook_events_max: int = Field(10_000, ge=1)
    """In one request."""
    webhook_ack_seconds_max: float = Field(30.0, gt=0)
    """How long a request waits for FeedbackService before it is told to come again."""

    expire_command: str = ""
    """A command that reads queue ids, one a line, and has the mail server expire them; empty: none."""
    expire_seconds: float = Field(1.0, gt=0)
    """How often deadlines are looked at."""
    expire_command_seconds_max: float = Field(30.0, gt=0)

    streams: int = Field(1, ge=1, le=100)
    """Feedback streams."""
    pending_events_max: int = Field(50_000, ge=1_000)
    """Reports not acknowledged yet; beyond it the three inputs wait."""
    receive_bytes_max: int = Field(4 * 1_024 * 1_024, ge=1_024)
    """The largest request of the relay."""
    shutdown_notice_seconds: float = Field(0.25, ge=0)
    """How long a stop lets health checkers see that it stops, and clients look elsewhere, before it ends anything."""
    shutdown_grace_seconds: float = Field(20.0, gt=0)
    """How long a stop takes at the most; what is being sent gets its answer first."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.unsubscribe_url and not (
            self.unsubscribe_url.startswith("https://") and "{token}" in self.unsubscribe_url
        ):
            raise ValueError("unsubscribe_url must begin with https:// and have {token} in it (RFC 8058)")
        if self.dkim_key_file is not None and not (self.dkim_selector and self.dkim_domain):
            raise ValueError("dkim_key_file is set: set dkim_selector and dkim_domain as well")
        if self.webhook_listen and self.webhook_secret_file is None:
            raise ValueError("webhook_listen is set: set webhook_secret_file, or everyone could report")
        if self.shutdown_grace_seconds <= self.shutdown_notice_seconds:
            raise ValueError("shutdown_grace_seconds is not above shutdown_notice_seconds, which it includes: raise it")
        if self.smtp_retry_seconds_max < self.smtp_retry_seconds_min:
            raise ValueError("smtp_retry_seconds_max is below smtp_retry_seconds_min: raise it")
        if len(self.bounce_domain) > 255 or not self.bounce_domain.isascii() or "@" in self.bounce_domain:
            raise ValueError("bounce_domain must be a domain in ASCII (punycode)")
        return self
