"""What the MTA side answered about messages, to a hand-over or a withdrawal alike, as observations."""

from collections.abc import Sequence
from typing import Final, Protocol

from campaign.mta.v1 import relay_service_pb2 as pb
from delivery_service.domain.outcome import (
    EVENT_TIME_US_MAX,
    EVENT_TIME_US_MIN,
    FailureType,
    Outcome,
    Reason,
)
from delivery_service.store.hand_over import HandOver
from delivery_service.store.observations import ObservationColumns

_FAILURE_TYPES: Final = frozenset(int(kind) for kind in FailureType)
_REASONS: Final = frozenset(int(reason) for reason in Reason)
_DIAGNOSTIC_CHARACTERS_MAX: Final = 1_000
_ENHANCED_CODE_CHARACTERS_MAX: Final = 20


class Answer(Protocol):
    """RelayResponse and WithdrawResponse: columns, one entry per message."""

    @property
    def verdicts(self) -> "Sequence[pb.RelayVerdict.ValueType]": ...
    @property
    def answer_times_us(self) -> Sequence[int]: ...
    @property
    def refusals(self) -> Sequence[pb.RelayRefusal]: ...


class UnsoundAnswer(Exception):
    """An answer is not what the contract says: nothing of it is taken."""


def require_sound(answer: Answer, size: int) -> None:
    """UnsoundAnswer if it is not an answer to that many messages."""
    if not len(answer.verdicts) == len(answer.answer_times_us) == size:
        raise UnsoundAnswer(f"the MTA side answered {len(answer.verdicts)} of {size} messages")
    times_us = set(answer.answer_times_us)  # often one for all
    if size and not EVENT_TIME_US_MIN <= min(times_us) <= max(times_us) <= EVENT_TIME_US_MAX:
        raise UnsoundAnswer("the MTA side answered with a time before 2000 or after 2100")
    for refusal in answer.refusals:
        if refusal.failure_type not in _FAILURE_TYPES or refusal.reason not in _REASONS:
            raise UnsoundAnswer(
                f"the MTA side answered with failure type {refusal.failure_type}, reason {refusal.reason}"
            )


def observations(delivery_id: int, recipients: list[int], answer: Answer) -> ObservationColumns:
    """Accepted is RELAYED, refused is BOUNCED; nothing of those put off or withdrawn."""
    columns = hand_over(delivery_id, recipients, answer).columns()
    columns.extend(refusals(delivery_id, recipients, answer))
    return columns


def hand_over(delivery_id: int, recipients: list[int], answer: Answer, claim_count: int = 0) -> HandOver:
    """Those that the MTA side has accepted: RELAYED. `claim_count`: the claim that ends if it has accepted all."""
    verdicts, times_us = list(answer.verdicts), list(answer.answer_times_us)
    if verdicts.count(pb.RELAY_VERDICT_ACCEPTED) == len(verdicts):  # nearly always
        return HandOver(delivery_id, recipients, times_us, claim_count)
    accepted = [index for index, verdict in enumerate(verdicts) if verdict == pb.RELAY_VERDICT_ACCEPTED]
    return HandOver(delivery_id, [recipients[i] for i in accepted], [times_us[i] for i in accepted])


def refusals(delivery_id: int, recipients: list[int], answer: Answer) -> ObservationColumns:
    """Those that it has refused: BOUNCED."""
    columns = ObservationColumns()
    verdicts = list(answer.verdicts)
    if pb.RELAY_VERDICT_REFUSED not in verdicts:
        return columns
    told = {refusal.index: refusal for refusal in answer.refusals}
    nothing = pb.RelayRefusal()
    for index, verdict in enumerate(verdicts):
        if verdict != pb.RELAY_VERDICT_REFUSED:
            continue
        refusal = told.get(index, nothing)
        columns.delivery_ids.append(delivery_id)
        columns.recipients.append(recipients[index])
        columns.outcomes.append(Outcome.BOUNCED)
        columns.event_times_us.append(answer.answer_times_us[index])
        columns.failure_types.append(FailureType(refusal.failure_type or FailureType.SOFT))
        columns.reasons.append(Reason(refusal.reason or Reason.NOT_DEFINED))
        columns.smtp_codes.append(refusal.smtp_code if 200 <= refusal.smtp_code <= 599 else 0)
        columns.enhanced_codes.append(refusal.enhanced_code.replace("\x00", "")[:_ENHANCED_CODE_CHARACTERS_MAX])
        columns.diagnostics.append(refusal.diagnostic.replace("\x00", "")[:_DIAGNOSTIC_CHARACTERS_MAX])
        columns.attempts.append(0)
        columns.rules_versions.append(0)
    return columns
