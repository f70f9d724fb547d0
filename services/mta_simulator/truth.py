"""What everything comes to in the end: the exact counts that the services must arrive at."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from campaign.delivery.v1 import send_log_pb2 as send_log_pb
from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb

OUTCOME_OF_KIND: Final = {
    feedback_pb.MTA_EVENT_KIND_TRANSIENT_FAILURE: send_log_pb.OUTCOME_DEFERRED,
    feedback_pb.MTA_EVENT_KIND_EXPIRATION: send_log_pb.OUTCOME_EXPIRED,
    feedback_pb.MTA_EVENT_KIND_DELIVERY: send_log_pb.OUTCOME_DELIVERED,
    feedback_pb.MTA_EVENT_KIND_BOUNCE: send_log_pb.OUTCOME_BOUNCED,
    feedback_pb.MTA_EVENT_KIND_OUT_OF_BAND_BOUNCE: send_log_pb.OUTCOME_BOUNCED,
}
_OUTCOMES: Final = [value for value in send_log_pb.Outcome.values() if value != send_log_pb.OUTCOME_UNSPECIFIED]


class Tally:
    """The truth about some recipients."""

    def __init__(self) -> None:
        self.outcomes: Counter[int] = Counter()
        self.accepted = self.refused = self.withdrawn = self.opened = self.clicked = 0

    def add(self, outcome: int, *, accepted: bool, opened: bool, clicked: bool, count: int = 1) -> None:
        """Counts recipients whose messages were answered for the first time, by what they come to in the end."""
        self.outcomes[outcome] += count
        self.accepted += accepted * count
        withdrawn = outcome == send_log_pb.OUTCOME_CANCELED
        self.withdrawn += withdrawn * count
        self.refused += (not accepted and not withdrawn) * count
        self.opened += opened * count
        self.clicked += clicked * count

    def as_json(self) -> dict[str, Any]:
        """All names, zeros included, so that it can be compared as it is."""
        return {
            "accepted": self.accepted,
            "refused": self.refused,
            "withdrawn": self.withdrawn,
            "outcomes": {
                send_log_pb.Outcome.Name(value).removeprefix("OUTCOME_"): self.outcomes[value] for value in _OUTCOMES
            },
            "opened": self.opened,
            "clicked": self.clicked,
        }


@dataclass
class Truth:
    """The truth per delivery, and beside it what the playing took."""

    deliveries: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    total: Tally = field(default_factory=Tally)
    repeated: int = 0
    put_off: int = 0
    events_played: int = 0
    events_rejected: Counter[str] = field(default_factory=Counter)
    batches_resent: int = 0
    streams_cut: int = 0
    characters_rendered: int = 0

    def add(
        self, delivery_id: str, outcome: int, *, accepted: bool, opened: bool, clicked: bool, count: int = 1
    ) -> None:
        """Counts as `Tally.add` does, for the delivery and in total."""
        for tally in (self.deliveries[delivery_id], self.total):
            tally.add(outcome, accepted=accepted, opened=opened, clicked=clicked, count=count)

    @property
    def revision(self) -> int:
        """Grows with everything that happens."""
        answered = self.total.accepted + self.total.refused + self.total.withdrawn
        return answered + self.repeated + self.put_off + self.events_played

    def as_json(self, *, idle: bool, duplicates_sent: int) -> dict[str, Any]:
        """The line that the simulator prints."""
        return {
            "action": "truth",
            "idle": idle,
            **self.total.as_json(),
            "repeated": self.repeated,
            "put_off": self.put_off,
            "duplicates_sent": duplicates_sent,
            "events_played": self.events_played,
            "events_rejected": dict(sorted(self.events_rejected.items())),
            "batches_resent": self.batches_resent,
            "streams_cut": self.streams_cut,
            "characters_rendered": self.characters_rendered,
            "deliveries": {delivery_id: tally.as_json() for delivery_id, tally in self.deliveries.items()},
        }
