"""One call while it is served: its deadline, how to end it from outside, and what is measured about it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service_runtime.problems import Problem

current_deadline: ContextVar[float | None] = ContextVar("current_deadline", default=None)
"""When the call being served must be done, in the event loop's time; None when its client set no deadline."""

current_call: ContextVar["RunningCall"] = ContextVar("current_call")
"""The call being served."""

DEADLINE_SLACK_SECONDS = 0.02
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def response_writer(context: Any) -> Callable[[Any], Awaitable[None]]:
    """How a handler that is a coroutine writes its responses: so that `interrupt` knows when it may cancel."""
    return partial(current_call.get().write, context)


def remaining_seconds(cap_seconds: float, *, margin_seconds: float = 0.05) -> float:
    """How long the call being served may still wait for another one: grpc.aio hands no deadline on by itself.

    The margin leaves time to answer. Never more than `cap_seconds`, never below zero.
    """
    deadline = current_deadline.get()
    if deadline is None:
        return cap_seconds
    return max(0.0, min(cap_seconds, deadline - asyncio.get_running_loop().time() - margin_seconds))


class RunningCall:
    """A call in its handler, which `interrupt` can end with a status of our choice.

    Cancelling the call's task is safe only while the handler's own code runs: between two responses of a generator, and
    while it writes one, the task is inside grpc, where a cancellation would end the call without any status. Then the
    interruption waits until the handler's code runs again; if the peer has stopped reading, that is when it reads on or
    goes away.
    """

    def __init__(self, method: str, streams_responses: bool) -> None:
        self.method = method
        self.streams_responses = streams_responses
        self.loop = asyncio.get_running_loop()
        self.started = self.loop.time()
        self.deadline: float | None = None
        self.code = "UNKNOWN"
        self.problem: Problem | None = None
        self._task = asyncio.current_task()
        self._inside = False
        self._cancelled_by_us = False
        self._timer: asyncio.TimerHandle | None = None

    def inside(self) -> Self:
        """Marks the time that the handler's own code runs: `with call.inside()`."""
        return self  # not a generator's context: it would live, with its frame, for as long as a stream

    def __enter__(self) -> None:
        self._inside = True

    def __exit__(self, *_: object) -> None:
        self._inside = False

    async def write(self, context: Any, response: Any) -> None:
        """Writes a response from inside the handler, and raises the problem of an interruption meanwhile."""
        self._inside = False
        try:
            await context.write(response)
        finally:
            self._inside = True
        if self.problem is not None:
            self.check()

    def interrupt(self, problem: Problem) -> None:
        """Makes the call end with `problem`. The first interruption decides."""
        if self.problem is not None:
            return
        self.problem = problem
        if self._inside and self._task is not None:
            self._cancelled_by_us = self._task.cancel()

    def interrupt_after(self, seconds: float, problem: Callable[[], Problem]) -> None:
        """Interrupts the call with what `problem` gives after that time, unless it has ended by then."""
        self._timer = self.loop.call_later(max(seconds, 0.0), lambda: self.interrupt(problem()))

    def check(self) -> None:
        """Raises the problem of an interruption that the handler has not noticed."""
        if self.problem is not None:
            self.was_cancelled()
            raise self.problem

    def was_cancelled(self) -> bool:
        """Whether someone else (the peer, the deadline, the server's stop) cancelled the call. Takes ours back."""
        if self._task is None:
            return False
        if self._cancelled_by_us:
            self._cancelled_by_us = False
            self._task.uncancel()
        return self._task.cancelling() > 0

    def is_late(self) -> bool:
        """Whether the call's deadline has passed, as its client sees it.

        The client may notice first, and cancel. On the wire a timeout is rounded up, by one or two percent: for us a
        little of it may be left then.
        """
        if self.deadline is None:
            return False
        return self.loop.time() >= self.deadline - 0.02 * (self.deadline - self.started) - DEADLINE_SLACK_SECONDS

    def close(self) -> None:
        """The call has ended: nothing may interrupt it any more."""
        if self._timer is not None:
            self._timer.cancel()


class CallMetrics:
    """Prometheus metrics of the calls of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter("grpc_server_calls", "Calls that ended.", ("method", "code"), registry=registry)
        self._seconds = Histogram(
            "grpc_server_call_seconds",
            "How long calls with a single answer took; how long a stream is open says nothing.",
            ("method",),
            registry=registry,
            buckets=SECONDS_BUCKETS,
        )
        self._in_flight = Gauge("grpc_server_calls_in_flight", "Calls being served.", ("method",), registry=registry)

    def begin(self, call: RunningCall) -> None:
        """A call has come in."""
        self._in_flight.labels(call.method).inc()

    def end(self, call: RunningCall) -> None:
        """A call has ended with `call.code`."""
        self._in_flight.labels(call.method).dec()
        self._calls.labels(call.method, call.code).inc()
        if not call.streams_responses:
            self._seconds.labels(call.method).observe(call.loop.time() - call.started)
