"""What the feedback streams of the simulator send: the events that are played, and the cuts that are asked for."""

from collections import Counter
from typing import TypeAlias

from campaign.delivery.v1 import observation_service_pb2 as observation_pb
from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from mta_side.status_stream import StreamHooks, Taken
from mta_simulator.misbehaviour import Misbehaviour, PlayedEvent
from mta_simulator.playback import Playback
from mta_simulator.truth import Truth

Ranges: TypeAlias = Counter[int]
"""How many events of a batch belong to each range of the journal."""


class PlayedEvents:
    """The source of all streams: whichever is free takes what is ready."""

    def __init__(self, playback: Playback, truth: Truth) -> None:
        self._playback = playback
        self._truth = truth

    async def some_ready(self, wanted: int) -> None:
        await self._playback.some_ready(wanted)

    def take(self, most: int) -> Taken[Ranges] | None:
        played = self._playback.take(most)
        if not played:
            return None
        self._truth.events_played += len(played)
        return Taken([_event_of(event) for event in played], Counter(event.range_id for event in played))

    def acknowledge(self, ticket: Ranges) -> None:
        self._playback.acknowledge(ticket)

    def rejected(self, event: feedback_pb.MtaEvent, rejection: feedback_pb.EventRejection) -> None:  # noqa: ARG002
        name = observation_pb.RejectionReason.Name(rejection.reason)
        self._truth.events_rejected[name.removeprefix("REJECTION_REASON_")] += 1


class Mischief(StreamHooks):
    """Cuts the streams as often as the misbehaviour says, and counts what comes of it."""

    def __init__(self, misbehaviour: Misbehaviour, truth: Truth) -> None:
        self._misbehaviour = misbehaviour
        self._truth = truth

    def batches_until_cut(self) -> int | None:
        return self._misbehaviour.batches_until_cut()

    def on_resent(self) -> None:
        self._truth.batches_resent += 1

    def on_cut(self) -> None:
        self._truth.streams_cut += 1


def _event_of(event: PlayedEvent) -> feedback_pb.MtaEvent:
    message_id, event_time_us, report, attempt, _ = event
    return feedback_pb.MtaEvent(
        message_id=message_id,
        kind=report.kind,
        event_time_us=event_time_us,
        smtp_code=report.smtp_code,
        enhanced_code=report.enhanced_code,
        diagnostic=report.diagnostic,
        attempt=attempt,
        url=report.url,
        vendor_class=report.vendor_class,
    )
