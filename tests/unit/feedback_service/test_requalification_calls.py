"""How long a re-qualification waits for DeliveryService."""

from typing import Any, cast

from google.protobuf.timestamp_pb2 import Timestamp

from campaign.delivery.v1 import requalification_service_pb2 as pb
from campaign.delivery.v1 import send_log_pb2
from feedback_service.requalification import Requalification

REPORT = pb.QualifiedReport(
    outcome=send_log_pb2.OUTCOME_BOUNCED,
    diagnostic="user unknown",
    failure_type=send_log_pb2.FAILURE_TYPE_SOFT,
    reason=send_log_pb2.REASON_NOT_DEFINED,
    rules_version=1,
)


class DeliveryServiceStub:
    """Has one delivery with one report, and notes how long each call may take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    async def ListReportedDeliveries(self, _request: Any, *, timeout: float) -> pb.ListReportedDeliveriesResponse:
        self.seconds["ListReportedDeliveries"] = timeout
        return pb.ListReportedDeliveriesResponse(delivery_ids=["d1"])

    async def FenceRules(self, _request: Any, *, timeout: float) -> None:
        self.seconds["FenceRules"] = timeout

    async def ListReports(self, _request: Any, *, timeout: float) -> pb.ListReportsResponse:
        self.seconds["ListReports"] = timeout
        return pb.ListReportsResponse(reports=[REPORT])

    async def CorrectReports(self, _request: Any, *, timeout: float) -> pb.CorrectReportsResponse:
        self.seconds["CorrectReports"] = timeout
        return pb.CorrectReportsResponse()


async def test_every_call_ends_after_the_time_that_is_set() -> None:
    service = DeliveryServiceStub()
    run = Requalification(
        cast(Any, service),
        Timestamp(),
        Timestamp(seconds=1),
        validate_only=False,
        corrections_max=10,
        call_seconds_max=7.5,
    )
    assert [delivery_id async for delivery_id in run.run([])] == ["d1"]
    assert service.seconds == dict.fromkeys(
        ("ListReportedDeliveries", "FenceRules", "ListReports", "CorrectReports"), 7.5
    )
