"""The simulator as a whole: a real relay client on one side, a FeedbackService double on the other."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from campaign.delivery.v1 import delivery_pb2 as delivery_pb
from campaign.delivery.v1 import send_log_pb2 as send_log_pb
from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from campaign.mta.v1 import relay_service_pb2 as relay_pb
from campaign.mta.v1 import relay_service_pb2_grpc as relay_grpc
from mta_simulator.app import Settings, Simulator, running
from mta_simulator.misbehaviour import MisbehaviourOptions
from mta_simulator.script import ScriptOptions
from mta_simulator.truth import OUTCOME_OF_KIND
from service_runtime.client import StaticToken, open_channel
from service_runtime.clock import SystemClock
from service_runtime.development_keys import DevelopmentKeys
from tests.support.eventually import eventually
from tests.support.feedback_double import FeedbackDouble
from tests.support.statuses import refused

FAST = ScriptOptions(time_scale=0.01)
ACCEPTED, REFUSED, TRY_LATER, WITHDRAWN = (
    relay_pb.RELAY_VERDICT_ACCEPTED,
    relay_pb.RELAY_VERDICT_REFUSED,
    relay_pb.RELAY_VERDICT_TRY_LATER,
    relay_pb.RELAY_VERDICT_WITHDRAWN,
)
Call: TypeAlias = "grpc.aio.StreamStreamCall[relay_pb.RelayRequest, relay_pb.RelayResponse]"


@dataclass
class Running:
    simulator: Simulator
    lines: list[dict[str, Any]]
    channel: grpc.aio.Channel

    def open(self) -> Call:
        return relay_grpc.RelayServiceStub(self.channel).Relay()

    def truths(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["action"] == "truth" and line["idle"]]

    async def truth(self, number: int = 1) -> dict[str, Any]:
        """The last truth told at idle, once there are `number` of them."""
        await eventually(lambda: len(self.truths()) >= number)
        return self.truths()[-1]


Run: TypeAlias = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
async def feedback() -> AsyncIterator[FeedbackDouble]:
    double = FeedbackDouble()
    await double.start()
    yield double
    double.acknowledging.set()
    await double.stop()
    assert double.faults == []


@pytest.fixture
def run(feedback: FeedbackDouble) -> Run:
    keys = DevelopmentKeys.generate(SystemClock())

    @asynccontextmanager
    async def run_one(role: str = "relay", **settings: Any) -> AsyncIterator[Running]:
        lines: list[dict[str, Any]] = []
        made = Settings(
            feedback_target=f"127.0.0.1:{feedback.port}",
            public_key_pem=keys.public_pem.decode(),
            port=0,
            **{"script": FAST, **settings},
        )
        async with running(made, StaticToken("the mta's token"), lines.append) as simulator:
            channel = open_channel(simulator.address, StaticToken(keys.sign("relay worker", [role])))
            try:
                yield Running(simulator, lines, channel)
            finally:
                await channel.close()

    return run_one


def template(delivery_id: str = "7", **content: str) -> relay_pb.RelayRequest:
    made = delivery_pb.Content(**({"subject": "Hi {{ name }}", "html": "<b>{{ name }}</b>"} | content))
    return relay_pb.RelayRequest(template=relay_pb.RelayTemplate(delivery_id=delivery_id, content=made))


def batch(sequence: int, messages: dict[str, str], delivery_id: str = "7") -> relay_pb.RelayRequest:
    request = relay_pb.RelayRequest(batch=relay_pb.RelayBatch(sequence=sequence, delivery_id=delivery_id))
    for message_id, address in messages.items():
        request.batch.messages.add(message_id=message_id, address=address, attributes_json='{"name": "Anna"}')
    return request


def people(first: int, count: int) -> dict[str, str]:
    return {f"m{number}": f"person{number}@mail.test" for number in range(first, first + count)}


async def answer_to(call: Call, *requests: relay_pb.RelayRequest) -> relay_pb.RelayResponse:
    for request in requests:
        await call.write(request)
    response = await call.read()
    assert isinstance(response, relay_pb.RelayResponse)
    return response


async def relay(running: Running, batches: Sequence[dict[str, str]]) -> list[relay_pb.RelayResponse]:
    call = running.open()
    await call.write(template())
    answers = [await answer_to(call, batch(number, messages)) for number, messages in enumerate(batches, 1)]
    await call.done_writing()
    return answers


def outcomes(events: Sequence[feedback_pb.MtaEvent]) -> Counter[int]:
    greatest: defaultdict[str, int] = defaultdict(int)
    for event in events:
        greatest[event.message_id] = max(greatest[event.message_id], OUTCOME_OF_KIND.get(event.kind, 0))
    return Counter(greatest.values())


async def test_a_repetition_gets_the_first_answer_with_its_time(run: Run) -> None:
    async with run() as running:
        call = running.open()
        messages = {"a": "anna+ok@mail.test", "b": "bert+refused@mail.test"}
        first = await answer_to(call, template(), batch(1, messages))
        assert list(first.verdicts) == [ACCEPTED, REFUSED]
        assert (first.refusals[0].index, first.refusals[0].smtp_code) == (1, 550)
        assert first.refusals[0].reason == send_log_pb.REASON_USER_UNKNOWN
        again = await answer_to(call, batch(2, {"c": "carl@mail.test"} | messages))
        assert list(again.verdicts)[1:] == list(first.verdicts)
        assert list(again.answer_times_us)[1:] == list(first.answer_times_us)
        assert again.refusals[-1].index == 2
        await call.done_writing()
        assert (running.simulator.truth.repeated, running.simulator.truth.total.accepted) == (2, 2)


async def test_concurrent_repetition_on_two_streams_is_accepted_once(run: Run, feedback: FeedbackDouble) -> None:
    async with run() as running:
        batches = [people(number * 100, 100) for number in range(5)]
        one, other = await asyncio.gather(relay(running, batches), relay(running, batches))
        for first, second in zip(one, other, strict=True):
            assert first == second
        truth = await running.truth()
        assert (truth["accepted"] + truth["refused"], truth["repeated"], truth["duplicates_sent"]) == (500, 500, 0)
        assert Counter(event.message_id for event in feedback.committed).total() == truth["events_played"]


async def test_of_relay_and_withdraw_the_first_one_decides_for_ever(run: Run, feedback: FeedbackDouble) -> None:
    async with run() as running:
        call = running.open()
        taken = await answer_to(call, template(), batch(1, {"a": "anna+ok@mail.test", "b": "bert+refused@mail.test"}))
        withdraw = relay_grpc.RelayServiceStub(running.channel).Withdraw
        request = relay_pb.WithdrawRequest(delivery_id="7", message_ids=["c", "a", "b", "c"])

        answer = await withdraw(request)
        assert list(answer.verdicts) == [WITHDRAWN, ACCEPTED, REFUSED, WITHDRAWN]
        assert list(answer.answer_times_us)[1:3] == list(taken.answer_times_us)
        assert [(refusal.index, refusal.smtp_code) for refusal in answer.refusals] == [(2, 550)]
        assert await withdraw(request) == answer

        late = await answer_to(call, batch(2, {"c": "carl@mail.test"}))
        assert (list(late.verdicts), list(late.answer_times_us)) == ([WITHDRAWN], [answer.answer_times_us[0]])
        await call.done_writing()
        truth = await running.truth()
        assert (truth["accepted"], truth["refused"], truth["withdrawn"]) == (1, 1, 1)
        assert truth["outcomes"]["CANCELED"] == 1
        assert {event.message_id for event in feedback.committed} == {"a"}


async def test_a_withdrawal_needs_one_to_1024_ids(run: Run) -> None:
    async with run() as running:
        withdraw = relay_grpc.RelayServiceStub(running.channel).Withdraw
        for ids in ([], ["m"] * 1_025, ["m" * 101], [""]):
            async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
                await withdraw(relay_pb.WithdrawRequest(delivery_id="7", message_ids=ids))


async def test_a_message_id_twice_in_one_batch_is_accepted_once(run: Run) -> None:
    async with run() as running:
        call = running.open()
        request = batch(1, {"a": "anna@mail.test"})
        request.batch.messages.add().CopyFrom(request.batch.messages[0])
        answer = await answer_to(call, template(), request)
        assert answer.answer_times_us[0] == answer.answer_times_us[1]
        await call.done_writing()
        assert running.simulator.truth.total.accepted + running.simulator.truth.total.refused == 1


async def test_with_a_journal_file_answers_and_open_events_outlive_a_restart(
    run: Run, feedback: FeedbackDouble, tmp_path: Path
) -> None:
    journal = str(tmp_path / "journal.db")
    feedback.acknowledging.clear()
    async with run(journal=journal) as running:
        first = await relay(running, [people(0, 200)])
        await eventually(lambda: feedback.arrived)
    assert feedback.committed == []
    assert running.lines[-1]["idle"] is False
    feedback.acknowledging.set()
    async with run(journal=journal) as running:
        assert await relay(running, [people(0, 200)]) == first
        truth = await running.truth()
    assert (truth["accepted"] + truth["refused"], truth["repeated"], truth["duplicates_sent"]) == (200, 200, 0)
    assert outcomes(feedback.committed)[send_log_pb.OUTCOME_DELIVERED] == truth["outcomes"]["DELIVERED"]


async def test_cut_streams_resend_what_is_not_acked_and_lose_nothing(run: Run, feedback: FeedbackDouble) -> None:
    async with run(misbehaviour=MisbehaviourOptions(cut_streams=2, duplicates=0.05, reorder=True)) as running:
        await relay(running, [people(number * 1_000, 1_000) for number in range(5)])
        truth = await running.truth()
        assert truth["streams_cut"] >= 3
        assert truth["batches_resent"] >= 1
        assert len(feedback.opened) > 3
        found = outcomes(feedback.committed)
        found[send_log_pb.OUTCOME_BOUNCED] += truth["refused"]
        names = {name: found[send_log_pb.Outcome.Value(f"OUTCOME_{name}")] for name in truth["outcomes"]}
        assert names == truth["outcomes"]
        assert truth["outcomes"] == truth["deliveries"]["7"]["outcomes"]


async def test_several_streams_open_under_names_of_their_own_with_the_token(run: Run, feedback: FeedbackDouble) -> None:
    async with run(streams=4, source_id="mta"):
        await eventually(lambda: len(feedback.opened) == 4)
        assert {(opened.source_id, opened.protocol_version) for opened in feedback.opened} == {
            (f"mta-{number}", 1) for number in range(1, 5)
        }
        assert feedback.authorisations == {"Bearer the mta's token"}


async def test_while_feedback_is_away_the_relay_waits_and_goes_on_when_it_is_back(
    run: Run, feedback: FeedbackDouble
) -> None:
    await feedback.stop()
    async with run(pending_events_max=100) as running:
        call = running.open()
        await call.write(template())
        for number in range(6):
            await call.write(batch(number + 1, people(number * 100, 100)))
        answers = [await call.read()]
        waiting = asyncio.ensure_future(call.read())
        # What must not happen can only be watched for a while.
        await asyncio.wait([waiting], timeout=0.3)
        assert not waiting.done()
        assert running.simulator.truth.total.outcomes.total() == 100
        assert not running.simulator.idle
        await feedback.start()
        answers.append(await waiting)
        while len(answers) < 6:
            answers.append(await call.read())
        await call.done_writing()
        truth = await eventually(
            lambda: [line for line in running.truths() if line["accepted"] + line["refused"] == 600]
        )
        assert truth[-1]["events_played"] == len(feedback.committed)


async def test_feedback_killed_in_the_middle_gets_everything_from_the_next_one(
    run: Run, feedback: FeedbackDouble
) -> None:
    feedback.acknowledging.clear()
    async with run() as running:
        await relay(running, [people(0, 1_000)])
        await eventually(lambda: feedback.arrived)
        await feedback.stop()
        feedback.acknowledging.set()
        feedback.committed.clear()
        await feedback.start()
        truth = await running.truth()
        assert len(feedback.committed) == truth["events_played"]
        assert truth["batches_resent"] >= 1


async def test_the_truth_is_printed_once_at_each_idle_and_at_the_end(run: Run) -> None:
    async with run() as running:
        assert running.lines == [{"action": "listening", "address": running.simulator.address}]
        await relay(running, [{"a": "a+ok@mail.test", "b": "b+hard@mail.test", "c": "c+refused@mail.test"}])
        first = await running.truth()
        assert (first["accepted"], first["refused"]) == (2, 1)
        expected = dict.fromkeys(("PREPARED", "CANCELED", "RELAYED", "DEFERRED", "EXPIRED"), 0)
        assert first["outcomes"] == expected | {"DELIVERED": 1, "BOUNCED": 2}
        assert first["characters_rendered"] == 2 * (len("Hi Anna") + len("<b>Anna</b>"))
        await relay(running, [{"d": "d+silent@mail.test", "e": "e+expired@mail.test"}])
        second = await running.truth(2)
        assert second["outcomes"] == expected | {"DELIVERED": 1, "BOUNCED": 2, "RELAYED": 1, "EXPIRED": 1}
    assert running.lines[-1] == second
    assert len(running.truths()) == 3


async def test_a_message_put_off_is_taken_after_a_few_repetitions(run: Run) -> None:
    async with run() as running:
        call = running.open()
        await call.write(template())
        answers = [await answer_to(call, batch(number, {"a": "anna+later@mail.test"})) for number in (1, 2, 3, 4)]
        await call.done_writing()
        assert [answer.verdicts[0] for answer in answers] == [TRY_LATER, TRY_LATER, ACCEPTED, ACCEPTED]
        assert answers[0].refusals[0].retry_delay_ms > 0
        assert running.simulator.truth.put_off == 2


@pytest.mark.parametrize("html", ["{{ 1 / 0 }}", "{{ name.__class__ }}"], ids=["fails when rendered", "can't compile"])
async def test_a_message_that_can_t_be_rendered_is_refused(run: Run, html: str) -> None:
    async with run() as running:
        call = running.open()
        answer = await answer_to(call, template(html=html), batch(1, {"a": "anna+ok@mail.test"}))
        await call.done_writing()
        assert list(answer.verdicts) == [REFUSED]
        assert answer.refusals[0].reason == send_log_pb.REASON_NOT_RENDERED
        assert "html" in answer.refusals[0].diagnostic
        assert running.simulator.truth.total.outcomes[send_log_pb.OUTCOME_BOUNCED] == 1


async def test_rejections_are_counted_and_not_sent_again(run: Run, feedback: FeedbackDouble) -> None:
    feedback.rejected_kinds = {feedback_pb.MTA_EVENT_KIND_BOUNCE}
    async with run() as running:
        await relay(running, [{"a": "a+hard@mail.test", "b": "b+ok@mail.test"}])
        truth = await running.truth()
        assert truth["events_rejected"] == {"MALFORMED": 1}
        assert len(feedback.arrived) == 2


@pytest.mark.parametrize(
    ("requests", "code", "reason"),
    [
        ([batch(1, {"a": "a@mail.test"})], grpc.StatusCode.FAILED_PRECONDITION, "TEMPLATE_MISSING"),
        ([relay_pb.RelayRequest()], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([template(), batch(1, {})], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([template(), batch(1, {"": "a@mail.test"})], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ([template(), batch(1, {"x" * 101: "a@mail.test"})], grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    ],
)
async def test_a_wrong_request_ends_the_stream_with_its_reason(
    run: Run, requests: list[relay_pb.RelayRequest], code: grpc.StatusCode, reason: str
) -> None:
    async with run() as running:
        assert await failure_of(running, requests) == (code, reason)


async def test_only_the_role_relay_may_relay(run: Run) -> None:
    async with run(role="read") as running:
        assert await failure_of(running, [template()]) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING")


async def failure_of(running: Running, requests: list[relay_pb.RelayRequest]) -> tuple[grpc.StatusCode, str]:
    async def all_of_them() -> AsyncIterator[relay_pb.RelayRequest]:
        for request in requests:
            yield request

    with pytest.raises(grpc.aio.AioRpcError) as failure:
        async for _ in relay_grpc.RelayServiceStub(running.channel).Relay(all_of_them()):
            pass
    error: Any = failure.value
    status = rpc_status.from_call(error)
    info = ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return failure.value.code(), info.reason
