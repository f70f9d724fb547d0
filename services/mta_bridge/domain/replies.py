"""What an SMTP reply means for a message, and for the sending as a whole."""

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

DIAGNOSTIC_CHARACTERS_MAX: Final = 1_000
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)")
_QUEUED_AS = re.compile(r"\bqueued as ([A-Za-z0-9]+)|\bid=([A-Za-z0-9-]+)|\bqueued \(?id[ =]?([A-Za-z0-9-]+)", re.I)
_NOT_XTEXT = re.compile(r"[^!-~]|[+=]")


class Step(Enum):
    """Which part of a transaction a reply answers."""

    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    MESSAGE = auto()


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply."""

    code: int
    enhanced_code: str
    text: str

    @classmethod
    def parse(cls, lines: list[bytes]) -> "Reply":
        """From its lines; a code of 0 if they are no reply."""
        head = lines[-1][:3]
        code = int(head) if head.isdigit() else 0
        parts = [line[4:].decode("utf-8", "replace").strip() for line in lines]
        enhanced = ""
        if match := _ENHANCED.match(parts[0]):
            enhanced = match[1]
            # Each line may repeat it.
            parts = [part.removeprefix(enhanced).strip() for part in parts]
        return cls(code, enhanced, " ".join(part for part in parts if part)[:DIAGNOSTIC_CHARACTERS_MAX])

    @property
    def is_positive(self) -> bool:
        return 200 <= self.code < 300

    @property
    def is_permanent(self) -> bool:
        return 500 <= self.code < 600

    @property
    def diagnostic(self) -> str:
        """As a bounce would quote it."""
        return " ".join(part for part in (str(self.code), self.enhanced_code, self.text) if part)

    @property
    def queue_id(self) -> str:
        """The mail server's own name for the message that it has just taken; empty if it told none."""
        match = _QUEUED_AS.search(self.text)
        return next(filter(None, match.groups()), "") if match else ""

    def concerns_the_server(self, step: Step) -> bool:
        """Whether a 4xx says "not so much", rather than "not this recipient now"."""
        if self.code == 421:
            return True
        if not 400 <= self.code < 500:
            return False
        return (
            step is Step.MAIL or self.enhanced_code.startswith("4.3.") or (self.code == 452 and not self.enhanced_code)
        )


def is_refused(reply: Reply, step: Step) -> bool:
    """Whether the message will never be taken: a bounce of its recipient.

    A 5xx to MAIL is about us (no permission, no such sender domain): taken as refused too, or it would never end.
    """
    del step
    return reply.is_permanent


def xtext(text: str) -> str:
    """RFC 3461: what ENVID and ORCPT are written in."""
    return _NOT_XTEXT.sub(lambda match: f"+{ord(match[0]):02X}", text)
