"""The log of Postfix: what its lines report, and that no line is lost or repeated over rotations and restarts."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from mta_bridge.domain.tokens import Tokens
from mta_bridge.store.journal import EXPIRY_ASKED_MAX
from tests.integration.mta_bridge.conftest import BOUNCE_DOMAIN, TOKEN_KEY, RunBridge
from tests.support.eventually import eventually
from tests.support.feedback_double import FeedbackDouble

QUICK: dict[str, Any] = {"postfix_log_poll_seconds": 0.02}


def queued(message: int) -> str:
    sender = f"b+{Tokens([TOKEN_KEY]).make(f'7-{message}').upper()}@{BOUNCE_DOMAIN}"
    return logged("qmgr", message, f"from=<{sender}>, size=900, nrcpt=1 (queue active)")


def delivered(message: int) -> str:
    return reported(message, "2.0.0", "sent", "250 2.0.0 Ok: queued as A")


def reported(message: int, enhanced_code: str, status: str, text: str) -> str:
    rest = f"to=<p{message}@mail.test>, relay=mx.test[192.0.2.1]:25, delay=0.2, dsn={enhanced_code}, status={status}"
    return logged("smtp", message, f"{rest} ({text})")


def logged(daemon: str, message: int, rest: str) -> str:
    return f"Mar  3 10:00:{message:02} mta postfix/{daemon}[17]: 4jXx9m1RCqz{message:04}: {rest}\n"


def append(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.write("".join(lines))


def told(feedback: FeedbackDouble) -> list[tuple[str, str]]:
    return [
        (event.message_id, feedback_pb.MtaEventKind.Name(event.kind).removeprefix("MTA_EVENT_KIND_"))
        for event in feedback.committed
    ]


async def test_each_status_becomes_its_event_and_what_is_not_ours_is_passed_over(
    run: RunBridge, feedback: FeedbackDouble, tmp_path: Path
) -> None:
    log = tmp_path / "maillog"
    append(
        log,
        *(queued(message) for message in range(1, 6)),
        logged("qmgr", 9, "from=<someone@elsewhere.test>, size=900, nrcpt=1 (queue active)"),
        delivered(1),
        reported(2, "5.1.1", "bounced", "host mx.test[192.0.2.1] said: 550 5.1.1 no such user (in reply to RCPT TO)"),
        reported(3, "4.2.2", "deferred", "host mx.test[192.0.2.1] said: 452 4.2.2 mailbox full (in reply to RCPT TO)"),
        reported(4, "4.4.1", "deferred", "connect to mx.test[192.0.2.1]:25: Connection refused"),
        logged("qmgr", 4, "from=<x@y.test>, status=expired, returned to sender"),
        "Mar  3 10:00:05 mta postfix/postsuper[9]: 4jXx9m1RCqz0005: removed\n",
        delivered(9),
        "not a line of Postfix's\n",
        logged("smtpd", 1, "client=localhost[127.0.0.1]"),
    )
    async with run(postfix_log=str(log), **QUICK):
        await eventually(lambda: len(feedback.committed) == 6)
    assert told(feedback) == [
        ("7-1", "DELIVERY"),
        ("7-2", "BOUNCE"),
        ("7-3", "TRANSIENT_FAILURE"),
        ("7-4", "TRANSIENT_FAILURE"),
        ("7-4", "EXPIRATION"),
        ("7-5", "ADMIN_BOUNCE"),
    ]
    bounce, full, expired = feedback.committed[1], feedback.committed[2], feedback.committed[4]
    assert (bounce.smtp_code, bounce.enhanced_code, bounce.diagnostic[:8]) == (550, "5.1.1", "host mx.")
    assert (full.smtp_code, full.enhanced_code) == (452, "4.2.2")
    assert expired.diagnostic == "expired; last: connect to mx.test[192.0.2.1]:25: Connection refused"
    assert expired.enhanced_code == "4.4.1"


async def test_no_line_is_lost_or_repeated_over_a_rotation(
    run: RunBridge, feedback: FeedbackDouble, tmp_path: Path
) -> None:
    log = tmp_path / "maillog"
    append(log, queued(1), queued(2), queued(3), delivered(1))
    async with run(postfix_log=str(log), **QUICK):
        await eventually(lambda: len(feedback.committed) == 1)
        log.rename(tmp_path / "maillog.1")
        append(tmp_path / "maillog.1", delivered(2))  # Postfix still had it open
        append(log, delivered(3), queued(4), delivered(4))
        await eventually(lambda: len(feedback.committed) == 4)
    assert told(feedback) == [(f"7-{message}", "DELIVERY") for message in range(1, 5)]


async def test_a_line_is_read_once_it_is_whole(run: RunBridge, feedback: FeedbackDouble, tmp_path: Path) -> None:
    log = tmp_path / "maillog"
    append(log, queued(1), queued(2), delivered(1), delivered(2)[:40])
    async with run(postfix_log=str(log), **QUICK):
        await eventually(lambda: len(feedback.committed) == 1)
        append(log, delivered(2)[40:])
        await eventually(lambda: len(feedback.committed) == 2)
    assert told(feedback) == [("7-1", "DELIVERY"), ("7-2", "DELIVERY")]


@pytest.mark.parametrize("rotated", [False, True])
async def test_after_a_restart_it_goes_on_where_it_was_also_in_a_file_that_was_renamed_meanwhile(
    run: RunBridge, feedback: FeedbackDouble, tmp_path: Path, rotated: bool
) -> None:
    log = tmp_path / "maillog"
    append(log, queued(1), queued(2), queued(3), delivered(1))
    async with run(postfix_log=str(log), **QUICK) as bridge:
        await eventually(lambda: len(feedback.committed) == 1)
        await eventually(lambda: bridge.app.journal.database.execute("SELECT * FROM log_place").fetchone())
    append(log, queued(2), delivered(2))
    if rotated:
        log.rename(tmp_path / "maillog.1")
    append(log, queued(3), delivered(3))
    async with run(postfix_log=str(log), **QUICK):
        await eventually(lambda: len(feedback.committed) == 3)
    assert told(feedback) == [(f"7-{message}", "DELIVERY") for message in range(1, 4)]


async def test_what_was_not_acknowledged_is_reported_again_after_a_restart(
    run: RunBridge, feedback: FeedbackDouble, tmp_path: Path
) -> None:
    log = tmp_path / "maillog"
    append(log, queued(1), delivered(1))
    feedback.acknowledging.clear()
    async with run(postfix_log=str(log), shutdown_grace_seconds=0.2, **QUICK):
        await eventually(lambda: len(feedback.arrived) == 1)
    feedback.acknowledging.set()
    async with run(postfix_log=str(log), **QUICK):
        await eventually(lambda: ("7-1", "DELIVERY") in told(feedback))
    assert len(feedback.arrived) == 2


async def test_the_log_can_come_through_standard_input(
    run: RunBridge, feedback: FeedbackDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as standard_input:
        monkeypatch.setattr(sys, "stdin", standard_input)
        async with run(postfix_log="-"):
            os.write(writing, (queued(1) + delivered(1)).encode())
            await eventually(lambda: len(feedback.committed) == 1)
            os.close(writing)
            await asyncio.sleep(0)
    assert told(feedback) == [("7-1", "DELIVERY")]


async def test_at_its_deadline_a_message_is_given_to_the_expiry_command_until_that_succeeds(
    run: RunBridge, tmp_path: Path
) -> None:
    asked, works = tmp_path / "asked", tmp_path / "works"
    command = f"sh -c 'cat >> {asked}; test -e {works}'"
    async with run(expire_command=command, expire_seconds=0.05) as bridge:
        await bridge.relay(["anna@a.test"], deadline_us=1)
        await bridge.relay(["bert@a.test"], first=2, deadline_us=4_000_000_000_000_000)
        await eventually(lambda: asked.exists() and asked.read_text().count("Q00000001") >= 2)
        works.touch()
        await eventually(lambda: not bridge.app.journal.take_overdue(2, 10))
    assert set(asked.read_text().split()) == {"Q00000001"}


async def test_a_message_that_goes_on_all_the_same_is_asked_for_again_until_it_has_ended(
    run: RunBridge, tmp_path: Path
) -> None:
    """Postfix defers what it is just trying when it is asked to expire it, for as long as it likes."""
    asked = tmp_path / "asked"
    async with run(expire_command=f"sh -c 'cat >> {asked}'", expire_seconds=0.05) as bridge:
        journal = bridge.app.journal
        await bridge.relay(["anna@a.test"], deadline_us=1)
        await eventually(lambda: not journal.take_overdue(2, 10))
        (waits,) = journal.database.execute("SELECT deadline_us FROM journal").fetchone()
        assert journal.take_overdue(waits, 10) == [("7-1", "Q00000001")]
        journal.database.execute("UPDATE journal SET deadline_us = 1")
        await eventually(lambda: asked.read_text().count("Q00000001") == 2)
        journal.ended(["7-1"])
        assert journal.take_overdue(2 * waits, 10) == []
        await bridge.relay(["bert@a.test"], first=2, deadline_us=4_000_000_000_000_000)
        for _ in range(EXPIRY_ASKED_MAX):
            journal.asked_to_expire(["7-2"], 0)
        assert journal.take_overdue(4_000_000_000_000_000, 10) == []
