"""A unit test needs nothing outside its process, and cannot reach for it."""

import socket
from typing import NoReturn

import grpc
import pytest


class ClosedSocket(socket.socket):
    """Refuses to be opened. A file descriptor may still be wrapped, as asyncio does for its own pair."""

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        if fileno is None:
            _refuse()
        super().__init__(family, type, proto, fileno)


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes opening a socket an error; gRPC opens its own below Python, so its doors are shut one by one."""
    monkeypatch.setattr(socket, "socket", ClosedSocket)
    for door in ("server", "insecure_channel", "secure_channel"):
        monkeypatch.setattr(grpc.aio, door, _refuse)


def _refuse(*args: object, **kwargs: object) -> NoReturn:
    raise RuntimeError("a unit test opens no socket: make it an integration test")
