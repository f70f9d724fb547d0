"""The fate of every message: a pure function of the seed and the address, whatever the order of relaying.

A tag in the local part forces a fate, so that a test or a demo can ask for one: `anna+hard@mail.test`.

    +ok        delivered; never opened
    +deferred  two transient failures, then delivered
    +expired   two transient failures, then given up
    +hard      accepted, then bounced: no such user
    +refused   refused at once by the relay's answer: no such user
    +full      bounced: the mailbox is full
    +oob       delivered, then bounced after all (out of band)
    +silent    accepted, and never heard of again
    +later     put off by the relay twice, then delivered

A message's deadline is not looked at: unless the time scale is large, every fate is complete long before.
"""

from dataclasses import dataclass, fields
from enum import Enum, auto
from hashlib import blake2b
from struct import Struct
from typing import Final, NamedTuple

from campaign.delivery.v1 import send_log_pb2 as send_log_pb
from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from mta_simulator import dialects
from mta_simulator.dialects import Report
from mta_simulator.truth import OUTCOME_OF_KIND


class Fate(Enum):
    """What becomes of a message."""

    DELIVERED = auto()
    DEFERRED = auto()
    EXPIRED = auto()
    HARD = auto()
    REFUSED = auto()
    MAILBOX_FULL = auto()
    OUT_OF_BAND = auto()
    SILENT = auto()


TAGS: Final = {
    "ok": Fate.DELIVERED,
    "deferred": Fate.DEFERRED,
    "expired": Fate.EXPIRED,
    "hard": Fate.HARD,
    "refused": Fate.REFUSED,
    "full": Fate.MAILBOX_FULL,
    "oob": Fate.OUT_OF_BAND,
    "silent": Fate.SILENT,
    "later": Fate.DELIVERED,
}
TAGGED_ROUNDS: Final = 2
"""How often a tagged address is deferred, or put off."""


@dataclass(frozen=True, slots=True)
class ScriptOptions:
    """The seed, and which share of the addresses gets which fate; the rest is delivered."""

    seed: int = 1
    deferred: float = 0.03
    expired: float = 0.015
    hard: float = 0.03
    """Half of them refused by the relay's answer, half bounced after it."""
    full: float = 0.01
    out_of_band: float = 0.015
    silent: float = 0.0
    opened: float = 0.35
    """Of those delivered for good, like `clicked`, which is part of it."""
    clicked: float = 0.08
    try_later: float = 0.0
    """Put off by the relay one to three times. Independent of the fate."""
    time_scale: float = 1.0
    """Multiplies all delays. At 1 a fate is complete within some four seconds."""

    def __post_init__(self) -> None:
        shares = {field.name: getattr(self, field.name) for field in fields(self)[1:-1]}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"the share {name} is {share}: give one between 0 and 1")
        if sum(list(shares.values())[:6]) > 1.000001:
            raise ValueError("the shares of all fates add up to more than 1: lower some of them")
        if self.clicked > self.opened:
            raise ValueError("more are to click than to open: lower clicked, or raise opened")
        if self.time_scale < 0:
            raise ValueError("the time scale is negative: give 0 or more")


class ScriptedEvent(NamedTuple):
    """One event of a message's script."""

    delay_us: int
    """From the acceptance until it happens. Strictly increasing along a script."""
    lag_us: int
    """From then until it is reported."""
    report: Report
    attempt: int


class Script(NamedTuple):
    """All that will happen to a message, and what it comes to."""

    fate: Fate
    refusal: Report | None
    try_later: int
    events: tuple[ScriptedEvent, ...]
    outcome: send_log_pb.Outcome.ValueType
    opened: bool
    clicked: bool


_DRAWS = Struct("<I10H")
_Draws = tuple[int, ...]
_DELIVERY: Final = feedback_pb.MTA_EVENT_KIND_DELIVERY
_SECOND: Final = 1_000_000


class ScriptWriter:
    """Writes the script of any address."""

    def __init__(self, options: ScriptOptions) -> None:
        self._options = options
        self._key = options.seed.to_bytes(16, "little", signed=True)
        self._thresholds: list[tuple[float, Fate]] = []
        limit = 0.0
        for share, fate in (
            (options.deferred, Fate.DEFERRED),
            (options.expired, Fate.EXPIRED),
            (options.hard / 2, Fate.REFUSED),
            (options.hard / 2, Fate.HARD),
            (options.full, Fate.MAILBOX_FULL),
            (options.out_of_band, Fate.OUT_OF_BAND),
            (options.silent, Fate.SILENT),
        ):
            limit += share
            self._thresholds.append((limit, fate))
        self._thrown_away = limit

    def script_for(self, address: str) -> Script:
        """The same script for the same address, always."""
        digest = blake2b(address.encode("utf-8", "surrogateescape"), digest_size=_DRAWS.size, key=self._key).digest()
        draws = _DRAWS.unpack(digest)
        tag = _tag_of(address) if "+" in address else None
        if tag is not None:
            fate, rounds = TAGS[tag], TAGGED_ROUNDS
            try_later = TAGGED_ROUNDS if tag == "later" else 0
        else:
            fate, rounds = self._fate(draws[0] / 2**32), 1 + draws[1] % 3
            try_later = 1 + draws[2] % 3 if draws[3] / 65_536 < self._options.try_later else 0
        if fate is Fate.REFUSED:
            return Script(fate, dialects.REFUSED, try_later, (), send_log_pb.OUTCOME_BOUNCED, False, False)
        happenings = _happenings(fate, rounds, draws)
        # A script goes upwards in the order of outcomes: its last status says what it comes to.
        outcome = OUTCOME_OF_KIND[happenings[-1][1].kind] if happenings else send_log_pb.OUTCOME_RELAYED
        opened = clicked = False
        if outcome == send_log_pb.OUTCOME_DELIVERED and tag is None:
            opened = draws[4] / 65_536 < self._options.opened
            clicked = draws[4] / 65_536 < self._options.clicked
            if opened:
                happenings += _tracking(clicked, draws)
        return Script(fate, None, try_later, self._timed(happenings, draws[5] % 8 == 0), outcome, opened, clicked)

    def _fate(self, draw: float) -> Fate:
        if draw < self._thrown_away:
            for limit, fate in self._thresholds:
                if draw < limit:
                    return fate
        return Fate.DELIVERED

    def _timed(self, happenings: "list[_Happening]", overtaken: bool) -> tuple[ScriptedEvent, ...]:
        """If `overtaken`, the report of the delivery is held up: an open, or a bounce out of band, may come before."""
        scale = self._options.time_scale
        events = []
        elapsed = now_us = 0
        for gap_us, report, attempt in happenings:
            elapsed += gap_us
            now_us = max(now_us + 1, int(elapsed * scale))
            lag_us = int(1.5 * _SECOND * scale) if overtaken and report.kind == _DELIVERY else 0
            events.append(ScriptedEvent(now_us, lag_us, report, attempt))
        return tuple(events)


_Happening = tuple[int, Report, int]
"""The time since the one before, what is reported, the number of the attempt."""


def _happenings(fate: Fate, rounds: int, draws: _Draws) -> list[_Happening]:
    first_us = draws[6] * _SECOND // 65_536
    gap_us = _SECOND // 5 + draws[7] * 7 * _SECOND // 655_360  # 0.2 to 0.9 seconds
    words = draws[8]
    match fate:
        case Fate.DELIVERED:
            return [(first_us, _choose(dialects.DELIVERED, words), 1)]
        case Fate.HARD:
            return [(first_us, _choose(dialects.BOUNCED, words), 1)]
        case Fate.MAILBOX_FULL:
            return [(first_us, _choose(dialects.MAILBOX_FULL, words), 1)]
        case Fate.OUT_OF_BAND:
            later = _choose(dialects.OUT_OF_BAND, words >> 4)
            return [(first_us, _choose(dialects.DELIVERED, words), 1), (2 * gap_us, later, 0)]
        case Fate.DEFERRED | Fate.EXPIRED:
            refused = _choose(dialects.DEFERRED, words)
            tries: list[_Happening] = [(gap_us if n else first_us // 2, refused, n + 1) for n in range(rounds)]
            if fate is Fate.DEFERRED:
                return [*tries, (gap_us, _choose(dialects.DELIVERED, words >> 4), rounds + 1)]
            return [*tries, (gap_us, _choose(dialects.EXPIRED, words >> 4), rounds)]
    return []


def _tracking(clicked: bool, draws: _Draws) -> list[_Happening]:
    gap_us = _SECOND // 10 + draws[9] * _SECOND // 131_072  # 0.1 to 0.6 seconds
    happenings: list[_Happening] = [(gap_us, dialects.OPENED, 0)]
    if clicked:
        happenings.append((gap_us, dialects.CLICKED, 0))
    if draws[10] % 4 == 0:
        happenings.append((gap_us, dialects.OPENED, 0))
    return happenings


def _choose(reports: tuple[Report, ...], draw: int) -> Report:
    return reports[draw % len(reports)]


def _tag_of(address: str) -> str | None:
    tag = address.rpartition("@")[0].rpartition("+")[2].lower()
    return tag if tag in TAGS else None
