"""What a delivery waits for, stage by stage; and what decided between two reports."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from campaign.delivery.v1 import explanation_pb2
from delivery_service.domain.domain_pauses import DomainPause
from delivery_service.domain.explanation import FactKind, LostContact, OpenParts, Situation, explain
from delivery_service.domain.lifecycle import DeliveryState
from delivery_service.domain.outcome import Observation, Outcome
from delivery_service.domain.verdicts import DecidedBy, Report, Verdict, decided_by, explain_reports

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
LATER, EARLIER = NOW + timedelta(minutes=5), NOW - timedelta(minutes=5)
DRAFT = Situation(state=DeliveryState.EDITING, time=NOW, database_time=NOW, update_time=EARLIER, recipient_count=1_200)


def kinds(situation: Situation) -> list[FactKind]:
    return [fact.kind for fact in explain(situation)]


def waits(state: DeliveryState, **fields: Any) -> list[FactKind]:
    return kinds(replace(DRAFT, state=state, **fields))


def test_a_draft_waits_to_be_prepared() -> None:
    (fact,) = explain(DRAFT)
    assert (fact.kind, fact.count) == (FactKind.NOT_PREPARED, 1_200)
    assert "1,200 recipients" in fact.sentence


def test_a_preparation_runs_while_its_lease_holds() -> None:
    held: dict[str, Any] = {"preparation_held": True, "preparation_lease_time": LATER, "prepared_through": 1_024}
    (running,) = explain(replace(DRAFT, state=DeliveryState.PREPARING, **held))
    assert (running.kind, running.count, running.until) == (FactKind.PREPARATION_RUNNING, 1_024, LATER)
    over = {**held, "preparation_lease_time": EARLIER}
    (waiting,) = explain(replace(DRAFT, state=DeliveryState.PREPARING, **over))
    assert (waiting.kind, waiting.since) == (FactKind.PREPARATION_WAITING, EARLIER)
    assert waits(DeliveryState.PREPARING, prepared_through=-1) == [FactKind.PREPARATION_WAITING]


def test_a_failed_preparation_tells_its_errors() -> None:
    (fact,) = explain(
        replace(DRAFT, state=DeliveryState.PREPARATION_FAILED, preparation_errors=("no subject", "no body"))
    )
    assert fact.kind is FactKind.PREPARATION_FAILED
    assert "no subject; no body" in fact.sentence


def test_before_its_contact_time_a_confirmed_delivery_waits_for_it_and_then_for_a_worker() -> None:
    assert waits(DeliveryState.READY) == [FactKind.NOT_CONFIRMED]
    pending = DeliveryState.START_PENDING
    assert waits(pending, confirm_time=EARLIER, contact_time=LATER) == [FactKind.WAITING_FOR_CONTACT_TIME]
    assert waits(pending, confirm_time=EARLIER, contact_time=NOW) == [FactKind.WAITING_FOR_START]
    (fact,) = explain(replace(DRAFT, state=pending, confirm_time=EARLIER))
    assert (fact.kind, fact.since) == (FactKind.WAITING_FOR_START, EARLIER)


def test_handing_over_tells_who_holds_what_until_when_and_who_has_lost_the_mta_side() -> None:
    def group(holder: str, held: bool, parts: int) -> OpenParts:
        return OpenParts(parts, parts * 1_024, held, holder, LATER, 3)

    facts = explain(
        replace(
            DRAFT,
            state=DeliveryState.IN_PROGRESS,
            prepared=9_000,
            relayed=5,
            deferred=1,
            parts=(group("", False, 4), group("replica-1", True, 2), group("", True, 3)),
            lost_contacts=(LostContact("replica-2", EARLIER),),
            sources_connected=1,
            newest_event_time=EARLIER,
            validity_end_time=LATER,
        )
    )
    assert [(fact.kind, fact.count, fact.holder) for fact in facts] == [
        (FactKind.MESSAGES_PREPARED, 9_000, ""),
        (FactKind.PARTS_FREE, 4, ""),
        (FactKind.PARTS_LEASED, 2, "replica-1"),
        (FactKind.PARTS_PUT_OFF, 3, ""),
        (FactKind.MTA_SIDE_AWAY, 0, "replica-2"),
        (FactKind.MESSAGES_WITHOUT_FEEDBACK, 5, ""),
        (FactKind.MESSAGES_RETRIED, 1, ""),
        (FactKind.FEEDBACK_SOURCES, 1, ""),
        (FactKind.NEWEST_FEEDBACK, 0, ""),
        (FactKind.VALIDITY_OPEN, 0, ""),
    ]
    assert facts[2].until == facts[3].until == LATER
    assert facts[4].since == EARLIER
    assert "up to 3 attempts" in facts[3].sentence


def test_what_was_paused_or_stopped_says_so() -> None:
    silent = FactKind.FEEDBACK_SILENT
    assert waits(DeliveryState.PAUSED, prepared=2) == [FactKind.PAUSED, FactKind.MESSAGES_PREPARED, silent]
    assert waits(DeliveryState.STOPPED) == [FactKind.STOPPED, silent, FactKind.NOT_SETTLED]
    assert waits(DeliveryState.FAILED) == [FactKind.STOPPED, silent, FactKind.NOT_SETTLED]


def test_a_settled_delivery_waits_for_nothing() -> None:
    finished = {"validity_end_time": EARLIER, "source_heard_time": EARLIER}
    assert waits(DeliveryState.FINISHED, **finished) == [
        FactKind.FEEDBACK_SILENT,
        FactKind.VALIDITY_CLOSED,
        FactKind.NOT_SETTLED,
    ]
    assert waits(DeliveryState.FINISHED, **finished, settled_time=NOW) == [FactKind.VALIDITY_CLOSED, FactKind.SETTLED]


@pytest.mark.parametrize("state", list(DeliveryState))
def test_every_state_is_explained_by_sentences(state: DeliveryState) -> None:
    facts = explain(replace(DRAFT, state=state))
    assert facts
    assert all(fact.sentence.endswith((".", "plan.errors")) for fact in facts)


@pytest.mark.parametrize(
    ("enum", "contract"),
    [
        (FactKind, explanation_pb2.DeliveryFactKind),
        (Verdict, explanation_pb2.EventVerdict),
        (DecidedBy, explanation_pb2.DecidedBy),
    ],
)
def test_the_numbers_are_those_of_the_contract(enum: Any, contract: Any) -> None:
    names = {number: name for name, number in contract.items() if number}
    for member in enum:
        if member:
            assert names.pop(member).endswith(f"_{member.name}")
    assert names == {}


def seen(outcome: Outcome, time_us: int, revision: int = 0, minute: int = 0, **detail: Any) -> Report:
    return Report(Observation(outcome, time_us, **detail), revision, NOW + timedelta(minutes=minute), 3, "")


def test_an_applied_report_won_over_the_one_before_and_a_late_one_lost_to_what_was_known_then() -> None:
    relayed = seen(Outcome.RELAYED, 10, revision=1, minute=1)
    deferred = seen(Outcome.DEFERRED, 20, revision=2, minute=2)
    earlier = seen(Outcome.DEFERRED, 15, minute=3)
    delivered = seen(Outcome.DELIVERED, 30, revision=5, minute=4)
    late = seen(Outcome.DEFERRED, 40, minute=5)
    opened = Report(None, 0, NOW, 0, "open")

    found = explain_reports([relayed, earlier, deferred, opened, delivered, late])

    assert [(one.verdict, one.decided_by) for one in found] == [
        (Verdict.APPLIED, DecidedBy.RANK),
        (Verdict.LATE, DecidedBy.EVENT_TIME),
        (Verdict.APPLIED, DecidedBy.RANK),
        (Verdict.IGNORED, DecidedBy.NOTHING),
        (Verdict.APPLIED, DecidedBy.RANK),
        (Verdict.LATE, DecidedBy.RANK),
    ]
    compared = [one.compared.outcome if one.compared else None for one in found]
    assert compared == [Outcome.PREPARED, Outcome.DEFERRED, Outcome.RELAYED, None, Outcome.DEFERRED, Outcome.DELIVERED]
    assert found[5].sentence == (
        "Late, changed nothing: DELIVERED (rank 5) is greater than DEFERRED (rank 3). "
        "Qualified by version 3 of the rules."
    )


def test_a_late_report_is_explained_also_when_clocks_disagree_or_its_winner_is_not_told() -> None:
    delivered = seen(Outcome.DELIVERED, 30, revision=5, minute=9)
    late = seen(Outcome.DEFERRED, 40, minute=1)
    assert explain_reports([late, delivered])[0].decided_by is DecidedBy.RANK
    (alone,) = explain_reports([late])
    assert (alone.verdict, alone.decided_by, alone.compared) == (Verdict.LATE, DecidedBy.NOTHING, None)


def test_what_decides_is_the_first_field_that_differs() -> None:
    one = Observation(Outcome.BOUNCED, 1, 2, 3, 550, "5.1.1", "text", 1)
    assert decided_by(one, one._replace(outcome=Outcome.RELAYED, event_time_us=9)) is DecidedBy.RANK
    assert decided_by(one, one._replace(event_time_us=9, reason=9)) is DecidedBy.EVENT_TIME
    assert decided_by(one, one._replace(attempt=2)) is DecidedBy.DETAIL
    assert decided_by(one, one) is DecidedBy.NOTHING


def test_paused_domains_are_told_and_parts_that_wait_for_them() -> None:
    pause = DomainPause("held.example", "someone", EARLIER, detail="because")
    part = OpenParts(3, 3_000, False, "", EARLIER, 1, waits_for_domains=True, messages_to_paused_domains=70)
    facts = explain(replace(DRAFT, state=DeliveryState.IN_PROGRESS, paused_domains=(pause,), parts=(part,)))
    told = {fact.kind: fact for fact in facts}
    assert "held.example are held since 2026-03-02 08:55:00 UTC by someone (because)" in (
        told[FactKind.DOMAIN_PAUSED].sentence
    )
    assert told[FactKind.PARTS_HELD].sentence == "3 parts with nothing left but 70 messages to paused domains."
    assert told[FactKind.PARTS_HELD].count == 70
    assert FactKind.PARTS_FREE not in told


def test_a_correction_says_how_a_report_counts_by_newer_rules() -> None:
    bounced = seen(Outcome.BOUNCED, 10, revision=1, failure_type=1, reason=1)
    corrected = replace(seen(Outcome.BOUNCED, 10, revision=2, failure_type=2, reason=2), correction=True)
    unchanged = replace(seen(Outcome.BOUNCED, 10, revision=3, failure_type=2, reason=2), correction=True)
    superseded = replace(seen(Outcome.DEFERRED, 5, failure_type=1, reason=6), correction=True)

    found = explain_reports([superseded, bounced, corrected, unchanged])

    assert [one.verdict for one in found] == [Verdict.CORRECTED, Verdict.APPLIED, Verdict.CORRECTED, Verdict.CORRECTED]
    assert [one.sentence for one in (found[0], *found[2:])] == [
        "Corrected: it counts as SOFT, MAILBOX_FULL; the outcome stays. Qualified by version 3 of the rules.",
        "Corrected: it counts as HARD, USER_UNKNOWN, not SOFT, NOT_DEFINED; the outcome stays. "
        "Qualified by version 3 of the rules.",
        "Corrected: newer rules read another report of this message otherwise; where it stands stays the same.",
    ]
