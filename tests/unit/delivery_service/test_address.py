"""Addresses as the preparation judges them."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from delivery_service.domain.address import AddressProblem, address_problem, judge_address, normalise_address
from delivery_service.domain.lifecycle import Channel

NONE, EMPTY, MALFORMED = AddressProblem.NONE, AddressProblem.EMPTY, AddressProblem.MALFORMED


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("anna@example.com", NONE),
        ("anna.lee+tag@mail.example.co.uk", NONE),
        ("o'brien@example.org", NONE),
        ("anna_b-c@ex-ample.com", NONE),
        ("用户@例子.广告", NONE),
        ("a@xn--bcher-kva.example", NONE),
        ("", EMPTY),
        ("anna", MALFORMED),
        ("anna@", MALFORMED),
        ("@example.com", MALFORMED),
        ("anna@example", MALFORMED),
        ("anna@@example.com", MALFORMED),
        ("anna b@example.com", MALFORMED),
        (".anna@example.com", MALFORMED),
        ("anna.@example.com", MALFORMED),
        ("an..na@example.com", MALFORMED),
        ("anna@-example.com", MALFORMED),
        ("anna@example-.com", MALFORMED),
        ("anna@example.123", MALFORMED),
        ("anna@exa_mple.com", MALFORMED),
        ("anna@example.com\n", MALFORMED),
        ("anna@example.com, bob@example.com", MALFORMED),
        ("<anna@example.com>", MALFORMED),
        ("a" * 65 + "@example.com", MALFORMED),
        ("a@" + "b" * 250 + ".com", MALFORMED),
    ],
)
def test_an_email_address_is_judged_by_its_form(address: str, expected: AddressProblem) -> None:
    assert address_problem(Channel.EMAIL, address) is expected


@pytest.mark.parametrize(
    ("address", "expected"), [("+33612345678", NONE), ("0612345678", NONE), ("06-12", MALFORMED), ("", EMPTY)]
)
def test_a_phone_number_is_judged_by_its_form(address: str, expected: AddressProblem) -> None:
    assert address_problem(Channel.SMS, address) is expected


@pytest.mark.parametrize(("address", "expected"), [("device-token", NONE), ("a b", MALFORMED), ("", EMPTY)])
def test_a_device_token_must_be_one_word(address: str, expected: AddressProblem) -> None:
    assert address_problem(Channel.PUSH, address) is expected


def test_the_domain_is_compared_in_lower_case_and_the_local_part_is_kept() -> None:
    assert normalise_address(Channel.EMAIL, " Anna.Lee@EXAMPLE.Com ") == "Anna.Lee@example.com"


def test_other_channels_are_only_trimmed() -> None:
    assert normalise_address(Channel.PUSH, " AbC@D ") == "AbC@D"


@pytest.mark.timeout(5)
def test_a_long_hostile_address_is_judged_in_bounded_time() -> None:
    assert address_problem(Channel.EMAIL, "a@" + "a-" * 100 + "!") is MALFORMED


_PARTS = st.sampled_from(
    ["a", "B", ".", "..", "@", " ", "\t", "é", "ß", "İ", "-", "_", "+", '"', "\x00", "x" * 64, "b" * 63, ".com", "用户"]
)


@given(st.lists(_PARTS, max_size=8).map("".join), st.sampled_from(Channel))
@example("a" * 64 + "@" + "b" * 63 + "." + "c" * 63 + "." + "d" * 63, Channel.EMAIL)  # longer than an address may be
def test_the_quick_judgement_of_uploads_is_that_of_the_rules(text: str, channel: Channel) -> None:
    address = normalise_address(channel, text)

    assert judge_address(channel, text) == (address, address_problem(channel, address))
