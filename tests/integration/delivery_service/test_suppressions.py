"""Suppression lists: named, shared, filled in batches that may come again, and gone at once when they are deleted."""

import asyncio
from pathlib import Path
from random import Random

import grpc
import pytest

from campaign.delivery.v1 import audience_pb2, delivery_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1 import suppression_pb2 as suppression_pb
from delivery_service.store.queries import query
from tests.support.delivery_stack import DeliveryStack, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.postgres import connected
from tests.support.statuses import refused

Channel = delivery_pb2.Channel


async def create(
    stack: DeliveryStack, name: str, channel: int = 0, description: str = ""
) -> suppression_pb.SuppressionList:
    made = suppression_pb.SuppressionList(name=name, channel=Channel.ValueType(channel), description=description)
    request = suppression_pb.CreateSuppressionListRequest(suppression_list=made)
    return (await stack.stub.CreateSuppressionList(request)).suppression_list


async def get(stack: DeliveryStack, name: str) -> suppression_pb.SuppressionList:
    request = suppression_pb.GetSuppressionListRequest(name=name)
    return (await stack.stub.GetSuppressionList(request)).suppression_list


async def add(
    stack: DeliveryStack, name: str, addresses: list[str], domains: list[str] | None = None
) -> suppression_pb.AddSuppressionEntriesResponse:
    request = suppression_pb.AddSuppressionEntriesRequest(name=name, addresses=addresses, domains=domains or [])
    return await stack.stub.AddSuppressionEntries(request)


async def remove(
    stack: DeliveryStack, name: str, addresses: list[str], domains: list[str] | None = None
) -> suppression_pb.RemoveSuppressionEntriesResponse:
    request = suppression_pb.RemoveSuppressionEntriesRequest(name=name, addresses=addresses, domains=domains or [])
    return await stack.stub.RemoveSuppressionEntries(request)


async def delete(stack: DeliveryStack, name: str) -> None:
    await stack.stub.DeleteSuppressionList(suppression_pb.DeleteSuppressionListRequest(name=name))


async def entries(stack: DeliveryStack, name: str, size: int = 0) -> list[str]:
    """Addresses and @domains, over all pages."""
    found: list[str] = []
    request = suppression_pb.ListSuppressionEntriesRequest(name=name, page_size=size)
    while True:
        page = await stack.stub.ListSuppressionEntries(request)
        assert len(page.entries) <= (size or 100)
        found += [each.address or f"@{each.domain}" for each in page.entries]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found


async def test_a_list_is_created_once_and_told(common: DeliveryStack) -> None:
    created = await create(common, "Created-1", description="for people")

    assert (created.name, created.channel, created.description) == (
        "Created-1",
        delivery_pb2.CHANNEL_EMAIL,
        "for people",
    )
    assert (created.address_count, created.domain_count, created.creator) == (0, 0, "tester")
    assert created == await get(common, "Created-1")
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "SUPPRESSION_LIST_EXISTS") as problem:
        await create(common, "Created-1")
    assert problem.metadata == {"name": "Created-1"}


async def test_entries_are_added_once_in_one_form_and_removed(common: DeliveryStack) -> None:
    await create(common, "entries")

    first = await add(common, "entries", ["b@EXAMPLE.com", "a@example.com", "B@example.com"], ["Example.org"])
    again = await add(common, "entries", [" b@example.com", "c@example.com"], ["example.ORG", "example.net"])

    assert (first.added_count, again.added_count) == (4, 2)
    assert (again.suppression_list.address_count, again.suppression_list.domain_count) == (4, 2)
    expected = ["B@example.com", "a@example.com", "b@example.com", "c@example.com", "@example.net", "@example.org"]
    assert await entries(common, "entries") == expected
    for size in (1, 2, 4, 5):
        assert await entries(common, "entries", size) == expected

    removed = await remove(common, "entries", ["a@EXAMPLE.com", "unknown@example.com"], ["EXAMPLE.org"])

    assert removed.removed_count == 2
    assert (removed.suppression_list.address_count, removed.suppression_list.domain_count) == (3, 1)
    assert (await remove(common, "entries", ["a@example.com"])).removed_count == 0
    assert await entries(common, "entries") == [
        "B@example.com", "b@example.com", "c@example.com", "@example.net",
    ]  # fmt: skip


async def test_what_can_be_no_address_or_domain_is_told_and_the_rest_is_taken(common: DeliveryStack) -> None:
    await create(common, "malformed")

    added = await add(
        common, "malformed", ["a@example.com", "no address", "", "+336"], ["com", "a_b.c d", "ok.example"]
    )

    assert list(added.malformed) == ["no address", "", "+336", "com", "a_b.c d"]
    assert added.added_count == 2
    assert await entries(common, "malformed") == ["a@example.com", "@ok.example"]


async def test_a_list_of_another_channel_has_its_addresses_and_no_domains(common: DeliveryStack) -> None:
    await create(common, "of-sms", channel=2)

    added = await add(common, "of-sms", ["+33612345678", "a@example.com"])

    assert (added.added_count, list(added.malformed)) == (1, ["a@example.com"])
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await add(common, "of-sms", [], ["example.com"])
    assert problem.fields == ["domains"]


async def test_lists_are_listed_by_name_in_pages(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path) as stack:
        for name in ("b", "a", "C", "a-1", "d"):
            await create(stack, name)
        request = suppression_pb.ListSuppressionListsRequest(page_size=2)
        pages: list[list[str]] = []
        while True:
            page = await stack.stub.ListSuppressionLists(request)
            pages.append([each.name for each in page.suppression_lists])
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break

        assert pages == [["C", "a"], ["a-1", "b"], ["d"]]


async def test_a_list_that_does_not_exist_is_not_found(common: DeliveryStack) -> None:
    for call in (get(common, "none"), add(common, "none", ["a@example.com"]), remove(common, "none", ["a@example.com"]),
                 entries(common, "none"), delete(common, "none")):  # fmt: skip
        async with refused(grpc.StatusCode.NOT_FOUND, "SUPPRESSION_LIST_NOT_FOUND") as problem:
            await call
        assert problem.metadata == {"name": "none"}


async def test_what_makes_no_sense_is_refused_naming_the_field(common: DeliveryStack) -> None:
    await create(common, "sense")
    token = suppression_pb.ListSuppressionEntriesRequest(name="sense", page_token="bA")
    for call, field in (
        (create(common, "no name"), "suppression_list.name"),
        (create(common, ""), "suppression_list.name"),
        (create(common, "a", channel=9), "suppression_list.channel"),
        (create(common, "a", description="x" * 201), "suppression_list.description"),
        (get(common, "no name"), "name"),
        (delete(common, ""), "name"),
        (add(common, "sense", []), "addresses"),
        (add(common, "sense", ["x"] * 5_001), "addresses"),
        (add(common, "sense", ["x" * 321]), "addresses[0]"),
        (add(common, "sense", ["a@example.com"], ["a\0"]), "domains[0]"),
        (remove(common, "sense", []), "addresses"),
        (common.stub.ListSuppressionEntries(token), "page_token"),
    ):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
            await call
        assert problem.fields == [field]


async def test_without_the_role_nobody_changes_a_list(common: DeliveryStack) -> None:
    reader = common.client("read")
    made = suppression_pb.CreateSuppressionListRequest(suppression_list=suppression_pb.SuppressionList(name="a"))
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING"):
        await reader.CreateSuppressionList(made)
    await reader.ListSuppressionLists(suppression_pb.ListSuppressionListsRequest())


async def test_a_list_has_a_limit_and_what_is_over_it_is_not_taken_at_all(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, suppression_entries_per_list_max=3) as stack:
        await create(stack, "full")
        await add(stack, "full", ["a@example.com"], ["example.com"])

        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED") as problem:
            await add(stack, "full", ["b@example.com", "c@example.com"])

        assert problem.metadata == {"limit": "suppression_entries_per_list_max", "value": "3"}
        assert (await get(stack, "full")).address_count == 1
        await add(stack, "full", ["b@example.com"])
        await add(stack, "full", ["b@example.com", "a@example.com"], ["example.com"])  # a repetition is no more


async def test_batches_at_once_on_two_replicas_lose_nothing_and_count_exactly(database: str, tmp_path: Path) -> None:
    async with (
        delivery_stack(database, tmp_path / "one") as one,
        delivery_stack(database, tmp_path / "two", mta=one.mta) as two,
    ):
        await create(one, "busy")
        everybody = [f"a{i}@example.com" for i in range(400)]
        random = Random(1)
        batches = [random.sample(everybody, 300) for _ in range(16)]  # the same entries, in other orders

        added = await asyncio.gather(
            *(add(stack, "busy", batch) for batch, stack in zip(batches, [one, two] * 8, strict=True))
        )
        assert sum(each.added_count for each in added) == (await get(two, "busy")).address_count
        removed = await asyncio.gather(
            *(remove(stack, "busy", batch) for batch, stack in zip(batches[:4], [one, two] * 2, strict=True))
        )

        left = await entries(one, "busy")
        gone = {address for batch in batches[:4] for address in batch}
        assert left == sorted({address for batch in batches for address in batch} - gone)
        assert sum(each.removed_count for each in removed) == len(gone)
        assert (await get(one, "busy")).address_count == len(left)


# Deleting.


async def test_a_deleted_list_is_gone_at_once_and_its_entries_go_in_bounded_steps(
    database: str, tmp_path: Path
) -> None:
    async with delivery_stack(database, tmp_path, deletion_rows_per_step=100) as stack:
        await create(stack, "kept")
        await add(stack, "kept", ["kept@example.com"])
        await create(stack, "gone")
        await add(stack, "gone", [f"a{i}@example.com" for i in range(950)], ["example.com"])

        await delete(stack, "gone")

        async with refused(grpc.StatusCode.NOT_FOUND, "SUPPRESSION_LIST_NOT_FOUND"):
            await get(stack, "gone")
        await create(stack, "gone")  # the name is free, and what bears it has nothing of the old one
        assert await entries(stack, "gone") == []

        async def purged() -> bool:
            async with connected(database) as connection:
                assert await connection.fetchval("select count(*) from suppression_entry") == 1
                left: int = await connection.fetchval("select count(*) from deleted_suppression_list")
            return left == 0

        await eventually(purged)
        assert await entries(stack, "kept") == ["kept@example.com"]


async def test_a_step_of_a_deletion_removes_no_more_than_its_limit_and_may_be_repeated(database: str) -> None:
    async with connected(database) as connection:
        await connection.execute(
            """
            insert into suppression_entry
            select l, 1 + n % 2, n::text, now() from generate_series(1, 2) l, generate_series(1, 250) n;
            insert into deleted_suppression_list values (1, now())
            """
        )
        left = []
        complete = False
        while not complete:
            complete = await connection.fetchval(query("purge_suppression_list"), 1, 100)
            left.append(await connection.fetchval("select count(*) from suppression_entry where list_id = 1"))

        assert left == [150, 50, 0]
        assert await connection.fetchval(query("purge_suppression_list"), 1, 100) is None
        assert await connection.fetchval("select count(*) from suppression_entry") == 250


@pytest.mark.parametrize("state", delivery_pb2.DeliveryState.values()[1:], ids=delivery_pb2.DeliveryState.Name)
async def test_a_list_is_not_deleted_while_a_delivery_that_is_not_over_names_it(
    common: DeliveryStack, state: "delivery_pb2.DeliveryState.ValueType"
) -> None:
    name = f"in-use-{state}"
    await create(common, name)
    options = audience_pb2.AudienceOptions(suppression_lists=["others", name])
    delivery_id = await common.create(audience_options=options)
    over = state >= delivery_pb2.DELIVERY_STATE_STOPPED
    async with connected(common.dsn) as connection:
        # A lease and a time that never end keep the workers from moving it on.
        await connection.execute(
            "update delivery set state = $2, preparation_token = gen_random_uuid(), "
            "preparation_lease_time = 'infinity', contact_time = 'infinity', finish_time = 'infinity' "
            "where delivery_id = $1",
            int(delivery_id),
            7 if state == delivery_pb2.DELIVERY_STATE_IN_PROGRESS else state,
        )
        if over:
            await delete(common, name)
        else:
            async with refused(grpc.StatusCode.FAILED_PRECONDITION, "SUPPRESSION_LIST_IN_USE") as problem:
                await delete(common, name)
            assert problem.metadata == {"name": name, "delivery_ids": delivery_id}
            assert (await get(common, name)).name == name
        await connection.execute("delete from delivery where delivery_id = $1", int(delivery_id))
        await connection.execute("delete from delivery_counter where delivery_id = $1", int(delivery_id))


async def test_a_list_taken_out_of_a_draft_can_be_deleted(common: DeliveryStack) -> None:
    await create(common, "let-go")
    options = audience_pb2.AudienceOptions(suppression_lists=["let-go"])
    delivery = await common.ready(2, audience_options=options)
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "SUPPRESSION_LIST_IN_USE"):
        await delete(common, "let-go")

    request = pb.UpdateDeliveryRequest(delivery=delivery_pb2.Delivery(delivery_id=delivery.delivery_id))
    request.update_mask.paths.append("audience_options")
    await common.stub.UpdateDelivery(request)

    await delete(common, "let-go")
    assert (await common.prepare(delivery.delivery_id)).state == delivery_pb2.DELIVERY_STATE_READY


async def test_of_deleting_a_list_and_preparing_with_it_at_once_nobody_on_it_is_let_through(
    database: str, tmp_path: Path
) -> None:
    async with delivery_stack(database, tmp_path, preparation_lease_seconds=0.5) as stack:
        for number in range(10):
            name = f"contested-{number}"
            await create(stack, name)
            await add(stack, name, ["person1@example.com"])
            delivery_id = await stack.create()
            await stack.add(delivery_id, people(2))
            request = pb.UpdateDeliveryRequest(
                delivery=delivery_pb2.Delivery(
                    delivery_id=delivery_id, audience_options=audience_pb2.AudienceOptions(suppression_lists=[name])
                )
            )
            request.update_mask.paths.append("audience_options")

            async def named_and_prepared(
                asked: pb.UpdateDeliveryRequest = request, of: str = delivery_id
            ) -> delivery_pb2.Delivery:
                await stack.stub.UpdateDelivery(asked)
                return await stack.prepare(of)

            prepared, deleted = await asyncio.gather(named_and_prepared(), delete(stack, name), return_exceptions=True)

            assert isinstance(prepared, delivery_pb2.Delivery)
            if prepared.state == delivery_pb2.DELIVERY_STATE_READY:
                assert isinstance(deleted, grpc.aio.AioRpcError)
                assert prepared.plan.to_deliver == 1
            else:
                assert deleted is None
    await assert_laws(database)
