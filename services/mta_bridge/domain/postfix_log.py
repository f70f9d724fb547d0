"""The log of Postfix, line by line: what became of which message.

A message is known by the token in its return path, which qmgr logs with its queue id before any delivery; so nothing
that the bridge has not written down yet, or lost in a crash, is needed to read the log. What is not ours (notices,
other mail of the same server) has no token and is passed over.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final

from mta_bridge.domain.reports import Kind, Report
from mta_bridge.domain.tokens import DigestToken, Tokens

REMEMBERED_MAX: Final = 100_000
"""Queue ids whose messages are under way; some 300 bytes each. An older one is asked of the journal."""
DIAGNOSTIC_CHARACTERS_MAX: Final = 1_000

_LINE = re.compile(
    r"(?P<time>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\S+) \S+ "
    r"postfix[\w./-]*/(?P<daemon>\w+)\[\d+\]: (?P<queue_id>[0-9A-Za-z]{6,20}): (?P<rest>.*)"
)
_FROM = re.compile(r"from=<([^>]*)>")
_STATUS = re.compile(
    r"to=<(?P<to>[^>]*)>,.*? dsn=(?P<dsn>\d\.\d{1,3}\.\d{1,3}), status=(?P<status>[\w-]+) \((?P<text>.*)\)"
)
_EXPIRED = re.compile(r"status=(?:force-)?expired, returned to sender")
_SAID = re.compile(r" said: (\d{3})[ -]")
_DAEMONS: Final = frozenset(("smtp", "lmtp", "relay", "error", "retry", "local", "virtual", "pipe", "discard"))


@dataclass(slots=True)
class _Known:
    """A message that Postfix has."""

    message_id: str
    attempt: int = 0
    last_reason: tuple[int, str, str] = (0, "", "")
    """SMTP code, enhanced code and text of the last deferral: why it expires, if it does."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Postfix has this message under that name."""

    message_id: str
    queue_id: str


class PostfixLog:
    """Reads lines in their order. Not safe against lines that someone else may write: a log is trusted."""

    def __init__(
        self,
        tokens: Tokens,
        message_of: Callable[[str | DigestToken], str | None],
        message_of_queue_id: Callable[[str], str | None],
        zone: tzinfo | None,
    ) -> None:
        self._tokens = tokens
        self._message_of = message_of
        self._message_of_queue_id = message_of_queue_id
        self._zone = zone
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def read(self, line: str, now: datetime) -> Report | Taken | None:
        """What a line says about a message of ours; None if nothing. `now` tells the year that the stamp leaves out."""
        if "postfix" not in line or (match := _LINE.match(line)) is None:
            return None
        daemon, queue_id, rest = match["daemon"], match["queue_id"], match["rest"]
        if daemon == "qmgr":
            return self._of_qmgr(match["time"], queue_id, rest, now)
        if daemon == "postsuper":
            return self._removed(match["time"], queue_id, now) if rest == "removed" else None
        if daemon not in _DAEMONS or (status := _STATUS.match(rest)) is None:
            return None
        if (known := self._find(queue_id)) is None:
            return None
        text = status["text"]
        code = int(said[1]) if (said := _SAID.search(text)) else 0
        time_us = self._time_us(match["time"], now)
        match status["status"]:
            case "sent":
                kind = Kind.DELIVERY
            case "bounced":
                kind = Kind.BOUNCE
            case "deferred":
                kind = Kind.TRANSIENT_FAILURE
                known.last_reason = (code, status["dsn"], text)
            case _:
                return None
        known.attempt += 1
        diagnostic = "" if kind is Kind.DELIVERY else text[:DIAGNOSTIC_CHARACTERS_MAX]
        return Report(known.message_id, kind, time_us, code, status["dsn"], diagnostic)

    def _of_qmgr(self, stamp: str, queue_id: str, rest: str, now: datetime) -> Report | Taken | None:
        if rest == "removed":
            self._known.pop(queue_id, None)
            return None
        if (sender := _FROM.match(rest)) is None:
            return None
        known = self._known.get(queue_id)
        fresh = False
        if known is None and (known := self._of_sender(sender[1])) is not None:
            self._remember(queue_id, known)
            fresh = True
        if known is None:
            return None
        if _EXPIRED.search(rest):
            code, enhanced, text = known.last_reason
            diagnostic = f"expired; last: {text}" if text else "expired"
            time_us = self._time_us(stamp, now)
            return Report(
                known.message_id, Kind.EXPIRATION, time_us, code, enhanced, diagnostic[:DIAGNOSTIC_CHARACTERS_MAX]
            )
        return Taken(known.message_id, queue_id) if fresh else None

    def _removed(self, stamp: str, queue_id: str, now: datetime) -> Report | None:
        known = self._find(queue_id)
        if known is None:
            return None
        self._known.pop(queue_id, None)
        text = "removed from the queue by an administrator"
        return Report(known.message_id, Kind.ADMIN_BOUNCE, self._time_us(stamp, now), diagnostic=text)

    def _find(self, queue_id: str) -> _Known | None:
        if (known := self._known.get(queue_id)) is not None:
            return known
        if (message_id := self._message_of_queue_id(queue_id)) is None:
            return None
        known = _Known(message_id)
        self._remember(queue_id, known)
        return known

    def _of_sender(self, sender: str) -> _Known | None:
        local = sender.rpartition("@")[0]
        if (found := self._tokens.read(local.partition("+")[2])) is None:
            return None
        message_id = self._message_of(found)
        return None if message_id is None else _Known(message_id)

    def _remember(self, queue_id: str, known: _Known) -> None:
        self._known[queue_id] = known
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)

    def _time_us(self, stamp: str, now: datetime) -> int:
        return _time_us(stamp, now.date(), self._zone)


@lru_cache(maxsize=256)
def _time_us(stamp: str, today: date, zone: tzinfo | None) -> int:
    """0 if it is no time. A syslog stamp has no year and no zone: it is of the last such day, where it may be tomorrow
    already."""
    try:
        moment = datetime.fromisoformat(stamp) if stamp[0].isdigit() else _last(stamp, today + timedelta(days=1))
    except ValueError:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone) if zone is not None else moment.astimezone()
    return int(moment.timestamp() * 1_000_000)


def _last(stamp: str, until: date) -> datetime:
    """The last day of that name, the 29th of February included; ValueError."""
    for year in range(until.year, until.year - 9, -1):
        try:
            moment = datetime.strptime(f"{year} {stamp}", "%Y %b %d %H:%M:%S")  # noqa: DTZ007 - the zone comes later
        except ValueError:
            continue
        if moment.date() <= until:
            return moment
    raise ValueError(stamp)
