"""From a mail in the bounce mailbox to reports: what it says (`mta_bridge.mail`), and which message it is about."""

from collections.abc import Iterable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Final

from mta_bridge.domain.reports import Clues, Found, Kind, Report
from mta_bridge.mail.reader import read_mail
from mta_bridge.mail.report import Action, MailKind, MailReport, RecipientReport

SEARCHED_BYTES_MAX: Final = 256 * 1_024
"""How much of a mail is searched for a token."""
_DIAGNOSTIC_CHARACTERS_MAX: Final = 1_000
_KINDS: Final = {
    Action.DELIVERED: Kind.DELIVERY,
    Action.DELAYED: Kind.TRANSIENT_FAILURE,
    Action.EXPIRED: Kind.EXPIRATION,
    Action.FAILED: Kind.BOUNCE,
}
_FINAL_FAILURES: Final = (Action.EXPIRED, Action.FAILED)


def found_in(raw: bytes, recipients: Sequence[str], own_hostnames: Iterable[str], now_us: int) -> list[Found]:
    """All reports of a mail that came to these addresses. Empty: it says nothing about a message."""
    mail = read_mail(raw)
    time_us = _time_us(mail.date, now_us)
    own = frozenset(name.lower() for name in own_hostnames)
    clues = Clues(addresses=(*recipients, mail.envelope_id, *mail.clues), texts=(raw[:SEARCHED_BYTES_MAX],))
    return [Found(clues, report) for report in _reports(mail, own, time_us)]


def _reports(mail: MailReport, own_hostnames: frozenset[str], time_us: int) -> Iterator[Report]:
    match mail.kind:
        case MailKind.COMPLAINT:
            yield Report("", Kind.COMPLAINT, time_us, feedback_type=mail.feedback_type)
        case MailKind.AUTO_REPLY:
            yield Report("", Kind.AUTO_REPLY, time_us)
        case MailKind.DELIVERY_STATUS | MailKind.FREE_TEXT:
            in_band = not own_hostnames or mail.reporter in own_hostnames
            for one in mail.recipients:
                yield _report(one, time_us, in_band=in_band)


def _report(one: RecipientReport, time_us: int, *, in_band: bool) -> Report:
    kind, diagnostic = _KINDS[one.action], one.diagnostic[:_DIAGNOSTIC_CHARACTERS_MAX]
    if one.action is Action.DELIVERED:
        diagnostic = ""
    elif one.action in _FINAL_FAILURES and not in_band:
        # Told by another server, after ours had handed the message on: it overrides the delivery.
        kind = Kind.OUT_OF_BAND_BOUNCE
    return Report("", kind, time_us, one.smtp_code, one.enhanced_code, diagnostic)


def _time_us(date: str, now_us: int) -> int:
    """The mail's own date, so that the same mail told again is the same report; else when it came."""
    try:
        time_us = int(parsedate_to_datetime(date).timestamp() * 1_000_000)
    except (TypeError, ValueError, OverflowError, OSError):
        return now_us
    return time_us if 0 < time_us <= now_us + 86_400_000_000 else now_us
