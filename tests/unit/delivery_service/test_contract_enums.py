"""The contract's enums and the domain's are the same things."""

from enum import IntEnum
from typing import Any

import pytest

from campaign.delivery.v1 import (
    address_health_service_pb2,
    alert_pb2,
    delivery_pb2,
    error_reason_pb2,
    explanation_pb2,
    occurrence_pb2,
    role_pb2,
    schedule_pb2,
    send_log_pb2,
)
from delivery_service.api.errors import ERROR_TABLE
from delivery_service.app import IMPLIED_ROLES, access_policy, role_name
from delivery_service.convert import OUTCOME_OFFSET
from delivery_service.domain import problems
from delivery_service.domain.alerts import AlertCause
from delivery_service.domain.breaker import PauseCause
from delivery_service.domain.delivery import ExclusionCause
from delivery_service.domain.explanation import FactKind
from delivery_service.domain.lifecycle import Channel, DeliveryState
from delivery_service.domain.outcome import FailureType, Outcome, Reason
from delivery_service.domain.quarantine import AddressStatus
from delivery_service.domain.recurrence import OccurrenceState
from delivery_service.domain.schedule import AggregationPeriod, LocalTimeKind
from delivery_service.domain.status import FeedbackMode, Status
from delivery_service.store.address_health import DenialCause
from service_runtime.problems import Problem

PAIRS: list[tuple[type[IntEnum], Any, str, int]] = [
    (Outcome, send_log_pb2.Outcome, "OUTCOME_", OUTCOME_OFFSET),
    (FailureType, send_log_pb2.FailureType, "FAILURE_TYPE_", 0),
    (Reason, send_log_pb2.Reason, "REASON_", 0),
    (Status, send_log_pb2.SendLogStatus, "SEND_LOG_STATUS_", 0),
    (Channel, delivery_pb2.Channel, "CHANNEL_", 0),
    (FeedbackMode, delivery_pb2.FeedbackMode, "FEEDBACK_MODE_", 0),
    (DeliveryState, delivery_pb2.DeliveryState, "DELIVERY_STATE_", 0),
    (PauseCause, delivery_pb2.PauseCause, "PAUSE_CAUSE_", 0),
    (FactKind, explanation_pb2.DeliveryFactKind, "DELIVERY_FACT_KIND_", 0),
    (ExclusionCause, delivery_pb2.ExclusionCause, "EXCLUSION_CAUSE_", 0),
    (AlertCause, alert_pb2.AlertCause, "ALERT_CAUSE_", 0),
    (AddressStatus, address_health_service_pb2.AddressStatus, "ADDRESS_STATUS_", 0),
    (DenialCause, address_health_service_pb2.DenialCause, "DENIAL_CAUSE_", 0),
    (AggregationPeriod, schedule_pb2.AggregationPeriod, "AGGREGATION_PERIOD_", 0),
    (LocalTimeKind, schedule_pb2.LocalTimeKind, "LOCAL_TIME_KIND_", 0),
    (OccurrenceState, occurrence_pb2.OccurrenceState, "OCCURRENCE_STATE_", 0),
]


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix", "offset"), PAIRS, ids=lambda value: getattr(value, "__name__", None)
)
def test_an_enum_of_the_contract_has_the_members_of_the_domain(
    ours: type[IntEnum], theirs: Any, prefix: str, offset: int
) -> None:
    contract = {name.removeprefix(prefix): number for name, number in theirs.items() if number}
    # A NONE that stands for nothing said is UNSPECIFIED there.
    domain = {member.name: member.value + offset for member in ours if member.name != "NONE" or member.value}

    assert contract == domain


def test_every_problem_of_the_domain_stands_in_the_error_table() -> None:
    found = {kind for kind in vars(problems).values() if isinstance(kind, type) and issubclass(kind, Problem)}

    assert found - {Problem} <= ERROR_TABLE.keys()


def test_every_reason_in_the_table_is_one_of_the_contract() -> None:
    known = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118

    assert {row.reason for row in ERROR_TABLE.values()} <= known


def test_every_rpc_declares_its_role() -> None:
    access_policy()


def test_roles_have_the_names_of_the_design() -> None:
    names = {role_name(number) for number in role_pb2.Role.values() if number}

    assert names == {"read", "prepare-deliveries", "start-deliveries", "mta", "feedback", "administration", "relay"}
    assert "administration" not in IMPLIED_ROLES
