"""ExportSendLogs: what ListSendLogs tells, whole or since a token, each row once."""

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from campaign.delivery.v1 import delivery_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1 import send_log_feed_pb2 as feed_pb
from tests.support.delivery_stack import DeliveryStack, Observed, batch_of, delivery_stack, people
from tests.support.statuses import refused

DEFERRED, DELIVERED, BOUNCED = (
    send_log_pb2.OUTCOME_DEFERRED,
    send_log_pb2.OUTCOME_DELIVERED,
    send_log_pb2.OUTCOME_BOUNCED,
)
SOFT, HARD = send_log_pb2.FAILURE_TYPE_SOFT, send_log_pb2.FAILURE_TYPE_HARD
WITHOUT = delivery_pb2.FEEDBACK_MODE_WITHOUT_EFS
TIME_US = 1_790_000_100_000_000


@dataclass
class Exported:
    """One export, to its end."""

    rows: list[feed_pb.ExportedSendLog] = field(default_factory=list)
    token: str = ""
    responses: int = 0

    @property
    def send_logs(self) -> list[send_log_pb2.SendLog]:
        return [row.send_log for row in self.rows]

    @property
    def recipients(self) -> list[int]:
        return [row.send_log.recipient for row in self.rows]


async def exported(stack: DeliveryStack, delivery_id: str, token: str = "", **fields: Any) -> Exported:
    request = feed_pb.ExportSendLogsRequest(delivery_id=delivery_id, resume_token=token, **fields)
    found = Exported()
    last = None
    async for response in stack.stub.ExportSendLogs(request):
        assert last is None or not last.resume_token, "only the last response has a token"
        last = response
        found.rows += response.send_logs
        found.responses += 1
    assert last is not None
    assert not last.send_logs
    found.token = last.resume_token
    return found


async def listed(stack: DeliveryStack, delivery_id: str, **fields: Any) -> list[send_log_pb2.SendLog]:
    found: list[send_log_pb2.SendLog] = []
    token = ""
    while True:
        request = pb.ListSendLogsRequest(
            **{"delivery_id": delivery_id, "page_size": 1_000, "page_token": token, **fields}
        )
        page = await stack.stub.ListSendLogs(request)
        found += page.send_logs
        token = page.next_page_token
        if not token:
            return found


async def played(stack: DeliveryStack, recipients: int) -> str:
    """A sent delivery of which every third was delivered and every fifth deferred or bounced."""
    delivery_id = await stack.sent(recipients)
    async with stack.apply_stream() as stream:
        for outcome, step in ((DELIVERED, 3), (DEFERRED, 5), (BOUNCED, 10)):
            await stream.send(
                batch_of(
                    Observed(f"{delivery_id}-{n}", outcome, TIME_US, SOFT, 6) for n in range(step, recipients, step)
                )
            )
    return delivery_id


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"statuses": [send_log_pb2.SEND_LOG_STATUS_FAILED]},
        {"failure_types": [SOFT]},
        {"reasons": [send_log_pb2.REASON_USER_UNKNOWN]},
        {"feedback_mode": WITHOUT, "statuses": [send_log_pb2.SEND_LOG_STATUS_SENT]},
        {"feedback_mode": WITHOUT, "reasons": [send_log_pb2.REASON_MAILBOX_FULL]},
    ],
    ids=str,
)
async def test_an_export_is_what_the_list_tells(common: DeliveryStack, fields: dict[str, Any]) -> None:
    delivery_id = await played(common, 1_300)

    found = await exported(common, delivery_id, **fields)

    assert found.send_logs == await listed(common, delivery_id, **fields)
    assert len(found.rows) in (0, *range(100, 1_301))
    assert found.token == (await common.kpis(delivery_id)).resume_token


async def test_a_row_has_the_status_of_both_modes(common: DeliveryStack) -> None:
    delivery_id = await common.sent(1)
    await common.apply(Observed(f"{delivery_id}-1", DEFERRED, TIME_US, SOFT))

    (row,) = (await exported(common, delivery_id)).rows

    assert row.status_with_efs == row.send_log.status == send_log_pb2.SEND_LOG_STATUS_FAILED
    assert row.status_without_efs == send_log_pb2.SEND_LOG_STATUS_SENT
    assert (row.send_log.profile_id, row.send_log.address) == ("p1", "person1@example.com")


async def test_only_an_email_has_a_status_with_efs(common: DeliveryStack) -> None:
    delivery_id = await common.create(channel=delivery_pb2.CHANNEL_SMS)
    await common.add(delivery_id, [pb.NewRecipient(address="+491701234567")])
    await common.prepare(delivery_id)

    (row,) = (await exported(common, delivery_id)).rows

    assert row.status_with_efs == send_log_pb2.SEND_LOG_STATUS_UNSPECIFIED
    assert row.status_without_efs == send_log_pb2.SEND_LOG_STATUS_PENDING


async def test_an_incremental_export_has_what_changed_once_in_its_newest_state(common: DeliveryStack) -> None:
    delivery_id = await common.sent(2_500)
    first = await exported(common, delivery_id)
    await common.apply(*(Observed(f"{delivery_id}-{n}", DEFERRED, TIME_US, SOFT) for n in (7, 1_030, 2_100)))
    await common.apply(*(Observed(f"{delivery_id}-{n}", DEFERRED, TIME_US + 5, SOFT) for n in (7, 2_100)))
    await common.apply(Observed(f"{delivery_id}-7", DELIVERED, TIME_US + 9))

    second = await exported(common, delivery_id, first.token)
    third = await exported(common, delivery_id, second.token)
    only_failed = await exported(common, delivery_id, first.token, statuses=[send_log_pb2.SEND_LOG_STATUS_FAILED])

    assert len(first.rows) == 2_500
    assert sorted(second.recipients) == [7, 1_030, 2_100]
    outcomes = {row.send_log.recipient: row.send_log.outcome for row in second.rows}
    assert outcomes == {7: DELIVERED, 1_030: DEFERRED, 2_100: DEFERRED}
    assert third.rows == []
    assert sorted(only_failed.recipients) == [1_030, 2_100]


async def test_exports_under_way_miss_nothing_that_is_committed_meanwhile(common: DeliveryStack) -> None:
    recipients = 3_000
    delivery_id = await common.sent(recipients)
    mirror: dict[int, send_log_pb2.SendLog] = {}
    chance = random.Random(5)
    running = True

    async def change() -> None:
        async with common.apply_stream() as stream:
            for n in range(30):
                await stream.send(
                    batch_of(
                        Observed(
                            f"{delivery_id}-{chance.randint(1, recipients)}",
                            chance.choice((DEFERRED, DELIVERED, BOUNCED)),
                            TIME_US + n,
                            SOFT,
                        )
                        for _ in range(100)
                    )
                )

    async def mirrored() -> int:
        token, rounds = "", 0
        while running or rounds < 2:
            last = not running
            found = await exported(common, delivery_id, token)
            assert len(set(found.recipients)) == len(found.recipients)
            mirror.update({row.send_log.recipient: row.send_log for row in found.rows})
            token, rounds = found.token, rounds + 1
            if last:
                break
        found = await exported(common, delivery_id, token)
        mirror.update({row.send_log.recipient: row.send_log for row in found.rows})
        return rounds

    mirroring = asyncio.create_task(mirrored())
    await asyncio.gather(change(), change())
    running = False
    assert await mirroring > 2

    assert [mirror[n] for n in sorted(mirror)] == await listed(common, delivery_id)


async def test_before_the_start_there_is_no_token_since_a_new_preparation_replaces_the_rows(
    common: DeliveryStack,
) -> None:
    draft = await exported(common, await common.create())
    ready = await exported(common, (await common.ready(3)).delivery_id)

    assert (draft.rows, draft.token) == ([], "")
    assert (ready.recipients, ready.token) == ([1, 2, 3], "")


async def test_a_preparation_in_the_middle_of_an_export_ends_it(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path) as stack:
        ready = await stack.ready(30_000)
        request = feed_pb.ExportSendLogsRequest(delivery_id=ready.delivery_id)
        async with refused(grpc.StatusCode.ABORTED, "DELIVERY_CHANGED"):
            responses = aiter(stack.stub.ExportSendLogs(request))
            await anext(responses)
            await stack.add(ready.delivery_id, people(1, first=50_000))
            async for _ in responses:
                pass


async def test_the_exports_of_a_process_are_bounded(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, exports_max=1) as stack:
        delivery_id = (await stack.ready(15_000)).delivery_id
        call: Any = stack.stub.ExportSendLogs(feed_pb.ExportSendLogsRequest(delivery_id=delivery_id))
        await call.read()  # and no further: the window fills up
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED") as problem:
            await exported(stack, delivery_id)
        assert problem.metadata == {"limit": "exports_max", "value": "1"}
        while await call.read() is not grpc.aio.EOF:
            pass
        assert len((await exported(stack, delivery_id)).rows) == 15_000


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"statuses": [0]}, "statuses[0]"),
        ({"resume_token": "x"}, "resume_token"),
        ({"feedback_mode": 9}, "feedback_mode"),
        ({"delivery_id": "x"}, "delivery_id"),
    ],
)
async def test_a_malformed_export_is_refused_by_field(
    common: DeliveryStack, fields: dict[str, Any], field: str
) -> None:
    delivery_id = await common.create()
    request = feed_pb.ExportSendLogsRequest(**{"delivery_id": delivery_id, **fields})

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await anext(aiter(common.stub.ExportSendLogs(request)))

    assert problem.fields == [field]
