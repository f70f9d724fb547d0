"""A bare HTTP/2 client that speaks just enough gRPC to load a server: bytes out, bytes in, nothing per message.

A client of grpc.aio costs about as much per message as the server that it measures. This one costs a few microseconds.
It understands no header that the server sends: a stream that ends before its work is done is a failure.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import Final, cast

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
_INITIAL_WINDOW_SIZE: Final = 4
_FRAME_BYTES_MAX: Final = 16_384
_WINDOW_DEFAULT: Final = 65_535
_WINDOW_MAX: Final = 2**31 - 1


class Stream:
    """One call. `on_message` gets each message of the server, `on_end` is called when the server has ended it."""

    __slots__ = ("_buffer", "id", "on_end", "on_message", "outgoing", "window")

    def __init__(self, number: int, window: int, on_message: Callable[[bytes], None], on_end: Callable[[], None]):
        self.id = number
        self.window = window
        self.on_message = on_message
        self.on_end = on_end
        self.outgoing: deque[bytes] = deque()
        self._buffer = b""

    def received(self, data: bytes) -> None:
        """Cuts what arrived into messages."""
        if self._buffer:
            data = self._buffer + data
        at, end = 0, len(data)
        while end - at >= 5:
            size = int.from_bytes(data[at + 1 : at + 5], "big")
            if end - at - 5 < size:
                break
            self.on_message(data[at + 5 : at + 5 + size])
            at += 5 + size
        self._buffer = data[at:]


class Connection(asyncio.Protocol):
    """One connection with any number of streams."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._streams: dict[int, Stream] = {}
        self._next_id = 1
        self._window = _WINDOW_DEFAULT
        self._initial_window = _WINDOW_DEFAULT
        self._unreported = 0

    @classmethod
    async def open(cls, target: str) -> "Connection":
        """Connects to host:port."""
        host, _, port = target.rpartition(":")
        _, protocol = await asyncio.get_running_loop().create_connection(cls, host, int(port))
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write(_PREFACE)
        self._frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, _WINDOW_MAX))
        self._frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW_MAX - _WINDOW_DEFAULT))

    def connection_lost(self, exc: Exception | None) -> None:
        for stream in list(self._streams.values()):
            stream.on_end()
        self._streams.clear()

    def close(self) -> None:
        """Ends the connection, and all that is on it."""
        if self._transport is not None:
            self._transport.close()

    def call(self, method: str, token: str, on_message: Callable[[bytes], None], on_end: Callable[[], None]) -> Stream:
        """Begins a call of `/package.Service/Method`."""
        stream = Stream(self._next_id, self._initial_window, on_message, on_end)
        self._next_id += 2
        self._streams[stream.id] = stream
        headers = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("authorization", f"Bearer {token}"),
        )
        block = b"".join(_literal(name, value) for name, value in headers)
        self._frame(_HEADERS, _END_HEADERS, stream.id, block)
        return stream

    def send(self, stream: Stream, framed: bytes) -> None:
        """Sends a message that `framed` made, as far as the server's windows allow, and the rest when they open."""
        stream.outgoing.append(framed)
        self._pump(stream)

    def half_close(self, stream: Stream) -> None:
        """Says that no more will be sent. All must have been sent by now."""
        self._frame(_DATA, _END_STREAM, stream.id, b"")

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        at, end = 0, len(data)
        while end - at >= 9:
            size = int.from_bytes(data[at : at + 3], "big")
            if end - at - 9 < size:
                break
            kind, flags = data[at + 3], data[at + 4]
            number = int.from_bytes(data[at + 5 : at + 9], "big")
            self._received(kind, flags, number, data[at + 9 : at + 9 + size])
            at += 9 + size
        self._buffer = data[at:]

    def _received(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == _DATA:
            self._unreported += len(payload)
            if self._unreported > 2**24:
                self._frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unreported))
                self._unreported = 0
            if flags & _PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if payload and (stream := self._streams.get(number)):
                stream.received(payload)
        elif kind == _WINDOW_UPDATE:
            self._widen(number, int.from_bytes(payload, "big"))
        elif kind == _SETTINGS and not flags & _ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack_from(">HI", payload, at)
                if name == _INITIAL_WINDOW_SIZE:
                    change, self._initial_window = value - self._initial_window, value
                    for stream in self._streams.values():
                        stream.window += change
                        self._pump(stream)
            self._frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._frame(_PING, _ACK, 0, payload)
        if (kind == _RESET or (kind in (_DATA, _HEADERS) and flags & _END_STREAM)) and number in self._streams:
            self._streams.pop(number).on_end()

    def _widen(self, number: int, by: int) -> None:
        if number == 0:
            self._window += by
            for stream in list(self._streams.values()):
                self._pump(stream)
        elif stream_or_none := self._streams.get(number):
            stream_or_none.window += by
            self._pump(stream_or_none)

    def _pump(self, stream: Stream) -> None:
        outgoing = stream.outgoing
        while outgoing:
            room = min(stream.window, self._window, _FRAME_BYTES_MAX)
            if room <= 0:
                return
            message = outgoing[0]
            if len(message) <= room:
                part = outgoing.popleft()
            else:
                part, outgoing[0] = message[:room], message[room:]
            stream.window -= len(part)
            self._window -= len(part)
            self._frame(_DATA, 0, stream.id, part)

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        self._write(len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big") + payload)

    def _write(self, data: bytes) -> None:
        assert self._transport is not None, "not connected"
        self._transport.write(data)


def framed(message: bytes) -> bytes:
    """A serialised message as gRPC sends it: with its length before it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _literal(name: str, value: str) -> bytes:
    """A header as HPACK writes it when it uses none of its tables."""
    return b"\0" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    data = text.encode("ascii")
    size = len(data)
    if size < 127:
        return bytes((size,)) + data
    prefix, size = bytearray((127,)), size - 127
    while size >= 128:
        prefix.append(size & 127 | 128)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + data
