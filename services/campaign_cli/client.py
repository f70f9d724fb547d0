"""Calls to DeliveryService as a person's tool makes them: with a deadline, and with patience while it is away."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import grpc
import grpc.aio

from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.address_health_service_pb2_grpc import AddressHealthServiceStub
from campaign.delivery.v1.delivery_pb2 import Delivery
from campaign.delivery.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from campaign.feedback.v1.qualification_service_pb2_grpc import QualificationServiceStub
from campaign_cli.connection import DEFAULT_FOLDER, Connection, read_connection
from campaign_cli.errors import CommandFailed
from service_runtime.backoff import delays
from service_runtime.client import TokenFile, open_channel
from service_runtime.clock import Clock, SystemClock

CALL_SECONDS_MAX = 30.0
READ_PATIENCE_SECONDS = 3.0
"""Nobody wants to wait long to be told that nothing answers."""
SEND_PATIENCE_SECONDS = 60.0
"""A send under way is worth waiting for: a restart of the service must not end it."""
BACKOFF_SECONDS_MAX = 2.0

Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)
Result = TypeVar("Result")


class UnaryCall(Protocol[Request, Response]):
    """A method of a stub with one request and one response."""

    def __call__(self, request: Request, /, *, timeout: float | None = None) -> Awaitable[Response]: ...


@dataclass(frozen=True, slots=True)
class Target:
    """Which service to call. Without an address: the one that `campaign up` runs on `folder`."""

    folder: Path
    address: str | None = None
    token_file: Path | None = None

    @property
    def options(self) -> str:
        """What to add to another command for the same service."""
        if self.address is not None:
            return f" --target {self.address} --token-file {self.token_file or 'FILE'}"
        return "" if self.folder == DEFAULT_FOLDER else f" --data {self.folder}"


def is_passing(error: grpc.aio.AioRpcError) -> bool:
    """Whether another attempt may succeed.

    When a stream ends while a write to it is pending, grpc.aio may put an error of its own in the place of the status.
    """
    status_lost = error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"
    return status_lost or error.code() is grpc.StatusCode.UNAVAILABLE


class Patience:
    """Repeats an attempt while the service is UNAVAILABLE, with back-off, until it has been away for too long."""

    def __init__(self, seconds: float, clock: Clock | None = None) -> None:
        self._seconds = seconds
        self._clock = clock or SystemClock()
        self._away_since: float | None = None
        self.reset()

    def reset(self) -> None:
        """The service has answered."""
        self._away_since = None
        self._delays = delays(0.1, BACKOFF_SECONDS_MAX, random.random)

    async def wait_after(self, error: grpc.aio.AioRpcError) -> None:
        """Waits before the next attempt, or raises `error` if there is to be none."""
        now = self._clock.monotonic()
        if self._away_since is None:
            self._away_since = now
        if not is_passing(error) or now - self._away_since > self._seconds:
            raise error
        await self._clock.sleep(next(self._delays))


class DeliveryClient:
    """DeliveryService, for the commands."""

    def __init__(self, stub: DeliveryServiceStub, patience_seconds: float = READ_PATIENCE_SECONDS) -> None:
        self.stub = stub
        self.patience_seconds = patience_seconds

    async def call(self, method: UnaryCall[Request, Response], request: Request) -> Response:
        """Calls an idempotent method, again and again while the service is away."""
        return await self.persist(lambda: method(request, timeout=CALL_SECONDS_MAX))

    async def persist(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """Repeats `attempt` while the service is away."""
        patience = Patience(self.patience_seconds)
        while True:
            try:
                return await attempt()
            except grpc.aio.AioRpcError as error:
                await patience.wait_after(error)

    async def get_delivery(self, delivery_id: str) -> Delivery:
        """One delivery, with its plan."""
        return (await self.call(self.stub.GetDelivery, pb.GetDeliveryRequest(delivery_id=delivery_id))).delivery


@asynccontextmanager
async def connect(target: Target, patience_seconds: float = READ_PATIENCE_SECONDS) -> AsyncIterator[DeliveryClient]:
    """A client of the given service, or of the one running on the folder."""
    async with _channel(target, lambda connection: connection.delivery) as channel:
        yield DeliveryClient(DeliveryServiceStub(channel), patience_seconds)


@asynccontextmanager
async def connect_addresses(target: Target) -> AsyncIterator[AddressHealthServiceStub]:
    """A client of the quarantine and the denylist of the given service, or of the one running on the folder."""
    async with _channel(target, lambda connection: connection.delivery) as channel:
        yield AddressHealthServiceStub(channel)


@asynccontextmanager
async def connect_qualification(target: Target) -> AsyncIterator[QualificationServiceStub]:
    """A client of the rules of the given FeedbackService, or of the one running on the folder."""
    async with _channel(target, lambda connection: connection.feedback) as channel:
        yield QualificationServiceStub(channel)


@asynccontextmanager
async def _channel(target: Target, address_of: Callable[[Connection], str]) -> AsyncIterator[grpc.aio.Channel]:
    address, token_file = target.address, target.token_file
    if address is None or token_file is None:
        connection = read_connection(target.folder)
        address, token_file = address or address_of(connection), token_file or Path(connection.token_file)
    if not token_file.is_file():
        hint = "make one with: campaign token --role read > FILE"
        raise CommandFailed(f"there is no token file {token_file}", [hint])
    async with open_channel(address, TokenFile(token_file)) as channel:
        yield channel
