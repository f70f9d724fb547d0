"""The runtime as a whole: a real server on a loopback port, called by a real client, with bytes for messages."""

import asyncio
import hashlib
import hmac
import json
import logging
import threading
import urllib.error
import urllib.request
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from service_runtime.access import AccessPolicy, TokenVerifier, caller
from service_runtime.admin_http import AdminHttp
from service_runtime.calls import CallMetrics, remaining_seconds
from service_runtime.client import StaticToken, client_options, open_channel
from service_runtime.clock import SystemClock
from service_runtime.development_keys import DevelopmentKeys
from service_runtime.errors import ErrorStatus, ErrorTranslator
from service_runtime.interceptors import ServeCalls
from service_runtime.problems import FieldViolation, InvalidInput, Problem
from service_runtime.server import GrpcServer, ServerLimits
from tests.support.eventually import eventually

SERVICE = "test.v1.TestService"
TIMEOUT_SECONDS = 10.0
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream", "Written")


class WrongState(Problem):
    pass


class DriverError(Exception):
    pass


class Behaviour:
    """What the handlers do with a request, and what a test can see of it."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.ended = asyncio.Event()
        self.seen: list[object] = []

    async def act(self, request: bytes) -> bytes:
        match request:
            case b"problem":
                raise WrongState("it is PAUSED: resume it", metadata={"state": "PAUSED"}, retry_delay_seconds=1.5)
            case b"violations":
                raise InvalidInput(FieldViolation(f"rows[{i}].address", "é" * 400) for i in range(300))
            case b"driver":
                raise DriverError("SELECT secret FROM recipient")
            case b"bug":
                raise ZeroDivisionError("secret text")
            case b"stray":
                raise asyncio.CancelledError
            case b"group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.act(b"problem"))
                    group.create_task(self.release.wait())
            case b"group-with-bug":
                raise ExceptionGroup(
                    "several", [WrongState("it is PAUSED: resume it"), ZeroDivisionError("secret text")]
                )
            case b"wait":
                self.entered.set()
                try:
                    await self.release.wait()
                finally:
                    await asyncio.sleep(0)  # cleaning up that awaits
                    self.ended.set()
            case b"who":
                return f"{caller().subject} {','.join(sorted(caller().roles))}".encode()
            case b"remaining":
                return str(remaining_seconds(100.0, margin_seconds=0.0)).encode()
        return b"ok"


def handlers_of(behaviour: Behaviour) -> grpc.GenericRpcHandler:
    async def unary_unary(request: bytes, context: Any) -> bytes:
        if request == b"abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "said so")
        return await behaviour.act(request)

    async def unary_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        yield await behaviour.act(request)

    async def stream_unary(requests: AsyncIterator[bytes], context: Any) -> bytes:
        answer = b"nothing"
        async for request in requests:
            answer = await behaviour.act(request)
        return answer

    async def stream_stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await behaviour.act(request)

    async def written(request: bytes, context: Any) -> None:
        await context.write(b"first")
        await context.write(await behaviour.act(request))

    async def flood(request: bytes, context: Any) -> AsyncIterator[bytes]:
        behaviour.entered.set()
        try:
            while True:
                yield b"x" * 100_000
        finally:
            behaviour.ended.set()

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(unary_unary),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(unary_stream),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(stream_unary),
            "StreamStream": grpc.stream_stream_rpc_method_handler(stream_stream),
            "Written": grpc.unary_stream_rpc_method_handler(written),
            "Flood": grpc.unary_stream_rpc_method_handler(flood),
            "Undeclared": grpc.unary_unary_rpc_method_handler(unary_unary),
        },
    )


class Lab:
    """A running server and what is needed to call it."""

    def __init__(self) -> None:
        self.keys = DevelopmentKeys.generate()
        self.behaviour = Behaviour()
        self.registry = CollectorRegistry()
        self.stack = AsyncExitStack()
        methods = (*KINDS, "Flood")
        self.calls = ServeCalls(
            TokenVerifier([self.keys.public_pem], SystemClock(), leeway_seconds=0.0),
            AccessPolicy(
                {f"/{SERVICE}/{name}": frozenset({"write"}) for name in methods}, {"owner": frozenset({"write"})}
            ),
            ErrorTranslator(
                {
                    WrongState: ErrorStatus(grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE"),
                    DriverError: ErrorStatus(grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"),
                },
                "test.example",
            ),
            self.registry,
            SystemClock(),
        )
        self.server = GrpcServer(self.calls, ServerLimits())

    async def start(self) -> None:
        handlers = handlers_of(self.behaviour)
        self.server.add_service(SERVICE, lambda server: server.add_generic_rpc_handlers((handlers,)))
        await self.server.start("127.0.0.1", 0)
        await self.server.serving(True)

    def channel(self, token: str | None = None, roles: tuple[str, ...] = ("write",)) -> Any:
        source = StaticToken(token if token is not None else self.keys.sign("alice", roles))
        channel = open_channel(f"127.0.0.1:{self.server.port}", source)
        self.stack.push_async_callback(channel.close)
        return channel

    def bare_channel(self) -> Any:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.server.port}", options=client_options({}))
        self.stack.push_async_callback(channel.close)
        return channel

    def codes(self, method: str) -> dict[str, float]:
        (family,) = (found for found in self.registry.collect() if found.name == "grpc_server_calls")
        return {
            sample.labels["code"]: sample.value
            for sample in family.samples
            if sample.labels["method"] == f"/{SERVICE}/{method}" and sample.name.endswith("_total")
        }


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    lab = Lab()
    await lab.start()
    async with lab.stack:
        yield lab
        lab.behaviour.release.set()
    await lab.server.stop(0.0)
    assert lab.calls.running == 0


def health_stub(channel: Any) -> Any:
    return health_pb2_grpc.HealthStub(channel)


async def _send(*requests: bytes) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


async def call(channel: Any, kind: str, request: bytes, metadata: Any = None) -> list[bytes]:
    """One call of the given kind, whatever it answers; like all calls here, with a deadline."""
    path, more = f"/{SERVICE}/{kind}", {"timeout": TIMEOUT_SECONDS, "metadata": metadata}
    match kind:
        case "UnaryStream" | "Written":
            return await _read_all(channel.unary_stream(path)(request, **more))
        case "StreamUnary":
            return [await channel.stream_unary(path)(_send(request), **more)]
        case "StreamStream":
            return await _read_all(channel.stream_stream(path)(_send(request), **more))
    return [await channel.unary_unary(path)(request, **more)]


async def _read_all(stream: Any) -> list[bytes]:
    try:
        return [answer async for answer in stream]
    finally:
        stream.cancel()  # being cancelled in the middle of a read does not always end the call


async def failure(channel: Any, kind: str, request: bytes, metadata: Any = None) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, kind, request, metadata)
    return caught.value


def details_of(error: grpc.aio.AioRpcError) -> Status:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # works on the asyncio error too
    assert isinstance(status, Status)
    return status


def unpack(status: Status, kind: Callable[[], Any]) -> Any:
    found = kind()
    assert any(detail.Unpack(found) for detail in status.details), f"no {kind} in {status}"
    return found


def reason_of(error: grpc.aio.AioRpcError) -> str:
    info = unpack(details_of(error), ErrorInfo)
    assert info.domain == "test.example"
    return str(info.reason)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_handler_answers_through_the_interceptor(lab: Lab, kind: str) -> None:
    answers = await call(lab.channel(), kind, b"fine")
    assert answers[-1] == b"ok"
    await lab.calls.wait_idle()
    assert lab.codes(kind) == {"OK": 1}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_problem_becomes_the_status_of_its_table_row_in_every_kind(lab: Lab, kind: str) -> None:
    error = await failure(lab.channel(), kind, b"problem")
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "it is PAUSED: resume it")
    status = details_of(error)
    info = unpack(status, ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == ("WRONG_STATE", "test.example", {"state": "PAUSED"})
    assert unpack(status, RetryInfo).retry_delay.ToMilliseconds() == 1_500
    await lab.calls.wait_idle()
    assert lab.codes(kind) == {"FAILED_PRECONDITION": 1}


@pytest.mark.expects_errors
@pytest.mark.parametrize("kind", KINDS)
async def test_an_unknown_exception_tells_the_caller_only_an_id_that_the_log_has_too(
    lab: Lab, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = await failure(lab.channel(), kind, b"bug")
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(details_of(error))
    error_id = unpack(details_of(error), ErrorInfo).metadata["error_id"]
    assert error_id in str(error.details())
    (record,) = [record for record in caplog.records if getattr(record, "error_id", None) == error_id]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.expects_errors
@pytest.mark.parametrize("kind", KINDS)
async def test_a_stray_cancellation_gets_a_status_instead_of_leaving_the_client_to_its_deadline(
    lab: Lab, kind: str
) -> None:
    error = await failure(lab.channel(), kind, b"stray")
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.INTERNAL, "INTERNAL")


async def test_an_error_of_a_driver_in_the_table_does_not_show_its_text(lab: Lab) -> None:
    error = await failure(lab.channel(), "UnaryUnary", b"driver")
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert "SELECT" not in str(details_of(error))


async def test_a_problem_raised_in_a_task_group_decides_the_status(lab: Lab) -> None:
    error = await failure(lab.channel(), "UnaryUnary", b"group")
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.expects_errors
async def test_a_bug_in_a_task_group_does_not_hide_behind_a_problem(lab: Lab) -> None:
    error = await failure(lab.channel(), "UnaryUnary", b"group-with-bug")
    assert error.code() is grpc.StatusCode.INTERNAL


async def test_a_handlers_own_abort_passes_unchanged(lab: Lab) -> None:
    error = await failure(lab.channel(), "UnaryUnary", b"abort")
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "said so")
    await lab.calls.wait_idle()
    assert lab.codes("UnaryUnary") == {"DATA_LOSS": 1}


async def test_three_hundred_violations_arrive_cut_and_counted_instead_of_breaking_the_status(lab: Lab) -> None:
    # A client without our larger limit on metadata: the status must fit into grpc's default.
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{lab.server.port}", options=[OWN_CONNECTION])
    lab.stack.push_async_callback(channel.close)
    metadata = (("authorization", f"Bearer {lab.keys.sign('alice', ['write'])}"),)
    error = await failure(channel, "UnaryUnary", b"violations", metadata)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = details_of(error)
    listed = unpack(status, BadRequest).field_violations
    assert listed[0].field == "rows[0].address"
    assert 1 <= len(listed) <= 50
    assert unpack(status, ErrorInfo).metadata["violations_left_out"] == str(300 - len(listed))
    assert f"{300 - len(listed)} of 300" in str(error.details())


async def test_the_handler_sees_its_caller_and_an_implying_role_admits(lab: Lab) -> None:
    assert await call(lab.channel(roles=("owner",)), "UnaryUnary", b"who") == [b"alice owner"]
    assert await call(lab.channel(), "StreamStream", b"who") == [b"alice write"]


async def test_the_handler_sees_what_is_left_of_the_callers_deadline(lab: Lab) -> None:
    (answer,) = await call(lab.channel(), "UnaryUnary", b"remaining")
    assert 0.0 < float(answer) < 1.1 * TIMEOUT_SECONDS  # on the wire, gRPC rounds a timeout up by a few percent


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_without_a_token_is_unauthenticated(lab: Lab, kind: str) -> None:
    error = await failure(lab.bare_channel(), kind, b"fine")
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_without_the_role_is_denied_and_told_which_one_is_missing(lab: Lab, kind: str) -> None:
    error = await failure(lab.channel(roles=("read",)), kind, b"fine")
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING")
    assert unpack(details_of(error), ErrorInfo).metadata["required_role"] == "write"


async def test_a_method_that_declares_no_role_is_open_to_nobody(lab: Lab) -> None:
    error = await failure(lab.channel(roles=("write", "owner", "administration")), "Undeclared", b"fine")
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_an_expired_token_is_told_apart(lab: Lab) -> None:
    error = await failure(lab.channel(lab.keys.sign("alice", ["write"], -1.0)), "UnaryUnary", b"fine")
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")


@pytest.mark.parametrize("forgery", ["audience", "none", "hmac", "other key", "garbage"])
async def test_a_forged_or_foreign_token_is_refused(lab: Lab, forgery: str) -> None:
    claims = jwt.decode(lab.keys.sign("mallory", ["write"]), options={"verify_signature": False})
    match forgery:
        case "audience":
            token = lab.keys.sign("mallory", ["write"], audience="another-system")
        case "none":
            token = jwt.encode(claims, "", algorithm="none")
        case "hmac":
            token = _hmac_token(claims, lab.keys.public_pem)
        case "other key":
            token = DevelopmentKeys.generate().sign("mallory", ["write"])
        case _:
            token = "not.a.token"
    error = await failure(lab.channel(token), "UnaryUnary", b"fine")
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


def _hmac_token(claims: dict[str, Any], secret: bytes) -> str:
    """Signed with the public key as a shared secret, which PyJWT itself refuses to do."""

    def encode(part: bytes) -> bytes:
        return urlsafe_b64encode(part).rstrip(b"=")

    signed = encode(b'{"alg":"HS256","typ":"JWT"}') + b"." + encode(json.dumps(claims).encode())
    return (signed + b"." + encode(hmac.new(secret, signed, hashlib.sha256).digest())).decode()


@pytest.mark.parametrize("kind", ["UnaryStream", "StreamStream", "StreamUnary", "Written"])
async def test_a_stream_ends_when_its_token_expires(lab: Lab, kind: str) -> None:
    error = await failure(lab.channel(lab.keys.sign("alice", ["write"], 0.4)), kind, b"wait")
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")
    assert lab.behaviour.ended.is_set()


async def test_a_unary_call_is_not_cut_by_the_expiry_of_its_token(lab: Lab) -> None:
    channel = lab.channel(lab.keys.sign("alice", ["write"], 0.4))
    pending = asyncio.ensure_future(call(channel, "UnaryUnary", b"wait"))
    stream_error = await failure(channel, "UnaryStream", b"wait")  # ends by the same expiry
    assert reason_of(stream_error) == "TOKEN_EXPIRED"
    lab.behaviour.release.set()
    assert await pending == [b"ok"]


async def test_a_stream_whose_peer_does_not_read_ends_with_the_token_once_it_reads_on(lab: Lab) -> None:
    channel = lab.channel(lab.keys.sign("alice", ["write"], 0.4))
    flood = channel.unary_stream(f"/{SERVICE}/Flood")(b"", timeout=TIMEOUT_SECONDS)
    await lab.behaviour.entered.wait()
    assert reason_of(await failure(channel, "UnaryStream", b"wait")) == "TOKEN_EXPIRED"  # so this one's has expired too
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in flood:
            pass
    assert reason_of(caught.value) == "TOKEN_EXPIRED"
    assert lab.behaviour.ended.is_set()


@pytest.mark.parametrize("kind", ["UnaryUnary", "UnaryStream", "Written"])
async def test_a_deadline_cancels_the_handler_and_is_counted_as_such(lab: Lab, kind: str) -> None:
    path = f"/{SERVICE}/{kind}"
    if kind == "UnaryUnary":
        pending: Any = lab.channel().unary_unary(path)(b"wait", timeout=0.3)
    else:
        pending = _read_all(lab.channel().unary_stream(path)(b"wait", timeout=0.3))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pending
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await lab.behaviour.ended.wait()
    await lab.calls.wait_idle()
    assert lab.codes(kind) == {"DEADLINE_EXCEEDED": 1}


@pytest.mark.parametrize("kind", ["UnaryUnary", "UnaryStream", "StreamStream", "Written"])
async def test_a_client_that_cancels_cancels_the_handler_and_is_no_error(
    lab: Lab, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    pending = asyncio.ensure_future(call(lab.channel(), kind, b"wait"))
    await lab.behaviour.entered.wait()
    pending.cancel()
    await lab.behaviour.ended.wait()
    await lab.calls.wait_idle()
    assert lab.codes(kind) == {"CANCELLED": 1}
    assert not [record for record in caplog.records if record.name.startswith("service_runtime")]


async def test_a_client_that_leaves_while_a_write_to_it_is_pending_is_no_error_of_ours(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "grpc._cython.cygrpc")  # grpc logs it as an error; `logs` drops that
    flood = lab.channel().unary_stream(f"/{SERVICE}/Flood")(b"", timeout=TIMEOUT_SECONDS)
    assert await anext(aiter(flood))
    flood.cancel()
    await lab.behaviour.ended.wait()
    await lab.calls.wait_idle()
    assert lab.codes("Flood") == {"CANCELLED": 1}
    assert not [record for record in caplog.records if record.name.startswith("service_runtime")]


async def test_a_graceful_stop_lets_a_unary_call_finish_and_ends_streams_in_good_time(lab: Lab) -> None:
    channel = lab.channel()
    pending = asyncio.ensure_future(call(channel, "UnaryUnary", b"wait"))
    await lab.behaviour.entered.wait()
    streams = [channel.unary_stream(f"/{SERVICE}/{kind}")(b"wait", timeout=60.0) for kind in ("UnaryStream", "Written")]
    for stream in streams:
        assert await anext(aiter(stream)) == b"first"
    watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60.0)
    assert (await anext(aiter(watch))).status == health_pb2.HealthCheckResponse.SERVING
    drained_while_running: list[int] = []

    async def drain() -> None:
        drained_while_running.append(lab.calls.running)

    lab.server.on_drain(drain)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        stopping = asyncio.ensure_future(lab.server.stop(30.0))
        assert (await anext(aiter(watch))).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for stream in (*streams, watch):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(stream))
            assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert not stopping.done()
        lab.behaviour.release.set()
        assert await pending == [b"ok"]
        await stopping
    assert drained_while_running == [4]
    assert lab.calls.running == 0


@pytest.mark.expects_errors
async def test_a_drain_that_fails_or_hangs_does_not_hold_up_the_stop(lab: Lab) -> None:
    async def fail() -> None:
        raise WrongState("no")

    lab.server.on_drain(fail)
    lab.server.on_drain(asyncio.Event().wait)  # type: ignore[arg-type]  # its answer is ignored
    async with asyncio.timeout(TIMEOUT_SECONDS):
        await lab.server.stop(0.05)


async def test_a_stop_without_grace_waits_until_the_handlers_have_cleaned_up(lab: Lab) -> None:
    pending = asyncio.ensure_future(failure(lab.channel(), "UnaryUnary", b"wait"))
    await lab.behaviour.entered.wait()
    await lab.server.stop(0.0)
    assert lab.behaviour.ended.is_set()
    assert lab.calls.running == 0
    assert (await pending).code() is grpc.StatusCode.UNAVAILABLE


async def test_health_answers_by_service_to_any_valid_token_and_to_nobody_else(lab: Lab) -> None:
    health = health_stub(lab.channel(roles=()))
    response = health_pb2.HealthCheckResponse
    for name in ("", SERVICE):
        request = health_pb2.HealthCheckRequest(service=name)
        assert (await health.Check(request, timeout=TIMEOUT_SECONDS)).status == response.SERVING
        await lab.server.serving(False)
        assert (await health.Check(request, timeout=TIMEOUT_SECONDS)).status == response.NOT_SERVING
        await lab.server.serving(True)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_stub(lab.bare_channel()).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_new_server_is_not_serving_until_told_so() -> None:
    lab = Lab()
    handlers = handlers_of(lab.behaviour)
    lab.server.add_service(SERVICE, lambda server: server.add_generic_rpc_handlers((handlers,)))
    await lab.server.start("127.0.0.1", 0)
    async with lab.stack:
        stub = health_stub(lab.channel())
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    await lab.server.stop(0.0)


async def test_a_message_over_the_limit_is_refused(lab: Lab) -> None:
    channel = grpc.aio.insecure_channel(
        f"127.0.0.1:{lab.server.port}", options=[OWN_CONNECTION, ("grpc.max_send_message_length", -1)]
    )
    lab.stack.push_async_callback(channel.close)
    metadata = (("authorization", f"Bearer {lab.keys.sign('alice', ['write'])}"),)
    error = await failure(channel, "UnaryUnary", b"x" * (ServerLimits().receive_bytes_max + 1), metadata)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_port_taken_by_another_server_is_an_error(lab: Lab) -> None:
    other = Lab()
    with pytest.raises(RuntimeError, match=r"[Ff]ailed to bind"):
        await other.server.start("127.0.0.1", lab.server.port)
    await other.server.stop(0.0)


async def test_the_client_retries_the_methods_it_was_told_to(lab: Lab) -> None:
    source = StaticToken(lab.keys.sign("alice", ["write"]))
    target = f"127.0.0.1:{lab.server.port}"
    async with open_channel(target, source, retried={SERVICE: ["UnaryUnary"]}) as channel:
        assert (await failure(channel, "UnaryUnary", b"driver")).code() is grpc.StatusCode.UNAVAILABLE
        assert await call(channel, "UnaryUnary", b"fine") == [b"ok"]
    await lab.calls.wait_idle()
    assert lab.codes("UnaryUnary") == {"UNAVAILABLE": 4, "OK": 1}


async def test_a_channel_soon_looks_again_for_a_server_that_is_away() -> None:
    looks = 0

    def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal looks
        looks += 1
        writer.close()

    away = await asyncio.start_server(look, "127.0.0.1", 0)
    target = f"127.0.0.1:{away.sockets[0].getsockname()[1]}"
    async with away, open_channel(target, None) as channel:
        channel.get_state(try_to_connect=True)
        await eventually(lambda: looks >= 5, timeout_seconds=7)  # grpc by itself: 9 s


async def test_admin_http_tells_metrics_life_and_readiness() -> None:
    registry, ready = CollectorRegistry(), threading.Event()
    admin = AdminHttp(registry, ready.is_set)
    port = admin.start(0)
    CallMetrics(registry)

    def get(path: str, method: str = "GET") -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    try:
        assert get("/healthz") == (200, "alive\n")
        assert get("/readyz") == (503, "not ready\n")
        ready.set()
        assert get("/readyz") == (200, "ready\n")
        assert "grpc_server_calls_in_flight" in get("/metrics")[1]
        assert get("/nothing")[0] == 404
        assert get("/healthz", "POST")[0] == 405
    finally:
        admin.stop()
    admin.stop()
    with pytest.raises(urllib.error.URLError):
        get("/healthz")
