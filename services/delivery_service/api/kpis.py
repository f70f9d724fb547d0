"""KPIs: get, watch, and recount."""

import logging
from collections.abc import Awaitable, Callable

from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service.api.kpi_hub import KpiHub
from delivery_service.api.validation import delivery_id_of
from delivery_service.convert import kpis_to_pb
from delivery_service.domain.lifecycle import HAS_SEND_LOGS
from delivery_service.domain.problems import AlreadyRunning, DeliveryNotFound, StateProblem
from delivery_service.metrics import Metrics
from delivery_service.settings import Settings
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.kpis import KpiStore
from service_runtime.clock import Clock
from service_runtime.problems import InvalidInput

log = logging.getLogger(__name__)

_INTERVAL_SECONDS_MAX = 3_600.0


class KpiCalls:
    """Every answer is one consistent snapshot."""

    def __init__(
        self, kpis: KpiStore, deliveries: Deliveries, hub: KpiHub, settings: Settings, clock: Clock, metrics: Metrics
    ) -> None:
        self._kpis = kpis
        self._deliveries = deliveries
        self._hub = hub
        self._settings = settings
        self._clock = clock
        self._metrics = metrics

    async def get(self, request: pb.GetKpisRequest) -> pb.GetKpisResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        found = await self._kpis.get([delivery_id])
        if delivery_id not in found:
            raise DeliveryNotFound(delivery_id)
        return pb.GetKpisResponse(kpis=kpis_to_pb(found[delivery_id], self._hub.sources_connected))

    async def watch(self, request: pb.WatchKpisRequest, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Writes serialised responses: the same bytes go to every watcher of a delivery."""
        limit = self._settings.watched_deliveries_per_call_max
        if not 1 <= len(request.delivery_ids) <= limit:
            raise InvalidInput.of("delivery_ids", f"has {len(request.delivery_ids)} entries: give 1 to {limit}")
        delivery_ids = [
            delivery_id_of(text, f"delivery_ids[{index}]") for index, text in enumerate(request.delivery_ids)
        ]
        if len(set(delivery_ids)) != len(delivery_ids):
            raise InvalidInput.of("delivery_ids", "names a delivery twice: give each once")
        interval = self._settings.watch_interval_default_seconds
        if request.HasField("min_interval"):
            interval = request.min_interval.seconds + request.min_interval.nanos / 1e9
            if not 0 <= interval <= _INTERVAL_SECONDS_MAX:
                raise InvalidInput.of("min_interval", "must be 0 to 1 h")
        with self._metrics.watchers.track_inprogress():
            await self._hub.watch(delivery_ids, interval, write)

    async def compute_statistics(self, request: pb.ComputeStatisticsRequest) -> pb.ComputeStatisticsResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        delivery = await self._deliveries.get(delivery_id)
        if delivery.state not in HAS_SEND_LOGS:
            allowed = [state.name for state in sorted(HAS_SEND_LOGS)]
            raise StateProblem(delivery_id, delivery.state.name, "compute statistics", allowed)
        delivery.require_log("compute its statistics")
        recount = await self._kpis.compute_statistics(delivery_id, self._clock.now())
        if recount is None:
            raise AlreadyRunning(delivery_id, "a recount")
        self._metrics.drift.set(recount.drift)
        if recount.drift:
            self._metrics.drift_found.inc()
            log.error(
                "the counters had drifted from the send logs",
                extra={"action": "compute_statistics", "delivery_id": delivery_id, "drift": recount.drift},
            )
        await self._kpis.refresh_engagement(delivery_id, self._clock.now())
        self._hub.touch([delivery_id])
        kpis = (await self._kpis.get([delivery_id]))[delivery_id]
        return pb.ComputeStatisticsResponse(
            kpis=kpis_to_pb(kpis, self._hub.sources_connected), drift=recount.drift, recounted=recount.recounted
        )
