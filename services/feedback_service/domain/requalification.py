"""Reading a failure again that was reported before: which event it was, and what the rules say of it now."""

from typing import NamedTuple

from feedback_service.domain.qualification import Decision, decide
from feedback_service.domain.vocabulary import FailureType, MtaEventKind, Outcome, Reason

UNREAD = 0
"""The version of the rules of what none has read: DeliveryService or the MTA side said how it counts."""

_KIND_OF_OUTCOME = {
    Outcome.DEFERRED: MtaEventKind.TRANSIENT_FAILURE,
    Outcome.EXPIRED: MtaEventKind.EXPIRATION,
    Outcome.BOUNCED: MtaEventKind.BOUNCE,
}


class KeptReport(NamedTuple):
    """What is kept of a failure."""

    outcome: int
    smtp_code: int
    enhanced_code: str
    diagnostic: str
    failure_type: int
    reason: int
    rules_version: int
    mta_event_kind: int
    """0: the one that the outcome implies."""
    vendor_class: str


class Rereading(NamedTuple):
    """What the rules say of a report now."""

    decision: Decision
    kind: int
    """What it was read as, if that must be kept with it; else 0."""


def reread(report: KeptReport) -> Rereading | None:
    """What the rules say of a report now; None: it is not for them to say."""
    kind, to_keep = report.mta_event_kind, 0
    if not kind:
        kind = _KIND_OF_OUTCOME[Outcome(report.outcome)]
        if report.rules_version == UNREAD:
            if not _is_readable(report):
                return None
            if report.outcome == Outcome.EXPIRED:
                # Its validity period was over between two attempts: it says what the last one said.
                kind = to_keep = MtaEventKind.TRANSIENT_FAILURE
    decision = decide(
        kind, report.smtp_code, report.enhanced_code, report.diagnostic, report.vendor_class, feedback_type=""
    )
    return Rereading(decision, to_keep)


def _is_readable(report: KeptReport) -> bool:
    """Whether something was said, and nobody who knows better has said how it counts: an ignored failure is one that
    DeliveryService knows all about, and a refusal that the MTA side gave a reason for is that reason."""
    if report.failure_type == FailureType.IGNORED or not (
        report.smtp_code or report.enhanced_code or report.diagnostic
    ):
        return False
    return report.outcome == Outcome.EXPIRED or (report.failure_type, report.reason) == (
        FailureType.SOFT,
        Reason.NOT_DEFINED,
    )
