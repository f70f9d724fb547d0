"""Webhooks and one-click unsubscribes over HTTP: who may call, what is taken, and that 2xx means acknowledged."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from mta_bridge.domain.tokens import Tokens
from tests.integration.mta_bridge.conftest import BOUNCE_DOMAIN, TOKEN_KEY, Bridge, RunBridge
from tests.support.eventually import eventually
from tests.support.feedback_double import FeedbackDouble

SECRET = b"a secret that only the webhooks know"
BEARER = {"Authorization": f"Bearer {SECRET.decode()}"}
EVENT = {"message_id": "7-1", "kind": "delivery", "event_time": "2026-03-03T10:00:00Z"}
GENERIC = {"events": [EVENT]}


def token(message_id: str = "7-1") -> str:
    return Tokens([TOKEN_KEY]).make(message_id)


class Client:
    """Calls the bridge over HTTP."""

    def __init__(self, bridge: Bridge, session: aiohttp.ClientSession) -> None:
        self.bridge = bridge
        self._session = session
        self._base = f"http://{bridge.app.addresses['webhook_address']}"

    async def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, str]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self._session.post(f"{self._base}{path}", data=data, headers=headers) as response:
            return response.status, await response.text()

    async def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        async with self._session.get(f"{self._base}{path}", headers=headers) as response:
            return response.status, await response.text()


@asynccontextmanager
async def webhooks(run: RunBridge, tmp_path: Any, **settings: Any) -> AsyncIterator[Client]:
    secrets = tmp_path / "webhook-secrets"
    secrets.write_bytes(b"# the old one\nanother secret, still good\n" + SECRET + b"\n")
    given = {"webhook_listen": "127.0.0.1:0", "webhook_secret_file": secrets} | settings
    async with run(**given) as bridge, aiohttp.ClientSession() as session:
        yield Client(bridge, session)


async def test_who_has_no_secret_is_refused(run: RunBridge, feedback: FeedbackDouble, tmp_path: Any) -> None:
    async with webhooks(run, tmp_path) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-Campaign-Signature": "sha256=00"}):
            assert (await client.post("/webhooks/generic", GENERIC, headers))[0] == 401
        assert (await client.get("/parked"))[0] == 401
    assert feedback.arrived == []


async def test_a_bearer_token_or_a_signature_lets_in(run: RunBridge, feedback: FeedbackDouble, tmp_path: Any) -> None:
    body = json.dumps(GENERIC).encode()
    signature = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    async with webhooks(run, tmp_path) as client:
        assert await client.post("/webhooks/generic", body, BEARER) == (200, '{"taken": 1, "parked": 0}')
        signed = {"X-Campaign-Signature": f"sha256={signature}"}
        assert (await client.post("/webhooks/generic", body, signed))[0] == 200
        assert (await client.post("/webhooks/generic", body + b" ", signed))[0] == 401
    first, second = feedback.committed
    assert first == second  # a repetition is the same event, to the microsecond
    assert (first.message_id, first.kind) == ("7-1", feedback_pb.MTA_EVENT_KIND_DELIVERY)
    assert first.event_time_us == 1_772_532_000_000_000


async def test_two_hundred_is_answered_only_after_the_acknowledgement(
    run: RunBridge, feedback: FeedbackDouble, tmp_path: Any
) -> None:
    feedback.acknowledging.clear()
    async with webhooks(run, tmp_path) as client:
        posting = asyncio.create_task(client.post("/webhooks/generic", GENERIC, BEARER))
        await eventually(lambda: feedback.arrived)
        assert not posting.done()
        feedback.acknowledging.set()
        assert (await posting)[0] == 200


async def test_without_an_acknowledgement_in_time_the_sender_is_asked_to_come_again(
    run: RunBridge, feedback: FeedbackDouble, tmp_path: Any
) -> None:
    feedback.acknowledging.clear()
    async with webhooks(run, tmp_path, webhook_ack_seconds_max=0.1) as client:
        assert (await client.post("/webhooks/generic", GENERIC, BEARER))[0] == 503
        feedback.acknowledging.set()
        assert (await client.post("/webhooks/generic", GENERIC, BEARER))[0] == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no json", 400),
        (b"[" * 100_000, 400),
        ([], 400),
        ({"events": [{**EVENT, "kind": "strange"}]}, 400),
        ({"events": [{**EVENT, "event_time": "soon"}]}, 400),
        ({"events": [{"kind": "delivery", "event_time": 1_772_532_000}]}, 400),
        ({"events": [{**EVENT, "mesage_id": "7-1"}]}, 400),
        ({"events": [{**EVENT, "kind": "click"}]}, 400),
        ({"events": [EVENT] * 11}, 413),
        (b'"' + b"x" * 200_000 + b'"', 413),
    ],
)
async def test_what_is_malformed_or_too_much_is_refused(
    run: RunBridge, feedback: FeedbackDouble, tmp_path: Any, body: Any, status: int
) -> None:
    async with webhooks(run, tmp_path, webhook_bytes_max=150_000, webhook_events_max=10) as client:
        assert (await client.post("/webhooks/generic", body, BEARER))[0] == status
        assert (await client.post("/webhooks/other", GENERIC, BEARER))[0] == 404
    assert feedback.arrived == []


async def test_what_no_message_of_ours_could_carry_does_not_hold_up_the_rest(
    run: RunBridge, feedback: FeedbackDouble, tmp_path: Any
) -> None:
    strange = {**EVENT, "kind": "bounce", "smtp_code": 10**15, "attempt": 10**10, "diagnostic": "half \ud800, nul \0"}
    record = {"type": "Bounce", "sender": "\ud800@elsewhere.test", "num_attempts": 10**12, "timestamp": 1_772_532_000}
    async with webhooks(run, tmp_path) as client:
        body = json.dumps({"events": [strange, EVENT]}).encode()
        assert await client.post("/webhooks/generic", body, BEARER) == (200, '{"taken": 2, "parked": 0}')
        for number in (b"NaN", b"Infinity", b"-1", b"1e400"):
            odd = body.replace(b"10000000000,", number + b",")
            assert (await client.post("/webhooks/generic", odd, BEARER))[0] == 200
        assert await client.post("/webhooks/kumomta", json.dumps(record).encode(), BEARER) == (
            200,
            '{"taken": 0, "parked": 1}',
        )
    first, second, *_ = feedback.committed
    assert (first.smtp_code, first.attempt, first.diagnostic) == (0, 0, "half ?, nul  ")
    assert second.message_id == "7-1"


async def test_texts_that_are_too_long_for_a_message_cost_neither_their_event_nor_those_behind_it(
    run: RunBridge, feedback: FeedbackDouble, tmp_path: Any
) -> None:
    """A batch beyond what FeedbackService takes would be sent again for ever."""
    long = {**EVENT, "kind": "bounce", "enhanced_code": "5" * 100_000, "diagnostic": "x" * 100_000}
    async with webhooks(run, tmp_path) as client:
        events = [long, {**EVENT, "message_id": "7" * 100_000}, EVENT]
        assert await client.post("/webhooks/generic", {"events": events}, BEARER) == (200, '{"taken": 2, "parked": 1}')
    first, second = feedback.committed
    assert (first.message_id, first.enhanced_code, first.diagnostic) == ("7-1", "", "x" * 1_000)
    assert second.message_id == "7-1"


async def test_records_of_kumomta_are_read_alone_and_in_arrays(
    run: RunBridge, feedback: FeedbackDouble, tmp_path: Any
) -> None:
    bounce = {
        "type": "Bounce",
        "id": "d7ef132b5d7711ea8c8c000c29c33806",
        "sender": f"b+{token().upper()}@{BOUNCE_DOMAIN}",
        "recipient": ["anna@mail.test"],
        "timestamp": 1_772_532_000,
        "response": {
            "code": 550,
            "enhanced_code": {"class": 5, "subject": 1, "detail": 1},
            "content": "no such user",
            "command": "RCPT TO:<anna@mail.test>",
        },
        "bounce_classification": "InvalidRecipient",
        "num_attempts": 0,
    }
    complaint = {
        "type": "Feedback",
        "sender": "",
        "recipient": "fbl@fair.example",
        "event_time": "2026-03-03T10:00:00.5Z",
        "feedback_report": {
            "feedback_type": "abuse",
            "original_mail_from": "redacted",
            "original_message": f"X-Campaign-Message-Id: 7-2 {token('7-2')}\n",
        },
    }
    delayed = {**bounce, "type": "TransientFailure", "headers": {"X-Campaign-Message-Id": f"7-3 {token('7-3')}"}}
    delayed |= {"sender": "rewritten@elsewhere.test", "num_attempts": 2}
    reception = {**bounce, "type": "Reception"}
    async with webhooks(run, tmp_path) as client:
        assert await client.post("/webhooks/kumomta", bounce, BEARER) == (200, '{"taken": 1, "parked": 0}')
        batch = [complaint, delayed, reception, {**bounce, "sender": "other@elsewhere.test"}]
        assert await client.post("/webhooks/kumomta", batch, BEARER) == (200, '{"taken": 2, "parked": 1}')
        assert (await client.post("/webhooks/kumomta", [{"no": "type"}], BEARER))[0] == 400
        status, listed = await client.get("/parked", BEARER)
        assert status == 200
        (parked,) = json.loads(listed)["parked"]
        assert parked["source"] == "webhook"
        status, content = await client.get(f"/parked/{parked['number']}", BEARER)
        assert "other@elsewhere.test" in content
    one, two, three = feedback.committed
    assert (one.message_id, one.kind, one.smtp_code, one.enhanced_code, one.vendor_class) == (
        "7-1",
        feedback_pb.MTA_EVENT_KIND_BOUNCE,
        550,
        "5.1.1",
        "InvalidRecipient",
    )
    assert (two.message_id, two.kind, two.feedback_type) == ("7-2", feedback_pb.MTA_EVENT_KIND_COMPLAINT, "abuse")
    assert two.event_time_us == 1_772_532_000_500_000
    assert (three.message_id, three.kind, three.attempt) == ("7-3", feedback_pb.MTA_EVENT_KIND_TRANSIENT_FAILURE, 3)


async def test_event_batches_of_sparkpost_are_read(run: RunBridge, feedback: FeedbackDouble, tmp_path: Any) -> None:
    common = {"timestamp": "1772532000", "msg_from": f"b+{token()}@{BOUNCE_DOMAIN}", "rcpt_meta": {}}

    def entry(kind: str, **fields: Any) -> dict[str, Any]:
        return {"msys": {"message_event": {**common, "type": kind, **fields}}}

    batch = [
        {"msys": {}},
        entry("delivery"),
        entry("bounce", bounce_class="10", error_code="550", raw_reason="550 5.1.1\nno such user"),
        entry("bounce", bounce_class="24", error_code="451", reason="timeout"),
        entry("out_of_band", bounce_class="60"),
        entry("spam_complaint", fbtype="abuse", msg_from="x@y.test", rcpt_meta={"message_id": "7-2"}),
        {"msys": {"track_event": {**common, "type": "click", "target_link_url": "https://a.test/"}}},
        {"msys": {"unsubscribe_event": {**common, "type": "list_unsubscribe"}}},
        entry("injection"),
    ]
    async with webhooks(run, tmp_path) as client:
        assert await client.post("/webhooks/sparkpost", batch, BEARER) == (200, '{"taken": 7, "parked": 0}')
        assert await client.post("/webhooks/sparkpost", [{"msys": {}}], BEARER) == (200, '{"taken": 0, "parked": 0}')
    kinds = [feedback_pb.MtaEventKind.Name(event.kind).removeprefix("MTA_EVENT_KIND_") for event in feedback.committed]
    assert kinds == ["DELIVERY", "BOUNCE", "EXPIRATION", "AUTO_REPLY", "COMPLAINT", "CLICK", "UNSUBSCRIBE"]
    assert [event.message_id for event in feedback.committed] == ["7-1"] * 4 + ["7-2"] + ["7-1"] * 2
    assert feedback.committed[1].diagnostic == "550 5.1.1 no such user"
    assert feedback.committed[1].vendor_class == "10"


async def test_one_click_unsubscribes_and_a_scanner_that_follows_the_link_does_not(
    run: RunBridge, feedback: FeedbackDouble, tmp_path: Any
) -> None:
    async with webhooks(run, tmp_path) as client:
        status, page = await client.get(f"/unsubscribe/{token()}")
        assert (status, feedback.arrived) == (200, [])
        assert 'method="post"' in page
        assert (await client.post(f"/unsubscribe/{token()}", b"List-Unsubscribe=One-Click"))[0] == 200
        assert (await client.post("/unsubscribe/forged", b"List-Unsubscribe=One-Click"))[0] == 404
        assert (await client.get("/unsubscribe/forged"))[0] == 404
    (event,) = feedback.committed
    assert (event.message_id, event.kind) == ("7-1", feedback_pb.MTA_EVENT_KIND_UNSUBSCRIBE)
