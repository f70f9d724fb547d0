"""Channels to other services: bearer tokens on every call, and options that notice a dead peer.

Leaving a stream early, even by being cancelled, does not reliably end its call: `call.cancel()` in a `finally` does.

Without `ping_timeout_ms` a frozen peer is noticed after a minute; with it, after keep-alive time plus timeout.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import grpc
import grpc.aio

Options: TypeAlias = Sequence[tuple[str, Any]]

KEEPALIVE_SECONDS = 20
PING_TIMEOUT_SECONDS = 10
RECONNECT_BACKOFF_SECONDS = (0.1, 2.0)
"""The first and the longest wait of a channel before it looks for its server again, during which calls fail at once: it
adds to the back-off of whoever calls. grpc's own, 1 s to two minutes, would keep a server that is back waiting."""
METADATA_BYTES_MAX = 65_536
STREAM_WINDOW_BYTES = 256 * 1_024
"""How much unread data a stream may bring to us; grpc's own default lets some 4 MiB pile up per stream."""
MESSAGE_BYTES_MAX = 4 * 1_024 * 1_024


class TokenSource(Protocol):
    """Gives the bearer token for the call about to be made."""

    def token(self) -> str:
        """The token, without the word Bearer."""
        ...


class TokenUnreadable(OSError):
    """The file is there and holds no token: empty, as one that is being written may be for a moment. Tried again later,
    as when it can't be read."""


class StaticToken:
    """One token for ever: tools and tests."""

    def __init__(self, token: str) -> None:
        self._token = token

    def token(self) -> str:
        return self._token


class TokenFile:
    """The token in a file that someone else renews. Looked at for every call, read when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None
        self._token = ""

    def token(self) -> str:
        status = self._path.stat()
        version = (status.st_mtime_ns, status.st_size, status.st_ino)
        if version != self._version:
            self._token = self._path.read_bytes().decode("ascii", "replace").strip()
            self._version = version
        if not self._token or not self._token.isascii():
            raise TokenUnreadable(f"the token file {self._path} is empty, or no text: write a token into it")
        return self._token


def open_channel(
    target: str,
    token_source: TokenSource | None,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    retried: Mapping[str, Iterable[str]] | None = None,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
) -> grpc.aio.Channel:
    """A channel to `target` whose calls carry the token. Without `credentials` it is not encrypted.

    `retried`: full service name to its idempotent unary methods, which grpc then retries when UNAVAILABLE.
    """
    options = client_options(retried or {}, message_bytes_max=message_bytes_max)
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, options=options)
    else:
        channel = grpc.aio.secure_channel(target, credentials, options=options)
    return channel if token_source is None else TokenChannel(channel, token_source)


def client_options(retried: Mapping[str, Iterable[str]], *, message_bytes_max: int = MESSAGE_BYTES_MAX) -> Options:
    """The channel arguments of every client."""
    first_wait, longest_wait = RECONNECT_BACKOFF_SECONDS
    return [
        ("grpc.max_receive_message_length", message_bytes_max),
        ("grpc.max_send_message_length", message_bytes_max),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1_000),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_SECONDS * 1_000),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_SECONDS * 1_000),
        # The look-ahead counts only with the bandwidth probe off.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
        # A connection per channel. Shared ones (the default) hand on the back-off of a channel that was closed before,
        # and then a first call may fail although the server has come up.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", int(first_wait * 1_000)),
        ("grpc.max_reconnect_backoff_ms", int(longest_wait * 1_000)),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.service_config", service_config(retried)),
    ]


def service_config(retried: Mapping[str, Iterable[str]]) -> str:
    """The service config as JSON: all addresses in turn, and retries of the given methods within a budget.

    A stream is never retried once it has answered: its client resumes it.
    """
    names = [{"service": service, "method": method} for service, methods in retried.items() for method in methods]
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if names:
        policy = {
            "maxAttempts": 4,
            "initialBackoff": "0.05s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config["methodConfig"] = [{"name": names, "retryPolicy": policy}]
        config["retryThrottling"] = {"maxTokens": 100, "tokenRatio": 0.1}
    return json.dumps(config)


class TokenChannel(grpc.aio.Channel):
    """A channel that adds the token to the metadata of each call.

    Instead of client interceptors, with which grpc.aio gives each call one more task and each stream one more queue:
    some 50 microseconds a message. A token that can't be read raises where the call is made.
    """

    def __init__(self, channel: grpc.aio.Channel, source: TokenSource) -> None:
        self._channel = channel
        self._source = source

    # Generated stubs pass more arguments than the public interface has.
    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _with_token(self._channel.unary_unary(method, *args, **kwargs), self._source)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _with_token(self._channel.unary_stream(method, *args, **kwargs), self._source)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _with_token(self._channel.stream_unary(method, *args, **kwargs), self._source)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _with_token(self._channel.stream_stream(method, *args, **kwargs), self._source)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self._channel.close()


def _with_token(make_call: Callable[..., Any], source: TokenSource) -> Callable[..., Any]:
    def call(*args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        # A copy: the caller may use the same metadata object for its next call.
        complete = grpc.aio.Metadata(*(metadata or ()))
        complete.add("authorization", f"Bearer {source.token()}")
        return make_call(*args, metadata=complete, **kwargs)

    return call
