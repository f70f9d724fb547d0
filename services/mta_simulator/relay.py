"""RelayService: takes messages over, once each, and gives a repetition the first answer again."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
import orjson

from campaign.delivery.v1 import delivery_pb2 as delivery_pb
from campaign.delivery.v1 import send_log_pb2 as send_log_pb
from campaign.mta.v1 import relay_service_pb2 as relay_pb
from campaign.mta.v1 import relay_service_pb2_grpc as relay_grpc
from message_template.message import MessageTemplate, NotRendered, compiled
from message_template.sandbox import InvalidTemplate
from mta_simulator import dialects
from mta_simulator.journal import WITHDRAWN, Answer, Entry, Journal
from mta_simulator.misbehaviour import Misbehaviour
from mta_simulator.playback import Playback
from mta_simulator.script import Script, ScriptWriter
from mta_simulator.truth import Truth
from service_runtime.clock import Clock
from service_runtime.errors import ErrorStatus, ErrorTable
from service_runtime.problems import InvalidInput, Problem

BATCH_MESSAGES_MAX: Final = 1_024
BATCHES_IN_FLIGHT_MAX: Final = 4
"""Per stream. Beyond it the stream is not read."""
TEMPLATES_PER_STREAM_MAX: Final = 256
"""The one that came first is forgotten; its delivery gets TEMPLATE_MISSING and sends it again."""
MESSAGE_ID_CHARACTERS_MAX: Final = 100
_WANTED_ID: Final = f"send an id of 1 to {MESSAGE_ID_CHARACTERS_MAX} characters"
PUT_OFF_MAX: Final = 100_000
"""Messages remembered as put off. Beyond it nothing more is put off, so that everything gets its turn."""
RETRY_DELAY_MS: Final = 200
MESSAGES_PER_TURN: Final = 100
"""Rendered between two turns of the event loop, so that feedback keeps flowing meanwhile."""


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
    """A template that can't be compiled: each of its messages is refused."""

    reason: str


class Relay(relay_grpc.RelayServiceServicer):
    """The service."""

    def __init__(
        self,
        journal: Journal,
        script: ScriptWriter,
        playback: Playback,
        misbehaviour: Misbehaviour,
        truth: Truth,
        clock: Clock,
    ) -> None:
        self._journal = journal
        self._script = script
        self._playback = playback
        self._misbehaviour = misbehaviour
        self._truth = truth
        self._clock = clock
        self._put_off: dict[str, int] = {}
        self._takes = 0

    @property
    def busy(self) -> bool:
        """Whether a batch is being taken."""
        return self._takes > 0

    async def Relay(  # type: ignore[override]  # a coroutine that writes is as good as a generator: grpc.aio takes both
        self,
        request_iterator: AsyncIterator[relay_pb.RelayRequest],
        context: "grpc.aio.ServicerContext[Any, relay_pb.RelayResponse]",
    ) -> None:
        templates: OrderedDict[str, MessageTemplate | Unusable] = OrderedDict()
        in_flight = asyncio.Semaphore(BATCHES_IN_FLIGHT_MAX)
        writing = asyncio.Lock()

        async def answer(batch: relay_pb.RelayBatch, template: MessageTemplate | Unusable) -> None:
            try:
                response = await self._take(batch, template)
                if delay_seconds := self._misbehaviour.answer_delay_seconds():
                    await self._clock.sleep(delay_seconds)
                async with writing:
                    await context.write(response)
            finally:
                in_flight.release()

        async with asyncio.TaskGroup() as answers:
            async for request in request_iterator:
                match request.WhichOneof("request"):
                    case "template":
                        templates[request.template.delivery_id] = _compile(request.template.content)
                        if len(templates) > TEMPLATES_PER_STREAM_MAX:
                            templates.popitem(last=False)
                    case "batch":
                        batch = request.batch
                        _validate(batch)
                        if (template := templates.get(batch.delivery_id)) is None:
                            raise TemplateMissing(batch.delivery_id)
                        await in_flight.acquire()
                        answers.create_task(answer(batch, template))
                    case _:
                        raise InvalidInput.of("request", "neither a template nor a batch: set one of them")

    async def Withdraw(
        self,
        request: relay_pb.WithdrawRequest,
        context: Any,  # noqa: ARG002 - the contract's signature
    ) -> relay_pb.WithdrawResponse:
        _validate_ids("message_ids", request.message_ids)
        now_us = self._clock.now_us()
        # Those that are being taken are not in the journal yet: whoever records first has given the first answer.
        recorded = self._journal.record(
            [
                Entry(
                    message_id, request.delivery_id, "", now_us, WITHDRAWN, send_log_pb.OUTCOME_CANCELED, False, False
                )
                for message_id in dict.fromkeys(request.message_ids)
            ]
        )
        answers = recorded.first_answers | {entry.message_id: Answer(now_us, WITHDRAWN) for entry in recorded.fresh}
        self._count(request.delivery_id, recorded.fresh)
        response = relay_pb.WithdrawResponse()
        for index, message_id in enumerate(request.message_ids):
            verdict, refusal = _verdict(answers[message_id])
            response.verdicts.append(verdict)
            response.answer_times_us.append(answers[message_id].answer_time_us)
            if refusal is not None:
                refusal.index = index
                response.refusals.append(refusal)
        return response

    async def _take(self, batch: relay_pb.RelayBatch, template: MessageTemplate | Unusable) -> relay_pb.RelayResponse:
        """Takes a batch as soon as there is room."""
        places = len(batch.messages)
        await self._playback.reserve(places)
        self._takes += 1
        try:
            answers = self._journal.known([message.message_id for message in batch.messages])
            decided = await self._decide_all(batch, answers, template)
            # No await from here on: what is in the journal is played too, wherever the stream is cut. Another stream
            # may have been faster since `known`, and then its answers stand.
            put_off = sum(entry is None for entry, _ in decided.values())
            recorded = self._journal.record([entry for entry, _ in decided.values() if entry is not None])
            answers |= recorded.first_answers
            answers |= {entry.message_id: Answer(entry.answer_time_us, entry.refusal) for entry in recorded.fresh}
            accepted = [entry for entry in recorded.fresh if entry.refusal is None]
            self._playback.play(
                recorded.range_id,
                [(entry.message_id, entry.answer_time_us, decided[entry.message_id][1]) for entry in accepted],
            )
            self._count(batch.delivery_id, recorded.fresh)
            self._truth.put_off += put_off
            self._truth.repeated += places - put_off - len(recorded.fresh)
        finally:
            self._takes -= 1
            self._playback.release(places)
        return self._response(batch, answers)

    async def _decide_all(
        self, batch: relay_pb.RelayBatch, answers: dict[str, Answer], template: MessageTemplate | Unusable
    ) -> dict[str, tuple[Entry | None, Script]]:
        """By message id, what to do about each message that has no answer yet."""
        decided: dict[str, tuple[Entry | None, Script]] = {}
        for number, message in enumerate(batch.messages):
            message_id = message.message_id
            if message_id not in answers and message_id not in decided:
                script = self._script.script_for(message.address)
                decided[message_id] = self._decide(batch.delivery_id, message, script, template), script
            if number % MESSAGES_PER_TURN == MESSAGES_PER_TURN - 1:
                await asyncio.sleep(0)
        return decided

    def _decide(
        self, delivery_id: str, message: relay_pb.RelayMessage, script: Script, template: MessageTemplate | Unusable
    ) -> Entry | None:
        """The answer to one message; None puts it off."""
        if script.try_later and self._puts_off(message.message_id, script.try_later):
            return None
        refusal, outcome, opened, clicked = None, script.outcome, script.opened, script.clicked
        if script.refusal is not None:
            refusal = relay_pb.RelayRefusal(
                smtp_code=script.refusal.smtp_code,
                enhanced_code=script.refusal.enhanced_code,
                diagnostic=script.refusal.diagnostic,
                failure_type=send_log_pb.FAILURE_TYPE_HARD,
                reason=send_log_pb.REASON_USER_UNKNOWN,
            )
        elif (not_rendered := self._render(message, template)) is not None:
            outcome, opened, clicked = send_log_pb.OUTCOME_BOUNCED, False, False
            refusal = relay_pb.RelayRefusal(
                diagnostic=not_rendered[:1_000],
                failure_type=send_log_pb.FAILURE_TYPE_IGNORED,
                reason=send_log_pb.REASON_NOT_RENDERED,
            )
        return Entry(
            message.message_id,
            delivery_id,
            message.address,
            self._clock.now_us(),
            None if refusal is None else refusal.SerializeToString(),
            outcome,
            opened,
            clicked,
        )

    def _render(self, message: relay_pb.RelayMessage, template: MessageTemplate | Unusable) -> str | None:
        """Makes the message as a real MTA side would, and throws it away. Returns why it can't be made, if so."""
        if isinstance(template, Unusable):
            return template.reason
        try:
            rendered = template.render(orjson.loads(message.attributes_json or b"{}"))
        except orjson.JSONDecodeError as problem:
            return f"attributes_json is no JSON: {problem}"
        except NotRendered as problem:
            return str(problem)
        self._truth.characters_rendered += len(rendered.subject) + len(rendered.html) + len(rendered.text)
        return None

    def _puts_off(self, message_id: str, times: int) -> bool:
        before = self._put_off.pop(message_id, 0)
        if before >= times or len(self._put_off) >= PUT_OFF_MAX:
            return False
        self._put_off[message_id] = before + 1
        return True

    def _count(self, delivery_id: str, fresh: list[Entry]) -> None:
        alike = Counter((entry.outcome, entry.refusal is None, entry.opened, entry.clicked) for entry in fresh)
        for (outcome, accepted, opened, clicked), count in alike.items():
            self._truth.add(delivery_id, outcome, accepted=accepted, opened=opened, clicked=clicked, count=count)

    def _response(self, batch: relay_pb.RelayBatch, answers: dict[str, Answer]) -> relay_pb.RelayResponse:
        response = relay_pb.RelayResponse(sequence=batch.sequence)
        for index, message in enumerate(batch.messages):
            answer = answers.get(message.message_id)
            if answer is None:
                response.verdicts.append(relay_pb.RELAY_VERDICT_TRY_LATER)
                response.answer_times_us.append(self._clock.now_us())
                response.refusals.add(
                    index=index,
                    smtp_code=dialects.TRY_LATER.smtp_code,
                    enhanced_code=dialects.TRY_LATER.enhanced_code,
                    diagnostic=dialects.TRY_LATER.diagnostic,
                    retry_delay_ms=RETRY_DELAY_MS,
                )
                continue
            verdict, refusal = _verdict(answer)
            response.verdicts.append(verdict)
            response.answer_times_us.append(answer.answer_time_us)
            if refusal is not None:
                refusal.index = index
                response.refusals.append(refusal)
        return response


def _verdict(answer: Answer) -> "tuple[relay_pb.RelayVerdict.ValueType, relay_pb.RelayRefusal | None]":
    """A first answer, as it is given again and again."""
    if answer.refusal is None:
        return relay_pb.RELAY_VERDICT_ACCEPTED, None
    if answer.refusal == WITHDRAWN:
        return relay_pb.RELAY_VERDICT_WITHDRAWN, None
    return relay_pb.RELAY_VERDICT_REFUSED, relay_pb.RelayRefusal.FromString(answer.refusal)


def _compile(content: delivery_pb.Content) -> MessageTemplate | Unusable:
    try:
        return compiled(content.subject, content.html, content.text)
    except InvalidTemplate as invalid:
        return Unusable(f"the template can't be compiled: {invalid}")


def _validate(batch: relay_pb.RelayBatch) -> None:
    if not 1 <= len(batch.messages) <= BATCH_MESSAGES_MAX:
        raise InvalidInput.of("batch.messages", f"{len(batch.messages)} messages: send 1 to {BATCH_MESSAGES_MAX:,}")
    for index, message in enumerate(batch.messages):
        if not 1 <= len(message.message_id) <= MESSAGE_ID_CHARACTERS_MAX:
            raise InvalidInput.of(f"batch.messages[{index}].message_id", _WANTED_ID)


def _validate_ids(field: str, message_ids: Sequence[str]) -> None:
    if not 1 <= len(message_ids) <= BATCH_MESSAGES_MAX:
        raise InvalidInput.of(field, f"{len(message_ids)} messages: send 1 to {BATCH_MESSAGES_MAX:,}")
    for index, message_id in enumerate(message_ids):
        if not 1 <= len(message_id) <= MESSAGE_ID_CHARACTERS_MAX:
            raise InvalidInput.of(f"{field}[{index}]", _WANTED_ID)
