import asyncio

import pytest
from prometheus_client import CollectorRegistry

from service_runtime.calls import CallMetrics, RunningCall, current_deadline, remaining_seconds
from service_runtime.problems import Problem

METHOD = "/test.v1.TestService/Do"


async def test_an_interruption_inside_the_handler_cancels_it_and_leaves_no_trace_on_the_task() -> None:
    call = RunningCall(METHOD, streams_responses=True)
    problem = Problem("enough")
    call.loop.call_soon(call.interrupt, problem)
    with pytest.raises(asyncio.CancelledError), call.inside():
        await asyncio.Event().wait()
    assert call.problem is problem
    assert not call.was_cancelled()
    await asyncio.sleep(0)  # a cancellation left over would strike here


async def test_an_interruption_between_two_responses_waits_for_the_next_check() -> None:
    call = RunningCall(METHOD, streams_responses=True)
    call.interrupt(Problem("enough"))
    call.interrupt(Problem("too late to decide"))
    await asyncio.sleep(0)
    with pytest.raises(Problem, match="enough"):
        call.check()


async def test_a_cancellation_by_someone_else_wins_over_an_interruption() -> None:
    outcome: list[bool] = []

    async def serve() -> None:
        call = RunningCall(METHOD, streams_responses=True)
        task = asyncio.current_task()
        assert task is not None
        call.loop.call_soon(call.interrupt, Problem("enough"))
        call.loop.call_soon(task.cancel)
        try:
            with call.inside():
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            outcome.append(call.was_cancelled())
            raise

    task = asyncio.create_task(serve())
    await asyncio.wait([task])
    assert (outcome, task.cancelled()) == ([True], True)


async def test_a_call_that_has_ended_is_not_interrupted_by_its_timer() -> None:
    call = RunningCall(METHOD, streams_responses=True)
    call.interrupt_after(0.0, lambda: Problem("enough"))
    call.close()
    await asyncio.sleep(0.001)
    assert call.problem is None


async def test_what_remains_is_capped_and_never_negative() -> None:
    token = current_deadline.set(None)
    try:
        assert remaining_seconds(3.0) == 3.0
        now = asyncio.get_running_loop().time()
        current_deadline.set(now + 60.0)
        assert remaining_seconds(3.0) == 3.0
        current_deadline.set(now + 1.0)
        assert 0.0 < remaining_seconds(3.0) <= 0.95
        current_deadline.set(now - 1.0)
        assert remaining_seconds(3.0) == 0.0
    finally:
        current_deadline.reset(token)


async def test_metrics_count_calls_by_method_and_code_and_time_only_single_answers() -> None:
    registry = CollectorRegistry()
    metrics = CallMetrics(registry)
    for streams in (True, False):
        call = RunningCall(METHOD, streams_responses=streams)
        metrics.begin(call)
        assert registry.get_sample_value("grpc_server_calls_in_flight", {"method": METHOD}) == 1
        call.code = "OK"
        metrics.end(call)
    assert registry.get_sample_value("grpc_server_calls_total", {"method": METHOD, "code": "OK"}) == 2
    assert registry.get_sample_value("grpc_server_call_seconds_count", {"method": METHOD}) == 1
    assert registry.get_sample_value("grpc_server_calls_in_flight", {"method": METHOD}) == 0


@pytest.mark.parametrize(("seconds_left", "late"), [(None, False), (60.0, False), (0.0, True), (-1.0, True)])
async def test_a_call_is_late_once_its_deadline_has_passed(seconds_left: float | None, late: bool) -> None:
    call = RunningCall(METHOD, streams_responses=False)
    call.deadline = None if seconds_left is None else call.loop.time() + seconds_left
    assert call.is_late() is late


async def test_a_call_is_late_when_only_what_the_wire_rounds_up_is_left() -> None:
    call = RunningCall(METHOD, streams_responses=False)
    call.started -= 10.0
    call.deadline = call.loop.time() + 0.1
    assert call.is_late()
    call.deadline = call.loop.time() + 1.0
    assert not call.is_late()
