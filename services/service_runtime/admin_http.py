"""A small HTTP server for operators: /metrics, /healthz (the process lives) and /readyz (it can do its work).

It has a thread of its own, so that a busy or stuck event loop can still be looked at. Loopback unless told otherwise:
it asks nobody who they are.
"""

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

REQUEST_SECONDS_MAX = 10.0
_TEXT = ("Content-Type", "text/plain; charset=utf-8")


class AdminHttp:
    """Serves until `stop`. `is_ready` is called in another thread than the event loop's: it may only read."""

    def __init__(self, registry: CollectorRegistry, is_ready: Callable[[], bool], *, host: str = "127.0.0.1") -> None:
        self._metrics: Any = make_wsgi_app(registry)
        self._is_ready = is_ready
        self._host = host
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    def start(self, port: int) -> int:
        """Listens on `port` (0: any free one) and returns it."""
        self._server = make_server(
            self._host, port, self._answer, server_class=_ThreadingServer, handler_class=_QuietHandler
        )
        self.port = self._server.server_port
        # The poll interval is how long a stop takes, at the most.
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="admin-http", daemon=True
        )
        self._thread.start()
        log.info("admin http listens", extra={"action": "start_admin_http", "host": self._host, "port": self.port})
        return self.port

    def stop(self) -> None:
        """Stops listening and waits for the thread. Does nothing if it isn't running."""
        if self._server is None or self._thread is None:
            return
        # Wakes the thread at once on Linux; elsewhere it is refused, and the thread looks up after its poll interval.
        with suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._server = self._thread = None

    def _answer(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _plain(start_response, "405 Method Not Allowed", "only GET is served here\n")
        match environ["PATH_INFO"]:
            case "/metrics":
                answer: Iterable[bytes] = self._metrics(environ, start_response)
                return answer
            case "/healthz":
                return _plain(start_response, "200 OK", "alive\n")
            case "/readyz":
                if self._is_ready():
                    return _plain(start_response, "200 OK", "ready\n")
                return _plain(start_response, "503 Service Unavailable", "not ready\n")
        return _plain(start_response, "404 Not Found", "try /metrics, /healthz or /readyz\n")


def _plain(start_response: "StartResponse", status: str, text: str) -> Iterable[bytes]:
    body = text.encode()
    start_response(status, [_TEXT, ("Content-Length", str(len(body)))])
    return [body]


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    """One thread per request: a client that dawdles must not keep the next scrape waiting."""

    daemon_threads = True
    block_on_close = False


class _QuietHandler(WSGIRequestHandler):
    """Does not print a line per request, and gives up on silent clients."""

    timeout = REQUEST_SECONDS_MAX

    def address_string(self) -> str:
        return str(self.client_address[0])  # the original asks the DNS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ARG002
        return
