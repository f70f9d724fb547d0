"""What is read again of what is kept, and as which event."""

from typing import Any

import pytest

from feedback_service.domain.requalification import UNREAD, KeptReport, reread
from feedback_service.domain.vocabulary import FailureType, MtaEventKind, Outcome, Reason

SOFT, HARD, IGNORED = FailureType.SOFT, FailureType.HARD, FailureType.IGNORED


def kept(outcome: Outcome, text: str, **fields: Any) -> KeptReport:
    """A report read by an older version of the rules, which made nothing of it."""
    told = KeptReport(outcome, 0, "", text, SOFT, Reason.NOT_DEFINED, 1, 0, "")
    return told._replace(**fields)


@pytest.mark.parametrize(
    ("report", "verdict"),
    [
        (kept(Outcome.BOUNCED, "user unknown"), (HARD, Reason.USER_UNKNOWN)),
        (kept(Outcome.DEFERRED, "user unknown"), (SOFT, Reason.UNREACHABLE)),
        (kept(Outcome.EXPIRED, "user unknown"), (SOFT, Reason.UNREACHABLE)),
        (kept(Outcome.EXPIRED, "mailbox full"), (SOFT, Reason.MAILBOX_FULL)),
        (kept(Outcome.BOUNCED, "", enhanced_code="5.1.1"), (HARD, Reason.USER_UNKNOWN)),
        (kept(Outcome.BOUNCED, "no", vendor_class="BadDomain"), (SOFT, Reason.INVALID_DOMAIN)),
    ],
)
def test_the_outcome_tells_which_event_it_was(report: KeptReport, verdict: tuple[FailureType, Reason]) -> None:
    rereading = reread(report)
    assert rereading is not None
    assert (rereading.decision.verdict, rereading.kind) == (verdict, 0)


def test_a_kind_that_was_kept_says_more_than_the_outcome() -> None:
    removed = reread(kept(Outcome.BOUNCED, "user unknown", mta_event_kind=MtaEventKind.ADMIN_BOUNCE))
    answered = reread(kept(Outcome.BOUNCED, "out of office", mta_event_kind=MtaEventKind.OUT_OF_BAND_BOUNCE))
    assert removed is not None
    assert answered is not None
    assert removed.decision.verdict == (IGNORED, Reason.NOT_DEFINED)
    assert answered.decision.verdict == (IGNORED, Reason.ERROR_IGNORED)


def test_an_expiry_that_delivery_service_noted_says_what_the_last_attempt_said_and_stays_that() -> None:
    report = kept(Outcome.EXPIRED, "blocked as spam", rules_version=UNREAD, reason=Reason.UNREACHABLE)
    first = reread(report)
    assert first is not None
    assert first.decision.verdict == (SOFT, Reason.REFUSED)
    again = reread(report._replace(rules_version=2, mta_event_kind=first.kind))
    assert again is not None
    assert again.decision.verdict == (SOFT, Reason.REFUSED)


@pytest.mark.parametrize(
    "report",
    [
        kept(Outcome.BOUNCED, "user unknown", reason=Reason.REFUSED),
        kept(Outcome.BOUNCED, "user unknown", failure_type=HARD, reason=Reason.USER_UNKNOWN),
        kept(Outcome.EXPIRED, "no MTA side took it", failure_type=IGNORED),
        kept(Outcome.BOUNCED, ""),
        kept(Outcome.EXPIRED, ""),
    ],
)
def test_what_no_rules_have_read_is_not_theirs_unless_it_says_something_that_nobody_knew_better(
    report: KeptReport,
) -> None:
    assert reread(report._replace(rules_version=UNREAD)) is None
