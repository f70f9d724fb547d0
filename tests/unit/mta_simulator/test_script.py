"""Fates: a function of seed and address alone, in the shares asked for, with truthful times."""

import random
from collections import Counter

import pytest

from campaign.delivery.v1 import send_log_pb2 as send_log_pb
from mta_simulator.dialects import Kind
from mta_simulator.script import TAGS, Fate, Script, ScriptOptions, ScriptWriter

ADDRESSES = [f"person{number}@mail{number % 7}.test" for number in range(10_000)]


def scripts(**options: float) -> list[Script]:
    writer = ScriptWriter(ScriptOptions(**options))  # type: ignore[arg-type]
    return [writer.script_for(address) for address in ADDRESSES]


def test_fates_depend_on_seed_and_address_and_not_on_the_order() -> None:
    first = dict(zip(ADDRESSES, scripts(seed=7), strict=True))
    shuffled = ADDRESSES.copy()
    random.Random(3).shuffle(shuffled)
    writer = ScriptWriter(ScriptOptions(seed=7))
    assert all(writer.script_for(address) == first[address] for address in shuffled)
    assert scripts(seed=8) != list(first.values())


def test_shares_are_about_right_over_ten_thousand_addresses() -> None:
    fates = Counter(script.fate for script in scripts(seed=1))
    for fate, share in {
        Fate.DELIVERED: 0.9,
        Fate.DEFERRED: 0.03,
        Fate.EXPIRED: 0.015,
        Fate.HARD: 0.015,
        Fate.REFUSED: 0.015,
        Fate.MAILBOX_FULL: 0.01,
        Fate.OUT_OF_BAND: 0.015,
        Fate.SILENT: 0.0,
    }.items():
        # Four standard deviations: what a correct script exceeds once in 16,000 seeds.
        assert abs(fates[fate] / 10_000 - share) <= 4 * (share * (1 - share) / 10_000) ** 0.5, fate


def test_opens_and_clicks_are_shares_of_those_delivered_for_good() -> None:
    found = scripts(seed=1, opened=0.5, clicked=0.2)
    delivered = [script for script in found if script.outcome == send_log_pb.OUTCOME_DELIVERED]
    assert 0.47 < sum(script.opened for script in delivered) / len(delivered) < 0.53
    assert 0.17 < sum(script.clicked for script in delivered) / len(delivered) < 0.23
    for script in found:
        kinds = [event.report.kind for event in script.events]
        assert script.opened == (Kind.MTA_EVENT_KIND_OPEN in kinds)
        assert script.clicked == (Kind.MTA_EVENT_KIND_CLICK in kinds)
        assert script.opened or not script.clicked


@pytest.mark.parametrize("time_scale", [0.0, 0.000_001, 1.0, 60.0])
def test_events_of_a_message_happen_one_after_the_other_at_every_time_scale(time_scale: float) -> None:
    for script in scripts(time_scale=time_scale, deferred=0.3, expired=0.3, out_of_band=0.2):
        delays = [event.delay_us for event in script.events]
        assert all(before < after for before, after in zip([0, *delays], delays, strict=False))
        assert all(event.lag_us >= 0 for event in script.events)


def test_attempts_count_from_one() -> None:
    for script in scripts(deferred=0.5, expired=0.5, hard=0, full=0, out_of_band=0):
        attempts = [event.attempt for event in script.events if event.attempt]
        deferrals = sum(event.report.kind == Kind.MTA_EVENT_KIND_TRANSIENT_FAILURE for event in script.events)
        assert 1 <= deferrals <= 3
        assert attempts[:deferrals] == list(range(1, deferrals + 1))


def test_a_fate_is_complete_within_seconds_and_some_reports_are_overtaken() -> None:
    ends = [event.delay_us + event.lag_us for script in scripts() for event in script.events]
    assert max(ends) < 6_000_000
    overtaken = 0
    for script in scripts():
        reported = [event.delay_us + event.lag_us for event in script.events]
        overtaken += reported != sorted(reported)
    assert overtaken > 100


@pytest.mark.parametrize(
    ("tag", "outcome"),
    [
        ("ok", send_log_pb.OUTCOME_DELIVERED),
        ("deferred", send_log_pb.OUTCOME_DELIVERED),
        ("expired", send_log_pb.OUTCOME_EXPIRED),
        ("hard", send_log_pb.OUTCOME_BOUNCED),
        ("refused", send_log_pb.OUTCOME_BOUNCED),
        ("full", send_log_pb.OUTCOME_BOUNCED),
        ("oob", send_log_pb.OUTCOME_BOUNCED),
        ("silent", send_log_pb.OUTCOME_RELAYED),
        ("later", send_log_pb.OUTCOME_DELIVERED),
    ],
)
def test_a_tag_in_the_address_forces_the_fate(tag: str, outcome: int) -> None:
    for seed in range(20):
        writer = ScriptWriter(ScriptOptions(seed=seed))
        for address in (f"anna+{tag}@mail.test", f"anna+news+{tag.upper()}@mail.test"):
            script = writer.script_for(address)
            assert script.fate is TAGS[tag]
            assert script.outcome == outcome
            assert (script.refusal is not None) == (tag == "refused")
            assert script.try_later == (2 if tag == "later" else 0)


def test_an_unknown_tag_forces_nothing() -> None:
    options = ScriptOptions(deferred=0, expired=0, hard=0, full=0, out_of_band=0, silent=1)
    assert ScriptWriter(options).script_for("anna+news@mail.test").fate is Fate.SILENT
    assert ScriptWriter(options).script_for("anna@mail+hard.test").fate is Fate.SILENT


@pytest.mark.parametrize(
    "wrong", [{"hard": 1.1}, {"hard": -0.1}, {"hard": 0.5, "full": 0.6}, {"clicked": 0.5}, {"time_scale": -1.0}]
)
def test_impossible_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1|lower|time scale"):
        ScriptOptions(**wrong)  # type: ignore[arg-type]
