"""One SMTP connection that has been opened: transactions, pipelined where the server announces it.

Why not aiosmtplib for this too: it can't pipeline, and has a task switch and a lock for each command. With four
connections to the same smtp-sink it made 760 to 1,150 messages a second where this makes 4,000 and more. It does open
the connections: TLS, greeting and authentication are its work.

With pipelining, the content of a message and the envelope of the next one travel together (RFC 2920, 3.1), so that a
message takes one round trip. A content, and with it the final dot, leaves only when the journal has it.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from mta_bridge.domain.replies import Reply, Step
from mta_bridge.outbound.jobs import Job, Stage

READ_BYTES_MAX: Final = 256 * 1_024
"""A reply longer than that is no reply."""


@dataclass(frozen=True, slots=True)
class Features:
    """What the server announced."""

    pipelining: bool = False
    dsn: bool = False
    eight_bit: bool = False
    size: bool = False
    smtp_utf8: bool = False


@dataclass(slots=True)
class Offer:
    """A transaction."""

    job: Job
    commands: tuple[bytes, bytes, bytes]
    """MAIL, RCPT, and DATA or RSET."""
    content: bytes
    """Dot-stuffed, with the final dot. Empty in test mode."""
    failed: tuple[Step, Reply] | None = None
    writing_journal: bool = False


class SessionOwner(Protocol):
    """Who gives the messages and takes the answers."""

    def next_offer(self, session: "Session") -> Offer | None:
        """The next message, in its envelope; None: nothing to do (the owner calls `wake` later)."""
        ...

    def begin_sending(self, session: "Session", offer: Offer) -> None:
        """The server waits for the content: write that down, then call `send_content`."""
        ...

    def answered(self, offer: Offer, step: Step, reply: Reply) -> None:
        """The answer to the content, or to the step that failed."""
        ...

    def unsent(self, offer: Offer) -> None:
        """The journal has it, but the connection ended before the content was sent."""
        ...

    def interrupted(self, offer: Offer) -> None:
        """The connection ended in the middle; `offer.job.stage` tells how far it had come."""
        ...

    def closed(self, session: "Session") -> None:
        """The connection is no more."""
        ...


class Session(asyncio.Protocol):
    """The protocol of an open connection, from after EHLO on."""

    def __init__(self, owner: SessionOwner, features: Features) -> None:
        self.features = features
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._lines: list[bytes] = []
        self._to_send: deque[tuple[Step | None, Offer | None, bytes]] = deque()
        self._expected: deque[tuple[Step | None, Offer | None]] = deque()
        self._offers: list[Offer] = []
        self._closing = False
        self.last_moved = self._loop.time()
        """When something was sent or received last."""

    def begin(self, transport: asyncio.Transport) -> None:
        """Takes the transport over."""
        self._transport = transport
        transport.set_protocol(self)
        self.wake()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._expected and not self._offers

    @property
    def is_closing(self) -> bool:
        return self._closing

    @property
    def waits_for_final_reply(self) -> bool:
        """Whether a content was sent whose answer is not here."""
        return any(offer.job.stage is Stage.SENDING for offer in self._offers)

    def wake(self) -> None:
        """There may be something to send."""
        if not self._closing and self.is_idle:
            self._offer_next()
            self._send()

    def close(self, *, politely: bool) -> None:
        """Ends the connection."""
        if self._transport is None or self._closing:
            return
        self._closing = True
        if politely and self.is_idle:
            self._transport.write(b"QUIT\r\n")
            self._transport.close()
        else:
            self._transport.abort()

    def send_content(self, offer: Offer) -> None:
        """The journal has it: the final dot may leave."""
        offer.writing_journal = False
        if self._transport is None or self._transport.is_closing():
            self._owner.unsent(offer)
            return
        offer.job.stage = Stage.SENDING
        self._to_send.append((Step.MESSAGE, offer, offer.content))
        if self.features.pipelining and not self._closing:
            self._offer_next()
        self._send()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self.last_moved = self._loop.time()
        data = self._unread + data
        *lines, self._unread = data.split(b"\n")
        if len(self._unread) > READ_BYTES_MAX:
            self.close(politely=False)
            return
        for line in lines:
            self._lines.append(line)
            if line[3:4] != b"-":
                reply, self._lines = self._lines, []
                self._on_reply(reply)
        self._send()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the interface's
        self._closing = True
        self._transport = None
        offers, self._offers = self._offers, []
        self._expected.clear()
        self._to_send.clear()
        for offer in offers:
            if not offer.writing_journal:  # else `send_content` will find the connection gone
                self._owner.interrupted(offer)
        self._owner.closed(self)

    # The dialogue

    def _offer_next(self) -> None:
        offer = self._owner.next_offer(self)
        if offer is None:
            return
        offer.job.stage = Stage.OFFERED
        self._offers.append(offer)
        mail, rcpt, last = offer.commands
        self._to_send.append((Step.MAIL, offer, mail))
        self._to_send.append((Step.RCPT, offer, rcpt))
        self._to_send.append((Step.DATA if offer.content else None, offer, last))

    def _send(self) -> None:
        """Writes what may be written now: everything, or one command after the other."""
        if self._transport is None or not self._to_send:
            return
        if self.features.pipelining:
            pieces = []
            while self._to_send:
                step, offer, data = self._to_send.popleft()
                self._expected.append((step, offer))
                pieces.append(data)
            self._transport.write(b"".join(pieces))
        else:
            while self._to_send and not self._expected:
                step, offer, data = self._to_send.popleft()
                if step is Step.DATA and offer is not None and offer.failed is not None:
                    self._end_failed(offer)
                    continue
                self._expected.append((step, offer))
                self._transport.write(data)
        self.last_moved = self._loop.time()

    def _on_reply(self, lines: list[bytes]) -> None:
        if not self._expected:
            self.close(politely=False)  # a server that speaks unasked is going away (421)
            return
        step, offer = self._expected.popleft()
        first = lines[-1][:1]
        if offer is None:
            return  # RSET, or the end of a transaction that had failed
        goes_away = lines[-1][:3] == b"421"
        if step is Step.MAIL or step is Step.RCPT:
            if first != b"2" and offer.failed is None:
                offer.failed = step, Reply.parse(lines)
                if goes_away:  # no answer comes to the rest
                    self._offers.remove(offer)
                    self._owner.answered(offer, *offer.failed)
        elif step is Step.DATA:
            self._on_data(offer, lines)
        else:
            self._on_end(offer, step, lines)
        if goes_away:
            self.close(politely=False)

    def _on_data(self, offer: Offer, lines: list[bytes]) -> None:
        goes_on = lines[-1][:3] == b"354"
        if offer.failed is None and goes_on:
            offer.writing_journal = True
            self._owner.begin_sending(self, offer)
            return
        if goes_on:
            # A server may ask for the content though it has no recipient (RFC 2920, 3.1): it gets an empty one.
            self._to_send.append((None, None, b".\r\n"))
        elif offer.failed is None:
            offer.failed = Step.DATA, Reply.parse(lines)
        self._end_failed(offer)

    def _on_end(self, offer: Offer, step: Step | None, lines: list[bytes]) -> None:
        self._offers.remove(offer)
        if offer.failed is not None:
            self._owner.answered(offer, *offer.failed)
        else:
            self._owner.answered(offer, step or Step.RCPT, Reply.parse(lines))
        if not self._offers and not self._closing:
            self._offer_next()

    def _end_failed(self, offer: Offer) -> None:
        assert offer.failed is not None
        self._offers.remove(offer)
        step, reply = offer.failed
        self._owner.answered(offer, step, reply)
        self._to_send.append((None, None, b"RSET\r\n"))
        if not self._closing:
            self._offer_next()


def transport_of(connection: Any) -> asyncio.Transport:
    """The transport below an open connection of aiosmtplib."""
    transport = connection.transport
    assert transport is not None, "the connection is not open"
    return cast(asyncio.Transport, transport)
