"""The domain's numbers are the contract's: each enum is compared with the proto's, name by name."""

from enum import IntEnum
from typing import Any

import pytest

from campaign.delivery.v1 import send_log_pb2
from campaign.feedback.v1 import feedback_service_pb2
from feedback_service.domain.vocabulary import (
    OUTCOME_OF_KIND,
    TRACKING_OF_KIND,
    FailureType,
    MtaEventKind,
    Outcome,
    Reason,
    TrackingKind,
)


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (MtaEventKind, feedback_service_pb2.MtaEventKind, "MTA_EVENT_KIND_"),
        (Outcome, send_log_pb2.Outcome, "OUTCOME_"),
        (TrackingKind, send_log_pb2.TimelineEntryKind, "TIMELINE_ENTRY_KIND_"),
        (FailureType, send_log_pb2.FailureType, "FAILURE_TYPE_"),
        (Reason, send_log_pb2.Reason, "REASON_"),
    ],
)
def test_a_number_means_the_same_as_in_the_contract(ours: type[IntEnum], theirs: Any, prefix: str) -> None:
    for member in ours:
        name = "UNSPECIFIED" if member.name == "NONE" else member.name
        assert theirs.Value(f"{prefix}{name}") == member


def test_every_kind_of_the_contract_is_known_and_decides_an_outcome_or_a_fact() -> None:
    kinds: set[int] = {number for name, number in feedback_service_pb2.MtaEventKind.items() if number}
    assert kinds == {int(kind) for kind in MtaEventKind} == OUTCOME_OF_KIND.keys() | TRACKING_OF_KIND.keys()
    assert not OUTCOME_OF_KIND.keys() & TRACKING_OF_KIND.keys()


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (MtaEventKind.DELIVERY, Outcome.DELIVERED),
        (MtaEventKind.TRANSIENT_FAILURE, Outcome.DEFERRED),
        (MtaEventKind.EXPIRATION, Outcome.EXPIRED),
        (MtaEventKind.BOUNCE, Outcome.BOUNCED),
        (MtaEventKind.ADMIN_BOUNCE, Outcome.BOUNCED),
        (MtaEventKind.OUT_OF_BAND_BOUNCE, Outcome.BOUNCED),
    ],
)
def test_a_kind_decides_the_outcome(kind: MtaEventKind, outcome: Outcome) -> None:
    assert OUTCOME_OF_KIND[kind] == outcome
