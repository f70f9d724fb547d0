import asyncio
from datetime import UTC, datetime, timedelta

from service_runtime.clock import SystemClock, from_microseconds, to_microseconds
from tests.support.clock import START, ManualClock


def test_microseconds_go_to_a_time_and_back_without_loss() -> None:
    for microseconds in (0, -1, 1_772_442_000_123_457, 253_402_300_799_999_999):
        assert to_microseconds(from_microseconds(microseconds)) == microseconds


def test_the_system_clock_is_aware_and_of_one_mind_with_itself() -> None:
    clock = SystemClock()
    before = clock.now_us()
    now = clock.now()
    assert now.tzinfo is UTC
    assert before <= to_microseconds(now) <= clock.now_us()


async def test_waiting_for_a_moment_that_has_passed_returns_at_once() -> None:
    await SystemClock().wait_until(datetime(2000, 1, 1, tzinfo=UTC))
    await ManualClock().wait_until(START - timedelta(days=1))


async def test_a_manual_clock_wakes_each_sleeper_at_its_own_time_in_order() -> None:
    clock = ManualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        for name, seconds in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("late", 10.0)):
            group.create_task(sleeper(name, seconds))
        await clock.advance(5.0)
        assert woken == [("a", 1.0), ("b", 2.0), ("c", 3.0)]
        assert (clock.sleeping, clock.monotonic()) == (1, 5.0)
        await clock.advance(5.0)
    assert woken[-1] == ("late", 10.0)


async def test_one_advance_carries_a_periodic_task_through_all_its_periods() -> None:
    clock = ManualClock()
    ticks: list[datetime] = []

    async def tick() -> None:
        while True:
            await clock.sleep(1.0)
            ticks.append(clock.now())

    task = asyncio.create_task(tick())
    await clock.advance(5.5)
    assert ticks == [START + timedelta(seconds=second) for second in range(1, 6)]
    task.cancel()
    await asyncio.wait([task])
    assert clock.sleeping == 0
