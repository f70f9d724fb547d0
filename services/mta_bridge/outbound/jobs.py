"""One message on its way out, and everyone who waits for its answer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from message_template.message import MessageTemplate
from mta_bridge.domain.mime import MessageBuilder


class Stage(Enum):
    """How far a job is."""

    QUEUED = auto()
    """In memory alone."""
    OFFERED = auto()
    """Its envelope is on its way; its content is not."""
    SENDING = auto()
    """Its final dot may be on its way, and the journal says so."""
    DONE = auto()


class Verdict(Enum):
    """What became of it."""

    ACCEPTED = auto()
    REFUSED = auto()
    TRY_LATER = auto()
    WITHDRAWN = auto()


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to a message. `refusal` is a RelayRefusal, serialised, without its index."""

    verdict: Verdict
    time_us: int
    refusal: bytes | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """What all messages of one delivery share."""

    template: MessageTemplate
    builder: MessageBuilder


@dataclass(slots=True)
class Job:
    """One message. Its attributes are rendered when its turn comes: a thousand waiting ones take little memory."""

    message_id: str
    address: str
    attributes_json: str
    deadline_us: int
    content: Content
    queued_at: float
    stage: Stage = Stage.QUEUED
    offers: int = 0
    """How often its envelope was offered and its connection lost."""
    waiters: list[Callable[[Result], None]] = field(default_factory=list)
    result: Result | None = None

    def done(self, result: Result) -> None:
        """Tells everyone who waits."""
        self.stage = Stage.DONE
        self.result = result
        for tell in self.waiters:
            tell(result)
        self.waiters.clear()
