import asyncio
import logging

import pytest

from service_runtime.tasks import BackgroundTasks


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_stop_cancels_every_task_and_waits_for_its_cleaning_up() -> None:
    cleaned: list[str] = []

    async def work(name: str) -> None:
        try:
            await for_ever()
        finally:
            await asyncio.sleep(0)
            cleaned.append(name)

    deaths: list[str] = []
    tasks = BackgroundTasks(deaths.append)
    for name in ("one", "two"):
        tasks.start(name, work(name))
    await asyncio.sleep(0)
    await tasks.stop()
    assert sorted(cleaned) == ["one", "two"]
    assert deaths == []


@pytest.mark.expects_errors
async def test_a_task_that_fails_is_logged_and_reported_once_and_the_rest_are_left_to_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    died = asyncio.Event()
    deaths: list[str] = []

    def on_death(name: str) -> None:
        deaths.append(name)
        died.set()

    async def fail() -> None:
        raise ValueError("boom")

    tasks = BackgroundTasks(on_death)
    tasks.start("steady", for_ever())
    tasks.start("first", fail())
    tasks.start("second", fail())
    await died.wait()
    await tasks.stop()
    assert deaths == ["first"]
    assert {vars(record)["task"] for record in caplog.records if record.levelno == logging.ERROR} == {"first", "second"}


@pytest.mark.expects_errors
async def test_a_task_that_ends_by_itself_is_a_death_too() -> None:
    died: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def end() -> None:
        return

    tasks = BackgroundTasks(died.set_result)
    tasks.start("short", end())
    assert await died == "short"
    await tasks.stop()


async def test_nothing_starts_any_more_once_stopped() -> None:
    tasks = BackgroundTasks(lambda name: pytest.fail(f"{name} died"))
    await tasks.stop()
    tasks.start("late", for_ever())
    await tasks.stop()
