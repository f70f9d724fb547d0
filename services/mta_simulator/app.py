"""The simulator as a whole: everything is put together here, and only here."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry

from campaign.delivery.v1 import role_pb2 as role_pb
from campaign.feedback.v1 import feedback_service_pb2_grpc as feedback_grpc
from campaign.mta.v1 import relay_service_pb2 as relay_pb
from campaign.mta.v1 import relay_service_pb2_grpc as relay_grpc
from mta_side.status_stream import BACKOFF_SECONDS, StatusStream
from mta_simulator.journal import IN_MEMORY, KEEP_SECONDS, Journal
from mta_simulator.misbehaviour import Misbehaviour, MisbehaviourOptions
from mta_simulator.playback import PENDING_EVENTS_MAX, Playback
from mta_simulator.relay import RELAY_ERRORS, Relay
from mta_simulator.script import ScriptOptions, ScriptWriter
from mta_simulator.status_streams import Mischief, PlayedEvents
from mta_simulator.truth import Truth
from service_runtime.access import AccessPolicy, TokenVerifier, required_roles
from service_runtime.client import TokenSource, open_channel
from service_runtime.clock import Clock, SystemClock
from service_runtime.errors import ErrorTranslator
from service_runtime.interceptors import ServeCalls
from service_runtime.server import GrpcServer
from service_runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)

ERROR_DOMAIN: Final = "campaign"
IDLE_LOOK_SECONDS: Final = 0.25
"""The truth is printed when two looks in a row find nothing going on and nothing new."""

Print = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """All that can be set. `__main__` reads them from options and the environment."""

    feedback_target: str
    public_key_pem: str
    host: str = "127.0.0.1"
    port: int = 50053
    streams: int = 3
    source_id: str = "mta-simulator"
    journal: str = IN_MEMORY
    pending_events_max: int = PENDING_EVENTS_MAX
    reconnect_seconds_max: float = BACKOFF_SECONDS[1]
    script: ScriptOptions = field(default_factory=ScriptOptions)
    misbehaviour: MisbehaviourOptions = field(default_factory=MisbehaviourOptions)


class Simulator:
    """A running simulator."""

    def __init__(self, settings: Settings, token_source: TokenSource, print_line: Print, clock: Clock) -> None:
        self._settings = settings
        self._print = print_line
        self._clock = clock
        self.truth = Truth()
        script = self._script = ScriptWriter(settings.script)
        misbehaviour = Misbehaviour(settings.misbehaviour, settings.script.seed)
        keep_since_us = clock.now_us() - int(KEEP_SECONDS * 1_000_000)
        self._journal = Journal(settings.journal, json.dumps(asdict(settings.script)), keep_since_us)
        self._playback = Playback(self._journal, misbehaviour, clock, settings.pending_events_max)
        self._relay = Relay(self._journal, script, self._playback, misbehaviour, self.truth, clock)
        self._channel = open_channel(settings.feedback_target, None)
        stub = feedback_grpc.FeedbackServiceStub(self._channel)
        events, mischief = PlayedEvents(self._playback, self.truth), Mischief(misbehaviour, self.truth)
        backoff_seconds = min(BACKOFF_SECONDS[0], settings.reconnect_seconds_max), settings.reconnect_seconds_max
        self._streams = [
            StatusStream(f"{settings.source_id}-{number}", stub, token_source, events, clock, mischief, backoff_seconds)
            for number in range(1, settings.streams + 1)
        ]
        self._server = GrpcServer(_serve_calls(settings.public_key_pem, clock))
        add_servicer = partial(relay_grpc.add_RelayServiceServicer_to_server, self._relay)
        self._server.add_service(relay_pb.DESCRIPTOR.services_by_name["RelayService"].full_name, add_servicer)
        self.stopped = asyncio.Event()
        self._tasks = BackgroundTasks(lambda _: self.stopped.set())

    @property
    def address(self) -> str:
        """Where the relay listens."""
        return f"{self._settings.host}:{self._server.port}"

    @property
    def idle(self) -> bool:
        """Whether all that was played is acknowledged, and nothing is to come."""
        return not self._playback.pending and not self._relay.busy

    async def start(self) -> None:
        """Plays on what an earlier run left, then listens."""
        self._journal.restore(self.truth)
        self._tasks.start("playback", self._playback.run())
        for number, stream in enumerate(self._streams, 1):
            self._tasks.start(f"feedback stream {number}", stream.run())
        for range_id in self._journal.playing():
            # As there is room: an earlier run may have been allowed more pending events than this one.
            await self._playback.reserve(0)
            self._playback.play(
                range_id,
                [
                    (entry.message_id, entry.answer_time_us, self._script.script_for(entry.address))
                    for entry in self._journal.entries_of(range_id)
                    if entry.refusal is None
                ],
            )
        await self._server.start(self._settings.host, self._settings.port)
        await self._server.serving(True)
        self._tasks.start("truth", self._tell_the_truth())
        self._print({"action": "listening", "address": self.address})

    async def stop(self) -> None:
        """Stops, and prints the truth one last time."""
        # No notice: there is no other simulator to look for.
        await self._server.stop(grace_seconds=2.0, notice_seconds=0.0)
        await self._tasks.stop()
        await self._channel.close()
        self._print_truth(self.idle)
        self._journal.close()

    async def _tell_the_truth(self) -> None:
        printed = seen = 0
        while True:
            await self._clock.sleep(IDLE_LOOK_SECONDS)
            revision = self.truth.revision
            if self.idle and revision == seen != printed:
                printed = revision
                self._print_truth(True)
            seen = revision

    def _print_truth(self, idle: bool) -> None:
        self._print(self.truth.as_json(idle=idle, duplicates_sent=self._journal.duplicates_sent()))


@asynccontextmanager
async def running(
    settings: Settings, token_source: TokenSource, print_line: Print, clock: Clock | None = None
) -> AsyncIterator[Simulator]:
    """A simulator that runs inside the `async with`."""
    simulator = Simulator(settings, token_source, print_line, clock or SystemClock())
    try:
        await simulator.start()
        yield simulator
    finally:
        await simulator.stop()


def read_public_key(path: Path) -> str:
    """The PEM text of the key that verifies the relay's callers."""
    return path.read_text(encoding="ascii")


def _serve_calls(public_key_pem: str, clock: Clock) -> ServeCalls:
    service = relay_pb.DESCRIPTOR.services_by_name["RelayService"]
    roles = required_roles(service, role_pb.required_role, _role_name)
    return ServeCalls(
        TokenVerifier([public_key_pem], clock),
        AccessPolicy(roles, {}),
        ErrorTranslator(RELAY_ERRORS, ERROR_DOMAIN),
        CollectorRegistry(),
        clock,
    )


def _role_name(number: int) -> str:
    return role_pb.Role.Name(role_pb.Role.ValueType(number)).removeprefix("ROLE_").lower().replace("_", "-")
