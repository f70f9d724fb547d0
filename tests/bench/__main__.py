"""`python -m tests.bench [FIGURE…]`: what the product does per second and per byte, each beside its ceiling."""

import argparse
import asyncio
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.bench import audience, bridging, feedback, memory, reading, relaying, watching
from tests.bench.registry import FIGURES, MEASUREMENTS, Figure, Outcome, Run
from tests.bench.report import as_json, insane, table
from tests.bench.stand import Stand

GROUPS = (feedback, audience, relaying, reading, watching, bridging, memory)
"""Importing them registers their figures. They are measured in this order."""
RECIPIENTS_DEFAULT = 200_000
RECIPIENTS_MIN = 2_000
SMOKE_RECIPIENTS = 4_000


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def measure(figures: Sequence[Figure], recipients: int, runs: int, *, smoke: bool) -> list[Outcome]:
    """Measures these figures, in this order, so many times. A figure that fails does not stop the others."""
    outcomes = {figure.name: Outcome(figure) for figure in figures}
    with tempfile.TemporaryDirectory(prefix="campaign-bench-", dir="/tmp") as folder:
        async with Stand.open(Path(folder)) as stand:
            for number in range(runs):
                run = Run(stand, recipients, lambda text: tell(f"  {text}"), smoke=smoke)
                for figure in figures:
                    await _measure_one(run, figure, outcomes[figure.name], f"run {number + 1} of {runs}")
    return list(outcomes.values())


async def _measure_one(run: Run, figure: Figure, outcome: Outcome, label: str) -> None:
    began = time.perf_counter()
    try:
        # Figures of one measurement share it: it is made once.
        take, place = MEASUREMENTS[figure.name]
        samples = await run.once(f"{take.__module__}.{take.__qualname__}", lambda: take(run))
        outcome.samples.append(samples[place])
    except Exception as error:
        outcome.problem = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        tell("".join(traceback.format_exception(error)))
    tell(f"{label}: {figure.name}, {time.perf_counter() - began:.1f} s {outcome.problem}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("figures", nargs="*", help="all that are not on demand, if none is named")
    parser.add_argument("--recipients", type=int, default=None, help=f"default {RECIPIENTS_DEFAULT:,}")
    parser.add_argument("--runs", type=int, default=1, help="report the medians of so many runs")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures as one JSON object")
    parser.add_argument("--smoke", action="store_true", help="small sizes; fail only if a figure can't be true")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.figures if name not in FIGURES]
    recipients = arguments.recipients or (SMOKE_RECIPIENTS if arguments.smoke else RECIPIENTS_DEFAULT)
    if unknown or recipients < RECIPIENTS_MIN or arguments.runs < 1:
        parser.error(f"figures: {', '.join(FIGURES)}; recipients: at least {RECIPIENTS_MIN}; runs: at least 1")
    wanted = [FIGURES[name] for name in arguments.figures] or [f for f in FIGURES.values() if not f.on_demand]
    modules = [group.__name__ for group in GROUPS]
    wanted.sort(key=lambda figure: modules.index(MEASUREMENTS[figure.name][0].__module__))

    outcomes = asyncio.run(measure(wanted, recipients, arguments.runs, smoke=arguments.smoke))
    print(f"\n{recipients:,} recipients, {arguments.runs} run(s); spread: largest less smallest, over the median\n")
    print(table(outcomes))
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(outcomes), indent=2) + "\n", "utf-8")
    if arguments.smoke:
        found = insane(outcomes)
        for name, problem in found.items():
            tell(f"{name}: {problem}")
        return 1 if found else 0
    return 1 if any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
