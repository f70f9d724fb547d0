"""The bounce mailbox: an SMTP or LMTP server that answers 250 once what a mail says is acknowledged, or parked.

Anything else makes the sending server keep the mail and come again: 451 while FeedbackService is away.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, Envelope, Session

from mta_bridge.domain.mail_reports import found_in
from mta_bridge.feedback.queue import FeedbackQueue
from mta_bridge.inbound.correlation import Correlation
from mta_bridge.metrics import BridgeMetrics
from mta_bridge.settings import Settings
from mta_bridge.store.parked import Parked
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

ACK_SECONDS_MAX: Final = 120.0
"""Less than mail servers wait for the answer to a final dot."""
RECIPIENTS_MAX: Final = 100
IDENT: Final = "campaign bounce mailbox"


class BounceBox:
    """The server, and aiosmtpd's handler."""

    def __init__(
        self,
        settings: Settings,
        correlation: Correlation,
        queue: FeedbackQueue,
        parked: Parked,
        metrics: BridgeMetrics,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._correlation = correlation
        self._queue = queue
        self._parked = parked
        self._metrics = metrics
        self._clock = clock
        self._own_hostnames = [name.strip() for name in settings.mta_hostnames.split(",") if name.strip()]
        self._suffix = f"@{settings.bounce_domain.lower()}"
        self._server: asyncio.Server | None = None
        self._protocols: set[SMTP] = set()
        self._taking = 0
        self._none_taken = asyncio.Event()
        self._none_taken.set()

    async def start(self, host: str, port: int) -> int:
        """Listens, and returns the port."""
        self._server = await asyncio.get_running_loop().create_server(self._protocol, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, grace_seconds: float) -> None:
        """Takes no new connection; what is being taken gets its answer first."""
        if self._server is None:
            return
        self._server.close()
        try:
            async with asyncio.timeout(grace_seconds):
                await self._none_taken.wait()
        except TimeoutError:
            log.warning("mails are left without an answer: their senders keep them", extra={"action": "stop_mailbox"})
        for protocol in tuple(self._protocols):
            if protocol.transport is not None:
                protocol.transport.close()
        await self._server.wait_closed()

    def _protocol(self) -> SMTP:
        made = _Lmtp if self._settings.bounce_protocol == "lmtp" else _Smtp
        protocol = made(
            self,
            data_size_limit=self._settings.bounce_bytes_max,
            enable_SMTPUTF8=True,
            ident=IDENT,
            hostname=self._settings.bounce_domain,
            loop=asyncio.get_running_loop(),
        )
        protocol.box = self
        return protocol

    def opened(self, protocol: SMTP) -> bool:
        """Whether there is room for one more connection."""
        if len(self._protocols) >= self._settings.bounce_connections_max:
            return False
        self._protocols.add(protocol)
        return True

    def closed(self, protocol: SMTP) -> None:
        """A connection has ended."""
        self._protocols.discard(protocol)

    # aiosmtpd's handler; the names and arguments are its own

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
    ) -> str:
        del server, session, rcpt_options
        if not address.lower().endswith(self._suffix):
            return f"550 5.7.1 only mail for {self._suffix} is taken here"
        if len(envelope.rcpt_tos) >= RECIPIENTS_MAX:
            return "452 4.5.3 too many recipients"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        del server, session
        content = envelope.content
        raw = content if isinstance(content, bytes) else (content or "").encode("utf-8", "surrogateescape")
        self._taking += 1
        self._none_taken.clear()
        try:
            async with asyncio.timeout(ACK_SECONDS_MAX):
                await self.take(raw, envelope.rcpt_tos)
        except TimeoutError:
            return "451 4.3.0 can't be passed on now, come again"
        finally:
            self._taking -= 1
            if not self._taking:
                self._none_taken.set()
        return "250 2.0.0 taken"

    async def handle_exception(self, error: Exception) -> str:
        """A defect, or a full disk; aiosmtpd has logged it. Its own answer, 500, would be the end of the mail."""
        del error
        return "451 4.3.0 can't be read now, come again"

    async def take(self, raw: bytes, recipients: Sequence[str]) -> None:
        """Returns once what the mail says is acknowledged, or the mail is parked."""
        found = found_in(raw, recipients, self._own_hostnames, self._clock.now_us())
        reports = [report for one in found if (report := self._correlation.tie(one)) is not None]
        if not reports:
            why = "it can't be tied to a message of ours" if found else "it reports nothing that is understood"
            self._metrics.count_parked("mail")
            self._parked.add("mail", self._clock.now_us(), why, raw)
            return
        await self._queue.report("mail", reports)


class _Smtp(SMTP):
    box: BounceBox

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self.box.opened(self) and isinstance(transport, asyncio.Transport):
            transport.write(b"421 4.7.0 too many connections\r\n")
            transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.box.closed(self)
        super().connection_lost(error)


class _Lmtp(_Smtp, LMTP):
    """The same, speaking LMTP."""
