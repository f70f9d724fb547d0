"""The outcome lattice: a send log holds the greatest fact known about its message.

Feedback comes late, twice and out of order, so the outcome is not a sequence of steps. Observations are totally
ordered; the greatest one is the row. Therefore any order, repetition and batching of the same observations gives the
same row. The same order is written once more, in SQL, in `apply_slot` (store/schema): they are tested against each
other.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Final, NamedTuple


class Outcome(IntEnum):
    """The fine-grained value of a send log. The number is its rank in the lattice, and what is stored."""

    PREPARED = 0
    CANCELED = 1
    RELAYED = 2
    DEFERRED = 3
    EXPIRED = 4
    DELIVERED = 5
    BOUNCED = 6


class FailureType(IntEnum):
    """How a failure counts against the address. It decides the quarantine, never the outcome."""

    NONE = 0
    SOFT = 1
    HARD = 2
    IGNORED = 3


class Reason(IntEnum):
    """The finer cause of a failure, by the product's names."""

    NONE = 0
    NOT_DEFINED = 1
    USER_UNKNOWN = 2
    INVALID_DOMAIN = 3
    UNREACHABLE = 4
    ACCOUNT_DISABLED = 5
    MAILBOX_FULL = 6
    REFUSED = 7
    ERROR_IGNORED = 8
    NOT_RENDERED = 9
    QUARANTINED_ADDRESS = 10
    DENYLISTED_ADDRESS = 11


EVENT_TIME_US_MIN: Final = 946_684_800_000_000
EVENT_TIME_US_MAX: Final = 4_102_444_800_000_000
"""2000-01-01 and 2100-01-01 in microseconds since the epoch: a time outside is refused as absurd."""

FAILING: Final = frozenset({Outcome.DEFERRED, Outcome.EXPIRED, Outcome.BOUNCED})
"""Outcomes that have a failure type. The others never do."""


class Observation(NamedTuple):
    """One status fact about one message, normalised. Compared as a tuple: the order of the fields is the lattice.

    No field is ever None, and texts compare by code point, which is the order of their UTF-8 bytes: so of two
    different observations one is always greater, here and in Postgres (collation "C") alike.
    """

    outcome: int
    event_time_us: int
    failure_type: int = 0
    reason: int = 0
    smtp_code: int = 0
    enhanced_code: str = ""
    diagnostic: str = ""
    attempt: int = 0


def normalise(observation: Observation) -> Observation:
    """Blanks type, reason and text where nothing failed, so that equal facts are equal observations."""
    if observation.outcome in FAILING:
        return observation
    return observation._replace(failure_type=0, reason=0, diagnostic="")


def greatest(observations: Iterable[Observation]) -> Observation:
    """The observation that wins: what the row becomes, whatever the order in which they came."""
    return max(observations)


def layers(indexes: list[int], recipients: list[int], row: Callable[[int], Observation]) -> list[list[int]]:
    """Splits rows of a batch, given by their indexes, into layers in which every recipient appears once.

    The first layer holds the greatest observation of each recipient, the second the next one, and so on. Written in
    that order, the first layer decides the rows and the others lose to it, and are kept as late observations: no
    special path. Exact repetitions inside the batch are dropped. Taking the greatest first is correctness, not speed:
    one UPDATE that meets a row twice would take either. `recipients` are those of the whole batch; `row` makes the
    observation at an index, for the few that have to be compared.
    """
    if len({recipients[i] for i in indexes}) == len(indexes):
        return [indexes]
    numbers = Counter([recipients[i] for i in indexes])
    repeated: dict[int, list[int]] = {recipient: [] for recipient, number in numbers.items() if number > 1}
    for index in [i for i in indexes if recipients[i] in repeated]:  # few
        repeated[recipients[index]].append(index)
    result = [[i for i in indexes if recipients[i] not in repeated]]
    for own in repeated.values():
        distinct = {row(i): i for i in own}
        for depth, index in enumerate(distinct[observation] for observation in sorted(distinct, reverse=True)):
            if depth == len(result):
                result.append([])
            result[depth].append(index)
    return result
