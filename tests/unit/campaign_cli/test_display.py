"""What KPIs look like on a terminal and in a file."""

import io

import pytest
from rich.console import Console, RenderableType

from campaign.delivery.v1.delivery_pb2 import (
    DELIVERY_STATE_FINISHED,
    DELIVERY_STATE_IN_PROGRESS,
    EXCLUSION_CAUSE_ADDRESS_EMPTY,
    EXCLUSION_CAUSE_DUPLICATE,
    FEEDBACK_MODE_WITH_EFS,
    FEEDBACK_MODE_WITHOUT_EFS,
    Delivery,
    ExclusionVolume,
    Plan,
    PlanIssue,
)
from campaign.delivery.v1.kpis_pb2 import EngagementTotals, KpiProjection, Kpis, OutcomeCounts, Rate
from campaign.delivery.v1.send_log_pb2 import Reason
from campaign_cli.display import bar_widths, is_over, plain_line, render_kpis, render_modes, render_plan
from campaign_cli.words import label, percent


def shown(picture: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), record=True, width=width, color_system=None)
    console.print(picture)
    return console.export_text()


def rate(count: int, base: int) -> Rate:
    return Rate(count=count, base=base, rate=count / base) if base else Rate(count=count, base=base)


@pytest.fixture
def kpis() -> Kpis:
    found = Kpis(
        delivery_id="42",
        state=DELIVERY_STATE_IN_PROGRESS,
        feedback_mode=FEEDBACK_MODE_WITH_EFS,
        revision=1_234,
        to_deliver=2_000,
        handed_over=1_500,
        outcomes=OutcomeCounts(prepared=500, relayed=300, deferred=100, delivered=1_000, bounced=100),
        with_efs=KpiProjection(
            delivered=rate(1_000, 2_000), bounces_and_errors=rate(200, 2_000), processed=1_200,
            opened=rate(250, 1_000), clicked=rate(30, 1_000),
        ),
        without_efs=KpiProjection(
            delivered=rate(1_400, 1_500), bounces_and_errors=rate(100, 1_500), processed=1_500,
            opened=rate(250, 1_400), clicked=rate(30, 1_400),
        ),
    )  # fmt: skip
    found.engagement.as_of_time.GetCurrentTime()
    return found


def test_tiles_show_the_rates_of_the_deliverys_mode_with_their_counts(kpis: Kpis) -> None:
    text = shown(render_kpis(kpis, "Autumn fair"))
    assert "Autumn fair  IN_PROGRESS  with EFS" in text
    for word in ("Delivered", "50.0 %", "1,000 of 2,000", "Bounces + errors", "10.0 %", "25.0 %", "3.0 %"):
        assert word in text
    assert "1,500 of 2,000 75 %" in text
    kpis.feedback_mode = FEEDBACK_MODE_WITHOUT_EFS
    text = shown(render_kpis(kpis))
    assert "93.3 %" in text
    assert "1,400 of 1,500" in text


def test_opens_that_were_not_counted_yet_are_no_zeros(kpis: Kpis) -> None:
    kpis.engagement.CopyFrom(EngagementTotals())
    text = shown(render_kpis(kpis))
    assert text.count("not counted yet") == 2
    assert "25.0 %" not in text


def test_every_outcome_stands_below_the_bar(kpis: Kpis) -> None:
    text = shown(render_kpis(kpis))
    for words in (
        "delivered 1,000",
        "bounced 100",
        "expired 0",
        "deferred 100",
        "relayed 300",
        "prepared 500",
        "canceled 0",
    ):
        assert words in text


def test_the_picture_fits_a_narrow_terminal(kpis: Kpis) -> None:
    assert max(map(len, shown(render_kpis(kpis), width=60).splitlines())) <= 60


def test_both_modes_stand_side_by_side(kpis: Kpis) -> None:
    lines = shown(render_modes(kpis)).splitlines()
    delivered = next(line for line in lines if line.startswith("Delivered"))
    assert delivered.split()[1:] == ["50.0", "%", "1,000", "of", "2,000", "93.3", "%", "1,400", "of", "1,500"]
    assert next(line for line in lines if line.startswith("Processed")).split()[1:] == ["1,200", "1,500"]


def test_the_plain_line_says_the_same(kpis: Kpis) -> None:
    assert plain_line(kpis) == (
        "42 IN_PROGRESS: handed over 1,500 of 2,000; delivered 50.0 %, bounces and errors 10.0 %, opened 25.0 %, "
        "clicked 3.0 %; prepared 500 relayed 300 deferred 100 delivered 1,000 bounced 100"
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (rate(0, 0), "—"),
        (rate(0, 10), "0.0 %"),
        (rate(10, 10), "100.0 %"),
        (rate(99_999, 100_000), "99.9 %"),
        (rate(1, 100_000), "<0.1 %"),
        (rate(1, 3), "33.3 %"),
    ],
)
def test_a_rate_is_never_rounded_to_nothing_or_to_everything(given: Rate, text: str) -> None:
    assert percent(given) == text


@pytest.mark.parametrize(
    ("counts", "widths"),
    [
        ([0, 0], [0, 0]),
        ([1, 1], [5, 5]),
        ([1_000_000, 1, 0, 1], [8, 1, 0, 1]),
        ([1, 2, 0], [3, 7, 0]),
    ],
)
def test_the_bar_is_full_and_shows_whatever_exists(counts: list[int], widths: list[int]) -> None:
    assert bar_widths(counts, 10) == widths


def test_a_delivery_is_over_when_finished_and_final_in_its_own_mode(kpis: Kpis) -> None:
    kpis.state = DELIVERY_STATE_FINISHED
    kpis.without_efs.final = True
    assert not is_over(kpis)
    kpis.with_efs.final = True
    assert is_over(kpis)
    kpis.state = DELIVERY_STATE_IN_PROGRESS
    assert not is_over(kpis)


def test_a_plan_shows_every_rule_also_those_that_excluded_nobody() -> None:
    plan = Plan(
        targeted=10,
        to_deliver=8,
        exclusions=[
            ExclusionVolume(cause=EXCLUSION_CAUSE_ADDRESS_EMPTY, volume=2),
            ExclusionVolume(cause=EXCLUSION_CAUSE_DUPLICATE, volume=0),
        ],
        warnings=[PlanIssue(field="content.html", description="there is no [unsubscribe] link")],
        plan_digest="0123456789abcdef" * 4,
    )
    text = shown(render_plan(Delivery(delivery_id="42", label="Autumn [fair]", plan=plan)))
    assert "Autumn [fair]  delivery 42" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[1:5] == ["Targeted 10", "excluded: address empty -2", "excluded: duplicate 0", "To deliver 8"]
    assert "Warning: content.html: there is no [unsubscribe] link" in lines
    assert "plan 0123456789ab" in lines


def test_an_enum_value_that_is_newer_than_this_program_is_shown_as_its_number() -> None:
    assert label(Reason, 6) == "mailbox full"
    assert label(Reason, 0) == ""
    assert label(Reason, 99) == "?99"
