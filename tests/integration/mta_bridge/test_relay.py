"""RelayService over SMTP: what leaves, what is answered, and that nothing leaves twice."""

import asyncio
import email
import email.policy
from email.message import EmailMessage
from typing import Any

import grpc
import grpc.aio
import pytest

from campaign.delivery.v1 import delivery_pb2 as delivery_pb
from campaign.delivery.v1 import send_log_pb2 as send_log_pb
from campaign.mta.v1 import relay_service_pb2 as relay_pb
from mta_bridge.domain.tokens import Tokens
from mta_bridge.store.journal import State
from service_runtime.client import StaticToken, open_channel
from tests.integration.mta_bridge.conftest import BOUNCE_DOMAIN, TOKEN_KEY, RunBridge, batch_of
from tests.support.eventually import eventually
from tests.support.scripted_smtp import Mail, ScriptedSmtp

ACCEPTED, REFUSED, TRY_LATER, WITHDRAWN = (
    relay_pb.RELAY_VERDICT_ACCEPTED,
    relay_pb.RELAY_VERDICT_REFUSED,
    relay_pb.RELAY_VERDICT_TRY_LATER,
    relay_pb.RELAY_VERDICT_WITHDRAWN,
)


def read(mail: Mail) -> EmailMessage:
    message = email.message_from_bytes(mail.content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


async def test_a_message_leaves_as_a_mail_with_everything_that_it_needs(run: RunBridge, smtp: ScriptedSmtp) -> None:
    async with run(unsubscribe_url="https://u.fair.example/{token}") as bridge:
        response = await bridge.relay(["anna@mail.test"])
    assert list(response.verdicts) == [ACCEPTED]
    (mail,) = smtp.mails
    token = mail.sender.removeprefix("b+").removesuffix(f"@{BOUNCE_DOMAIN}")
    assert Tokens([TOKEN_KEY]).read(token.upper()) == "7-1"
    assert mail.recipient == "anna@mail.test"
    assert f" RET=HDRS ENVID={token}" in mail.mail_line
    assert mail.rcpt_line.endswith(" NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;anna@mail.test")
    message = read(mail)
    assert message["Subject"] == "Hello Chloé"
    assert message["From"] == "Autumn Fair <news@fair.example>"
    assert message["To"] == "anna@mail.test"
    assert message["Message-ID"] == f"<{token}@fair.example>"
    assert message["X-Campaign-Message-Id"] == f"7-1 {token}"
    assert message["List-Unsubscribe"] == f"<https://u.fair.example/{token}>"
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert message["Date"].datetime is not None
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    assert [part.get_content().strip() for part in message.iter_parts()] == ["Hello Chloé", "<p>Hello Chloé</p>"]


@pytest.mark.parametrize("pipelining", [True, False])
async def test_each_recipient_has_its_own_answer(run: RunBridge, smtp: ScriptedSmtp, pipelining: bool) -> None:
    if not pipelining:
        smtp.announced = ("ENHANCEDSTATUSCODES",)
    smtp.rcpt = {"unknown": "550 5.1.1 no such user", "busy": "450 4.2.0 greylisted"}
    smtp.data_reply = {"spam": "554 5.7.1 not wanted"}
    addresses = ["ok@a.test", "unknown@a.test", "busy@a.test", "spam@a.test", "ok2@a.test"]
    async with run(smtp_connections=1) as bridge:
        response = await bridge.relay(addresses)
        assert list(response.verdicts) == [ACCEPTED, REFUSED, TRY_LATER, REFUSED, ACCEPTED]
        assert [(refusal.index, refusal.smtp_code, refusal.enhanced_code) for refusal in response.refusals] == [
            (1, 550, "5.1.1"),
            (2, 450, "4.2.0"),
            (3, 554, "5.7.1"),
        ]
        unknown, _, spam = response.refusals
        assert (unknown.failure_type, unknown.reason) == (
            send_log_pb.FAILURE_TYPE_HARD,
            send_log_pb.REASON_USER_UNKNOWN,
        )
        assert unknown.diagnostic == "550 5.1.1 no such user"
        assert (spam.failure_type, spam.reason) == (send_log_pb.FAILURE_TYPE_SOFT, send_log_pb.REASON_REFUSED)
        # Put off is not in the journal: it comes again, and then is taken.
        smtp.rcpt = {}
        again = await bridge.relay(addresses)
    assert list(again.verdicts) == [ACCEPTED, REFUSED, ACCEPTED, REFUSED, ACCEPTED]
    assert again.answer_times_us[0] == response.answer_times_us[0]
    assert again.refusals[0] == unknown
    assert smtp.recipients == {"ok@a.test": 1, "ok2@a.test": 1, "busy@a.test": 1}


async def test_a_server_that_wants_the_content_without_a_recipient_gets_an_empty_one(
    run: RunBridge, smtp: ScriptedSmtp
) -> None:
    smtp.accepts_data_without_recipient = True
    smtp.rcpt = {"unknown": "550 5.1.1 no such user"}
    async with run(smtp_connections=1) as bridge:
        response = await bridge.relay(["unknown@a.test", "ok@a.test", "unknown2@a.test", "ok2@a.test"])
    assert list(response.verdicts) == [REFUSED, ACCEPTED, REFUSED, ACCEPTED]
    assert smtp.recipients == {"ok@a.test": 1, "ok2@a.test": 1}


async def test_the_envelope_of_the_next_message_travels_with_the_content_of_the_one_before(
    run: RunBridge, smtp: ScriptedSmtp
) -> None:
    smtp.hold_dot.clear()
    async with run(smtp_connections=1) as bridge:
        relaying = asyncio.create_task(bridge.relay(["a@a.test", "b@a.test"]))
        await eventually(lambda: smtp.waiting_dots == 1)
        await eventually(lambda: bridge.app.sender.counts() == {"SENDING": 1, "OFFERED": 1})
        smtp.hold_dot.set()
        assert list((await relaying).verdicts) == [ACCEPTED, ACCEPTED]


async def test_connections_are_few_and_used_again(run: RunBridge, smtp: ScriptedSmtp) -> None:
    async with run(smtp_connections=3) as bridge:
        await bridge.relay([f"p{number}@a.test" for number in range(300)])
        await bridge.relay([f"q{number}@a.test" for number in range(300)])
    assert len(smtp.mails) == 600 - 300  # the same message ids
    assert smtp.connections_total <= 3


async def test_a_repetition_is_one_mail_on_two_streams_at_once_and_after_a_restart(
    run: RunBridge, smtp: ScriptedSmtp
) -> None:
    addresses = [f"p{number}@a.test" for number in range(50)]
    async with run() as bridge:
        first, second = await asyncio.gather(bridge.relay(addresses), bridge.relay(addresses))
    async with run() as bridge:
        third = await bridge.relay(addresses)
    assert first.answer_times_us == second.answer_times_us == third.answer_times_us
    assert set(smtp.recipients.values()) == {1}
    assert len(smtp.mails) == 50


async def test_a_stream_that_is_cut_does_not_send_anything_twice(run: RunBridge, smtp: ScriptedSmtp) -> None:
    smtp.hold_dot.clear()
    addresses = [f"p{number}@a.test" for number in range(20)]
    async with run() as bridge:
        call = await bridge.open()
        await call.write(relay_pb.RelayRequest(batch=batch_of(addresses)))
        await eventually(lambda: smtp.waiting_dots)
        call.cancel()
        relaying = asyncio.create_task(bridge.relay(addresses))
        smtp.hold_dot.set()
        assert set((await relaying).verdicts) == {ACCEPTED}
    assert smtp.recipients == {address: 1 for address in addresses}


async def test_a_connection_lost_between_dot_and_answer_is_counted_and_not_sent_again(
    run: RunBridge, smtp: ScriptedSmtp
) -> None:
    smtp.cuts_after_dot = 2
    addresses = [f"p{number}@a.test" for number in range(30)]
    async with run() as bridge:
        assert set((await bridge.relay(addresses)).verdicts) == {ACCEPTED}
        assert bridge.app.journal.unknown_total == 2
        assert bridge.app.journal.counts() == {"accepted": 28, "unknown": 2}
        told = bridge.app.journal.unknown()
    assert {one["resolved"] for one in told} == {""}
    assert smtp.recipients == {address: 1 for address in addresses}


async def test_unknown_messages_can_be_sent_again_instead_and_are_counted_all_the_same(
    run: RunBridge, smtp: ScriptedSmtp
) -> None:
    smtp.cuts_after_dot = 1
    addresses = [f"p{number}@a.test" for number in range(10)]
    async with run(unknown_messages="resend") as bridge:
        verdicts = list((await bridge.relay(addresses)).verdicts)
        assert sorted(verdicts) == sorted([ACCEPTED] * 9 + [TRY_LATER])
        assert set((await bridge.relay(addresses)).verdicts) == {ACCEPTED}
        assert bridge.app.journal.unknown_total == 1
    assert sorted(smtp.recipients.values()) == [1] * 9 + [2]


async def test_what_was_being_sent_when_the_process_died_is_unknown_afterwards(
    run: RunBridge, smtp: ScriptedSmtp
) -> None:
    async with run() as bridge:
        await bridge.relay(["a@a.test", "b@a.test"])
        # As kill -9 leaves it: the dot was about to be sent.
        bridge.app.journal.database.execute("UPDATE journal SET state = ? WHERE message_id = '7-2'", (State.SENDING,))
    async with run() as bridge:
        assert bridge.app.journal.unknown_total == 1
        assert list((await bridge.relay(["a@a.test", "b@a.test"])).verdicts) == [ACCEPTED, ACCEPTED]
        assert list((await bridge.withdraw("7-2")).verdicts) == [ACCEPTED]
    assert smtp.recipients == {"a@a.test": 1, "b@a.test": 1}


async def test_a_server_that_is_away_puts_everything_off_until_it_is_back(run: RunBridge, smtp: ScriptedSmtp) -> None:
    await smtp.stop()
    async with run() as bridge:
        response = await bridge.relay(["a@a.test", "b@a.test"])
        assert list(response.verdicts) == [TRY_LATER, TRY_LATER]
        assert all(refusal.retry_delay_ms > 0 for refusal in response.refusals)
        assert bridge.app.journal.counts() == {}
        await smtp.start()
        again = await bridge.relay(["a@a.test", "b@a.test"])
    assert list(again.verdicts) == [ACCEPTED, ACCEPTED]


@pytest.mark.parametrize("reply", ["421 4.3.2 too busy", "452 4.3.1 no space", "452 too many messages"])
async def test_a_server_that_asks_for_less_makes_a_pause_without_reading_and_fewer_connections_afterwards(
    run: RunBridge, smtp: ScriptedSmtp, reply: str
) -> None:
    smtp.mail_replies = [reply]
    async with run(smtp_connections=4, smtp_retry_seconds_min=0.5, smtp_retry_seconds_max=0.5) as bridge:
        first = await bridge.relay(["a@a.test"])
        assert list(first.verdicts) == [TRY_LATER]
        assert first.refusals[0].smtp_code == int(reply[:3])
        call = await bridge.open()
        await call.write(relay_pb.RelayRequest(batch=batch_of([f"p{n}@a.test" for n in range(40)])))
        began = asyncio.get_running_loop().time()
        response = await call.read()
        assert isinstance(response, relay_pb.RelayResponse)
        assert set(response.verdicts) == {ACCEPTED}
        assert asyncio.get_running_loop().time() - began > 0.2
        call.cancel()
        assert smtp.connections_most <= 2


async def test_a_domain_has_no_more_transactions_than_allowed(run: RunBridge, smtp: ScriptedSmtp) -> None:
    addresses = [f"p{number}@{'slow' if number % 3 else 'quick'}.test" for number in range(60)]
    async with run(domain_connections_max=1) as bridge:
        assert set((await bridge.relay(addresses)).verdicts) == {ACCEPTED}
    assert smtp.busy_of_domain_most["slow.test"] == 1
    assert len(smtp.mails) == 60


async def test_a_domain_has_no_more_messages_a_second_than_allowed(run: RunBridge, smtp: ScriptedSmtp) -> None:
    async with run(domain_messages_per_second_max=5) as bridge:
        response = await bridge.relay([f"p{number}@a.test" for number in range(20)] + ["q@b.test"])
    verdicts = list(response.verdicts)
    assert verdicts[:5] == [ACCEPTED] * 5
    assert verdicts.count(TRY_LATER) >= 14
    assert verdicts[-1] == ACCEPTED
    assert all(refusal.retry_delay_ms > 0 for refusal in response.refusals)


async def test_test_mode_stops_before_the_content(run: RunBridge, smtp: ScriptedSmtp) -> None:
    smtp.rcpt = {"unknown": "550 5.1.1 no such user"}
    async with run(smtp_test_mode=True) as bridge:
        response = await bridge.relay(["a@a.test", "unknown@a.test", "b@a.test"])
    assert list(response.verdicts) == [ACCEPTED, REFUSED, ACCEPTED]
    assert smtp.mails == []
    assert "DATA" not in smtp.commands


async def test_what_can_not_be_rendered_or_sent_to_is_refused_by_itself(run: RunBridge, smtp: ScriptedSmtp) -> None:
    content = delivery_pb.Content(subject="{{ 1 // (first_name|length - 5) }}", text="x", from_address="a@b.test")
    async with run() as bridge:
        response = await bridge.relay(["a@a.test"], content)
        assert list(response.verdicts) == [REFUSED]
        assert response.refusals[0].reason == send_log_pb.REASON_NOT_RENDERED
        assert response.refusals[0].failure_type == send_log_pb.FAILURE_TYPE_IGNORED
        broken = delivery_pb.Content(subject="{{", text="x", from_address="a@b.test")
        assert list((await bridge.relay(["b@a.test"], broken, first=2)).verdicts) == [REFUSED]
        strange = ["a>b@a.test", "ünï@a.test", "a@bücher.test", "a b@a.test"]
        assert list((await bridge.relay(strange, first=3)).verdicts) == [REFUSED, REFUSED, ACCEPTED, REFUSED]
    assert list(smtp.recipients) == ["a@xn--bcher-kva.test"]


async def test_withdrawn_before_it_came_a_message_never_leaves(run: RunBridge, smtp: ScriptedSmtp) -> None:
    async with run() as bridge:
        withdrawn = await bridge.withdraw("7-1", "7-2", "7-1")
        assert list(withdrawn.verdicts) == [WITHDRAWN] * 3
        response = await bridge.relay(["a@a.test", "b@a.test", "c@a.test"])
        assert list(response.verdicts) == [WITHDRAWN, WITHDRAWN, ACCEPTED]
        assert response.answer_times_us[:2] == list(withdrawn.answer_times_us[:2])
        again = await bridge.withdraw("7-1", "7-3")
        assert list(again.verdicts) == [WITHDRAWN, ACCEPTED]
    assert list(smtp.recipients) == ["c@a.test"]


async def test_withdrawing_in_the_middle_decides_each_message_for_ever(run: RunBridge, smtp: ScriptedSmtp) -> None:
    smtp.hold_dot.clear()
    smtp.data_reply = {"later": "450 4.2.0 not now"}
    addresses = ["ok@a.test", "later@a.test", *(f"p{number}@a.test" for number in range(20))]
    ids = [f"7-{number}" for number in range(1, len(addresses) + 1)]
    async with run(smtp_connections=2) as bridge:
        relaying = asyncio.create_task(bridge.relay(addresses))
        await eventually(lambda: smtp.waiting_dots == 2)
        withdrawing = asyncio.create_task(bridge.withdraw(*ids))
        await eventually(lambda: bridge.app.sender.counts()["QUEUED"] == 0)
        smtp.hold_dot.set()
        withdrawn, relayed = await withdrawing, await relaying
        decided = list(withdrawn.verdicts)
        assert decided[0] == ACCEPTED
        assert decided[1] == WITHDRAWN  # put off by the server, so it has not left, and never will
        assert decided.count(WITHDRAWN) >= 16
        assert list(relayed.verdicts) == [decided[0], TRY_LATER, *decided[2:]]
        assert list((await bridge.relay(addresses)).verdicts) == decided
    accepted = {address for address, verdict in zip(addresses, decided, strict=True) if verdict == ACCEPTED}
    assert set(smtp.recipients) == accepted


async def test_a_withdrawal_repeated_while_the_message_is_being_sent_gets_one_answer(
    run: RunBridge, smtp: ScriptedSmtp
) -> None:
    """As DeliveryService repeats it when its first one has taken too long."""
    smtp.hold_dot.clear()
    smtp.data_reply = {"later": "450 4.2.0 not now"}
    async with run() as bridge:
        relaying = asyncio.create_task(bridge.relay(["later@a.test"]))
        await eventually(lambda: smtp.waiting_dots == 1)
        job = bridge.app.sender.job("7-1")
        assert job is not None
        waiting = len(job.waiters)
        withdrawing = [asyncio.create_task(bridge.withdraw("7-1")) for _ in range(3)]
        await eventually(lambda: len(job.waiters) == waiting + 3)
        smtp.hold_dot.set()
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*withdrawing)
            assert list((await relaying).verdicts) == [TRY_LATER]
        assert [list(answer.verdicts) for answer in answers] == [[WITHDRAWN]] * 3
        assert len({tuple(answer.answer_times_us) for answer in answers}) == 1, "the first answer stands"


async def test_requests_out_of_order_or_out_of_bounds_are_refused(run: RunBridge) -> None:
    async with run() as bridge:
        call = bridge.stub.Relay()
        await call.write(relay_pb.RelayRequest(batch=batch_of(["a@a.test"])))
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await call.read()
        assert missing.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(grpc.aio.AioRpcError) as empty:
            await bridge.withdraw()
        assert empty.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as long:
            await bridge.withdraw("x" * 101)
        assert long.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_relay_wants_its_role(run: RunBridge) -> None:
    async with run() as bridge, open_channel(bridge.app.addresses["address"], StaticToken("forged")) as channel:
        call: Any = channel.stream_stream("/campaign.mta.v1.RelayService/Relay")()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_stop_puts_off_what_is_queued_and_lets_the_rest_get_its_answer(
    run: RunBridge, smtp: ScriptedSmtp
) -> None:
    smtp.hold_dot.clear()
    async with run(smtp_connections=1) as bridge:
        call = await bridge.open()
        await call.write(relay_pb.RelayRequest(batch=batch_of([f"p{number}@a.test" for number in range(10)])))
        await eventually(lambda: smtp.waiting_dots == 1)
        stopping = asyncio.create_task(bridge.stop())
        await eventually(lambda: bridge.app.sender.counts()["QUEUED"] == 0)
        smtp.hold_dot.set()
        response = await call.read()
        assert isinstance(response, relay_pb.RelayResponse)
        call.cancel()
        await stopping
    verdicts = list(response.verdicts)
    assert verdicts.count(ACCEPTED) in (1, 2)
    assert len(smtp.mails) == verdicts.count(ACCEPTED)
