"""Ids of deliveries and messages."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery_service.domain.identifiers import (
    RECIPIENTS_PER_PART,
    message_id,
    new_delivery_id,
    parse_delivery_id,
    parse_message_id,
    parse_message_ids,
    part_of,
    slot_bits,
    slot_of,
)

NOW = datetime(2026, 3, 2, tzinfo=UTC)


def test_delivery_ids_are_ordered_by_creation_time_whatever_the_random_bits() -> None:
    assert new_delivery_id(NOW, 2**20 - 1) < new_delivery_id(NOW + timedelta(milliseconds=1), 0) < 2**63


@given(st.integers(1, 2**63 - 1), st.integers(1, 2**31 - 1))
def test_a_message_id_leads_back_to_its_send_log(delivery_id: int, recipient: int) -> None:
    assert parse_message_id(message_id(delivery_id, recipient)) == (delivery_id, recipient)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "1-",
        "-1",
        "1",
        "1-0",
        "0-1",
        "1-2-3",
        "a-1",
        "1-b",
        "1 -2",
        "²-1",
        "1-2147483648",
        "01-1",
        "1-01",
        "9" * 20 + "-1",
    ],
)
def test_what_is_no_message_id_of_ours_is_told(text: str) -> None:
    assert parse_message_id(text) is None


@given(st.text(max_size=40))
def test_any_text_is_either_an_id_or_none(text: str) -> None:
    parsed = parse_message_id(text)

    assert parsed is None or (parsed[0] > 0 and parsed[1] > 0)
    assert parse_delivery_id(text) is None or text.isdigit()


@given(st.integers(1, 2**31 - 1), st.integers(1, 64))
def test_recipients_of_one_part_share_one_slot(recipient: int, slots: int) -> None:
    first_of_part = part_of(recipient) * RECIPIENTS_PER_PART

    assert slot_of(recipient, slots) == slot_of(first_of_part, slots) < slots


@given(st.integers(1, 2**31 - 1), st.integers(1, 64))
def test_the_bits_of_a_slot_tell_it_as_the_whole_number_does(recipient: int, slots: int) -> None:
    assert slot_of(recipient & slot_bits(slots), slots) == slot_of(recipient, slots)
    assert -recipient & slot_bits(slots) < 0
    assert slot_bits(slots) % RECIPIENTS_PER_PART == 0


def test_of_a_power_of_two_as_many_numbers_are_left_as_there_are_slots() -> None:
    for slots in (1, 2, 4, 64, 1_024):
        assert len({part * RECIPIENTS_PER_PART & slot_bits(slots) for part in range(5_000)}) == slots


_IDS = st.builds(message_id, st.integers(1, 2**63 - 1), st.integers(-5, 2**31 - 1).filter(bool))


@given(st.lists(_IDS | st.sampled_from(["", "1-0", "1-2\n3-4", f"{2**63}-1", "1", f"1-{2**31}"]) | st.text(max_size=9)))
def test_a_batch_of_message_ids_is_read_as_each_of_them_alone(texts: list[str]) -> None:
    delivery_ids, recipients = parse_message_ids(texts)

    assert list(zip(delivery_ids, recipients, strict=True)) == [parse_message_id(text) or (0, 0) for text in texts]
