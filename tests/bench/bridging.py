"""The bridge: messages relayed over SMTP, beside what `smtp-source` does with as many connections to the same sink; and
bounce mails read.

The first needs smtp-source and smtp-sink, which come with Postfix; so it is measured on demand, as `make test-postfix`
is run.
"""

import asyncio
import email
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from campaign_cli.ports import Ports, local
from campaign_cli.processes import Child
from mta_bridge.domain.mail_reports import found_in
from service_runtime.development_keys import PUBLIC_KEY_FILE, DevelopmentKeys
from tests.bench.registry import Run, Sample, figure, measures
from tests.bench.workload import workload

CONNECTIONS: Final = 4
MESSAGE_BYTES: Final = 1_500
"""About what the mails of the other side weigh."""
BATCH: Final = 1_024
BATCHES_IN_FLIGHT: Final = 4
MESSAGES_MAX: Final = 40_000
START_SECONDS_MAX: Final = 30.0
BOUNCES: Final = 10_000
_POLL_SECONDS: Final = 0.02


@measures(
    figure("bridge.smtp", "messages/s", must=0.8, aim=1.0, on_demand=True),
    figure("bridge.smtp_kept", "messages/s", must=0.4, aim=0.8, on_demand=True),
)
async def bridge_smtp(run: Run) -> Sequence[Sample]:
    """Beside smtp-source as it comes (a connection per message), and with -d (connections kept, as the bridge's)."""
    messages = min(run.recipients, MESSAGES_MAX)
    with tempfile.TemporaryDirectory(prefix="campaign-bench-bridge-", dir="/tmp") as folder:
        async with _sink() as sink:
            as_it_comes = await _smtp_source(sink, messages)
            kept = await _smtp_source(sink, messages, "-d")
            rate = await _bridge(Path(folder), sink, messages)
    run.note(f"smtp-source: {as_it_comes:,.0f} messages/s, with connections kept {kept:,.0f}")
    return [Sample(rate, as_it_comes), Sample(rate, kept)]


@measures(figure("bridge.dsn", "mails/s/core", must=3_000, aim=6_000, judged="value"))
async def bridge_dsn(run: Run) -> Sequence[Sample]:
    """Bounce mails to reports, by processor time; beside it the standard library, which takes them apart alone."""
    mails = min(run.recipients, BOUNCES)
    bounces = [_bounce(number) for number in range(mails)]
    assert all(found_in(raw, [], [], 1)[0].report.smtp_code == 550 for raw in bounces[:10])
    began = time.process_time()
    for raw in bounces:
        found_in(raw, [], [], 1)
    ours = time.process_time() - began
    began = time.process_time()
    for raw in bounces:
        email.message_from_bytes(raw)
    return [Sample(mails / ours, peer=mails / (time.process_time() - began))]


def _bounce(number: int) -> bytes:
    """A mail of some 3 kB: text, report, and the headers of the original. Each has words of its own."""
    address = f"person{number}@mail{number % 97}.example.com"
    trace = "".join(f"Received: from relay{hop}.example.com by mx{hop}.example.net; Thu\n" for hop in range(8))
    return f"""Return-Path: <>
{trace}From: MAILER-DAEMON@mx.example.net
To: b+token{number}@bounce.example
Subject: Undelivered Mail Returned to Sender
Date: Thu, 5 Nov 2026 10:00:00 +0000
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="{number}/mx"

--{number}/mx
Content-Type: text/plain; charset=us-ascii

{"A sentence for people to read. " * 20}

<{address}>: host mx.example.com said: 550 5.1.1 <{address}>: unknown in table {number}

--{number}/mx
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.net
Original-Envelope-Id: {number}
Arrival-Date: Thu, 5 Nov 2026 10:00:00 +0000

Final-Recipient: rfc822; {address}
Original-Recipient: rfc822;{address}
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.example.com
Diagnostic-Code: smtp; 550 5.1.1 <{address}>: Recipient address
    rejected: User unknown in table {number}

--{number}/mx
Content-Type: text/rfc822-headers

{trace}From: news@example.com
To: {address}
Message-ID: <{number}@example.com>
Subject: Hello

--{number}/mx--
""".encode()


async def _bridge(folder: Path, sink: int, messages: int) -> float:
    keys = DevelopmentKeys.generate()
    keys.write(folder)
    (folder / "token").write_text(keys.sign("mta", ["mta"]))
    (folder / "token-key").write_text("a key of the bench, of no use elsewhere")
    child = await Child.start(
        "mta_bridge",
        "mta_bridge",
        [],
        log_path=folder / "log",
        environment={
            "BRIDGE_LISTEN": "127.0.0.1:0",
            "BRIDGE_ADMIN_LISTEN": "127.0.0.1:0",
            "BRIDGE_TOKEN_FILE": str(folder / "token"),
            "BRIDGE_JWT_PUBLIC_KEY_FILE": str(folder / PUBLIC_KEY_FILE),
            "BRIDGE_JOURNAL": str(folder / "journal.sqlite"),
            "BRIDGE_BOUNCE_DOMAIN": "bounce.example",
            "BRIDGE_TOKEN_KEY_FILE": str(folder / "token-key"),
            "BRIDGE_SMTP_PORT": str(sink),
            "BRIDGE_SMTP_CONNECTIONS": str(CONNECTIONS),
        },
    )
    try:
        address = (await child.listening(START_SECONDS_MAX))["address"]
        async with workload(
            "relay_load", target=address, messages=messages, batch=BATCH, in_flight=BATCHES_IN_FLIGHT,
            token=keys.sign("delivery", ["relay"]),
        ) as load:  # fmt: skip
            seconds: float = (await load.go())["seconds"]
    finally:
        await child.stop(START_SECONDS_MAX)
    return messages / seconds


@asynccontextmanager
async def _sink() -> AsyncIterator[int]:
    port = Ports().chosen().mta
    sink = await asyncio.create_subprocess_exec(
        _tool("smtp-sink"), *(("-u", "nobody") if os.geteuid() == 0 else ()), local(port), "1000"
    )
    try:
        async with asyncio.timeout(START_SECONDS_MAX):
            while not await _listens(port):  # noqa: ASYNC110 - another process's
                await asyncio.sleep(_POLL_SECONDS)
        yield port
    finally:
        sink.send_signal(signal.SIGTERM)
        await sink.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def _smtp_source(sink: int, messages: int, *options: str) -> float:
    began = time.perf_counter()
    source = await asyncio.create_subprocess_exec(
        *(_tool("smtp-source"), "-s", str(CONNECTIONS), "-m", str(messages), "-l", str(MESSAGE_BYTES), *options),
        *("-f", "news@example.com", "-t", "person@example.com", local(sink)),
    )
    assert await source.wait() == 0, "smtp-source failed"
    return messages / (time.perf_counter() - began)


def _tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert found, f"{name} is needed: install Postfix"
    return found
