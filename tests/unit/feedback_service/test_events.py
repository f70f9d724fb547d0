"""Which events are refused, each with the field that is wrong and what to do about it."""

from typing import Any

import pytest

from feedback_service.domain.events import find_fault

GOOD: dict[str, Any] = {
    "kind": 4,
    "message_id": "m-1",
    "event_time_us": 1_795_415_948_000_000,
    "smtp_code": 550,
    "enhanced_code": "5.1.1",
    "diagnostic": "550 5.1.1 user unknown",
    "attempt": 1,
}


def test_a_good_event_has_no_fault() -> None:
    assert find_fault(**GOOD) is None


@pytest.mark.parametrize(
    "fine",
    [
        {"smtp_code": 0, "enhanced_code": "", "diagnostic": "", "attempt": 0},
        {"smtp_code": 200},
        {"smtp_code": 599},
        {"message_id": "m" * 100},
        {"enhanced_code": "4.999.999"},
        {"diagnostic": "x" * 5_000},
        {"event_time_us": 946_684_800_000_000},
        {"event_time_us": 4_102_444_799_999_999},
        {"kind": 8, "url": "u" * 2_000},
    ],
)
def test_what_lies_within_the_limits_is_taken(fine: dict[str, Any]) -> None:
    assert find_fault(**{**GOOD, **fine}) is None


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"kind": 0}, "kind"),
        ({"kind": 12}, "kind"),
        ({"kind": -1}, "kind"),
        ({"message_id": ""}, "message_id"),
        ({"message_id": "m" * 101}, "message_id"),
        ({"message_id": "m\0"}, "message_id"),
        ({"event_time_us": 0}, "event_time_us"),
        ({"event_time_us": 946_684_799_999_999}, "event_time_us"),
        ({"event_time_us": 4_102_444_800_000_000}, "event_time_us"),
        ({"event_time_us": -(2**63)}, "event_time_us"),
        ({"event_time_us": 2**63 - 1}, "event_time_us"),
        ({"smtp_code": 199}, "smtp_code"),
        ({"smtp_code": 600}, "smtp_code"),
        ({"smtp_code": -1}, "smtp_code"),
        ({"enhanced_code": "5.1"}, "enhanced_code"),
        ({"enhanced_code": "3.1.1"}, "enhanced_code"),
        ({"enhanced_code": "5.1.1 "}, "enhanced_code"),
        ({"enhanced_code": "5.1.1\n"}, "enhanced_code"),
        ({"enhanced_code": "5.\u0661.1"}, "enhanced_code"),
        ({"enhanced_code": "5.1.1\0"}, "enhanced_code"),
        ({"enhanced_code": "5" * 21}, "enhanced_code"),
        ({"diagnostic": "a\0b"}, "diagnostic"),
        ({"attempt": -1}, "attempt"),
        ({"kind": 8, "url": ""}, "url"),
        ({"kind": 8, "url": "u" * 2_001}, "url"),
        ({"kind": 8, "url": "u\0"}, "url"),
        ({"vendor_class": "v" * 101}, "vendor_class"),
        ({"vendor_class": "\0"}, "vendor_class"),
        ({"feedback_type": "f" * 101}, "feedback_type"),
    ],
)
def test_a_fault_names_its_field_and_what_to_do(bad: dict[str, Any], field: str) -> None:
    fault = find_fault(**{**GOOD, **bad})
    assert fault is not None
    assert fault.field == field
    assert fault.remedy
    assert len(str(fault)) <= 200
