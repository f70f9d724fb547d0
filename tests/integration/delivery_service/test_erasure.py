"""Erasing a profile: nothing tells any more who it was, and every count stays what it was."""

import asyncio
from pathlib import Path
from typing import Any, Final

import grpc

from campaign.delivery.v1 import (
    before_the_send_pb2,
    commands_pb2,
    delivery_pb2,
    explanation_pb2,
    look_ups_pb2,
    retry_pb2,
    send_log_pb2,
    suppression_pb2,
)
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1 import erasure_pb2 as erasure
from campaign.delivery.v1 import requalification_service_pb2 as requalification_pb2
from campaign.delivery.v1.audience_pb2 import AudienceOptions, ControlGroup, ProfileList
from delivery_service.store.erasures import BLANKED
from tests.support.delivery_stack import DeliveryStack, Fact, Observed, delivery_stack, people
from tests.support.invariants import assert_laws
from tests.support.mta_side import LATER, MtaSide
from tests.support.postgres import connected
from tests.support.statuses import refused

EDITING, READY = delivery_pb2.DELIVERY_STATE_EDITING, delivery_pb2.DELIVERY_STATE_READY
IN_PROGRESS, FINISHED = delivery_pb2.DELIVERY_STATE_IN_PROGRESS, delivery_pb2.DELIVERY_STATE_FINISHED
DEFERRED, DELIVERED, BOUNCED = (
    send_log_pb2.OUTCOME_DEFERRED,
    send_log_pb2.OUTCOME_DELIVERED,
    send_log_pb2.OUTCOME_BOUNCED,
)
CLICK = send_log_pb2.TIMELINE_ENTRY_KIND_CLICK
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
SECRETS: Final = ("zoe-4711", "zoe@private.example", "Zoë Quill", "token=zoe", "zoe@PRIVATE.example is full")

KEPT: Final = {
    **dict.fromkeys(
        ("delivery.label", "delivery.subject", "delivery.html", "delivery.body_text", "alert.label"),
        "the content that everybody gets, and its name",
    ),
    **dict.fromkeys(
        ("delivery.from_address", "delivery.from_name", "delivery.reply_to_address"), "the sender, not a recipient"
    ),
    **dict.fromkeys(
        (
            "delivery.creator",
            "delivery.preparer",
            "delivery.approver",
            "delivery.pauser",
            "delivery.stopper",
            "confirmation.confirmer",
            "suppression_list.creator",
        ),
        "who used the product: its operators",
    ),
    **dict.fromkeys(
        (
            "delivery.plan",
            "delivery.schedule",
            "delivery.approved_digest",
            "delivery.pause_detail",
            "delivery.paused_domains",
            "delivery.overruled_domains",
            "delivery.suppression_lists",
            "confirmation.plan_digest",
            "retry.recipient_domains",
            "retry.failures",
            "counter_correction.counter",
            "alert.detail",
            "suppression_list.name",
            "suppression_list.description",
            "retained_table.table_name",
            "retained_table.storage",
            "retention_range.suffix",
        ),
        "counts, digests, domains and names of things: of nobody",
    ),
    **dict.fromkeys(
        (
            "delivery.confirm_request_id",
            "confirmation.request_id",
            "retry.request_id",
            "recipient_upload.upload_id",
            "relay_part.lease_holder",
            "dead_letter.source_id",
            "feedback_source.replica_id",
            "feedback_source.source_id",
            "mta_contact.holder",
            "erasure.erasure_id",
        ),
        "ids of requests, processes and erasures",
    ),
    **dict.fromkeys(
        ("send_log.enhanced_code", "transition.enhanced_code", "late_observation.enhanced_code"), "a status code"
    ),
    "suppression_entry.value": "keeps the address from being written to: an operator's list, removed by its own call",
    **dict.fromkeys(
        ("denylist.value", "allowlist.address"), "what the person or an operator said; removed by its own call"
    ),
    "address_health.address": "goes with its reports; a quarantined one stays, so that nobody writes to it again",
    **dict.fromkeys(
        (
            "denylist.changer",
            "denylist.note",
            "allowlist.adder",
            "allowlist.note",
            "address_health.adder",
            "address_health.note",
        ),
        "who used the product, and why",
    ),
    **dict.fromkeys(
        ("address_health.domain", "domain_result.domain", "outage_guard.domain", "alert.recipient_domain"),
        "a provider's name: of nobody",
    ),
}
"""Texts that an erasure leaves, and why."""


async def test_every_text_in_the_database_is_erased_or_said_why_not(database: str) -> None:
    async with connected(database) as connection:
        columns = await connection.fetch(
            "select c.relname || '.' || a.attname as name from pg_attribute a join pg_class c on c.oid = a.attrelid "
            "where c.relkind in ('r', 'p') and not c.relispartition and c.relnamespace = 'public'::regnamespace "
            "and a.attnum > 0 and not a.attisdropped "
            "and a.atttypid in ('text'::regtype, 'text[]'::regtype, 'jsonb'::regtype, 'json'::regtype, 'inet'::regtype)"
        )
    erased = {f"{table}.{column}" for table, of_table in BLANKED.items() for column in of_table}

    assert erased & KEPT.keys() == set()
    assert {column["name"] for column in columns} == erased | KEPT.keys()


def zoe(**fields: Any) -> pb.NewRecipient:
    return pb.NewRecipient(
        **{"profile_id": SECRETS[0], "address": SECRETS[1], "attributes": {"first_name": SECRETS[2]}, **fields}
    )


async def erase(stack: DeliveryStack, profile_id: str = SECRETS[0], **fields: Any) -> erasure.EraseProfileResponse:
    return await stack.stub.EraseProfile(erasure.EraseProfileRequest(profile_id=profile_id, **fields))


async def draft_with_zoe(stack: DeliveryStack, **fields: Any) -> str:
    """A draft to her, as recipient 2 of 4."""
    delivery_id = await stack.create(**fields)
    await stack.add(delivery_id, [*people(1), zoe(), *people(2, first=3)])
    return delivery_id


async def sent_to_zoe(stack: DeliveryStack, seconds: int = 0) -> str:
    """Relayed to her, with reports and facts of all sorts that name her."""
    delivery_id = await draft_with_zoe(stack)
    await stack.confirm(await stack.prepare(delivery_id))
    await stack.in_state(delivery_id, FINISHED)
    me, at = f"{delivery_id}-2", 1_900_000_000_000_000 + seconds * 1_000_000
    for outcome, time_us, words in (
        (DEFERRED, at, f"<{SECRETS[4]}>"),
        (DEFERRED, at, f"<{SECRETS[1]}> over quota"),
        (DEFERRED, at + 5, f"{SECRETS[1]} again"),
        (DEFERRED, at + 2, f"late: {SECRETS[1]}"),
        (BOUNCED, at + 9, f"no such user {SECRETS[1]}"),
        (BOUNCED, at + 8, f"late: no such user {SECRETS[1]}"),
    ):
        await stack.apply(Observed(me, outcome, time_us, 1, 6, 452, "4.2.2", words))
    await stack.apply(Observed(f"{delivery_id}-1", DELIVERED, at))
    for url in ("https://example.com/?token=zoe", "https://example.com/?token=zoe&again", ""):
        await stack.track(Fact(me, CLICK, at, url))
    await stack.track(Fact(me, event_time_us=at + 1))
    return delivery_id


async def whole_text(dsn: str, *, without: str = "suppression_entry") -> str:
    """Every row of every table."""
    async with connected(dsn) as connection:
        tables = await connection.fetch(
            "select oid::regclass::text as name from pg_class "
            "where relkind = 'r' and relnamespace = 'public'::regnamespace"
        )
        rows = [await connection.fetch(f"select t::text as row from {table['name']} t") for table in tables
                if table["name"] != without]  # fmt: skip
    return "\n".join(row["row"] for of_table in rows for row in of_table)


async def assert_nothing_tells_who_it_was(dsn: str) -> None:
    text = (await whole_text(dsn)).lower()
    for secret in SECRETS:
        assert secret.lower() not in text


async def facts_of_kpis(stack: DeliveryStack, delivery_id: str) -> tuple[Any, ...]:
    counted = await stack.stub.ComputeStatistics(pb.ComputeStatisticsRequest(delivery_id=delivery_id))
    assert counted.drift == 0
    breakdown = await stack.stub.GetKpiBreakdown(
        look_ups_pb2.GetKpiBreakdownRequest(delivery_id=delivery_id, by=look_ups_pb2.KPI_BREAKDOWN_BY_REASON)
    )
    engagement = counted.kpis.engagement
    engagement.ClearField("as_of_time")
    return counted.kpis.outcomes, engagement, counted.recounted, list(breakdown.groups)


async def test_an_erased_profile_is_nowhere_and_every_kpi_is_what_it_was(stack: DeliveryStack) -> None:
    sent = [await sent_to_zoe(stack, seconds) for seconds in (0, 1)]
    before = [await facts_of_kpis(stack, delivery_id) for delivery_id in sent]
    group = ControlGroup(profiles=ProfileList(profile_ids=["p1", SECRETS[0]]))
    control = await stack.create(audience_options=AudienceOptions(control_group=group))
    await stack.apply(
        Observed(f"{sent[0]}-999", BOUNCED, diagnostic=f"rejected: {SECRETS[1]}"),
        Observed(f"{sent[0]}-998", BOUNCED, diagnostic="of someone else"),
    )
    first_told = await erase(stack, validate_only=True)
    assert (await stack.send_log(sent[0], 2)).send_log.address == SECRETS[1]

    told = await erase(stack)

    assert first_told.recipient_count == told.recipient_count == 2
    assert first_told.delivery_count == told.delivery_count == 2
    assert told.report_count == 2 * 6
    assert told.tracking_fact_count == 2 * 2
    assert (told.dead_letter_count, told.control_group_count) == (1, 1)
    assert set(told.unsettled_delivery_ids) == set(sent)
    await assert_nothing_tells_who_it_was(stack.dsn)
    assert [await facts_of_kpis(stack, delivery_id) for delivery_id in sent] == before
    await assert_laws(stack.dsn)
    one = await stack.send_log(sent[0], 2)
    assert (one.send_log.profile_id, one.send_log.address) == (told.erasure_id, "")
    assert one.send_log.outcome == BOUNCED
    assert len(one.timeline) == 1 + 6 + 4
    group = (await stack.delivery(control)).audience_options.control_group
    assert list(group.profiles.profile_ids) == ["p1", told.erasure_id]
    letters = (await stack.stub.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
    assert {letter.diagnostic for letter in letters} == {"erased", "of someone else"}
    explained = await stack.stub.ExplainRecipient(
        explanation_pb2.ExplainRecipientRequest(delivery_id=sent[0], recipient=2)
    )
    assert explained.address == ""
    others = await stack.send_log(sent[0], 1)
    assert (others.send_log.profile_id, others.send_log.address) == ("p1", "person1@example.com")


async def test_what_is_reported_afterwards_is_erased_by_the_id_of_the_erasure(stack: DeliveryStack) -> None:
    delivery_id = await sent_to_zoe(stack)
    told = await erase(stack)
    later = 1_950_000_000_000_000
    await stack.apply(Observed(f"{delivery_id}-2", BOUNCED, later, 1, 6, 550, "", f"again {SECRETS[1]}"))
    before = await facts_of_kpis(stack, delivery_id)

    again = await erase(stack, told.erasure_id)

    assert again.erasure_id == told.erasure_id
    await assert_nothing_tells_who_it_was(stack.dsn)
    assert await facts_of_kpis(stack, delivery_id) == before
    assert (await stack.send_log(delivery_id, 2)).send_log.smtp_code == 550
    nobody = await erase(stack)
    assert (nobody.recipient_count, nobody.erasure_id) == (0, "")


async def test_a_requalification_leaves_the_reports_of_an_erased_profile_alone(stack: DeliveryStack) -> None:
    delivery_id = await sent_to_zoe(stack)
    await stack.apply(Observed(f"{delivery_id}-3", BOUNCED, 1_900_000_000_000_000, 1, 6, 452, "", "odd words"))
    request = requalification_pb2.ListReportsRequest(delivery_id=delivery_id, rules_version=2)
    request.since_time.FromSeconds(1_890_000_000)
    request.until_time.FromSeconds(1_910_000_000)
    assert {report.recipient for report in (await stack.requalification.ListReports(request)).reports} == {2, 3}

    await erase(stack)

    assert {report.recipient for report in (await stack.requalification.ListReports(request)).reports} == {3}


async def test_a_report_that_comes_again_after_the_erasure_moves_no_count(stack: DeliveryStack) -> None:
    delivery_id = await sent_to_zoe(stack)
    before = await facts_of_kpis(stack, delivery_id)
    told = await erase(stack)

    at = 1_900_000_000_000_000
    words = f"no such user {SECRETS[1]}"
    await stack.apply(Observed(f"{delivery_id}-2", BOUNCED, at + 9, 1, 6, 452, "4.2.2", words))

    assert (await facts_of_kpis(stack, delivery_id))[0] == before[0]
    await erase(stack, told.erasure_id)
    await assert_nothing_tells_who_it_was(stack.dsn)


async def test_a_draft_with_an_erased_profile_is_edited_and_excludes_it(stack: DeliveryStack) -> None:
    delivery_id = await draft_with_zoe(stack)
    prepared = await stack.prepare(delivery_id)
    assert prepared.plan.to_deliver == 4

    await erase(stack)

    assert (await stack.delivery(delivery_id)).state == EDITING
    async with refused(PRECONDITION, "DELIVERY_STATE"):
        await stack.confirm(prepared)
    again = await stack.prepare(delivery_id)
    assert again.plan.to_deliver == 3
    await stack.confirm(again)
    await stack.in_state(delivery_id, FINISHED)
    assert "" not in {message.address for message in stack.mta.messages.values()}
    await assert_nothing_tells_who_it_was(stack.dsn)


async def test_while_a_message_is_still_to_leave_nothing_is_erased(database: str, tmp_path: Path) -> None:
    mta = MtaSide()
    mta.decide = lambda _: LATER
    await mta.start()
    try:
        async with delivery_stack(database, tmp_path, mta=mta) as stack:
            other = await draft_with_zoe(stack)
            delivery_id = await draft_with_zoe(stack)
            await stack.confirm(await stack.prepare(delivery_id))
            await stack.in_state(delivery_id, IN_PROGRESS)

            async with refused(PRECONDITION, "ERASURE_BLOCKED") as problem:
                await erase(stack)
            assert problem.metadata == {"delivery_ids": delivery_id}
            assert list((await erase(stack, validate_only=True)).blocking_delivery_ids) == [delivery_id]
            assert SECRETS[1] in await whole_text(database)
            assert (await stack.delivery(other)).state == EDITING

            await stack.stub.StopDelivery(pb.StopDeliveryRequest(delivery_id=delivery_id))
            told = await erase(stack)
            assert told.recipient_count == 2
            await assert_nothing_tells_who_it_was(database)
    finally:
        await mta.stop()


async def test_an_erasure_that_was_cut_goes_on_under_the_same_id(stack: DeliveryStack) -> None:
    sent = [await sent_to_zoe(stack, seconds) for seconds in range(3)]
    async with connected(stack.dsn) as connection:  # one that died after the first delivery
        await connection.execute("insert into erasure values ($1, 'erased-first', now())", SECRETS[0])
        erased = "select * from erase_recipients($1, '{2}', 'erased-first', now())"
        first = await connection.fetchrow(erased, int(sent[0]))
        assert first is not None
        assert tuple(first) == (6, 2)

    told = await erase(stack)

    assert told.erasure_id == "erased-first"
    assert told.recipient_count == 2
    for delivery_id in sent:
        assert (await stack.send_log(delivery_id, 2)).send_log.profile_id == "erased-first"
    await assert_nothing_tells_who_it_was(stack.dsn)


async def test_erasing_at_the_same_time_as_feedback_keeps_the_laws(stack: DeliveryStack) -> None:
    delivery_id = await sent_to_zoe(stack)
    at = 1_960_000_000_000_000

    async def report(number: int) -> None:
        for step in range(20):
            words = f"{number} {step} {SECRETS[1]}"
            await stack.apply(Observed(f"{delivery_id}-2", BOUNCED, at + step % 3, 1, 6, 550, "", words))

    reports = [asyncio.create_task(report(number)) for number in range(3)]
    told = await erase(stack)
    await asyncio.gather(*reports)
    await erase(stack, told.erasure_id)
    await assert_nothing_tells_who_it_was(stack.dsn)


async def test_a_test_profile_is_erased_and_a_suppression_list_keeps_the_address(stack: DeliveryStack) -> None:
    delivery = await stack.ready(2)
    await stack.stub.SendProof(
        before_the_send_pb2.SendProofRequest(
            delivery_id=delivery.delivery_id,
            test_profiles=[
                before_the_send_pb2.TestProfile(
                    profile_id=SECRETS[0], address=SECRETS[1], attributes={"first_name": SECRETS[2]}
                )
            ],
        )
    )
    await stack.stub.CreateSuppressionList(suppression_pb2.CreateSuppressionListRequest(
        suppression_list=suppression_pb2.SuppressionList(name="no", channel=delivery_pb2.CHANNEL_EMAIL)
    ))  # fmt: skip
    await stack.stub.AddSuppressionEntries(
        suppression_pb2.AddSuppressionEntriesRequest(name="no", addresses=[SECRETS[1]])
    )

    assert (await erase(stack)).recipient_count == 1

    await assert_nothing_tells_who_it_was(stack.dsn)
    entries = await stack.stub.ListSuppressionEntries(suppression_pb2.ListSuppressionEntriesRequest(name="no"))
    assert [entry.address for entry in entries.entries] == [SECRETS[1]]


async def test_a_copy_or_a_retry_of_an_erased_recipient_writes_to_nobody(stack: DeliveryStack) -> None:
    delivery_id = await sent_to_zoe(stack)
    await erase(stack)
    copy = await stack.stub.DuplicateDelivery(
        commands_pb2.DuplicateDeliveryRequest(delivery_id=delivery_id, with_audience=True)
    )
    assert (await stack.prepare(copy.delivery.delivery_id)).plan.to_deliver == 3
    retry = await stack.stub.RetryFailed(retry_pb2.RetryFailedRequest(delivery_id=delivery_id))
    assert (await stack.prepare(retry.delivery.delivery_id)).plan.to_deliver == 0


async def test_a_profile_in_more_deliveries_than_one_step_looks_at(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, erasure_recipients_per_step=2) as stack:
        for _ in range(3):
            delivery_id = await stack.create()
            await stack.add(delivery_id, [zoe(), zoe(address="zoe+2@private.example"), *people(1), zoe()])

        told = await erase(stack)

        assert (told.delivery_count, told.recipient_count) == (3, 9)
        await assert_nothing_tells_who_it_was(database)


async def test_only_an_administrator_erases_and_a_profile_must_be_named(stack: DeliveryStack) -> None:
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING"):
        await stack.client("start-deliveries").EraseProfile(erasure.EraseProfileRequest(profile_id="p1"))
    for wrong in ("", "p" * 201):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
            await erase(stack, wrong)
        assert problem.fields == ["profile_id"]
