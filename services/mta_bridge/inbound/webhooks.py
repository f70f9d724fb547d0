"""Webhooks over HTTP: KumoMTA, SparkPost, the generic form; and the one-click unsubscribe of RFC 8058. The same port
lists, for who has a secret, what was parked and what is unknown.

A 2xx means that FeedbackService has acknowledged every event of the request. Anything else means: send it again. That
is all the idempotency that is needed: a repetition of the same event changes nothing.
"""

import asyncio
import hashlib
import hmac
import html
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aiohttp import web

from mta_bridge.domain import generic, kumomta, sparkpost
from mta_bridge.domain.reports import Clues, Found, Kind, Malformed, Report
from mta_bridge.feedback.queue import FeedbackQueue
from mta_bridge.inbound.correlation import Correlation
from mta_bridge.metrics import BridgeMetrics
from mta_bridge.settings import Settings
from mta_bridge.store.journal import Journal
from mta_bridge.store.parked import Parked
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

FORMS: Final[Mapping[str, Callable[[Any], list[Found]]]] = {
    "kumomta": kumomta.read,
    "sparkpost": sparkpost.read,
    "generic": generic.read,
}
SIGNATURE_HEADER: Final = "X-Campaign-Signature"
"""`sha256=` and the hexadecimal HMAC-SHA256 of the body."""
LISTED_MAX: Final = 1_000
UNSUBSCRIBE_BYTES_MAX: Final = 16 * 1_024
STOP_SECONDS_MAX: Final = 5.0


class Webhooks:
    """The HTTP server."""

    def __init__(
        self,
        settings: Settings,
        secrets: Sequence[bytes],
        correlation: Correlation,
        queue: FeedbackQueue,
        parked: Parked,
        journal: Journal,
        metrics: BridgeMetrics,
        clock: Clock,
    ) -> None:
        self._journal = journal
        self._settings = settings
        self._secrets = secrets
        self._correlation = correlation
        self._queue = queue
        self._parked = parked
        self._metrics = metrics
        self._clock = clock
        application = web.Application(client_max_size=settings.webhook_bytes_max)
        application.router.add_post("/webhooks/{form}", self._webhook)
        application.router.add_get("/parked", self._list_parked)
        application.router.add_get("/parked/{number}", self._show_parked)
        application.router.add_get("/unknown", self._list_unknown)
        application.router.add_post("/unsubscribe/{token}", self._unsubscribe)
        application.router.add_get("/unsubscribe/{token}", self._ask)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=STOP_SECONDS_MAX)

    async def start(self, host: str, port: int) -> int:
        """Listens, and returns the port."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        address: tuple[Any, ...] = self._runner.addresses[0]
        return int(address[1])

    async def stop(self) -> None:
        """Takes nothing more, and lets what is being answered end."""
        await self._runner.cleanup()

    async def _webhook(self, request: web.Request) -> web.Response:
        read = FORMS.get(request.match_info["form"])
        if read is None:
            return _answer(404, f"there is no such form: post to one of {', '.join(FORMS)}")
        # The bearer token first: without it nobody makes us read ten megabytes. A signature needs the body.
        if not self._has_bearer(request) and SIGNATURE_HEADER not in request.headers:
            return _answer(401, f"give a bearer token, or {SIGNATURE_HEADER}")
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _answer(413, f"the body is larger than {self._settings.webhook_bytes_max} bytes: send less at once")
        if not self._has_bearer(request) and not self._is_signed(request, body):
            return _answer(401, "the signature does not fit the body")
        try:
            found = read(json.loads(body))
        except (ValueError, RecursionError):
            return _answer(400, "the body is no JSON")
        except Malformed as problem:
            return _answer(400, str(problem))
        if len(found) > self._settings.webhook_events_max:
            most = self._settings.webhook_events_max
            return _answer(413, f"{len(found)} events: send {most} at the most at once")
        return await self._take(request.match_info["form"], found)

    async def _list_parked(self, request: web.Request) -> web.Response:
        """What could not be tied to a message, newest first; ?before=NUMBER goes on."""
        if not self._has_bearer(request):
            return _answer(401, "give a bearer token")
        before = request.query.get("before", "")
        listed = self._parked.list(LISTED_MAX, before=int(before) if before.isdecimal() and len(before) < 19 else None)
        return web.json_response({"parked": listed})

    async def _show_parked(self, request: web.Request) -> web.Response:
        if not self._has_bearer(request):
            return _answer(401, "give a bearer token")
        number = request.match_info["number"]
        content = self._parked.content(int(number)) if number.isdecimal() and len(number) < 19 else None
        if content is None:
            return _answer(404, "nothing is parked under this number")
        # Never as HTML: it is somebody else's.
        return web.Response(body=content, content_type="application/octet-stream")

    async def _list_unknown(self, request: web.Request) -> web.Response:
        """The messages whose connection ended between the final dot and its answer."""
        if not self._has_bearer(request):
            return _answer(401, "give a bearer token")
        return web.json_response({"unknown": self._journal.unknown()[:LISTED_MAX]})

    async def _take(self, form: str, found: list[Found]) -> web.Response:
        reports: list[Report] = []
        untied = 0
        for one in found:
            if (report := self._correlation.tie(one)) is None:
                untied += 1
                self._metrics.count_parked("webhook")
                self._parked.add("webhook", self._clock.now_us(), f"{form}: no token of ours", repr(one).encode())
            else:
                reports.append(report)
        if not await self._reported("webhook", reports):
            return _answer(503, "the events could not be passed on in time: send them again", retry=True)
        return web.json_response({"taken": len(reports), "parked": untied})

    async def _reported(self, source: str, reports: Sequence[Report]) -> bool:
        try:
            async with asyncio.timeout(self._settings.webhook_ack_seconds_max):
                await self._queue.report(source, reports)
        except TimeoutError:
            return False
        return True

    async def _unsubscribe(self, request: web.Request) -> web.Response:
        """No cookie, no redirect, no question: the token proves that it is the recipient's (RFC 8058)."""
        message_id = self._correlation.message_of(Clues(addresses=(request.match_info["token"],)))
        if message_id is None:
            return _answer(404, "this link is not valid")
        if request.content_length is not None and request.content_length > UNSUBSCRIBE_BYTES_MAX:
            return _answer(413, "the body is too large")
        report = Report(message_id, Kind.UNSUBSCRIBE, self._clock.now_us())
        if not await self._reported("unsubscribe", [report]):
            return _answer(503, "please try again in a moment", retry=True)
        return web.Response(text="You are unsubscribed.\n")

    async def _ask(self, request: web.Request) -> web.Response:
        """A GET changes nothing: scanners of links follow every one of them."""
        token = request.match_info["token"]
        if self._correlation.message_of(Clues(addresses=(token,))) is None:
            return _answer(404, "this link is not valid")
        page = (
            "<!doctype html><title>Unsubscribe</title>"
            f'<form method="post" action="{html.escape(token, quote=True)}"><button>Unsubscribe</button></form>'
        )
        return web.Response(text=page, content_type="text/html")

    def _has_bearer(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self._any_equals(given.strip().encode("utf-8", "replace"))

    def _is_signed(self, request: web.Request, body: bytes) -> bool:
        given = request.headers.get(SIGNATURE_HEADER, "").removeprefix("sha256=").lower()
        expected = [hmac.new(secret, body, hashlib.sha256).hexdigest() for secret in self._secrets]
        return any([hmac.compare_digest(given.encode("utf-8", "replace"), each.encode()) for each in expected])

    def _any_equals(self, given: bytes) -> bool:
        # All of them are compared, whatever the first says: the time tells nothing.
        return any([hmac.compare_digest(given, secret) for secret in self._secrets])


def _answer(status: int, text: str, *, retry: bool = False) -> web.Response:
    return web.Response(status=status, text=f"{text}\n", headers={"Retry-After": "5"} if retry else None)
