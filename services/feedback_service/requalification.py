"""Re-qualification: reads what was reported from DeliveryService, page after page, and tells it how it counts now.

All state is in DeliveryService. Each step may be repeated, by anyone and at any time: stopped at any line, the same run
again does the rest.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

from google.protobuf.timestamp_pb2 import Timestamp

from campaign.delivery.v1 import requalification_service_pb2 as pb
from campaign.delivery.v1 import send_log_pb2
from campaign.delivery.v1.requalification_service_pb2_grpc import RequalificationServiceStub
from feedback_service.domain.qualification import Decision
from feedback_service.domain.requalification import KeptReport, reread
from feedback_service.domain.rules import RULES_VERSION
from feedback_service.domain.vocabulary import Outcome

OUTCOMES = {
    int(send_log_pb2.OUTCOME_DEFERRED): Outcome.DEFERRED,
    int(send_log_pb2.OUTCOME_EXPIRED): Outcome.EXPIRED,
    int(send_log_pb2.OUTCOME_BOUNCED): Outcome.BOUNCED,
}
DELIVERIES_PER_PAGE = 100


@dataclass(slots=True)
class Findings:
    """What a run has done so far."""

    deliveries: int = 0
    reports: int = 0
    changes: Counter[tuple[int, int, int, int, int]] = field(default_factory=Counter)
    """Send logs, by outcome, type and reason before, type and reason now."""
    changed_reports: Counter[tuple[int, int, int, int, int]] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    """Reports that a rule reads otherwise than they were read before."""

    def count(self, changes: Iterable[pb.QualificationChange]) -> None:
        """Counts what DeliveryService has changed."""
        for change in changes:
            key = (
                change.outcome,
                change.failure_type_before,
                change.reason_before,
                change.failure_type,
                change.reason,
            )
            self.changes[key] += change.send_logs
            self.changed_reports[key] += change.reports


class Requalification:
    """One run over a time."""

    def __init__(
        self,
        delivery_service: RequalificationServiceStub,
        since_time: Timestamp,
        until_time: Timestamp,
        *,
        validate_only: bool,
        corrections_max: int,
        call_seconds_max: float,
    ) -> None:
        """`corrections_max`: in one call of DeliveryService."""
        self._delivery_service = delivery_service
        self._since_time = since_time
        self._until_time = until_time
        self._validate_only = validate_only
        self._corrections_max = corrections_max
        self._call_seconds_max = call_seconds_max
        self.findings = Findings()

    async def run(self, delivery_ids: Sequence[str]) -> AsyncIterator[str]:
        """Does these deliveries, or all of the time if none is named; gives each when it is done."""
        async for delivery_id in self._deliveries(delivery_ids):
            await self._delivery(delivery_id)
            self.findings.deliveries += 1
            yield delivery_id

    async def _deliveries(self, delivery_ids: Sequence[str]) -> AsyncIterator[str]:
        if delivery_ids:
            for delivery_id in dict.fromkeys(delivery_ids):
                yield delivery_id
            return
        request = pb.ListReportedDeliveriesRequest(
            since_time=self._since_time, until_time=self._until_time, page_size=DELIVERIES_PER_PAGE
        )
        while True:
            page = await self._delivery_service.ListReportedDeliveries(request, timeout=self._call_seconds_max)
            for delivery_id in page.delivery_ids:
                yield delivery_id
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _delivery(self, delivery_id: str) -> None:
        timeout = self._call_seconds_max
        if not self._validate_only:
            # Before anything is read: what comes later was read by these rules, or by newer ones.
            fence = pb.FenceRulesRequest(delivery_id=delivery_id, rules_version=RULES_VERSION)
            await self._delivery_service.FenceRules(fence, timeout=timeout)
        request = pb.ListReportsRequest(
            delivery_id=delivery_id,
            rules_version=RULES_VERSION,
            since_time=self._since_time,
            until_time=self._until_time,
        )
        while True:
            page = await self._delivery_service.ListReports(request, timeout=timeout)
            self.findings.reports += len(page.reports)
            corrections = [correction for report in page.reports if (correction := self._correction(report))]
            for begin in range(0, len(corrections), self._corrections_max):
                changed = await self._delivery_service.CorrectReports(
                    pb.CorrectReportsRequest(
                        delivery_id=delivery_id,
                        rules_version=RULES_VERSION,
                        reports=corrections[begin : begin + self._corrections_max],
                        validate_only=self._validate_only,
                    ),
                    timeout=timeout,
                )
                self.findings.count(changed.changes)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _correction(self, report: pb.QualifiedReport) -> pb.QualifiedReport | None:
        """The report as it counts by these rules; None: as it does already, or it is not for them to say."""
        rereading = reread(_kept(report))
        if rereading is None:
            return None
        decision: Decision = rereading.decision
        failure_type, reason = map(int, decision.verdict)
        differs = failure_type != report.failure_type or reason != report.reason
        if not differs and not report.disputed:
            return None
        if differs and report.rules_version < RULES_VERSION:
            self.findings.rules[decision.rule] += 1
        correction = pb.QualifiedReport()
        correction.CopyFrom(report)
        correction.failure_type = send_log_pb2.FailureType.ValueType(failure_type)
        correction.reason = send_log_pb2.Reason.ValueType(reason)
        correction.mta_event_kind = rereading.kind
        return correction


def _kept(report: pb.QualifiedReport) -> KeptReport:
    return KeptReport(
        outcome=OUTCOMES[report.outcome],
        smtp_code=report.smtp_code,
        enhanced_code=report.enhanced_code,
        diagnostic=report.diagnostic,
        failure_type=report.failure_type,
        reason=report.reason,
        rules_version=report.rules_version,
        mta_event_kind=report.mta_event_kind,
        vendor_class=report.vendor_class,
    )
