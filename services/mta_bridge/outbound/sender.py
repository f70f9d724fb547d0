"""Sends jobs over a few SMTP connections, and settles each of them: in the journal first, then with who waits.

Where a job is decides what is done about it when something ends: QUEUED or OFFERED, it has not left, and may be put
off or withdrawn; SENDING, it is settled by the answer to its final dot alone.
"""

import asyncio
import logging
import random
import re
import ssl
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import aiosmtplib
import orjson

from campaign.delivery.v1 import send_log_pb2 as send_log_pb
from campaign.mta.v1 import relay_service_pb2 as relay_pb
from message_template.message import NotRendered
from mta_bridge.domain.mime import dot_stuffed
from mta_bridge.domain.refusals import NOT_RENDERED, Qualified, qualify
from mta_bridge.domain.replies import Reply, Step, xtext
from mta_bridge.domain.tokens import Tokens
from mta_bridge.metrics import BridgeMetrics
from mta_bridge.outbound.jobs import Job, Result, Stage, Verdict
from mta_bridge.outbound.limits import DomainRates, JobQueue, domain_of
from mta_bridge.outbound.signer import Sign
from mta_bridge.outbound.smtp_session import Features, Offer, Session, transport_of
from mta_bridge.settings import Settings
from mta_bridge.store.journal import Journal
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

OFFERS_MAX: Final = 3
"""A message whose connection was lost so often, before it was sent, is put off: it may be the cause."""
LOOK_SECONDS: Final = 1.0
_UNSAFE: Final = re.compile(r"[<> ]")
RECOVERED_AFTER: Final = 50
"""Answers without a complaint of the server's until one more connection is opened again."""


class Sender:
    """All connections to the mail server, and the jobs that wait for one."""

    def __init__(
        self, settings: Settings, journal: Journal, tokens: Tokens, sign: Sign, metrics: BridgeMetrics, clock: Clock
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._tokens = tokens
        self._sign = sign
        self._metrics = metrics
        self._clock = clock
        self._queue = JobQueue(settings.domain_connections_max)
        self._rates = DomainRates(settings.domain_messages_per_second_max)
        self._jobs: dict[str, Job] = {}
        self._sessions: set[Session] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._allowed = settings.smtp_connections
        self._good_answers = 0
        self._paused_until = 0.0
        self._pause_seconds = settings.smtp_retry_seconds_min
        self._pause_ended: asyncio.TimerHandle | None = None
        self._moved = asyncio.Event()
        self._stopping = False
        self._expires = bool(settings.expire_command)
        self._resend = settings.unknown_messages == "resend"
        notify = settings.dsn_notify.upper()
        self._rcpt_parameters = f" NOTIFY={notify}"
        metrics.watch_connections(lambda: len(self._sessions))
        metrics.watch_queued(lambda: len(self._jobs))
        metrics.watch_unknown(lambda: journal.unknown_total)

    # For the relay

    def job(self, message_id: str) -> Job | None:
        """The job of a message that has no answer yet."""
        return self._jobs.get(message_id)

    async def room(self, messages: int) -> None:
        """Returns when so many messages may come, and the mail server is not to be left alone."""
        while self._stopping or self._is_paused() or len(self._jobs) + messages > self._settings.queued_messages_max:
            self._moved.clear()
            await self._moved.wait()

    def submit(self, job: Job) -> None:
        """Sends it when its turn comes."""
        now = self._clock.monotonic()
        if (wait := self._rates.take(domain_of(job.address), now)) > 0:
            diagnostic = "the rate for this recipient's domain is used up"
            job.done(self._put_off(diagnostic, retry_delay_ms=int(wait * 1_000) + 1))
            return
        self._jobs[job.message_id] = job
        self._queue.add(job)

    def pump(self) -> None:
        """Gets what is queued going."""
        if self._stopping or self._is_paused():
            return
        for session in tuple(self._sessions):
            session.wake()
        wanted = min(self._allowed, len(self._queue)) - len(self._sessions) - len(self._opening)
        for _ in range(wanted):
            task = asyncio.create_task(self._open(), name="open smtp connection")
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def withdraw(self, job: Job) -> bool:
        """Takes a queued job back. False if it has begun to leave: then its answer decides."""
        if job.stage is not Stage.QUEUED:
            return False
        job.stage = Stage.DONE  # it stays in the queue, and is skipped when its turn comes
        result = Result(Verdict.WITHDRAWN, self._clock.now_us())
        self._journal.withdrawn(job.message_id, result.time_us, lambda: self._settle(job, result))
        return True

    # Life

    async def run(self) -> None:
        """Closes what is idle, gives up on what hangs, puts off what has waited too long."""
        settings = self._settings
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            now = asyncio.get_running_loop().time()
            for session in tuple(self._sessions):
                silent_seconds = now - session.last_moved
                if session.is_idle:
                    if silent_seconds > settings.smtp_idle_seconds_max:
                        session.close(politely=True)
                elif silent_seconds > (
                    settings.smtp_final_reply_seconds_max
                    if session.waits_for_final_reply
                    else settings.smtp_reply_seconds_max
                ):
                    log.warning("the mail server is silent", extra={"action": "send", "seconds": silent_seconds})
                    session.close(politely=False)
            too_old = self._clock.monotonic() - settings.answer_seconds_max
            self._put_all_off(self._queue.take_older_than(too_old), "the mail server is busy")
            self.pump()

    async def stop(self, grace_seconds: float) -> None:
        """Puts off what is queued, lets what is being sent get its answer, and closes the connections."""
        self._stopping = True
        if self._pause_ended is not None:
            self._pause_ended.cancel()
        self._put_all_off(self._queue.take_older_than(float("inf")), "this server is shutting down")
        for task in tuple(self._opening):
            task.cancel()
        deadline = asyncio.get_running_loop().time() + grace_seconds
        while any(not session.is_idle for session in self._sessions) and asyncio.get_running_loop().time() < deadline:
            self._moved.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._moved.wait()
            except TimeoutError:
                break
        for session in tuple(self._sessions):
            session.close(politely=True)
        self._journal.flush()
        await asyncio.gather(*self._opening, return_exceptions=True)

    # SessionOwner

    def next_offer(self, session: Session) -> Offer | None:
        if self._stopping or self._is_paused() or len(self._sessions) > self._allowed:
            return None
        while (job := self._queue.take()) is not None:
            if job.stage is Stage.DONE:
                self._queue.release(job)  # withdrawn meanwhile
                continue
            try:
                return self._offer(job, session.features)
            except NotRendered as problem:
                self._refuse(job, 0, "", str(problem), NOT_RENDERED)
            except _AddressUnusable as problem:
                self._refuse(job, 553, "5.6.7", str(problem), qualify("5.1.3"))
        return None

    def begin_sending(self, session: Session, offer: Offer) -> None:
        job = offer.job
        self._journal.begin_sending(
            job.message_id, self._clock.now_us(), job.deadline_us, lambda: session.send_content(offer)
        )

    def answered(self, offer: Offer, step: Step, reply: Reply) -> None:
        job = offer.job
        self._queue.release(job)
        if reply.is_positive:
            self._accept(job, reply)
        elif reply.is_permanent:
            self._refuse(job, reply.code, reply.enhanced_code, reply.diagnostic, qualify(reply.enhanced_code))
        else:
            pause_ms = 0
            if reply.concerns_the_server(step):
                pause_ms = int(self._ask_for_less(reply.diagnostic) * 1_000)
            result = self._put_off(reply.diagnostic, reply.code, reply.enhanced_code, pause_ms)
            if job.stage is Stage.SENDING:
                self._journal.put_off(job.message_id, lambda: self._settle(job, result))
            else:
                self._settle(job, result)

    def unsent(self, offer: Offer) -> None:
        job = offer.job
        self._queue.release(job)
        self._journal.put_off(job.message_id, lambda: self._offer_again(job))

    def interrupted(self, offer: Offer) -> None:
        job = offer.job
        self._queue.release(job)
        if job.stage is Stage.SENDING:
            self._lose(job)
        else:
            self._offer_again(job)

    def closed(self, session: Session) -> None:
        self._sessions.discard(session)
        self._tell_moved()
        if not self._stopping:
            asyncio.get_running_loop().call_soon(self.pump)

    # Settling

    def _accept(self, job: Job, reply: Reply) -> None:
        now_us = self._clock.now_us()
        self._good_answers += 1
        self._pause_seconds = self._settings.smtp_retry_seconds_min
        if self._allowed < self._settings.smtp_connections and self._good_answers >= RECOVERED_AFTER:
            self._good_answers = 0
            self._allowed += 1
        result = Result(Verdict.ACCEPTED, now_us)
        if job.stage is not Stage.SENDING:  # test mode
            self._journal.begin_sending(job.message_id, now_us, job.deadline_us, lambda: None)
        self._journal.accepted(
            job.message_id, now_us, reply.queue_id, expires=self._expires, then=lambda: self._settle(job, result)
        )

    def _refuse(self, job: Job, code: int, enhanced_code: str, diagnostic: str, qualified: Qualified) -> None:
        refusal = relay_pb.RelayRefusal(
            smtp_code=code,
            enhanced_code=enhanced_code,
            diagnostic=diagnostic[:1_000],
            failure_type=send_log_pb.FailureType.Value(f"FAILURE_TYPE_{qualified.failure_type}"),
            reason=send_log_pb.Reason.Value(f"REASON_{qualified.reason}"),
        ).SerializeToString()
        result = Result(Verdict.REFUSED, self._clock.now_us(), refusal)
        self._journal.refused(job.message_id, result.time_us, refusal, lambda: self._settle(job, result))

    def _lose(self, job: Job) -> None:
        """Nobody can know whether it was taken."""
        now_us = self._clock.now_us()
        log.warning(
            "the connection was lost between the final dot and its answer: accepted or not, nobody can know",
            extra={"action": "send", "message_id": job.message_id, "resent": self._resend},
        )
        if self._resend:
            result = self._put_off("the connection was lost after the final dot")
        else:
            result = Result(Verdict.ACCEPTED, now_us)
        self._journal.became_unknown(
            job.message_id, now_us, resend=self._resend, then=lambda: self._settle(job, result)
        )

    def _offer_again(self, job: Job) -> None:
        job.offers += 1
        if job.offers >= OFFERS_MAX or self._stopping:
            self._settle(job, self._put_off("the connection was lost"))
            return
        job.stage = Stage.QUEUED
        self._queue.add(job, first=True)

    def _put_all_off(self, jobs: Iterable[Job], why: str) -> None:
        for job in jobs:
            if job.stage is not Stage.DONE:
                self._settle(job, self._put_off(why))

    def _put_off(self, diagnostic: str, code: int = 0, enhanced_code: str = "", retry_delay_ms: int = 0) -> Result:
        refusal = relay_pb.RelayRefusal(
            smtp_code=code, enhanced_code=enhanced_code, diagnostic=diagnostic[:1_000], retry_delay_ms=retry_delay_ms
        )
        return Result(Verdict.TRY_LATER, self._clock.now_us(), refusal.SerializeToString())

    def _settle(self, job: Job, result: Result) -> None:
        if self._jobs.get(job.message_id) is job:
            del self._jobs[job.message_id]
        self._metrics.count_answer(result.verdict.name)
        job.done(result)
        self._tell_moved()

    def _tell_moved(self) -> None:
        self._moved.set()

    # The mail server

    def _offer(self, job: Job, features: Features) -> Offer:
        settings, token = self._settings, self._tokens.make(job.message_id)
        address = job.address
        parameters = ""
        if not address.isascii():
            local, _, domain = address.rpartition("@")
            if local.isascii():
                address = f"{local}@{_ascii_domain(domain)}"
            elif features.smtp_utf8:
                parameters = " SMTPUTF8"
            else:
                raise _AddressUnusable("the address is not in ASCII, and the mail server does not take such")
        if not _is_safe(address):
            raise _AddressUnusable("the address has a character that no mail server takes")
        now_us = self._clock.now_us()
        rendered = job.content.template.render(_attributes_of(job))
        raw = self._sign(job.content.builder.build(rendered, address, job.message_id, token, now_us))
        if features.eight_bit and parameters:
            parameters += " BODY=8BITMIME"
        if features.size:
            parameters += f" SIZE={len(raw)}"
        rcpt_parameters = ""
        if features.dsn:
            parameters += f" RET=HDRS ENVID={token}"
            rcpt_parameters = self._rcpt_parameters
            if address.isascii():
                rcpt_parameters += f" ORCPT=rfc822;{xtext(address)}"
        mail = f"MAIL FROM:<b+{token}@{settings.bounce_domain}>{parameters}\r\n".encode()
        rcpt = f"RCPT TO:<{address}>{rcpt_parameters}\r\n".encode()
        if settings.smtp_test_mode:
            return Offer(job, (mail, rcpt, b"RSET\r\n"), b"")
        return Offer(job, (mail, rcpt, b"DATA\r\n"), dot_stuffed(raw))

    async def _open(self) -> None:
        settings = self._settings
        context: ssl.SSLContext | None = None
        if settings.smtp_tls != "none":
            context = ssl.create_default_context(cafile=settings.smtp_ca_file)
        connection = aiosmtplib.SMTP(
            hostname=settings.smtp_host,
            port=settings.smtp_port,
            local_hostname=settings.smtp_hello,
            use_tls=settings.smtp_tls == "tls",
            start_tls=settings.smtp_tls == "starttls",
            tls_context=context,
            username=settings.smtp_user or None,
            password=settings.smtp_password.get_secret_value() or None,
            timeout=settings.smtp_connect_seconds_max,
        )
        try:
            await connection.connect()
            if connection.is_ehlo_or_helo_needed:
                await connection.ehlo()
        except (aiosmtplib.SMTPException, OSError) as error:
            connection.close()
            self._on_unreachable(error)
            return
        except BaseException:
            connection.close()
            raise
        if self._stopping or (transport := transport_of(connection)).is_closing():
            connection.close()
            return
        features = Features(
            pipelining=connection.supports_extension("pipelining"),
            dsn=connection.supports_extension("dsn"),
            eight_bit=connection.supports_extension("8bitmime"),
            size=connection.supports_extension("size"),
            smtp_utf8=connection.supports_extension("smtputf8"),
        )
        session = Session(self, features)
        self._sessions.add(session)
        session.begin(transport)

    def _on_unreachable(self, error: Exception) -> None:
        if self._is_paused():
            return  # several connections fail together: one pause
        text = f"the mail server can't be reached: {error}"[:500]
        log.warning(text, extra={"action": "open_smtp_connection", "queued": len(self._queue)})
        self._metrics.connect_failures.inc()
        seconds = self._pause()
        waiting = self._queue.take_older_than(float("inf"))
        result = self._put_off(text, retry_delay_ms=int(seconds * 1_000))
        for job in waiting:
            if job.stage is not Stage.DONE:
                self._settle(job, result)

    def _ask_for_less(self, diagnostic: str) -> float:
        """The mail server has enough: fewer connections, after a pause. The relay's streams are not read meanwhile."""
        if self._is_paused():
            return self._paused_until - self._clock.monotonic()
        self._allowed = max(1, self._allowed // 2)
        self._good_answers = 0
        self._metrics.pauses.inc()
        seconds = self._pause()
        told = {"action": "send", "reply": diagnostic, "seconds": seconds, "connections": self._allowed}
        log.warning("the mail server asks for less", extra=told)
        return seconds

    def _pause(self) -> float:
        seconds = self._pause_seconds * random.uniform(0.75, 1.0)
        self._pause_seconds = min(2 * self._pause_seconds, self._settings.smtp_retry_seconds_max)
        self._paused_until = self._clock.monotonic() + seconds
        self._pause_ended = asyncio.get_running_loop().call_later(seconds, self._after_pause)
        return seconds

    def _after_pause(self) -> None:
        self._paused_until = 0.0
        self._tell_moved()
        self.pump()

    def _is_paused(self) -> bool:
        return self._paused_until > 0.0

    def counts(self) -> Counter[str]:
        """Jobs by stage, for tests and logs."""
        return Counter(job.stage.name for job in self._jobs.values())


class _AddressUnusable(Exception):
    """No mail server could be asked for this recipient."""


def _attributes_of(job: Job) -> Any:
    try:
        return orjson.loads(job.attributes_json or "{}")
    except orjson.JSONDecodeError as problem:
        raise NotRendered(f"attributes_json is no JSON: {problem}") from problem


def _ascii_domain(domain: str) -> str:
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError:
        raise _AddressUnusable("the domain of the address can't be written in ASCII") from None


def _is_safe(address: str) -> bool:
    """Whether it can stand between < and > in a command, and stays one."""
    return bool(address) and address.isprintable() and _UNSAFE.search(address) is None
