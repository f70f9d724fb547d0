"""Recipient domains that are paused within a delivery."""

from datetime import UTC, datetime

import pytest

from delivery_service.domain.address import recipient_domain_of
from delivery_service.domain.breaker import PauseCause
from delivery_service.domain.domain_pauses import NO_DOMAIN_PAUSES, DomainPause, DomainPauses
from delivery_service.store.deliveries import domain_pauses_from_json, domain_pauses_to_json

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def paused(domain: str, cause: PauseCause = PauseCause.COMMAND) -> DomainPause:
    return DomainPause(domain, "someone", NOW, cause, "a detail")


def test_domains_are_kept_by_name() -> None:
    pauses = NO_DOMAIN_PAUSES.with_pause(paused("b.example")).with_pause(paused("a.example"))
    assert [pause.recipient_domain for pause in pauses.paused] == ["a.example", "b.example"]
    assert pauses.holds("a.example")
    assert not pauses.holds("c.example")


def test_a_resume_overrules_what_the_breaker_paused_it_for_and_no_command() -> None:
    pauses = NO_DOMAIN_PAUSES.with_pause(paused("a.example", PauseCause.HARD_BOUNCES)).with_pause(paused("b.example"))
    pauses = pauses.without("a.example").without("b.example").without("never.example")
    assert pauses == DomainPauses((), {"a.example": frozenset({PauseCause.HARD_BOUNCES})})
    pauses = pauses.with_pause(paused("a.example", PauseCause.COMPLAINTS)).without("a.example")
    assert pauses.overruled_of("a.example") == {PauseCause.HARD_BOUNCES, PauseCause.COMPLAINTS}
    assert pauses.overruled_of("b.example") == frozenset()


def test_they_are_stored_whole() -> None:
    pauses = (
        NO_DOMAIN_PAUSES.with_pause(paused("a.example", PauseCause.COMPLAINTS))
        .without("a.example")
        .with_pause(paused("münchen.example"))
    )
    assert domain_pauses_from_json(*domain_pauses_to_json(pauses)) == pauses


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        (" Example.COM ", "example.com"),
        ("a.b.example", "a.b.example"),
        ("example", None),
        ("", None),
        ("a@b.example", None),
    ],
)
def test_a_domain_is_compared_in_lower_case(text: str, domain: str | None) -> None:
    assert recipient_domain_of(text) == domain
