"""ExplainDelivery and ExplainRecipient: what is missing and why, and what became of each report."""

from datetime import timedelta
from typing import Final

import asyncpg

from campaign.delivery.v1 import delivery_pb2, send_log_pb2
from campaign.delivery.v1 import explanation_pb2 as pb
from delivery_service import convert
from delivery_service.api.look_ups import require_send_logs
from delivery_service.api.send_log_filters import mode_of, recipient_of
from delivery_service.api.validation import delivery_id_of
from delivery_service.domain.delivery import ExclusionCause
from delivery_service.domain.explanation import Fact, explain
from delivery_service.domain.outcome import Observation
from delivery_service.domain.problems import SendLogNotFound
from delivery_service.domain.status import STATUS_OF
from delivery_service.domain.verdicts import Explained, Report, explain_reports
from delivery_service.settings import Settings
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.explanations import Explanations, RecipientExclusion
from delivery_service.store.send_logs import SendLogs
from service_runtime.clock import Clock, from_microseconds, to_microseconds

_TRANSITION: Final = send_log_pb2.TIMELINE_ENTRY_KIND_TRANSITION
_LATE_OBSERVATION: Final = send_log_pb2.TIMELINE_ENTRY_KIND_LATE_OBSERVATION
_KIND_PREFIX: Final = "TIMELINE_ENTRY_KIND_"


class ExplanationCalls:
    """Answers come from what is stored; nothing is changed."""

    def __init__(
        self,
        deliveries: Deliveries,
        send_logs: SendLogs,
        explanations: Explanations,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._deliveries = deliveries
        self._send_logs = send_logs
        self._explanations = explanations
        self._settings = settings
        self._clock = clock
        self._tolerance = timedelta(seconds=settings.event_time_ahead_tolerance_seconds)

    async def delivery(self, request: pb.ExplainDeliveryRequest) -> pb.ExplainDeliveryResponse:
        delivery = await self._deliveries.get(delivery_id_of(request.delivery_id))
        now = self._clock.now()
        situation = await self._explanations.situation(delivery, now)
        return pb.ExplainDeliveryResponse(
            state=delivery_pb2.DeliveryState.ValueType(situation.state),
            facts=[_fact(fact) for fact in explain(situation)],
            time=convert.timestamp(now),
        )

    async def recipient(self, request: pb.ExplainRecipientRequest) -> pb.ExplainRecipientResponse:
        delivery_id, recipient = delivery_id_of(request.delivery_id), recipient_of(request.recipient)
        delivery = await self._deliveries.get(delivery_id)
        require_send_logs(delivery, "explain recipient")
        mode = mode_of(request.feedback_mode, delivery)
        limit = self._settings.timeline_entries_max
        async with self._deliveries.log_kept(delivery_id):
            found = await self._explanations.recipient(delivery_id, recipient)
            if found is None:
                raise SendLogNotFound(delivery_id, recipient)
            if found.cause is not None:
                return _excluded(recipient, found, found.cause)
            send_log = await self._send_logs.get(delivery_id, recipient)
            rows = await self._send_logs.timeline(delivery_id, recipient, limit + 1)
        explained = explain_reports([_report(row) for row in rows[:limit]])
        status = STATUS_OF[mode][send_log.outcome]
        return pb.ExplainRecipientResponse(
            recipient=recipient,
            profile_id=found.profile_id,
            address=found.address,
            sentence=f"{status.name}: the greatest fact known about the message is {send_log.outcome.name}.",
            send_log=convert.send_log_to_pb(send_log, mode, self._tolerance),
            events=[_event(row, what) for row, what in zip(rows, explained, strict=False)],
            truncated=len(rows) > limit,
        )


def _fact(fact: Fact) -> pb.DeliveryFact:
    return pb.DeliveryFact(
        kind=pb.DeliveryFactKind.ValueType(fact.kind),
        sentence=fact.sentence,
        count=fact.count,
        since_time=convert.timestamp(fact.since),
        until_time=convert.timestamp(fact.until),
        holder=fact.holder,
    )


def _excluded(recipient: int, found: RecipientExclusion, cause: ExclusionCause) -> pb.ExplainRecipientResponse:
    words = cause.name.lower().replace("_", " ")
    return pb.ExplainRecipientResponse(
        recipient=recipient,
        profile_id=found.profile_id,
        address=found.address,
        exclusion_cause=delivery_pb2.ExclusionCause.ValueType(cause),
        sentence=f"Excluded by the preparation, so there is no message: {words}.",
    )


def _report(row: asyncpg.Record) -> Report:
    """A row of the query get_timeline."""
    observation = None
    if row["kind"] in (_TRANSITION, _LATE_OBSERVATION):
        observation = Observation(
            outcome=row["outcome"],
            event_time_us=to_microseconds(row["event_time"]),
            failure_type=row["failure_type"],
            reason=row["reason"],
            smtp_code=row["smtp_code"],
            enhanced_code=row["enhanced_code"],
            diagnostic=row["diagnostic"],
            attempt=row["attempt"],
        )
    name = send_log_pb2.TimelineEntryKind.Name(row["kind"]).removeprefix(_KIND_PREFIX)
    return Report(
        observation=observation,
        revision=row["revision"],
        commit_time=row["commit_time"],
        rules_version=row["rules_version"],
        name=name.lower().replace("_", " "),
        correction=row["correction"],
    )


def _event(row: asyncpg.Record, explained: Explained) -> pb.ExplainedEvent:
    compared = explained.compared
    # The preparation's own fact has no event time worth telling.
    has_time = compared is not None and compared.event_time_us > 0
    return pb.ExplainedEvent(
        entry=convert.timeline_entry_to_pb(row),
        verdict=pb.EventVerdict.ValueType(explained.verdict),
        decided_by=pb.DecidedBy.ValueType(explained.decided_by),
        compared_outcome=send_log_pb2.Outcome.ValueType(
            compared.outcome + convert.OUTCOME_OFFSET if compared is not None else 0
        ),
        compared_event_time=convert.timestamp(from_microseconds(compared.event_time_us))
        if compared is not None and has_time
        else None,
        sentence=explained.sentence,
    )
