"""The budget of un-acked events: its bound, whose turn it is, and that nothing of it leaks."""

import asyncio

import pytest

from feedback_service.event_budget import EventBudget


async def turn() -> None:
    """Lets every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def waiter(budget: EventBudget, source_id: str, count: int, granted: list[str]) -> "asyncio.Task[None]":
    async def wait() -> None:
        await budget.take(source_id, count)
        granted.append(source_id)

    return asyncio.create_task(wait())


async def test_no_more_than_the_budget_is_ever_held() -> None:
    budget = EventBudget(10)
    assert budget.take_now("a", 10)
    assert not budget.take_now("b", 1)
    budget.release("a", 4)
    assert not budget.take_now("b", 5)
    assert budget.take_now("b", 4)
    assert budget.held == 10


async def test_a_small_source_goes_before_a_flooding_one() -> None:
    budget, granted = EventBudget(10), list[str]()
    budget.take_now("flood", 10)
    tasks = [waiter(budget, "flood", 5, granted) for _ in range(3)]
    await turn()
    tasks.append(waiter(budget, "small", 1, granted))
    await turn()
    budget.release("flood", 5)
    budget.grant()
    await turn()
    assert granted == ["small"], "the flood holds more, so it waits though it came first"
    budget.release("flood", 5)
    budget.grant()
    await turn()
    assert granted == ["small", "flood"]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert budget.held == 6


async def test_like_sources_take_turns() -> None:
    budget, granted = EventBudget(3), list[str]()
    for source_id in "abc":
        assert budget.take_now(source_id, 1)
    tasks = [waiter(budget, source_id, 1, granted) for _ in range(2) for source_id in "abc"]
    await turn()
    for _ in range(2):
        for source_id in "abc":
            budget.release(source_id, 1)
        budget.grant()
        await turn()
    assert sorted(granted[:3]) == sorted(granted[3:]) == ["a", "b", "c"]
    await asyncio.gather(*tasks)


async def test_a_large_batch_is_not_overtaken_for_ever() -> None:
    budget, granted = EventBudget(10), list[str]()
    budget.take_now("a", 9)
    large = waiter(budget, "b", 10, granted)
    await turn()
    assert not budget.take_now("c", 1), "one would fit, but someone waits"
    small = waiter(budget, "c", 1, granted)
    budget.release("a", 9)
    budget.grant()
    await turn()
    assert granted == ["b"]
    budget.release("b", 10)
    budget.grant()
    await asyncio.gather(large, small)


async def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    budget, granted = EventBudget(10), list[str]()
    budget.take_now("a", 10)
    given_up, other = waiter(budget, "b", 10, granted), waiter(budget, "c", 10, granted)
    await turn()
    given_up.cancel()
    await turn()
    budget.release("a", 10)
    budget.grant()
    await other
    assert granted == ["c"]
    assert budget.held == 10


async def test_a_grant_that_comes_together_with_a_cancellation_is_given_back() -> None:
    budget, granted = EventBudget(10), list[str]()
    budget.take_now("a", 10)
    task = waiter(budget, "b", 10, granted)
    await turn()
    budget.release("a", 10)
    budget.grant()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert budget.held == 0
    await budget.wait_idle()


async def test_more_than_the_whole_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="never fit"):
        await EventBudget(10).take("a", 11)
