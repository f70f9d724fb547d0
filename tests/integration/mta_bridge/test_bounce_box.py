"""The bounce mailbox: a mail is taken once what it says is acknowledged, and not before."""

import asyncio
import smtplib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiosmtplib
import pytest

from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from mta_bridge.domain.tokens import Tokens
from mta_bridge.store.parked import Parked
from tests.integration.mta_bridge.conftest import BOUNCE_DOMAIN, TOKEN_KEY, Bridge, RunBridge
from tests.support.eventually import eventually
from tests.support.feedback_double import FeedbackDouble

DSN = """From: MAILER-DAEMON@mta.campaign.test
To: {to}
Date: Tue, 3 Mar 2026 10:00:00 +0000
Subject: Undelivered
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="x"

--x
Content-Type: text/plain

This is the mail system.

--x
Content-Type: message/delivery-status

Reporting-MTA: dns; {reporter}
{envelope}
Final-Recipient: rfc822; anna@mail.test
Action: {action}
Status: {status}
Diagnostic-Code: smtp; {reply} {status} <anna@mail.test>: no such
    user here

--x
Content-Type: text/rfc822-headers

{headers}

--x--
"""


def token(message_id: str = "7-1") -> str:
    return Tokens([TOKEN_KEY]).make(message_id)


def dsn(
    *, to: str = "", action: str = "failed", status: str = "5.1.1", reporter: str = "mta.campaign.test",
    envelope: str = "", headers: str = "Subject: Hello",
) -> bytes:  # fmt: skip
    envelope = f"Original-Envelope-Id: {envelope}\n" if envelope else ""
    reply = "450" if status.startswith("4") else "550"
    text = DSN.format(
        to=to, action=action, status=status, reporter=reporter, envelope=envelope, headers=headers, reply=reply
    )
    return text.replace("\n", "\r\n").encode()


@asynccontextmanager
async def mailbox(run: RunBridge, **settings: Any) -> AsyncIterator[tuple[Bridge, int]]:
    given = {"bounce_listen": "127.0.0.1:0", "mta_hostnames": "mta.campaign.test"} | settings
    async with run(**given) as bridge:
        yield bridge, int(bridge.app.addresses["bounce_address"].rpartition(":")[2])


async def send(port: int, raw: bytes, to: str) -> None:
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) as client:
        await client.sendmail("", [to], raw)


def address(local: str) -> str:
    return f"{local}@{BOUNCE_DOMAIN}"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, feedback_pb.MTA_EVENT_KIND_BOUNCE),
        ({"action": "relayed", "status": "2.0.0"}, feedback_pb.MTA_EVENT_KIND_DELIVERY),
        ({"action": "delayed", "status": "4.2.0"}, feedback_pb.MTA_EVENT_KIND_TRANSIENT_FAILURE),
        ({"action": "failed", "status": "4.2.0"}, feedback_pb.MTA_EVENT_KIND_EXPIRATION),
        ({"reporter": "mx.elsewhere.test"}, feedback_pb.MTA_EVENT_KIND_OUT_OF_BAND_BOUNCE),
        ({"reporter": "mx.elsewhere.test", "status": "4.4.1"}, feedback_pb.MTA_EVENT_KIND_OUT_OF_BAND_BOUNCE),
    ],
)
async def test_a_report_becomes_an_event_about_its_message(
    run: RunBridge, feedback: FeedbackDouble, changes: dict[str, str], kind: int
) -> None:
    async with mailbox(run) as (_, port):
        await send(port, dsn(**changes), address(f"b+{token().upper()}"))
    (event,) = feedback.committed
    assert (event.message_id, event.kind) == ("7-1", kind)
    assert event.event_time_us == 1_772_532_000_000_000
    if kind == feedback_pb.MTA_EVENT_KIND_BOUNCE:
        assert (event.smtp_code, event.enhanced_code) == (550, "5.1.1")
        assert event.diagnostic == "550 5.1.1 <anna@mail.test>: no such user here"


@pytest.mark.parametrize(
    "where",
    [
        {"envelope": token("7-9")},
        {"headers": f"X-Campaign-Message-Id: 7-9 {token('7-9')}"},
        {"headers": f"Message-ID: <{token('7-9').upper()}@fair.example>"},
    ],
)
async def test_a_report_to_another_address_is_tied_by_what_it_quotes(
    run: RunBridge, feedback: FeedbackDouble, where: dict[str, str]
) -> None:
    async with mailbox(run) as (_, port):
        await send(port, dsn(**where), address("postmaster"))
    assert [event.message_id for event in feedback.committed] == ["7-9"]


async def test_the_token_of_a_very_long_message_id_is_read_through_the_journal(
    run: RunBridge, feedback: FeedbackDouble
) -> None:
    message_id = "x" * 100
    async with mailbox(run) as (bridge, port):
        bridge.app.journal.begin_sending(message_id, 1, 1, lambda: None)
        bridge.app.journal.flush()
        await send(port, dsn(), address(f"b+{token(message_id)}"))
    assert [event.message_id for event in feedback.committed] == [message_id]


async def test_a_mail_is_answered_only_once_its_events_are_acknowledged(
    run: RunBridge, feedback: FeedbackDouble
) -> None:
    feedback.acknowledging.clear()
    async with mailbox(run) as (bridge, port):
        sending = asyncio.create_task(send(port, dsn(), address(f"b+{token()}")))
        await eventually(lambda: feedback.arrived)
        assert not sending.done()
        assert bridge.app.queue.pending == 1
        feedback.acknowledging.set()
        await sending
    assert len(feedback.committed) == 1


async def test_a_mail_in_a_character_set_with_half_characters_is_read_all_the_same(
    run: RunBridge, feedback: FeedbackDouble
) -> None:
    raw = dsn(to=address(f"b+{token()}")).replace(b"message/delivery-status", b"message/delivery-status; charset=utf-7")
    raw = raw.replace(b"user here", b"user +2D0- here")
    async with mailbox(run) as (_, port):
        await send(port, raw, address(f"b+{token()}"))
    assert [(event.message_id, event.diagnostic[-6:]) for event in feedback.committed] == [("7-1", "? here")]


@pytest.mark.expects_errors
async def test_a_mail_that_can_not_be_read_is_left_with_its_sender(
    run: RunBridge, feedback: FeedbackDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect, or a disk that is full: a permanent refusal would have the sender throw the report away."""

    def broken(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async with mailbox(run) as (_, port):
        with monkeypatch.context() as patched:
            patched.setattr(Parked, "add", broken)
            with pytest.raises(aiosmtplib.SMTPDataError) as refusal:
                await send(port, b"Subject: who knows\r\n\r\nnothing\r\n", address("nobody"))
        assert refusal.value.code == 451
        await send(port, b"Subject: who knows\r\n\r\nnothing\r\n", address("nobody"))
    assert feedback.arrived == []


async def test_what_can_not_be_tied_is_parked_and_can_be_read(run: RunBridge, feedback: FeedbackDouble) -> None:
    forged = token()[:-1] + ("a" if token()[-1] != "a" else "b")
    async with mailbox(run, parked_max=2) as (bridge, port):
        await send(port, dsn(), address(f"b+{forged}"))
        await send(port, b"Subject: offer\r\n\r\nBuy this.\r\n", address("b+x"))
        await send(port, b"Subject: third\r\n\r\nBuy that.\r\n", address("b+x"))
        third, offer = bridge.app.parked.list(10)
        assert offer["reason"] == third["reason"] == "it reports nothing that is understood"
        content = bridge.app.parked.content(third["number"])
    assert content is not None
    assert content.endswith(b"Buy that.\r\n")
    assert feedback.arrived == []


async def test_only_mail_for_the_bounce_domain_and_within_the_limits_is_taken(run: RunBridge) -> None:
    async with mailbox(run, bounce_bytes_max=65_536, bounce_connections_max=1) as (_, port):
        with pytest.raises(aiosmtplib.SMTPRecipientsRefused):
            await send(port, dsn(), "someone@elsewhere.test")
        with pytest.raises(aiosmtplib.SMTPException):
            await send(port, b"Subject: big\r\n\r\n" + b"x" * 70 + b"\r\n" + b"y" * 70_000, address("b+x"))
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False):
            with pytest.raises(aiosmtplib.SMTPException):
                await send(port, dsn(), address("b+x"))


async def test_lmtp_is_spoken_if_asked_for(run: RunBridge, feedback: FeedbackDouble) -> None:
    async with mailbox(run, bounce_protocol="lmtp") as (_, port):

        def deliver() -> None:
            with smtplib.LMTP("127.0.0.1", port) as client:
                client.sendmail("", [address(f"b+{token()}")], dsn())

        await asyncio.to_thread(deliver)
    assert len(feedback.committed) == 1


async def test_a_feedback_service_that_is_away_leaves_the_mail_with_its_sender(
    run: RunBridge, feedback: FeedbackDouble
) -> None:
    await feedback.stop()
    async with mailbox(run, shutdown_grace_seconds=0.5) as (_, port):
        sending = asyncio.create_task(send(port, dsn(), address(f"b+{token()}")))
        await feedback.start()
        await sending
    assert len(feedback.committed) == 1
