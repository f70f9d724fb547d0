"""Audience options: what of them a plan's digest covers, and which suppression lists a preparation can go by."""

from dataclasses import replace

import pytest

from delivery_service.domain.address import is_domain, normalise_domain
from delivery_service.domain.audience import EVERYBODY, AudienceOptions, ControlGroup, unusable_lists
from delivery_service.domain.lifecycle import Channel
from delivery_service.domain.plan import audience_errors, plan_digest
from tests.unit.delivery_service.test_plan import DELIVERY

DIFFERENT = [
    EVERYBODY,
    AudienceOptions(ControlGroup(share=0.1)),
    AudienceOptions(ControlGroup(share=0.1 + 1e-12)),
    AudienceOptions(ControlGroup(profile_ids=("a",))),
    AudienceOptions(ControlGroup(profile_ids=("a", "b"))),
    AudienceOptions(ControlGroup(profile_ids=("share 0.1",))),
    AudienceOptions(suppression_lists=("a",)),
    AudienceOptions(suppression_lists=("a", "b")),
    AudienceOptions(ControlGroup(profile_ids=("a",)), ("b",)),
    AudienceOptions(ControlGroup(profile_ids=("a", "suppression lists", "b"))),
]


def digest(options: AudienceOptions) -> str:
    return plan_digest(replace(DELIVERY, audience_options=options), {}, 3, 0)


def test_the_digest_covers_the_control_group_and_the_suppression_lists() -> None:
    assert len({digest(options) for options in DIFFERENT}) == len(DIFFERENT)


def test_the_same_people_in_another_order_are_the_same_plan() -> None:
    one = AudienceOptions(ControlGroup(profile_ids=("a", "b", "a")), ("x", "y"))
    other = AudienceOptions(ControlGroup(profile_ids=("b", "a")), ("y", "x"))

    assert digest(one) == digest(other)


def test_a_list_that_is_missing_or_of_another_channel_is_named() -> None:
    options = AudienceOptions(suppression_lists=("good", "gone", "sms"))
    known = {"good": Channel.EMAIL, "sms": Channel.SMS, "of others": Channel.EMAIL}

    assert [name for name, _ in unusable_lists(options, Channel.EMAIL, known)] == ["gone", "sms"]
    assert [name for name, _ in unusable_lists(options, Channel.SMS, known)] == ["good", "gone"]
    errors = audience_errors(replace(DELIVERY, audience_options=options), known)
    assert [error.field for error in errors] == ["audience_options.suppression_lists"] * 2
    assert not audience_errors(DELIVERY, {})


@pytest.mark.parametrize("domain", ["example.com", "a.b.c.example", "xn--bcher-kva.example", "bücher.example"])
def test_a_domain_is_known_as_one_whatever_its_case(domain: str) -> None:
    assert is_domain(normalise_domain(f" {domain.upper()} "))


@pytest.mark.parametrize("text", ["", "com", "@example.com", "a@example.com", "*.example.com", ".example.com", "a b.c",
                                  "example.com.", "a." * 127 + "com"])  # fmt: skip
def test_what_is_no_domain_is_none(text: str) -> None:
    assert not is_domain(normalise_domain(text))
