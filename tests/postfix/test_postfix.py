"""A real Postfix behind the bridge: what it reports, by each way, is what the sink knows to be true."""

import asyncio
import json
import sqlite3
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from campaign.delivery.v1 import delivery_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign_cli.bridged_postfix import WAYS, FeedbackWay
from campaign_cli.ports import free_ports
from campaign_cli.postfix import Postfix, PostfixOptions
from tests.postfix.conftest import TAGS, PostfixStack, RunPostfix, tagged
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(180)

MAILS = 1_000
RUN_SECONDS_MAX = 60.0


async def timeline(stack: PostfixStack, delivery_id: str, recipient: int) -> pb.GetSendLogResponse:
    return await stack.stub.GetSendLog(pb.GetSendLogRequest(delivery_id=delivery_id, recipient=recipient))


@pytest.mark.parametrize("way", WAYS)
async def test_a_thousand_mails_with_six_fates_come_to_the_truth(run_postfix: RunPostfix, way: FeedbackWay) -> None:
    async with run_postfix(way) as stack:
        delivery = await stack.prepared(MAILS, tagged)
        began = asyncio.get_running_loop().time()
        await stack.confirm(delivery)
        kpis = await stack.truth_reached(delivery.delivery_id)
        seconds = asyncio.get_running_loop().time() - began

        share = MAILS // 25
        assert kpis.outcomes.bounced == 3 * share
        assert kpis.outcomes.expired == share
        assert kpis.outcomes.delivered == MAILS - 4 * share
        assert all(len(names) == 1 for names in stack.queue_ids().values())
        assert seconds < RUN_SECONDS_MAX
        # Recipient n is number n - 1 of the upload, so its address ends on the tag of that number.
        deferred = await timeline(stack, delivery.delivery_id, TAGS.index("deferred") + 1)
        assert deferred.send_log.outcome == send_log_pb2.OUTCOME_DELIVERED
        outcomes = [entry.outcome for entry in deferred.timeline]
        if way != "dsn":  # Postfix writes no mail about a short delay
            assert send_log_pb2.OUTCOME_DEFERRED in outcomes


async def test_kills_in_the_middle_lose_nothing_and_hand_nothing_over_twice(run_postfix: RunPostfix) -> None:
    mails = 1_500
    # Long enough that nothing expires because Postfix was down: that would be the truth, but not the sink's.
    patient = {"settings": {"maximal_queue_lifetime": "120s", "bounce_queue_lifetime": "120s"}}
    async with run_postfix("both", postfix=patient) as stack:
        delivery = await stack.prepared(mails, lambda number: tagged(number).replace("+expired", ""))
        await stack.confirm(delivery)
        await stack.until(delivery.delivery_id, handed_over=200)
        await stack.kill("mta_bridge")
        await stack.start("mta_bridge")
        await stack.until(delivery.delivery_id, handed_over=500, reported=100)
        await stack.kill("feedback_service")
        await stack.start("feedback_service")
        await stack.until(delivery.delivery_id, handed_over=800)
        await asyncio.to_thread(stack.postfix.kill)
        await asyncio.to_thread(stack.postfix.start)
        await stack.until(delivery.delivery_id, handed_over=1_100)
        await stack.kill("mta_bridge")
        await stack.kill("feedback_service")
        await stack.start("feedback_service")
        await stack.start("mta_bridge")

        await stack.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)

        async def settled() -> Any:
            kpis = await stack.kpis(delivery.delivery_id)
            assert kpis.outcomes.prepared == kpis.outcomes.deferred == 0, kpis.outcomes
            # A message that Postfix was killed over, before it had it, can have no report: it is among the unknown.
            assert kpis.outcomes.relayed <= 4, kpis.outcomes
            assert not stack.postfix.queue(), stack.log_of(str(stack.postfix.queue()[0]["queue_id"]))
            return kpis

        kpis = await eventually(settled, timeout_seconds=60.0, interval_seconds=0.25)
        await stack.children["mta_bridge"].stop(30.0)
        journal = sqlite3.connect(stack.folder / "bridge-journal.sqlite")
        unknown = journal.execute("SELECT message_id, resolved FROM unknown").fetchall()
        journal.close()

        # Three kills and one of Postfix, four connections: what was between dot and answer, and counted.
        assert len(unknown) <= 4 * 4
        unresolved = [message_id for message_id, resolved in unknown if not resolved]
        assert kpis.outcomes.relayed <= len(unresolved)
        assert all(len(names) == 1 for names in stack.queue_ids().values())
        assert len(stack.queue_ids()) == mails - kpis.outcomes.relayed
        assert stack.truth is not None
        assert stack.truth.answered == mails - kpis.outcomes.relayed
        assert kpis.outcomes.bounced == stack.truth.outcomes["bounced"]
        assert kpis.outcomes.delivered == stack.truth.outcomes["delivered"]
        # What Postfix was handing to the sink when it was killed, it hands over again: its own twenty connections.
        assert stack.truth.duplicates_sent <= 20
        statistics = await stack.stub.ComputeStatistics(pb.ComputeStatisticsRequest(delivery_id=delivery.delivery_id))
        assert statistics.drift == 0


async def test_an_asynchronous_bounce_that_comes_before_the_relayed_report_wins(run_postfix: RunPostfix) -> None:
    second_port, gate_port = free_ports(2)
    # The first hop's own reports wait at a gate that is shut; the second hop's come straight in.
    first_hop = {"relay_port": second_port, "bounce_port": gate_port}
    async with run_postfix("dsn", postfix=first_hop) as stack:
        second = Postfix(
            PostfixOptions(
                str(stack.folder / "second"), second_port, stack.sink_port, stack.bounce_port, "second.campaign.test"
            )
        )
        await asyncio.to_thread(second.prepare)
        await asyncio.to_thread(second.start)
        try:
            delivery = await stack.prepared(20, lambda number: f"p{number}+{'hard' if number < 10 else 'ok'}@a.test")
            await stack.confirm(delivery)

            async def bounced() -> Any:
                kpis = await stack.kpis(delivery.delivery_id)
                assert (kpis.outcomes.bounced, kpis.outcomes.relayed) == (10, 10), kpis.outcomes
                return kpis

            await eventually(bounced, timeout_seconds=30.0)
            gate = await asyncio.start_server(_forwarder(stack.bounce_port), "127.0.0.1", gate_port)
            try:

                async def told() -> Any:
                    kpis = await stack.kpis(delivery.delivery_id)
                    assert kpis.outcomes.delivered == 10, kpis.outcomes
                    assert not stack.postfix.queue()
                    return kpis

                kpis = await eventually(told, timeout_seconds=30.0, interval_seconds=0.1)
            finally:
                gate.close()
            assert kpis.outcomes.bounced == 10
            one = await timeline(stack, delivery.delivery_id, 1)
            assert one.send_log.outcome == send_log_pb2.OUTCOME_BOUNCED
            assert one.send_log.reason == send_log_pb2.REASON_USER_UNKNOWN
        finally:
            await asyncio.to_thread(second.stop)


async def test_a_message_is_given_up_at_its_deadline_though_postfix_would_go_on(run_postfix: RunPostfix) -> None:
    patient = {"quick": False, "settings": {"minimal_backoff_time": "300s"}}
    async with run_postfix("log", postfix=patient) as stack:
        delivery = await stack.prepared(
            10,
            lambda number: f"p{number}+{'expired' if number < 4 else 'ok'}@a.test",
            validity_period=Duration(seconds=5),
        )
        await stack.confirm(delivery)

        async def expired() -> Any:
            kpis = await stack.kpis(delivery.delivery_id)
            assert (kpis.outcomes.expired, kpis.outcomes.delivered) == (4, 6), kpis.outcomes
            return kpis

        await eventually(expired, timeout_seconds=30.0)
        assert not stack.postfix.queue()
        log = stack.postfix.log.read_text()
        assert log.count("status=force-expired") == 4, json.dumps(log[-2_000:])


def _forwarder(port: int) -> Any:
    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
            target.close()

        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer), return_exceptions=True)

    return forward
