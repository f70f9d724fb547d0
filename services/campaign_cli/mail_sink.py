"""The last server of the demonstration: takes mails, or refuses them, by the tag in their address, and knows the truth.

`python -m campaign_cli.mail_sink PORT` runs it until SIGTERM. It prints JSON lines: `listening`, then `truth` whenever
something has changed: what the messages that it has seen come to, by outcome.

| address | answer | comes to |
| `anna+hard@mail.test` | 550 5.1.1 | bounced |
| `anna+full@mail.test` | 552 5.2.2 | bounced |
| `anna+spam@mail.test` | 554 5.7.1 to the content | bounced |
| `anna+deferred@mail.test` | 451 4.3.0 twice, then taken | delivered |
| `anna+expired@mail.test` | 450 4.2.0 always | expired |
| any other | taken | delivered |
"""

import asyncio
import json
import re
import signal
import sys
from collections import Counter
from typing import Any, Final

from aiosmtpd.smtp import SMTP, Envelope, Session

TAGS: Final = ("hard", "full", "spam", "deferred", "expired")
REFUSALS: Final = {"hard": "550 5.1.1 <{0}>: no such user here", "full": "552 5.2.2 mailbox of {0} is full"}
SPAM: Final = "554 5.7.1 message refused by policy"
BUSY: Final = "451 4.3.0 please try again"
NOT_NOW: Final = "450 4.2.0 <{0}> is not available now"
DEFERRALS: Final = 2
TELL_SECONDS: Final = 0.1
SIZE_MAX: Final = 10 * 1_024 * 1_024
_LOG_ID = re.compile(rb"^X-Campaign-Message-Id: *(\S+)", re.IGNORECASE | re.MULTILINE)


class Sink:
    """aiosmtpd's handler, and the account of it."""

    def __init__(self) -> None:
        self._attempts: Counter[str] = Counter()
        self._refused: set[str] = set()
        self._expiring: set[str] = set()
        self._taken: Counter[str] = Counter()
        """By message id: every further one is a mail sent twice."""
        self.revision = 0

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
    ) -> str:
        del server, session, rcpt_options
        self.revision += 1
        tag = tag_of(address)
        self._attempts[address] += 1
        if refusal := REFUSALS.get(tag):
            self._refused.add(address)
            return refusal.format(address)
        if tag == "expired":
            self._expiring.add(address)
            return NOT_NOW.format(address)
        if tag == "deferred" and self._attempts[address] <= DEFERRALS:
            return BUSY
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        del server, session
        self.revision += 1
        address = envelope.rcpt_tos[0]
        if tag_of(address) == "spam":
            self._refused.add(address)
            return SPAM
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        match = _LOG_ID.search(content)
        self._taken[match[1].decode("ascii", "replace") if match else f"none for {address}"] += 1
        return "250 2.0.0 taken"

    def truth(self) -> dict[str, Any]:
        """In the simulator's form."""
        outcomes = {"DELIVERED": len(self._taken), "BOUNCED": len(self._refused), "EXPIRED": len(self._expiring)}
        return {
            "action": "truth",
            "idle": True,
            "accepted": sum(outcomes.values()),
            "refused": 0,
            "outcomes": outcomes,
            "duplicates_sent": sum(times - 1 for times in self._taken.values()),
            "attempts": sum(self._attempts.values()),
        }


def tag_of(address: str) -> str:
    """What follows the + in the local part; empty if nothing that is known here does."""
    tag = address.rpartition("@")[0].rpartition("+")[2].lower()
    return tag if tag in TAGS else ""


async def serve(port: int) -> None:
    """Until SIGTERM."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sink = Sink()

    def protocol() -> SMTP:
        return SMTP(sink, data_size_limit=SIZE_MAX, hostname="sink.campaign.test", loop=loop)

    server = await loop.create_server(protocol, "127.0.0.1", port)
    _print({"action": "listening", "address": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"})
    told = 0
    while not stop.is_set():
        if sink.revision != told:
            told = sink.revision
            _print(sink.truth())
        try:
            async with asyncio.timeout(TELL_SECONDS):
                await stop.wait()
        except TimeoutError:
            continue
    _print(sink.truth())
    server.close()


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
