"""Keeps an eye on the connection to the MTA side, and tells the others: ExplainDelivery answers for all replicas."""

from collections.abc import Callable
from datetime import datetime

import grpc

from delivery_service.store.explanations import Explanations
from service_runtime.clock import Clock

_REACHED = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.IDLE)
"""An idle connection has nothing to say: the last thing known was that it worked, or nothing was tried."""


class MtaContactWorker:
    """`connectivity` is that of the channel on which this process relays."""

    def __init__(
        self,
        explanations: Explanations,
        holder: str,
        connectivity: Callable[[], grpc.ChannelConnectivity],
        clock: Clock,
        report_seconds: float,
    ) -> None:
        self._explanations = explanations
        self._holder = holder
        self._connectivity = connectivity
        self._clock = clock
        self._report_seconds = report_seconds
        self._away_since: datetime | None = None
        self._reported: float | None = None
        self._told: datetime | None = None

    async def work(self) -> bool:
        """Reports when it changes, and every so often. While it is being tried, what was known before still holds."""
        now = self._clock.now()
        state = self._connectivity()
        if state in _REACHED:
            self._away_since = None
        elif state is not grpc.ChannelConnectivity.CONNECTING and self._away_since is None:
            self._away_since = now
        moment = self._clock.monotonic()
        if self._reported is None or self._told != self._away_since or moment - self._reported >= self._report_seconds:
            await self._explanations.report_mta_contact(self._holder, self._away_since, now)
            self._reported, self._told = moment, self._away_since
        return False
