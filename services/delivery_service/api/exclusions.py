"""ListExclusions: who gets no message, and why."""

from typing import Final

from campaign.delivery.v1 import delivery_pb2
from campaign.delivery.v1 import exclusion_pb2 as pb
from delivery_service.api.validation import delivery_id_of, enums_of, page_size_of, page_token, place_of
from delivery_service.domain.delivery import ExclusionCause
from delivery_service.domain.identifiers import RECIPIENT_MAX
from delivery_service.domain.lifecycle import HAS_SEND_LOGS
from delivery_service.settings import Settings
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.exclusions import Exclusions
from service_runtime.problems import InvalidInput

_CAUSES: Final = {int(cause): cause for cause in ExclusionCause}


class ExclusionCalls:
    """Shows the exclusions of the present plan."""

    def __init__(self, deliveries: Deliveries, exclusions: Exclusions, settings: Settings) -> None:
        self._deliveries = deliveries
        self._exclusions = exclusions
        self._settings = settings

    async def list(self, request: pb.ListExclusionsRequest) -> pb.ListExclusionsResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        causes = enums_of("causes", request.causes, _CAUSES)
        size = page_size_of(request.page_size, self._settings.page_size_default, self._settings.page_size_max)
        after = place_of(request.page_token, 0)
        if not 0 <= after <= RECIPIENT_MAX:
            raise InvalidInput.of("page_token", "is not a token of this list: pass next_page_token on unchanged")
        delivery = await self._deliveries.get(delivery_id)
        if delivery.state not in HAS_SEND_LOGS:
            return pb.ListExclusionsResponse()
        async with self._deliveries.log_kept(delivery_id):
            page = await self._exclusions.page(delivery_id, after, causes, size)
        return pb.ListExclusionsResponse(
            exclusions=[
                pb.Exclusion(
                    recipient=row["recipient"],
                    profile_id=row["profile_id"],
                    address=row["address"],
                    cause=delivery_pb2.ExclusionCause.ValueType(row["cause"]),
                )
                for row in page.rows
            ],
            next_page_token=page_token(page.next_after) if page.next_after is not None else "",
        )
