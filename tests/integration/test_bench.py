"""What the bench says: the form of its JSON, its table, and its judgement of a figure. Nothing is measured here."""

import json
import math

import pytest

from tests.bench.__main__ import GROUPS
from tests.bench.registry import FIGURES, Figure, Outcome, Sample, Target
from tests.bench.report import as_json, bar, insane, table


def outcome(target: Target, *samples: Sample, problem: str = "") -> Outcome:
    return Outcome(Figure("a.figure", "events/s", target), list(samples), problem)


def test_json_has_all_six_fields_of_each_figure_and_null_where_there_is_none() -> None:
    measured = outcome(Target(0.45, 0.75), Sample(60.0, 100.0, 2.0))
    alone = Outcome(Figure("another", "MB", Target(300, 150, "value", "at most")), [Sample(90.0)])
    assert json.loads(json.dumps(as_json([measured, alone]))) == {
        "a.figure": {
            "value": 60.0, "unit": "events/s", "ceiling": 100.0, "ratio": 0.6, "peer": 2.0, "vs_peer": 30.0,
        },
        "another": {"value": 90.0, "unit": "MB", "ceiling": None, "ratio": None, "peer": None, "vs_peer": None},
    }  # fmt: skip


def test_several_runs_give_medians_the_ratio_of_pairs_and_their_spread() -> None:
    measured = outcome(Target(0.45, 0.75), Sample(50.0, 100.0), Sample(90.0, 100.0), Sample(60.0, 200.0))
    assert (measured.value, measured.ceiling, measured.ratio) == (60.0, 100.0, 0.5)
    assert measured.spread == pytest.approx(40 / 60)


@pytest.mark.parametrize(
    ("number", "target", "reached"),
    [
        (0.75, Target(0.45, 0.75), "aim"),
        (0.45, Target(0.45, 0.75), "must"),
        (0.44, Target(0.45, 0.75), "missed"),
        (1.0, Target(1.5, 1.1, direction="at most"), "aim"),
        (1.5, Target(1.5, 1.1, direction="at most"), "must"),
        (1.6, Target(1.5, 1.1, direction="at most"), "missed"),
    ],
)
def test_figure_is_judged_by_what_it_must_reach_and_aims_at(number: float, target: Target, reached: str) -> None:
    assert outcome(target, Sample(number, 1.0)).reached == reached


def test_failed_figure_is_in_the_table_with_its_problem_and_the_others_with_their_numbers() -> None:
    failed = outcome(Target(0.45, 0.75), problem="WorkloadFailed: mta_load ended with status 1")
    lines = table([failed, outcome(Target(0.45, 0.75), Sample(123_456.0, 200_000.0))]).splitlines()
    assert "FAILED: WorkloadFailed: mta_load ended with status 1" in lines[2]
    assert "123,456" in lines[3]
    assert "0.617" in lines[3]
    assert as_json([failed])["a.figure"]["value"] is None


def test_bar_is_full_at_the_aim_and_marks_what_must_be_reached_until_it_is() -> None:
    target = Target(0.5, 1.0)
    assert bar(1.0, target) == "█" * 20
    assert bar(0.25, target) == "█████·····|·········"
    assert bar(0.75, target) == "███████████████·····"
    assert bar(None, target) == " " * 20


def test_smoke_finds_what_cannot_be_true() -> None:
    target = Target(0.45, 0.75)
    assert not insane([outcome(target, Sample(1.0, 2.0))])
    for untrue in (Sample(0.0, 2.0), Sample(math.inf, 2.0), Sample(1.0)):
        assert insane([outcome(target, untrue)])
    assert insane([outcome(target, Sample(1.0, 2.0), problem="a figure of another run failed")])
    below_zero = outcome(Target(15, 5, "value", "at most"), Sample(-3.0))
    assert not insane([below_zero]), "a slow-down may be below zero: that is noise"


def test_every_figure_is_registered_with_marks_in_the_right_order() -> None:
    assert GROUPS
    assert {"feedback.durable", "prepare", "relay", "confirm.p99", "watch.latency"} <= FIGURES.keys()
    for name, figure in FIGURES.items():
        target = figure.target
        assert (target.must < target.aim) == (target.direction == "at least"), name
