"""How cost grows: `python -m tests.bench.curves [AXIS…]`, events per second along one axis, the rest as in the figures.

On the machine's own CPUs, which the load shares: what bends a curve here is the same work costing more, or the CPUs.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from tests.bench.feedback import FIRST_DELIVERY_ID, assert_nothing_lost, audience_of, product_rate, report_all
from tests.bench.registry import Run
from tests.bench.seeding import seed_audience
from tests.bench.stand import Stand, settle
from tests.bench.watching import ask, watchers

RECIPIENTS: Final = 200_000
BAR_CHARACTERS: Final = 40


async def over_recipients(run: Run, number: int) -> float:
    """Of one delivery."""
    return await product_rate(run, audience_of(number))


async def over_streams(run: Run, number: int) -> float:
    """From the MTA side, in frames of 500 events."""
    return await product_rate(run, audience_of(RECIPIENTS), streams=number)


async def over_deliveries(run: Run, number: int) -> float:
    """With the same recipients in all."""
    return await product_rate(run, audience_of(RECIPIENTS, number))


async def over_watchers(run: Run, number: int) -> float:
    """Of the delivery that feedback comes for."""
    audience = audience_of(RECIPIENTS)
    async with run.stand.database() as dsn:
        await seed_audience(dsn, audience)
        await settle(dsn)
        async with run.stand.services(dsn) as services:
            if not number:
                rate = await report_all(services, audience)
            else:
                async with watchers(services, audience, number) as load:
                    await ask(load, "mark")
                    rate = await report_all(services, audience)
        await assert_nothing_lost(dsn, audience)
    return rate


async def over_replicas(run: Run, number: int) -> float:
    """Of both services, on one database; each takes a delivery of its own."""
    audiences = [audience_of(RECIPIENTS, 1, FIRST_DELIVERY_ID + n) for n in range(number)]
    async with run.stand.database() as dsn:
        for audience in audiences:
            await seed_audience(dsn, audience)
        await settle(dsn)
        async with AsyncExitStack() as exits:
            replicas = [await exits.enter_async_context(run.stand.services(dsn)) for _ in audiences]
            rates = await asyncio.gather(*map(report_all, replicas, audiences))
        await assert_nothing_lost(dsn, *audiences)
    return sum(rates)


AXES: Final[Mapping[str, tuple[Callable[[Run, int], Awaitable[float]], tuple[int, ...]]]] = {
    "recipients": (over_recipients, (50_000, 200_000, 1_000_000)),
    "streams": (over_streams, (1, 3, 10, 50)),
    "deliveries": (over_deliveries, (1, 10, 100, 1_000)),
    "watchers": (over_watchers, (0, 100, 500, 2_000)),
    "replicas": (over_replicas, (1, 2, 4)),
}


async def measure(axes: list[str]) -> None:
    """Measures and prints one axis after the other."""
    with tempfile.TemporaryDirectory(prefix="campaign-bench-", dir="/tmp") as folder:
        async with Stand.open(Path(folder)) as stand:
            run = Run(stand, RECIPIENTS, lambda text: print(f"  {text}", file=sys.stderr, flush=True))
            for axis in axes:
                take, places = AXES[axis]
                rates = {place: await take(run, place) for place in places}
                print(f"\nevents/s over {axis}")
                for place, rate in rates.items():
                    bar = "█" * round(BAR_CHARACTERS * rate / max(rates.values()))
                    print(f"{place:>10,}  {rate:>8,.0f}  {bar}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.curves", description=__doc__)
    parser.add_argument("axes", nargs="*", help="all, if none is named")
    axes = parser.parse_args().axes or list(AXES)
    if unknown := set(axes) - AXES.keys():
        parser.error(f"no such axis: {', '.join(unknown)}; there are {', '.join(AXES)}")
    asyncio.run(measure(axes))


if __name__ == "__main__":
    main()
