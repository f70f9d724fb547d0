"""What the bench says: a table with bars for people, one JSON object for programs."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tests.bench.registry import Outcome, Target

BAR_CHARACTERS = 20
_MARKS = {"aim": "aim reached", "must": "must reached", "missed": "MISSED", "failed": "FAILED"}


def as_json(outcomes: Iterable[Outcome]) -> dict[str, dict[str, Any]]:
    """By figure: value, unit, ceiling, ratio, peer, vs_peer; null where there is none."""
    return {
        outcome.figure.name: {
            "value": outcome.value,
            "unit": outcome.figure.unit,
            "ceiling": outcome.ceiling,
            "ratio": outcome.ratio,
            "peer": outcome.peer,
            "vs_peer": outcome.vs_peer,
        }
        for outcome in outcomes
    }


def table(outcomes: Iterable[Outcome]) -> str:
    """One line a figure. The bar ends at the aim: what must be reached is the `|` in it."""
    rows = [
        ("figure", "value", "unit", "ceiling", "ratio", "peer", "vs peer", "spread", "must", "aim", "", ""),
        *(_row(outcome) for outcome in outcomes),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left_aligned = {0, 2, 10, 11}
    lines = [
        "  ".join(
            cell.ljust(width) if column in left_aligned else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def bar(number: float | None, target: Target) -> str:
    """How near the aim: full when it is reached."""
    if number is None or not math.isfinite(number):
        return " " * BAR_CHARACTERS
    filled = round(BAR_CHARACTERS * _share(number, target))
    must = min(BAR_CHARACTERS - 1, round(BAR_CHARACTERS * _share(target.must, target)))
    cells = ["█" if cell < filled else "·" for cell in range(BAR_CHARACTERS)]
    if filled <= must:
        cells[must] = "|"
    return "".join(cells)


def insane(outcomes: Iterable[Outcome]) -> Mapping[str, str]:
    """The figures that can't be true: not measured, not finite, not above zero."""
    found = {}
    for outcome in outcomes:
        name, number = outcome.figure.name, outcome.judged
        if outcome.problem:
            found[name] = outcome.problem
        elif number is None or outcome.value is None:
            found[name] = "was not measured"
        elif not (math.isfinite(number) and math.isfinite(outcome.value)):
            found[name] = f"is not finite: {number}"
        elif outcome.figure.target.judged != "value" and (number <= 0 or outcome.value <= 0):
            found[name] = f"is not above zero: {number}"
    return found


def _share(number: float, target: Target) -> float:
    if target.direction == "at least":
        return min(1.0, max(0.0, number / target.aim))
    return 1.0 if number <= target.aim else max(0.0, target.aim / number)


def _row(outcome: Outcome) -> tuple[str, ...]:
    figure, target = outcome.figure, outcome.figure.target
    sign = "≥" if target.direction == "at least" else "≤"
    spread = outcome.spread
    return (
        figure.name,
        number_text(outcome.value),
        figure.unit,
        number_text(outcome.ceiling),
        number_text(outcome.ratio),
        number_text(outcome.peer),
        number_text(outcome.vs_peer),
        "" if spread is None else f"{spread:.0%}",
        f"{sign}{target.must:g}",
        f"{sign}{target.aim:g}",
        bar(outcome.judged, target),
        f"{_MARKS[outcome.reached]}{': ' + outcome.problem if outcome.problem else ''}",
    )


def number_text(number: float | None) -> str:
    """Three significant digits, or the whole number if it is large."""
    if number is None:
        return "-"
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
