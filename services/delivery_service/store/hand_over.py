"""What most of a send consists of: messages that the MTA side took, with nothing to say about any but when."""

from dataclasses import dataclass

from delivery_service.domain.identifiers import part_of
from delivery_service.domain.outcome import Outcome
from delivery_service.store.observations import ObservationColumns


@dataclass(frozen=True, slots=True)
class HandOver:
    """Messages of one delivery that became RELAYED, by recipient, each once, and when each was accepted."""

    delivery_id: int
    recipients: list[int]
    event_times_us: list[int]
    claim_count: int = 0
    """The claim of their part, if they are all messages that the part ever had: then it is done once they are
    applied. 0: they are not."""

    @property
    def first(self) -> int:
        """The lowest recipient."""
        return self.recipients[0]

    @property
    def is_of_one_part(self) -> bool:
        """Whether they can be found in one range of a part. Proofs, numbered below 1, are in none."""
        return self.first >= 1 and part_of(self.first) == part_of(self.recipients[-1])

    @property
    def is_of_one_moment(self) -> bool:
        """Whether its recipients follow one another, all accepted at the same time: most of an MTA side that answers
        for a batch as a whole."""
        times_us = self.event_times_us
        return times_us.count(times_us[0]) == len(times_us) and self._is_without_gaps

    @property
    def _is_without_gaps(self) -> bool:
        return self.recipients[-1] - self.first == len(self.recipients) - 1

    def times_by_recipient(self) -> list[int]:
        """The time of each recipient from the first one to the last; 0 for those in between that are not among them."""
        if self._is_without_gaps:  # nearly always
            return self.event_times_us
        times = [0] * (self.recipients[-1] - self.first + 1)
        for recipient, time_us in zip(self.recipients, self.event_times_us, strict=True):
            times[recipient - self.first] = time_us
        return times

    def columns(self) -> ObservationColumns:
        """The same as observations."""
        return ObservationColumns.without_detail(
            self.delivery_id, self.recipients, Outcome.RELAYED, self.event_times_us
        )
