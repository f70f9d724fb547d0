"""ListUndefinedFailures: what the next qualification rule should be for."""

import asyncio
from typing import Final

from campaign.delivery.v1 import send_log_pb2
from campaign.delivery.v1 import undefined_failure_pb2 as pb
from delivery_service.api.requalification import time_range
from delivery_service.api.validation import delivery_id_of, page_size_of
from delivery_service.convert import OUTCOME_OFFSET, timestamp
from delivery_service.domain.undefined_failures import UndefinedFailure, UndefinedFailures
from delivery_service.settings import Settings
from delivery_service.store.deliveries import FIRST_PAGE
from delivery_service.store.requalification import Requalification
from service_runtime.clock import Clock
from service_runtime.problems import InvalidInput

DELIVERY_IDS_MAX: Final = 100
_DELIVERIES_PER_STATEMENT: Final = 100
_REPORTS_PER_TURN: Final = 1_000
"""Reports grouped before other calls get their turn of the event loop."""


class UndefinedFailureCalls:
    """Looks at a bounded number of reports, and keeps only their groups."""

    def __init__(self, store: Requalification, settings: Settings, clock: Clock) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock

    async def list(self, request: pb.ListUndefinedFailuresRequest) -> pb.ListUndefinedFailuresResponse:
        since, until = time_range(request.since_time, request.until_time, self._clock.now())
        size = page_size_of(request.page_size, self._settings.page_size_default, self._settings.page_size_max)
        if len(request.delivery_ids) > DELIVERY_IDS_MAX:
            raise InvalidInput.of("delivery_ids", f"are {len(request.delivery_ids)}: give at most {DELIVERY_IDS_MAX}")
        named = sorted(
            {delivery_id_of(text, f"delivery_ids[{i}]") for i, text in enumerate(request.delivery_ids)}, reverse=True
        )
        failures, left, below = UndefinedFailures(), self._settings.undefined_reports_scanned_max, FIRST_PAGE
        deliveries = named
        while left > 0:
            if not named:
                deliveries = await self._store.deliveries(below, since, until, _DELIVERIES_PER_STATEMENT)
            if not deliveries:
                break
            scanned = await self._store.undefined_reports(deliveries, since, until, left)
            left -= len(scanned)
            for begin in range(0, len(scanned), _REPORTS_PER_TURN):
                failures.add(filter(None, scanned[begin : begin + _REPORTS_PER_TURN]))
                await asyncio.sleep(0)
            if len(deliveries) < _DELIVERIES_PER_STATEMENT or named:
                break
            below = deliveries[-1]
        return pb.ListUndefinedFailuresResponse(
            failures=map(_failure, failures.most_frequent(size)),
            reports=failures.reports,
            truncated=left <= 0,
        )


def _failure(failure: UndefinedFailure) -> pb.UndefinedFailure:
    example = failure.example
    return pb.UndefinedFailure(
        text=failure.text,
        smtp_code=failure.smtp_code,
        enhanced_code=failure.enhanced_code,
        count=failure.count,
        messages=len(failure.messages),
        first_time=timestamp(failure.first_time),
        last_time=timestamp(example.event_time),
        example=example.diagnostic,
        example_delivery_id=str(example.delivery_id),
        example_recipient=example.recipient,
        example_outcome=send_log_pb2.Outcome.ValueType(example.outcome + OUTCOME_OFFSET),
    )
