"""The lattice, without a database."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from delivery_service.domain.outcome import FAILING, Observation, Outcome, greatest, layers, normalise

_raw = st.builds(
    Observation,
    outcome=st.sampled_from(Outcome),
    event_time_us=st.integers(0, 3),
    failure_type=st.integers(0, 3),
    reason=st.integers(0, 3),
    smtp_code=st.sampled_from([0, 250, 550]),
    enhanced_code=st.sampled_from(["", "5.1.1"]),
    diagnostic=st.text(max_size=2),
    attempt=st.integers(0, 2),
)


def _row(*facts: Observation) -> Observation:
    return greatest(normalise(fact) for fact in facts)


SOFT = Observation(Outcome.DEFERRED, 10, 1, 6, 452, "4.2.2", "mailbox full", 1)
DELIVERED = Observation(Outcome.DELIVERED, 20, smtp_code=250)
OUT_OF_BAND = Observation(Outcome.BOUNCED, 15, 1, 1, diagnostic="later failure")
RELAYED = Observation(Outcome.RELAYED, 5)


def test_a_retry_that_succeeds_wins_over_the_deferral() -> None:
    assert _row(SOFT, DELIVERED).outcome is Outcome.DELIVERED


def test_a_deferral_after_the_delivery_changes_nothing_even_if_it_is_newer() -> None:
    assert _row(DELIVERED, SOFT._replace(event_time_us=99)) == DELIVERED


def test_an_out_of_band_bounce_wins_over_the_delivery_whichever_came_first() -> None:
    assert _row(OUT_OF_BAND, DELIVERED) == _row(DELIVERED, OUT_OF_BAND) == OUT_OF_BAND


def test_the_relay_answer_that_feedback_has_overtaken_changes_nothing() -> None:
    assert _row(DELIVERED, RELAYED) == DELIVERED


def test_a_later_deferral_takes_the_place_of_an_earlier_one() -> None:
    later = SOFT._replace(event_time_us=11, attempt=2, diagnostic="still full")

    assert _row(later, SOFT) == later


def test_a_canceled_message_that_had_left_after_all_tells_the_truth_again() -> None:
    assert _row(Observation(Outcome.CANCELED, 50), RELAYED) == RELAYED


def test_a_late_true_report_wins_over_the_expiry() -> None:
    assert _row(Observation(Outcome.EXPIRED, 99, 1, 4), DELIVERED) == DELIVERED


def test_type_reason_and_text_are_blank_where_nothing_failed() -> None:
    for outcome in Outcome:
        normal = normalise(Observation(outcome, 1, 1, 1, 250, "2.0.0", "text", 3))
        blank = (normal.failure_type, normal.reason, normal.diagnostic) == (0, 0, "")
        assert blank == (outcome not in FAILING)
        assert (normal.smtp_code, normal.enhanced_code, normal.attempt) == (250, "2.0.0", 3)


@given(st.lists(_raw, min_size=1, max_size=6))
def test_every_order_gives_the_same_winner(facts: list[Observation]) -> None:
    winners = {_row(*order) for order in itertools.islice(itertools.permutations(facts), 120)}

    assert len(winners) == 1


@given(st.lists(_raw, min_size=1, max_size=8), st.integers(0, 8))
def test_batches_and_repetitions_change_nothing(facts: list[Observation], cut: int) -> None:
    first, second = facts[:cut], facts[cut:]
    rows = [_row(*part) for part in (first, second, facts) if part]

    assert _row(*rows) == _row(*facts)


@given(_raw, _raw)
def test_of_two_different_observations_one_is_greater(one: Observation, other: Observation) -> None:
    one, other = normalise(one), normalise(other)

    assert (one == other) != (one < other or other < one)


@given(_raw, _raw)
def test_texts_compare_as_their_bytes_do_in_postgres(one: Observation, other: Observation) -> None:
    assert (one.diagnostic < other.diagnostic) == (one.diagnostic.encode() < other.diagnostic.encode())


@given(st.lists(st.tuples(st.integers(1, 4), _raw), max_size=12))
def test_layers_hold_every_distinct_fact_once_with_the_greatest_of_each_recipient_first(
    facts: list[tuple[int, Observation]],
) -> None:
    recipients, rows = [r for r, _ in facts], [normalise(o) for _, o in facts]

    found = layers(list(range(len(rows))), recipients, rows.__getitem__)

    for layer in found:
        assert len({recipients[i] for i in layer}) == len(layer)
    distinct = [(recipients[i], rows[i]) for layer in found for i in layer]
    if len(set(recipients)) < len(recipients):
        assert len(distinct) == len(set(distinct))
    assert set(distinct) == set(zip(recipients, rows, strict=True))
    for i in found[0]:
        assert rows[i] == max(row for r, row in zip(recipients, rows, strict=True) if r == recipients[i])
