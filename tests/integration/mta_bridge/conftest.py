"""A bridge through its real composition root: a scripted mail server behind it, a FeedbackService double beside it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc.aio
import pytest

from campaign.delivery.v1 import delivery_pb2 as delivery_pb
from campaign.mta.v1 import relay_service_pb2 as relay_pb
from campaign.mta.v1 import relay_service_pb2_grpc as relay_grpc
from mta_bridge.app import App
from mta_bridge.settings import Settings
from service_runtime.client import StaticToken, open_channel
from service_runtime.development_keys import PUBLIC_KEY_FILE, DevelopmentKeys
from tests.support.feedback_double import FeedbackDouble
from tests.support.scripted_smtp import ScriptedSmtp

BOUNCE_DOMAIN = "bounce.campaign.test"
TOKEN_KEY = b"a key that only the tests know"
CONTENT = delivery_pb.Content(
    subject="Hello {{ first_name }}",
    html="<p>Hello {{ first_name }}</p>",
    text="Hello {{ first_name }}",
    from_address="news@fair.example",
    from_name="Autumn Fair",
)
Call: TypeAlias = "grpc.aio.StreamStreamCall[relay_pb.RelayRequest, relay_pb.RelayResponse]"


@dataclass
class Bridge:
    """A running bridge, and a client of its relay."""

    app: App
    channel: grpc.aio.Channel
    folder: Path
    faults: list[str]
    stopped: bool = False

    async def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            await self.app.stop()

    @property
    def stub(self) -> relay_grpc.RelayServiceStub:
        return relay_grpc.RelayServiceStub(self.channel)

    async def open(self, content: delivery_pb.Content = CONTENT, delivery_id: str = "7") -> Call:
        """A relay stream that has carried the template."""
        call = self.stub.Relay()
        template = relay_pb.RelayTemplate(delivery_id=delivery_id, channel=delivery_pb.CHANNEL_EMAIL, content=content)
        await call.write(relay_pb.RelayRequest(template=template))
        return call

    async def relay(
        self, addresses: Sequence[str], content: delivery_pb.Content = CONTENT, **fields: Any
    ) -> relay_pb.RelayResponse:
        """Relays one batch over a stream of its own; message ids are 7-1, 7-2, …"""
        call = await self.open(content)
        await call.write(relay_pb.RelayRequest(batch=batch_of(addresses, **fields)))
        response = await call.read()
        assert isinstance(response, relay_pb.RelayResponse)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        return response

    async def withdraw(self, *message_ids: str) -> relay_pb.WithdrawResponse:
        return await self.stub.Withdraw(relay_pb.WithdrawRequest(delivery_id="7", message_ids=message_ids))


def batch_of(
    addresses: Sequence[str], *, first: int = 1, sequence: int = 1, deadline_us: int = 0
) -> relay_pb.RelayBatch:
    batch = relay_pb.RelayBatch(sequence=sequence, delivery_id="7")
    for number, address in enumerate(addresses, first):
        batch.messages.add(
            message_id=f"7-{number}",
            address=address,
            attributes_json='{"first_name": "Chloé"}',
            deadline_us=deadline_us,
        )
    return batch


RunBridge: TypeAlias = Callable[..., AbstractAsyncContextManager[Bridge]]


@pytest.fixture
async def feedback() -> AsyncIterator[FeedbackDouble]:
    double = FeedbackDouble()
    await double.start()
    yield double
    double.acknowledging.set()
    await double.stop()
    assert double.faults == []


@pytest.fixture
async def smtp() -> AsyncIterator[ScriptedSmtp]:
    server = ScriptedSmtp()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def run(smtp: ScriptedSmtp, feedback: FeedbackDouble, tmp_path: Path) -> RunBridge:
    """Runs a bridge with these settings; one after the other in a test share the journal."""
    keys = DevelopmentKeys.generate()
    keys.write(tmp_path)
    (tmp_path / "token").write_text(keys.sign("mta", ["mta"]))
    (tmp_path / "token-key").write_bytes(TOKEN_KEY)

    @asynccontextmanager
    async def run_one(**changes: Any) -> AsyncIterator[Bridge]:
        given: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "admin_listen": "127.0.0.1:0",
            "feedback_target": f"127.0.0.1:{feedback.port}",
            "token_file": tmp_path / "token",
            "jwt_public_key_file": tmp_path / PUBLIC_KEY_FILE,
            "journal": tmp_path / "journal.sqlite",
            "bounce_domain": BOUNCE_DOMAIN,
            "token_key_file": tmp_path / "token-key",
            "smtp_port": smtp.port,
            "smtp_retry_seconds_min": 0.05,
            "smtp_retry_seconds_max": 0.2,
            "shutdown_notice_seconds": 0.0,
            "shutdown_grace_seconds": 2.0,
        }
        faults: list[str] = []
        app = App(Settings(**given | changes), faults.append)
        await app.start()
        channel = open_channel(app.addresses["address"], StaticToken(keys.sign("delivery", ["relay"])))
        bridge = Bridge(app, channel, tmp_path, faults)
        try:
            yield bridge
        finally:
            await channel.close()
            await bridge.stop()
        await asyncio.sleep(0)
        assert faults == []

    return run_one
