"""RelayService: takes messages over, once each, gives a repetition the first answer again, and withdraws."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import grpc
import grpc.aio

from campaign.delivery.v1 import delivery_pb2 as delivery_pb
from campaign.delivery.v1 import send_log_pb2 as send_log_pb
from campaign.mta.v1 import relay_service_pb2 as relay_pb
from campaign.mta.v1 import relay_service_pb2_grpc as relay_grpc
from message_template.message import compiled
from message_template.sandbox import InvalidTemplate
from mta_bridge.domain.mime import MessageBuilder
from mta_bridge.metrics import BridgeMetrics
from mta_bridge.outbound.jobs import Content, Job, Result, Stage, Verdict
from mta_bridge.outbound.sender import Sender
from mta_bridge.settings import Settings
from mta_bridge.store.journal import Answer, Journal, State
from service_runtime.clock import Clock
from service_runtime.errors import ErrorStatus, ErrorTable
from service_runtime.problems import InvalidInput, Problem

BATCH_MESSAGES_MAX: Final = 1_024
BATCHES_IN_FLIGHT_MAX: Final = 4
"""Per stream. Beyond it the stream is not read."""
TEMPLATES_PER_STREAM_MAX: Final = 256
"""The one that came first is forgotten; its delivery gets TEMPLATE_MISSING and sends it again."""
MESSAGE_ID_CHARACTERS_MAX: Final = 100
BUILDERS_MAX: Final = 64

_VERDICTS: Final = {
    Verdict.ACCEPTED: relay_pb.RELAY_VERDICT_ACCEPTED,
    Verdict.REFUSED: relay_pb.RELAY_VERDICT_REFUSED,
    Verdict.TRY_LATER: relay_pb.RELAY_VERDICT_TRY_LATER,
    Verdict.WITHDRAWN: relay_pb.RELAY_VERDICT_WITHDRAWN,
}
_OF_STATE: Final = {
    State.ACCEPTED: Verdict.ACCEPTED,
    State.UNKNOWN: Verdict.ACCEPTED,  # counted apart; it must not be sent again
    State.REFUSED: Verdict.REFUSED,
    State.WITHDRAWN: Verdict.WITHDRAWN,
}


class TemplateMissing(Problem):
    """A batch came before the template of its delivery."""

    def __init__(self, delivery_id: str) -> None:
        super().__init__(
            "this stream has not carried the delivery's template: send it before the first batch",
            metadata={"delivery_id": delivery_id},
        )


RELAY_ERRORS: ErrorTable = {
    InvalidInput: ErrorStatus(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    TemplateMissing: ErrorStatus(grpc.StatusCode.FAILED_PRECONDITION, "TEMPLATE_MISSING"),
}


@dataclass(frozen=True, slots=True)
class Unusable:
    """A delivery that can't be sent: each of its messages is refused."""

    reason: str


class _Answers:
    """The answers to one batch, as they come in."""

    def __init__(self, count: int) -> None:
        self.results: list[Result | None] = [None] * count
        self._left = count
        self._complete = asyncio.Event()

    def give(self, index: int, result: Result) -> None:
        if self.results[index] is None:
            self.results[index] = result
            self._left -= 1
            if not self._left:
                self._complete.set()

    async def complete(self) -> list[Result]:
        if self._left:
            await self._complete.wait()
        return [result for result in self.results if result is not None]


class Relay(relay_grpc.RelayServiceServicer):
    """The service."""

    def __init__(
        self, settings: Settings, journal: Journal, sender: Sender, metrics: BridgeMetrics, clock: Clock
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._sender = sender
        self._metrics = metrics
        self._clock = clock
        self._unanswered = 0
        self._all_answered = asyncio.Event()
        self._all_answered.set()

    async def all_answered(self) -> None:
        """Returns when every batch that was taken has been answered, or its stream has ended."""
        await self._all_answered.wait()

    async def Relay(  # type: ignore[override]  # a coroutine that writes is as good as a generator: grpc.aio takes both
        self,
        request_iterator: AsyncIterator[relay_pb.RelayRequest],
        context: "grpc.aio.ServicerContext[Any, relay_pb.RelayResponse]",
    ) -> None:
        contents: OrderedDict[str, Content | Unusable] = OrderedDict()
        in_flight = asyncio.Semaphore(BATCHES_IN_FLIGHT_MAX)
        writing = asyncio.Lock()

        async def answer(batch: relay_pb.RelayBatch, answers: _Answers) -> None:
            try:
                response = _response(batch.sequence, await answers.complete())
                async with writing:
                    await context.write(response)
            finally:
                in_flight.release()
                self._unanswered -= 1
                if not self._unanswered:
                    self._all_answered.set()

        async with asyncio.TaskGroup() as answering:
            async for request in request_iterator:
                match request.WhichOneof("request"):
                    case "template":
                        contents[request.template.delivery_id] = self._content(request.template)
                        if len(contents) > TEMPLATES_PER_STREAM_MAX:
                            contents.popitem(last=False)
                    case "batch":
                        batch = request.batch
                        _validate("batch.messages", [message.message_id for message in batch.messages])
                        if (content := contents.get(batch.delivery_id)) is None:
                            raise TemplateMissing(batch.delivery_id)
                        await in_flight.acquire()
                        await self._sender.room(len(batch.messages))
                        # What is taken is sent and answered in the journal, whatever becomes of this stream.
                        self._unanswered += 1
                        self._all_answered.clear()
                        answering.create_task(answer(batch, self._take(batch, content)))
                    case _:
                        raise InvalidInput.of("request", "neither a template nor a batch: set one of them")

    async def Withdraw(
        self,
        request: relay_pb.WithdrawRequest,
        context: Any,  # noqa: ARG002 - the interface's
    ) -> relay_pb.WithdrawResponse:
        message_ids = list(request.message_ids)
        _validate("message_ids", message_ids)
        answers = _Answers(len(message_ids))
        known = self._known(message_ids)
        places: dict[str, list[int]] = {}
        for index, message_id in enumerate(message_ids):
            places.setdefault(message_id, []).append(index)
        for message_id, indices in places.items():
            self._withdraw(message_id, known.get(message_id), lambda result, at=indices: _give(answers, at, result))
        response = _response(0, await answers.complete())
        return relay_pb.WithdrawResponse(
            verdicts=response.verdicts, answer_times_us=response.answer_times_us, refusals=response.refusals
        )

    def _take(self, batch: relay_pb.RelayBatch, content: Content | Unusable) -> _Answers:
        """Takes all messages of a batch; the answers come by themselves."""
        answers = _Answers(len(batch.messages))
        known = self._known([message.message_id for message in batch.messages])
        queued_at = self._clock.monotonic()
        for index, message in enumerate(batch.messages):
            message_id = message.message_id
            if (answer := known.get(message_id)) is not None:
                self._metrics.repeated.inc()
                answers.give(index, _result_of(answer))
                continue
            tell = _teller(answers, index)
            if (job := self._sender.job(message_id)) is not None:
                # Under way already, for another stream or one that was cut.
                self._metrics.repeated.inc()
                job.waiters.append(tell)
            elif isinstance(content, Unusable):
                self._refuse(message_id, content.reason, tell)
            else:
                self._sender.submit(
                    Job(
                        message_id, message.address, message.attributes_json, message.deadline_us, content, queued_at,
                        waiters=[tell],
                    )
                )  # fmt: skip
        self._sender.pump()
        return answers

    def _known(self, message_ids: Sequence[str]) -> dict[str, Answer]:
        # What is waiting for the next commit may be asked for here: then it is committed first.
        self._journal.flush()
        return self._journal.known(message_ids)

    def _refuse(self, message_id: str, reason: str, tell: Any) -> None:
        refusal = relay_pb.RelayRefusal(
            diagnostic=reason[:1_000],
            failure_type=send_log_pb.FAILURE_TYPE_IGNORED,
            reason=send_log_pb.REASON_NOT_RENDERED,
        ).SerializeToString()
        result = Result(Verdict.REFUSED, self._clock.now_us(), refusal)
        self._journal.refused(message_id, result.time_us, refusal, lambda: tell(result))

    def _withdraw(self, message_id: str, answer: Answer | None, tell: Any) -> None:
        if answer is not None:
            tell(_result_of(answer))
            return
        job = self._sender.job(message_id)
        if job is None:
            result = Result(Verdict.WITHDRAWN, self._clock.now_us())
            self._journal.withdrawn(message_id, result.time_us, lambda: tell(result))
            return
        if job.stage is Stage.QUEUED:
            self._sender.withdraw(job)
            job.waiters.append(tell)
            return

        def told(result: Result) -> None:
            # It had begun to leave. Put off, it has not left after all, and never will; if several have waited for
            # that to withdraw it, the first of them has written it down.
            if result.verdict is Verdict.TRY_LATER:
                self._withdraw(message_id, self._known([message_id]).get(message_id), tell)
            else:
                tell(result)

        job.waiters.append(told)

    def _content(self, template: relay_pb.RelayTemplate) -> Content | Unusable:
        if template.channel not in (delivery_pb.CHANNEL_EMAIL, delivery_pb.CHANNEL_UNSPECIFIED):
            channel = delivery_pb.Channel.Name(template.channel)
            return Unusable(f"this MTA side sends email, not {channel}: route the channel elsewhere")
        content = template.content
        try:
            message_template = compiled(content.subject, content.html, content.text)
        except InvalidTemplate as invalid:
            return Unusable(f"the template can't be compiled: {invalid}")
        builder = _builder(
            content.from_name,
            content.from_address,
            content.reply_to_address,
            self._settings.bounce_domain,
            self._settings.unsubscribe_url,
        )
        return Content(message_template, builder)


@lru_cache(maxsize=BUILDERS_MAX)
def _builder(
    from_name: str, from_address: str, reply_to: str, bounce_domain: str, unsubscribe_url: str
) -> MessageBuilder:
    domain = from_address.rpartition("@")[2]
    # A Message-ID of the sender's own domain looks like what it is; the bounce domain serves if that can't stand there.
    return MessageBuilder(
        from_name, from_address, reply_to, domain if domain.isascii() and domain else bounce_domain, unsubscribe_url
    )


def _teller(answers: _Answers, index: int) -> Any:
    return lambda result: answers.give(index, result)


def _give(answers: _Answers, indices: Sequence[int], result: Result) -> None:
    for index in indices:
        answers.give(index, result)


def _result_of(answer: Answer) -> Result:
    return Result(_OF_STATE[answer.state], answer.time_us, answer.refusal)


def _response(sequence: int, results: Sequence[Result]) -> relay_pb.RelayResponse:
    response = relay_pb.RelayResponse(
        sequence=sequence,
        verdicts=[_VERDICTS[result.verdict] for result in results],
        answer_times_us=[result.time_us for result in results],
    )
    for index, result in enumerate(results):
        if result.refusal is not None:
            refusal = response.refusals.add()
            refusal.ParseFromString(result.refusal)
            refusal.index = index
    return response


def _validate(field: str, message_ids: Sequence[str]) -> None:
    if not 1 <= len(message_ids) <= BATCH_MESSAGES_MAX:
        raise InvalidInput.of(field, f"{len(message_ids)} messages: send 1 to {BATCH_MESSAGES_MAX:,}")
    for index, message_id in enumerate(message_ids):
        if not 1 <= len(message_id) <= MESSAGE_ID_CHARACTERS_MAX:
            wanted = f"send an id of 1 to {MESSAGE_ID_CHARACTERS_MAX} characters"
            raise InvalidInput.of(f"{field}[{index}]", wanted)
