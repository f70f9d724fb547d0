"""Re-qualification through both services: a real FeedbackService, with its rules, before a real DeliveryService."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from campaign.delivery.v1 import delivery_service_pb2 as delivery_pb
from campaign.delivery.v1 import explanation_pb2, send_log_feed_pb2, undefined_failure_pb2
from campaign.delivery.v1 import requalification_service_pb2 as requalification_pb
from campaign.delivery.v1.delivery_pb2 import FEEDBACK_MODE_WITH_EFS
from campaign.delivery.v1.send_log_pb2 import (
    FAILURE_TYPE_HARD,
    FAILURE_TYPE_IGNORED,
    FAILURE_TYPE_SOFT,
    OUTCOME_BOUNCED,
    OUTCOME_DEFERRED,
    OUTCOME_DELIVERED,
    OUTCOME_RELAYED,
    REASON_ACCOUNT_DISABLED,
    REASON_ERROR_IGNORED,
    REASON_MAILBOX_FULL,
    REASON_NOT_DEFINED,
    REASON_REFUSED,
    REASON_USER_UNKNOWN,
)
from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from campaign.feedback.v1 import qualification_service_pb2 as pb
from campaign.feedback.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from campaign.feedback.v1.qualification_service_pb2_grpc import QualificationServiceStub
from campaign.mta.v1 import relay_service_pb2 as relay_pb
from feedback_service import observation_batch, requalification
from feedback_service.domain.qualification import Decision
from feedback_service.domain.requalification import Rereading
from feedback_service.domain.rules import REFUSED, RULES, RULES_VERSION
from tests.support.delivery_stack import DeliveryStack, Observed, batch_of, delivery_stack
from tests.support.eventually import eventually
from tests.support.feedback_stack import RealFeedback, feedback_before
from tests.support.invariants import assert_laws
from tests.support.mta_side import Answer
from tests.support.statuses import refused
from tests.support.terminal import Terminal

TIME_US = 1_800_000_100_000_000
SINCE, UNTIL = Timestamp(seconds=1_800_000_000), Timestamp(seconds=1_800_001_000)
SOFT, HARD, NOT_DEFINED = FAILURE_TYPE_SOFT, FAILURE_TYPE_HARD, REASON_NOT_DEFINED


class Both:
    """DeliveryService, FeedbackService, and what a test asks of them."""

    def __init__(self, delivery: DeliveryStack, feedback: RealFeedback, folder: Path) -> None:
        self.delivery = delivery
        self.feedback = feedback
        self.folder = folder
        self.rules = QualificationServiceStub(feedback.channel("administration", "read"))

    async def requalify(self, *delivery_ids: str, dry_run: bool = False) -> pb.RequalificationResult:
        """Runs it to its end."""
        request = pb.RequalifyRequest(
            since_time=SINCE, until_time=UNTIL, delivery_ids=delivery_ids, validate_only=dry_run
        )
        responses = [response async for response in self.rules.Requalify(request)]
        assert all(response.HasField("progress") for response in responses[:-1])
        return responses[-1].result

    async def explained(self, delivery_id: str, recipient: int) -> list[explanation_pb2.ExplainedEvent]:
        request = explanation_pb2.ExplainRecipientRequest(delivery_id=delivery_id, recipient=recipient)
        return list((await self.delivery.stub.ExplainRecipient(request)).events)

    async def failure(self, delivery_id: str, recipient: int) -> tuple[int, int, int]:
        """Outcome, type and reason of a send log."""
        send_log = (await self.delivery.send_log(delivery_id, recipient, FEEDBACK_MODE_WITH_EFS)).send_log
        return send_log.outcome, send_log.failure_type, send_log.reason

    async def drift(self, delivery_id: str) -> int:
        request = delivery_pb.ComputeStatisticsRequest(delivery_id=delivery_id)
        return (await self.delivery.stub.ComputeStatistics(request)).drift


@pytest.fixture
async def both(database: str, tmp_path: Path) -> AsyncIterator[Both]:
    async with (
        delivery_stack(database, tmp_path / "delivery") as delivery,
        feedback_before(delivery.target, delivery.keys, tmp_path / "feedback") as feedback,
    ):
        yield Both(delivery, feedback, tmp_path)
    await assert_laws(database)


def bounced(delivery_id: str, recipient: int, text: str, **fields: Any) -> Observed:
    """A refusal, as rules that knew no better have read it."""
    return Observed(
        f"{delivery_id}-{recipient}",
        **{
            "outcome": OUTCOME_BOUNCED,
            "event_time_us": TIME_US,
            "failure_type": SOFT,
            "reason": NOT_DEFINED,
            "smtp_code": 550,
            "diagnostic": text,
            **fields,
        },
    )


async def test_a_requalification_corrects_rows_kpis_log_and_explanation_and_says_what_changed(both: Both) -> None:
    delivery_id = await both.delivery.sent(4)
    before = (await both.delivery.kpis(delivery_id)).resume_token
    await both.delivery.apply(
        bounced(delivery_id, 1, "550 user unknown"),
        bounced(delivery_id, 2, "550 mailbox is full"),
        bounced(delivery_id, 3, "550 nothing that a rule reads"),
        bounced(delivery_id, 4, "450 over quota", outcome=OUTCOME_DEFERRED, smtp_code=450),
    )
    await both.delivery.apply(Observed(f"{delivery_id}-4", OUTCOME_DELIVERED, event_time_us=TIME_US + 1, smtp_code=250))
    assert (await both.delivery.kpis(delivery_id)).with_efs.failures.hard == 0

    dry = await both.requalify(dry_run=True)
    assert await both.failure(delivery_id, 1) == (OUTCOME_BOUNCED, SOFT, NOT_DEFINED)
    told = await both.requalify()
    assert told == dry
    assert (told.rules_version, told.deliveries, told.reports) == (RULES_VERSION, 1, 4)
    assert [
        (c.outcome, c.failure_type_before, c.reason_before, c.failure_type, c.reason, c.reports, c.send_logs)
        for c in sorted(told.changes, key=lambda c: (c.outcome, c.reason))
    ] == [
        (OUTCOME_DEFERRED, SOFT, NOT_DEFINED, SOFT, REASON_MAILBOX_FULL, 1, 0),
        (OUTCOME_BOUNCED, SOFT, NOT_DEFINED, HARD, REASON_USER_UNKNOWN, 1, 1),
        (OUTCOME_BOUNCED, SOFT, NOT_DEFINED, SOFT, REASON_MAILBOX_FULL, 1, 1),
    ]
    assert {use.rule: use.reports for use in told.rules} == {"text.user-unknown": 1, "text.mailbox-full": 2}

    assert await both.failure(delivery_id, 1) == (OUTCOME_BOUNCED, HARD, REASON_USER_UNKNOWN)
    assert await both.failure(delivery_id, 2) == (OUTCOME_BOUNCED, SOFT, REASON_MAILBOX_FULL)
    assert await both.failure(delivery_id, 3) == (OUTCOME_BOUNCED, SOFT, NOT_DEFINED)
    kpis = await both.delivery.kpis(delivery_id)
    assert (kpis.with_efs.failures.hard, kpis.with_efs.failures.soft) == (1, 2)
    assert await both.drift(delivery_id) == 0

    sentences = [event.sentence for event in await both.explained(delivery_id, 1)]
    assert sentences[-1] == (
        "Corrected: it counts as HARD, USER_UNKNOWN, not SOFT, NOT_DEFINED; the outcome stays. "
        f"Qualified by version {RULES_VERSION} of the rules."
    )
    verdicts = [event.verdict for event in await both.explained(delivery_id, 4)]
    assert verdicts.count(explanation_pb2.EVENT_VERDICT_CORRECTED) == 2  # the deferral, and that the row stays
    changes = await _changes(both.delivery, delivery_id, before)
    assert [(c.recipient, c.failure_type, c.reason) for c in changes if c.correction] == [
        (1, HARD, REASON_USER_UNKNOWN),
        (2, SOFT, REASON_MAILBOX_FULL),
        (4, 0, 0),
    ]
    assert all(c.before == c.outcome for c in changes if c.correction)

    revision = (await both.delivery.kpis(delivery_id)).revision
    again = await both.requalify()
    assert (list(again.changes), list(again.rules)) == ([], [])
    assert (await both.delivery.kpis(delivery_id)).revision == revision


async def _changes(
    delivery: DeliveryStack, delivery_id: str, resume_token: str
) -> list[send_log_feed_pb2.SendLogChange]:
    """What a watch of the log tells behind a token."""
    found: list[send_log_feed_pb2.SendLogChange] = []
    request = send_log_feed_pb2.WatchSendLogsRequest(delivery_id=delivery_id, resume_token=resume_token)
    async for response in delivery.stub.WatchSendLogs(request):
        found += response.changes.changes
        if response.changes.caught_up:
            break
    return found


async def test_watchers_of_the_kpis_see_a_correction(both: Both) -> None:
    delivery_id = await both.delivery.sent(1)
    await both.delivery.apply(bounced(delivery_id, 1, "550 user unknown"))
    call = both.delivery.stub.WatchKpis(delivery_pb.WatchKpisRequest(delivery_ids=[delivery_id]))
    async with asyncio.timeout(60):
        response: Any = await call.read()
        assert response.kpis.with_efs.failures.hard == 0
        await both.requalify()
        while not response.kpis.with_efs.failures.hard:
            response = await call.read()
    call.cancel()


async def test_a_delivery_outside_the_time_is_left_alone(both: Both) -> None:
    delivery_id = await both.delivery.sent(2)
    await both.delivery.apply(
        bounced(delivery_id, 1, "550 user unknown", event_time_us=TIME_US - 10**9),
        # A recipient with a failure inside is read again as a whole.
        bounced(delivery_id, 2, "550 user unknown", event_time_us=TIME_US + 10**10),
        bounced(delivery_id, 2, "450 over quota", outcome=OUTCOME_DEFERRED),
    )
    await both.requalify()
    assert await both.failure(delivery_id, 1) == (OUTCOME_BOUNCED, SOFT, NOT_DEFINED)
    assert await both.failure(delivery_id, 2) == (OUTCOME_BOUNCED, HARD, REASON_USER_UNKNOWN)


async def test_a_run_of_many_pages_that_is_cut_anywhere_is_finished_by_the_next(both: Both) -> None:
    count = 60
    delivery_id = await both.delivery.sent(count)
    await both.delivery.apply(*(bounced(delivery_id, i, f"550 user unknown {i}") for i in range(1, count + 1)))
    async with (
        _two_at_a_time(both) as slow,
        asyncio.timeout(60),
    ):
        request = pb.RequalifyRequest(since_time=SINCE, until_time=UNTIL)
        call = slow.Requalify(request)
        running = asyncio.create_task(call.read())
        await eventually(lambda: _some_corrected(both.delivery.dsn, delivery_id, at_least=4))
        call.cancel()
        await asyncio.wait([running])
        corrected = await _count_corrections(both.delivery.dsn, delivery_id)
        # Two runs at once do no harm to each other.
        results = await asyncio.gather(both.requalify(), both.requalify())
    assert sum(change.send_logs for result in results for change in result.changes) <= count - 4
    assert corrected >= 4
    assert await _count_corrections(both.delivery.dsn, delivery_id) == count
    assert (await both.delivery.kpis(delivery_id)).with_efs.failures.hard == count
    assert await both.drift(delivery_id) == 0


@asynccontextmanager
async def _two_at_a_time(both: Both) -> AsyncIterator[QualificationServiceStub]:
    """Another replica of FeedbackService, which corrects little at a time."""
    async with feedback_before(
        both.delivery.target, both.delivery.keys, both.folder / "slow", requalification_corrections_max=2
    ) as slow:
        yield QualificationServiceStub(slow.channel("administration"))


async def _count_corrections(dsn: str, delivery_id: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(
            await connection.fetchval(
                "select count(*) from transition where delivery_id = $1 and correction", int(delivery_id)
            )
        )
    finally:
        await connection.close()


async def _some_corrected(dsn: str, delivery_id: str, at_least: int) -> bool:
    return await _count_corrections(dsn, delivery_id) >= at_least


@contextmanager
def older_rules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What FeedbackService takes meanwhile is qualified by the version before, which read nothing at all."""
    with monkeypatch.context() as patch:
        patch.setattr(observation_batch, "RULES_VERSION", RULES_VERSION - 1)
        patch.setattr(observation_batch, "qualify", lambda *_: (SOFT, NOT_DEFINED))
        yield


def failed(message_id: str, text: str, kind: feedback_pb.MtaEventKind.ValueType, **fields: Any) -> feedback_pb.MtaEvent:
    """What an MTA says of a message."""
    return feedback_pb.MtaEvent(
        **{"message_id": message_id, "kind": kind, "event_time_us": TIME_US, "diagnostic": text, **fields}
    )


async def test_what_an_mta_said_beside_code_and_text_is_read_again_too(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery_id = await both.delivery.sent(4)
    with older_rules(monkeypatch):
        mta = await both.feedback.mta("mta-1")
        await mta.send(
            [
                failed(f"{delivery_id}-1", "no", feedback_pb.MTA_EVENT_KIND_BOUNCE, vendor_class="InactiveMailbox"),
                failed(f"{delivery_id}-2", "user unknown", feedback_pb.MTA_EVENT_KIND_ADMIN_BOUNCE),
                failed(f"{delivery_id}-3", "out of office", feedback_pb.MTA_EVENT_KIND_OUT_OF_BAND_BOUNCE),
                failed(f"{delivery_id}-4", "out of office", feedback_pb.MTA_EVENT_KIND_BOUNCE),
            ]
        )
        await mta.acked()
    await both.requalify()
    assert await both.failure(delivery_id, 1) == (OUTCOME_BOUNCED, SOFT, REASON_ACCOUNT_DISABLED)
    assert await both.failure(delivery_id, 2) == (OUTCOME_BOUNCED, FAILURE_TYPE_IGNORED, NOT_DEFINED)
    assert await both.failure(delivery_id, 3) == (OUTCOME_BOUNCED, FAILURE_TYPE_IGNORED, REASON_ERROR_IGNORED)
    assert await both.failure(delivery_id, 4) == (OUTCOME_BOUNCED, SOFT, NOT_DEFINED)


async def test_a_refusal_at_the_hand_over_that_nobody_gave_a_reason_for_is_read(both: Both) -> None:
    def decide(message: relay_pb.RelayMessage) -> Answer:
        number = message.message_id.rpartition("-")[2]
        told = relay_pb.RelayRefusal(smtp_code=550, diagnostic="550 user unknown")
        if number == "2":
            told.failure_type, told.reason = SOFT, REASON_REFUSED
        return Answer(relay_pb.RELAY_VERDICT_REFUSED, told)

    both.delivery.mta.decide = decide
    delivery_id = await both.delivery.sent(2)
    await both.requalify()
    assert await both.failure(delivery_id, 1) == (OUTCOME_BOUNCED, HARD, REASON_USER_UNKNOWN)
    assert await both.failure(delivery_id, 2) == (OUTCOME_BOUNCED, SOFT, REASON_REFUSED)


async def test_two_replicas_of_each_service_requalify_while_feedback_comes_in(
    both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 200
    delivery_id = await both.delivery.sent(count)
    await both.delivery.apply(*(bounced(delivery_id, i, "550 user unknown") for i in range(1, count, 2)))

    async def report(feedback: RealFeedback, source_id: str) -> None:
        # Everything again, by the new rules, and a later report about each.
        mta = await feedback.mta(source_id)
        for i in range(1, count + 1):
            message_id = f"{delivery_id}-{i}"
            kind = feedback_pb.MTA_EVENT_KIND_BOUNCE
            events = [failed(message_id, "550 user unknown", kind, smtp_code=550)] if i % 2 else []
            later = failed(message_id, "over quota", kind, event_time_us=TIME_US + i)
            await mta.send([*events, later])
        await mta.acked()

    async with (
        delivery_stack(both.delivery.dsn, tmp_path / "other", mta=both.delivery.mta) as other,
        feedback_before(other.target, other.keys, tmp_path / "other-feedback") as other_feedback,
    ):
        twin = Both(other, other_feedback, tmp_path)
        await asyncio.gather(
            both.requalify(), twin.requalify(), report(both.feedback, "mta-1"), report(other_feedback, "mta-2")
        )
        assert list((await twin.requalify()).changes) == []
    for recipient in (1, 2, count):
        assert await both.failure(delivery_id, recipient) == (OUTCOME_BOUNCED, SOFT, REASON_MAILBOX_FULL)
    assert await both.drift(delivery_id) == 0


@pytest.mark.expects_errors
async def test_a_feedback_service_with_outdated_rules_is_refused_and_loses_nothing(
    both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery_id = await both.delivery.sent(2)
    fence = requalification_pb.FenceRulesRequest(delivery_id=delivery_id, rules_version=RULES_VERSION + 1)
    await both.delivery.requalification.FenceRules(fence)
    events = [failed(f"{delivery_id}-{i}", "user unknown", feedback_pb.MTA_EVENT_KIND_BOUNCE) for i in (1, 2)]
    mta = await both.feedback.mta("mta-1")
    await mta.send(events)
    await eventually(lambda: mta.call.done())
    async with refused(grpc.StatusCode.UNAVAILABLE, "RULES_OUTDATED") as refusal:
        await mta.call.read()
    assert refusal.metadata == {"rules_version": str(RULES_VERSION)}
    assert mta.acked_through == 0
    assert not both.feedback.app.server.is_serving
    async with refused(grpc.StatusCode.UNAVAILABLE, "RULES_OUTDATED"):
        await FeedbackServiceStub(both.feedback.channel("mta")).StreamStatus().read()
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "RULES_OUTDATED"):
        await both.requalify()

    # Its MTA finds a replica that was upgraded.
    with monkeypatch.context() as patch:
        patch.setattr(observation_batch, "RULES_VERSION", RULES_VERSION + 1)
        async with feedback_before(both.delivery.target, both.delivery.keys, tmp_path / "newer") as newer:
            mta = await newer.mta("mta-1")
            await mta.send(events)
            await mta.acked()
    for recipient in (1, 2):
        assert await both.failure(delivery_id, recipient) == (OUTCOME_BOUNCED, HARD, REASON_USER_UNKNOWN)


async def test_outdated_rules_are_refused_to_their_sender_alone(both: Both) -> None:
    fenced, other = await both.delivery.sent(20), await both.delivery.sent(20)
    await both.delivery.requalification.FenceRules(
        requalification_pb.FenceRulesRequest(delivery_id=fenced, rules_version=RULES_VERSION)
    )

    async def by_version(rules_version: int, delivery_id: str, recipient: int) -> None:
        async with both.delivery.apply_stream() as stream:
            batch = batch_of([bounced(delivery_id, recipient, f"{rules_version}")])
            batch.rules_version = rules_version
            await stream.send(batch)

    async def outdated(recipient: int) -> None:
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "RULES_OUTDATED"):
            await by_version(RULES_VERSION - 1, fenced, recipient)

    await asyncio.gather(
        *(by_version(RULES_VERSION, fenced, i) for i in range(1, 10)),
        *(by_version(RULES_VERSION - 1, other, i) for i in range(1, 10)),
        *(outdated(i) for i in range(11, 20)),
    )
    for i in range(1, 10):
        assert (await both.failure(fenced, i))[0] == (await both.failure(other, i))[0] == OUTCOME_BOUNCED
    for i in range(11, 20):
        assert (await both.failure(fenced, i))[0] == OUTCOME_RELAYED


async def test_what_no_rule_reads_is_listed_by_frequency(both: Both) -> None:
    first, second = await both.delivery.sent(3), await both.delivery.sent(3)
    await both.delivery.apply(
        *(bounced(first, i, f"Odd reply  to <person{i}@example.com>, id A{i}9") for i in (1, 2, 3)),
        bounced(second, 1, "ODD reply to <x@example.com>, id 7", event_time_us=TIME_US + 5),
        bounced(second, 2, "odd reply to <x@example.com>, id 7", smtp_code=554),
        bounced(second, 3, "user unknown", failure_type=HARD, reason=REASON_USER_UNKNOWN),
        bounced(first, 1, "before the time", event_time_us=TIME_US - 10**9),
        bounced(first, 2, "never taken", failure_type=FAILURE_TYPE_IGNORED),
    )

    async def listed(**fields: Any) -> undefined_failure_pb2.ListUndefinedFailuresResponse:
        request = undefined_failure_pb2.ListUndefinedFailuresRequest(
            since_time=SINCE, **{"until_time": UNTIL, **fields}
        )
        return await both.delivery.stub.ListUndefinedFailures(request)

    found = await listed()
    odd = "odd reply to # id #"
    assert [(f.text, f.smtp_code, f.count, f.messages) for f in found.failures] == [(odd, 550, 4, 4), (odd, 554, 1, 1)]
    assert (found.reports, found.truncated) == (5, False)
    top = found.failures[0]
    assert (top.example, top.example_delivery_id, top.example_recipient) == (
        "ODD reply to <x@example.com>, id 7",
        second,
        1,
    )
    assert (top.first_time.ToMicroseconds(), top.last_time.ToMicroseconds()) == (TIME_US, TIME_US + 5)
    assert [f.count for f in (await listed(delivery_ids=[first])).failures] == [3]
    assert [f.count for f in (await listed(page_size=1)).failures] == [4]

    # A rule that reads them takes them off the list, the log as it was notwithstanding.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requalification, "reread", lambda _: Rereading(Decision(REFUSED, "text.odd"), 0))
        await both.requalify()
    assert list((await listed()).failures) == []


async def test_listing_what_is_undefined_looks_at_a_bounded_number_of_reports(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, undefined_reports_scanned_max=3) as delivery:
        older, newer = await delivery.sent(5), await delivery.sent(2)
        await delivery.apply(
            *(bounced(older, i, "odd") for i in range(1, 6)), *(bounced(newer, i, "new") for i in (1, 2))
        )
        found = await delivery.stub.ListUndefinedFailures(
            undefined_failure_pb2.ListUndefinedFailuresRequest(since_time=SINCE, until_time=UNTIL)
        )
        assert [(f.text, f.count) for f in found.failures] == [("new", 2), ("odd", 1)]
        assert found.truncated
    await assert_laws(database)


async def test_what_is_asked_wrongly_is_refused(both: Both) -> None:
    for request in (
        pb.RequalifyRequest(),
        pb.RequalifyRequest(since_time=UNTIL, until_time=SINCE),
        pb.RequalifyRequest(since_time=SINCE, delivery_ids=["1"] * 101),
        pb.RequalifyRequest(since_time=SINCE, until_time=UNTIL, delivery_ids=["no number"]),
    ):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
            await both.rules.Requalify(request).read()
    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
        await both.requalify("1")
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING"):
        stub = QualificationServiceStub(both.feedback.channel("read"))
        await stub.Requalify(pb.RequalifyRequest(since_time=SINCE)).read()
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await both.rules.Qualify(pb.QualifyRequest(kind=feedback_pb.MTA_EVENT_KIND_DELIVERY))
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        kind = feedback_pb.MTA_EVENT_KIND_BOUNCE
        await both.rules.Qualify(pb.QualifyRequest(kind=kind, vendor_class="x" * 101))
    for wrong in (
        undefined_failure_pb2.ListUndefinedFailuresRequest(),
        undefined_failure_pb2.ListUndefinedFailuresRequest(since_time=SINCE, delivery_ids=["1"] * 101),
    ):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
            await both.delivery.stub.ListUndefinedFailures(wrong)
    report = requalification_pb.QualifiedReport(recipient=1, outcome=OUTCOME_DELIVERED, event_time_us=TIME_US)
    for correction in (
        requalification_pb.CorrectReportsRequest(delivery_id="1", rules_version=1),
        requalification_pb.CorrectReportsRequest(delivery_id="1", rules_version=0, reports=[report]),
        requalification_pb.CorrectReportsRequest(delivery_id="1", rules_version=1, reports=[report]),
    ):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
            await both.delivery.requalification.CorrectReports(correction)


async def test_the_rules_are_listed_and_tried_with_their_source(both: Both) -> None:
    listed = await both.rules.ListRules(pb.ListRulesRequest())
    assert listed.rules_version == RULES_VERSION
    assert [rule.name for rule in listed.rules] == [rule.name for rule in RULES]
    assert all(rule.source and rule.failure_type and rule.reason for rule in listed.rules)
    request = pb.QualifyRequest(
        kind=feedback_pb.MTA_EVENT_KIND_TRANSIENT_FAILURE, smtp_code=450, diagnostic="mailbox is full"
    )
    told = await QualificationServiceStub(both.feedback.channel("start-deliveries")).Qualify(request)
    assert (told.failure_type, told.reason, told.rule) == (SOFT, REASON_MAILBOX_FULL, "text.mailbox-full")
    sources = {rule.name: rule.source for rule in RULES}
    assert (told.source, told.rules_version) == (sources["text.mailbox-full"], RULES_VERSION)


async def test_the_commands_try_list_and_requalify(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)

    async def said(*arguments: str, status: int = 0) -> str:
        result = await terminal.run(*arguments)
        assert result.exit_code == status, result.output
        return result.output

    delivery_id = await both.delivery.sent(2)
    await both.delivery.apply(bounced(delivery_id, 1, "550 user unknown"), bounced(delivery_id, 2, "odd <a@b.example>"))
    token_file = both.folder / "person.token"
    token_file.write_text(both.delivery.keys.sign("person", ["start-deliveries", "administration"]))
    delivery = ("--target", both.delivery.target, "--token-file", str(token_file))
    feedback = ("--target", both.feedback.app.address, "--token-file", str(token_file))
    time = ("--since", "2027-01-15", "--until", "2027-01-16T12:00")

    listed = json.loads((await said("undefined", *time, *delivery, "--json")).splitlines()[0])
    assert (listed["count"], listed["example_delivery_id"]) == ("1", delivery_id)
    assert "user unknown" in await said("undefined", *time, *delivery, "--delivery", delivery_id)
    assert "RFC 5248" in await said("rules", *feedback)
    explained = await said(
        "explain", delivery_id, "1", "--rules", "--feedback-target", both.feedback.app.address, *delivery
    )
    assert f"text.user-unknown (version {RULES_VERSION}): hard: user unknown" in " ".join(explained.split())

    dry = await said("requalify", *time, *feedback, "--dry-run")
    assert "What would change:" in dry
    assert (await both.failure(delivery_id, 1))[1:] == (SOFT, NOT_DEFINED)
    told = json.loads(await said("requalify", *time, *feedback, "--yes", "--json"))
    assert [change["send_logs"] for change in told["changes"]] == ["1"]
    assert (await both.failure(delivery_id, 1))[1:] == (HARD, REASON_USER_UNKNOWN)
    assert "Nothing has changed." in await said("requalify", *time, *feedback, "--yes")
    refusal = await said("requalify", "--since", "tomorrow", *feedback, status=2)
    assert "'tomorrow' is no time" in refusal
