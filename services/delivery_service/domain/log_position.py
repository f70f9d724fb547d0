"""A place in a delivery's transition log: how far each slot has been told.

Within a slot, revision order is commit order, so one place per slot names an exact point of the log, at every replica.
A serial number or a time would not: commits overtake each other, and a reader would lose rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Place(NamedTuple):
    """How far one slot has been told: everything through `revision`; with a `recipient`, of that revision only what is
    about recipients through that one. (A recipient is at most once in a revision.)"""

    revision: int = 0
    recipient: int = 0

    @property
    def from_revision(self) -> int:
        """The first revision of which something may be left."""
        return self.revision if self.recipient else self.revision + 1

    @property
    def complete(self) -> int:
        """The last revision told as a whole."""
        return self.from_revision - 1


@dataclass(frozen=True, slots=True)
class LogPosition:
    """One place per slot. Slots beyond those that it names have not been told at all: a first preparation adds some."""

    places: tuple[Place, ...] = ()

    @classmethod
    def through(cls, slot_revisions: Sequence[int]) -> "LogPosition":
        """Everything through this vector."""
        return cls(tuple(map(Place, slot_revisions)))

    def at(self, slot: int) -> Place:
        """How far that slot has been told."""
        return self.places[slot] if slot < len(self.places) else Place()

    def moved(self, slot: int, place: Place) -> "LogPosition":
        """The same with that slot told so far."""
        places = list(self.places) + [Place()] * (slot + 1 - len(self.places))
        places[slot] = place
        return LogPosition(tuple(places))

    def covers(self, slot_revisions: Sequence[int]) -> bool:
        """Whether nothing through this vector is left to tell."""
        return all(self.at(slot).complete >= revision for slot, revision in enumerate(slot_revisions))

    def is_ahead_of(self, slot_revisions: Sequence[int]) -> bool:
        """Whether it names revisions that this log has not reached: so it is not of this log."""
        return any(
            place.revision > (slot_revisions[slot] if slot < len(slot_revisions) else 0)
            for slot, place in enumerate(self.places)
        )

    @property
    def revision(self) -> int:
        """The sum over the slots, as a KPI message has it."""
        return sum(place.complete for place in self.places)
