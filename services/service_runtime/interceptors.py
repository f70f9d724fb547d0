"""The one server interceptor: access, errors, metrics, and knowing which calls run.

One instead of four, because wrapping is what costs, and because the order matters: an access error must be counted and
translated like any other. Handlers keep their kind (coroutine or async generator); grpc.aio treats the two differently.
"""

from __future__ import annotations  # grpc's classes are generic in their stubs only

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import datetime
from functools import partial
from typing import Any, TypeAlias

import grpc
import grpc.aio
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from service_runtime.access import AccessPolicy, Caller, TokenExpired, TokenVerifier, Unauthenticated, current_caller
from service_runtime.calls import CallMetrics, RunningCall, current_call, current_deadline
from service_runtime.clock import Clock
from service_runtime.errors import ErrorTranslator, ShuttingDown
from service_runtime.problems import Problem

log = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_HANDLER_MAKERS: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class StrayCancellation(Exception):
    """A handler let a CancelledError out although nobody had cancelled its call: a bug in the handler."""


class ServeCalls(grpc.aio.ServerInterceptor):
    """Lets in who may come in, turns errors into statuses, counts calls and can end or await the running ones."""

    def __init__(
        self,
        verifier: TokenVerifier,
        policy: AccessPolicy,
        translator: ErrorTranslator,
        registry: CollectorRegistry,
        clock: Clock,
    ) -> None:
        self._verifier = verifier
        self._policy = policy
        self._translator = translator
        self._metrics = CallMetrics(registry)
        self._clock = clock
        self._wrapped: dict[str, Handler] = {}
        self._running: set[RunningCall] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusing_streams = False

    @property
    def running(self) -> int:
        """How many handlers run now."""
        return len(self._running)

    def end_streams(self) -> None:
        """Ends every call that streams answers with `ShuttingDown`, those that begin later included.

        They would otherwise hold a stopping server up for all of its grace. Calls that answer once are let finish.
        """
        self._refusing_streams = True
        for call in tuple(self._running):
            if call.streams_responses:
                call.interrupt(ShuttingDown())

    async def wait_idle(self) -> None:
        """Returns when no handler runs any more: `Server.stop` returns before their `finally` blocks are through."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        # Bounded: only methods that exist get here.
        if (wrapped := self._wrapped.get(method)) is None:
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        function: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        kind = (handler.request_streaming, handler.response_streaming)
        make = self._wrap_generator if inspect.isasyncgenfunction(function) else self._wrap_coroutine
        wrapped = make(method, function, any(kind), handler.response_streaming)
        return _HANDLER_MAKERS[kind](wrapped, handler.request_deserializer, handler.response_serializer)

    def _wrap_coroutine(self, method: str, function: Any, streams: bool, streams_responses: bool) -> Any:
        async def serve(request: Any, context: Context) -> Any:
            call = self._begin(method, streams_responses)
            try:
                self._admit(call, context, streams)
                with call.inside():
                    response = await function(request, context)
                call.check()
                call.code = _code_name(context)
            except BaseException as error:
                await self._fail(call, context, error)
            else:
                return response
            finally:
                self._end(call)

        return serve

    def _wrap_generator(self, method: str, function: Any, streams: bool, streams_responses: bool) -> Any:
        async def serve(request: Any, context: Context) -> AsyncIterator[Any]:
            call = self._begin(method, streams_responses)
            try:
                self._admit(call, context, streams)
                async with aclosing(function(request, context)) as responses:
                    while True:
                        with call.inside():
                            response = await anext(responses, _END)
                        call.check()
                        if response is _END:
                            break
                        yield response
                        call.check()
                call.code = _code_name(context)
            except BaseException as error:
                await self._fail(call, context, error)
            finally:
                self._end(call)

        return serve

    def _begin(self, method: str, streams_responses: bool) -> RunningCall:
        call = RunningCall(method, streams_responses)
        self._running.add(call)
        self._idle.clear()
        self._metrics.begin(call)
        return call

    def _end(self, call: RunningCall) -> None:
        call.close()
        self._metrics.end(call)
        self._running.discard(call)
        if not self._running:
            self._idle.set()

    def _admit(self, call: RunningCall, context: Context, streams: bool) -> None:
        """Authenticates and authorises the call, and lets its handler see the caller and the deadline."""
        if self._refusing_streams and call.streams_responses:
            raise ShuttingDown
        who = self._verifier.verify(_bearer_token(context))
        self._policy.authorise(who, call.method)
        # Each call has a task, hence a context, of its own: nothing needs resetting.
        current_caller.set(who)
        current_call.set(call)
        remaining_seconds = context.time_remaining()
        call.deadline = None if remaining_seconds is None else call.loop.time() + remaining_seconds
        current_deadline.set(call.deadline)
        if streams and who.expire_time is not None:
            self._end_at(call, who, who.expire_time)

    def _end_at(self, call: RunningCall, who: Caller, expire_time: datetime) -> None:
        seconds = (expire_time - self._clock.now()).total_seconds()
        call.interrupt_after(seconds, partial(_expired, who))

    async def _fail(self, call: RunningCall, context: Context, error: BaseException) -> None:
        """Ends a failed call with the right status, or passes on what must be passed on. Never returns normally."""
        if isinstance(error, GeneratorExit | grpc.aio.InternalError):
            # The peer vanished while a write was pending. That is its right, not an error.
            call.code = grpc.StatusCode.CANCELLED.name
            raise error
        if isinstance(error, asyncio.CancelledError):
            if call.was_cancelled():
                call.code = _cancellation_code(call)
                raise error
            # Unless a status is sent here, the client waits for one until its deadline.
            error = call.problem or StrayCancellation("a handler let a CancelledError out")
        if isinstance(error, BaseExceptionGroup):
            error = self._most_telling(error)
        if isinstance(error, grpc.aio.AbortError):
            call.code = _code_name(context)
            raise error
        if not isinstance(error, Exception):
            raise error
        status = rpc_status.to_status(self._translator.status_of(error, call.method))
        call.code = status.code.name
        try:
            await context.abort_with_status(status)
        except grpc.aio.InternalError:
            call.code = grpc.StatusCode.CANCELLED.name
            raise

    def _most_telling(self, group: BaseExceptionGroup[BaseException]) -> BaseException:
        """The one exception of a task group that decides the status; the whole group if none is an expected one."""
        leaves = list(_leaves(group))
        for leaf in leaves:
            if isinstance(leaf, grpc.aio.AbortError) or not isinstance(leaf, Exception):
                return leaf
        if any(self._translator.lookup(type(leaf)) is None for leaf in leaves):
            return group  # a bug among them must not hide behind an ordinary problem
        return next((leaf for leaf in leaves if isinstance(leaf, Problem)), leaves[0])


_END = object()


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for part in group.exceptions:
        found.extend(_leaves(part) if isinstance(part, BaseExceptionGroup) else (part,))
    return found


def _expired(who: Caller) -> TokenExpired:
    return TokenExpired(
        "the token expired while the stream was open: get a new one and resume the stream",
        metadata={"subject": who.subject},
    )


def _bearer_token(context: Context) -> str:
    values = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if not values:
        raise Unauthenticated("the call carries no token: send the metadata authorization: Bearer <token>")
    scheme, _, token = str(values[0]).partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not token:
        raise Unauthenticated("the metadata authorization is not understood: send it once, as Bearer <token>")
    return token


def _code_name(context: Context) -> str:
    code: Any = context.code()
    if not code:
        return grpc.StatusCode.OK.name
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((known.name for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN.name)


def _cancellation_code(call: RunningCall) -> str:
    return (grpc.StatusCode.DEADLINE_EXCEEDED if call.is_late() else grpc.StatusCode.CANCELLED).name
