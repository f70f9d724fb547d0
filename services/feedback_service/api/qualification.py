"""The calls about the qualification rules."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from campaign.delivery.v1 import requalification_service_pb2, send_log_pb2
from campaign.delivery.v1.requalification_service_pb2_grpc import RequalificationServiceStub
from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from campaign.feedback.v1 import qualification_service_pb2 as pb
from campaign.feedback.v1.qualification_service_pb2_grpc import QualificationServiceServicer
from feedback_service.api.errors import DeliveryNotFound, DeliveryServiceUnavailable, RulesOutdated
from feedback_service.domain.events import find_fault
from feedback_service.domain.qualification import decide
from feedback_service.domain.rules import RULES, RULES_VERSION, Rule
from feedback_service.domain.vocabulary import MtaEventKind
from feedback_service.requalification import Findings, Requalification
from feedback_service.settings import Settings
from service_runtime.clock import Clock
from service_runtime.problems import InvalidInput

DELIVERY_IDS_MAX: Final = 100
_QUALIFIED_KINDS: Final[frozenset[int]] = frozenset(
    {
        MtaEventKind.TRANSIENT_FAILURE,
        MtaEventKind.EXPIRATION,
        MtaEventKind.BOUNCE,
        MtaEventKind.ADMIN_BOUNCE,
        MtaEventKind.OUT_OF_BAND_BOUNCE,
        MtaEventKind.COMPLAINT,
    }
)
_SOURCES: Final = {rule.name: rule.source for rule in RULES}
_ANY_TIME_US: Final = 10**15  # an event's time plays no part in what it means

OpenDeliveryService = Callable[[], AbstractAsyncContextManager[RequalificationServiceStub]]


class QualificationCalls(QualificationServiceServicer):
    """Asks and applies the rules of this process."""

    def __init__(self, settings: Settings, open_delivery_service: OpenDeliveryService, clock: Clock) -> None:
        self._settings = settings
        self._open_delivery_service = open_delivery_service
        self._clock = clock

    async def ListRules(self, request: pb.ListRulesRequest, context: Any) -> pb.ListRulesResponse:
        return pb.ListRulesResponse(rules_version=RULES_VERSION, rules=map(_rule, RULES))

    async def Qualify(self, request: pb.QualifyRequest, context: Any) -> pb.QualifyResponse:
        if request.kind not in _QUALIFIED_KINDS:
            raise InvalidInput.of("kind", f"{request.kind} is not qualified: give a kind of failure, or COMPLAINT")
        fault = find_fault(
            request.kind,
            "any",
            _ANY_TIME_US,
            request.smtp_code,
            request.enhanced_code,
            request.diagnostic,
            0,
            vendor_class=request.vendor_class,
        )
        if fault is not None:
            raise InvalidInput.of(fault.field, f"{fault.problem}: {fault.remedy}")
        (failure_type, reason), rule = decide(
            request.kind, request.smtp_code, request.enhanced_code, request.diagnostic, request.vendor_class, ""
        )
        return pb.QualifyResponse(
            failure_type=send_log_pb2.FailureType.ValueType(failure_type),
            reason=send_log_pb2.Reason.ValueType(reason),
            rule=rule,
            source=_SOURCES.get(rule, ""),
            rules_version=RULES_VERSION,
        )

    async def Requalify(self, request: pb.RequalifyRequest, context: Any) -> AsyncIterator[pb.RequalifyResponse]:
        since, until = self._time_range(request)
        if len(request.delivery_ids) > DELIVERY_IDS_MAX:
            raise InvalidInput.of("delivery_ids", f"are {len(request.delivery_ids)}: give at most {DELIVERY_IDS_MAX}")
        async with self._open_delivery_service() as delivery_service:
            run = Requalification(
                delivery_service,
                since,
                until,
                validate_only=request.validate_only,
                corrections_max=self._settings.requalification_corrections_max,
                call_seconds_max=self._settings.requalification_call_seconds_max,
            )
            async with aclosing(_told(run, request)) as responses:
                async for response in responses:
                    yield response

    def _time_range(self, request: pb.RequalifyRequest) -> tuple[Timestamp, Timestamp]:
        since, until = request.since_time, Timestamp()
        if not request.HasField("since_time"):
            raise InvalidInput.of("since_time", "is missing: give a time")
        if request.HasField("until_time"):
            until = request.until_time
        else:
            until.FromDatetime(self._clock.now())
        if (since.seconds, since.nanos) >= (until.seconds, until.nanos):
            raise InvalidInput.of("since_time", "does not lie before until_time: give a time that has a length")
        return since, until


async def _told(run: Requalification, request: pb.RequalifyRequest) -> AsyncGenerator[pb.RequalifyResponse]:
    """The run, as its caller is told of it; with errors of DeliveryService as our own."""
    findings = run.findings
    try:
        async for delivery_id in run.run(request.delivery_ids):
            progress = pb.RequalificationProgress(
                delivery_id=delivery_id, deliveries=findings.deliveries, reports=findings.reports
            )
            yield pb.RequalifyResponse(progress=progress)
    except grpc.aio.AioRpcError as error:
        match error.code():
            case grpc.StatusCode.NOT_FOUND:
                raise DeliveryNotFound(error.details() or "") from error
            case grpc.StatusCode.FAILED_PRECONDITION:
                raise RulesOutdated(RULES_VERSION) from error
            case grpc.StatusCode.INVALID_ARGUMENT:
                raise InvalidInput.of("request", f"was refused by DeliveryService: {error.details()}") from error
            case code:
                raise DeliveryServiceUnavailable(code.name) from error
    yield pb.RequalifyResponse(result=_result(findings))


def _result(findings: Findings) -> pb.RequalificationResult:
    changes = [
        requalification_service_pb2.QualificationChange(
            outcome=send_log_pb2.Outcome.ValueType(key[0]),
            failure_type_before=send_log_pb2.FailureType.ValueType(key[1]),
            reason_before=send_log_pb2.Reason.ValueType(key[2]),
            failure_type=send_log_pb2.FailureType.ValueType(key[3]),
            reason=send_log_pb2.Reason.ValueType(key[4]),
            reports=findings.changed_reports[key],
            send_logs=send_logs,
        )
        for key, send_logs in findings.changes.items()
    ]
    return pb.RequalificationResult(
        rules_version=RULES_VERSION,
        deliveries=findings.deliveries,
        reports=findings.reports,
        changes=sorted(changes, key=lambda change: (change.send_logs, change.reports), reverse=True),
        rules=[pb.RuleUse(rule=rule, reports=count) for rule, count in findings.rules.most_common()],
    )


def _rule(rule: Rule) -> pb.QualificationRule:
    temporary = rule.verdict_if_temporary or (0, 0)
    return pb.QualificationRule(
        name=rule.name,
        source=rule.source,
        failure_type=send_log_pb2.FailureType.ValueType(rule.verdict[0]),
        reason=send_log_pb2.Reason.ValueType(rule.verdict[1]),
        failure_type_if_temporary=send_log_pb2.FailureType.ValueType(temporary[0]),
        reason_if_temporary=send_log_pb2.Reason.ValueType(temporary[1]),
        kinds=[feedback_pb.MtaEventKind.ValueType(kind) for kind in rule.kinds],
        vendor_classes=rule.vendor_classes,
        texts=rule.texts,
        smtp_codes=[
            f"{codes.start}-{codes.stop - 1}" if isinstance(codes, range) else str(codes) for codes in rule.smtp_codes
        ],
        enhanced_codes=rule.enhanced_codes,
        except_enhanced_codes=rule.except_enhanced_codes,
    )
