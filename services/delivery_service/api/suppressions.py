"""Suppression lists: created, filled in batches that may be sent again, listed, deleted."""

from typing import Final

from campaign.delivery.v1 import delivery_pb2
from campaign.delivery.v1 import suppression_pb2 as pb
from delivery_service import convert
from delivery_service.api.audience_options import list_name_violation
from delivery_service.api.page_tokens import TextTokens
from delivery_service.api.validation import page_size_of, require_valid, text_violation
from delivery_service.domain.address import (
    AddressProblem,
    address_problem,
    is_domain,
    normalise_address,
    normalise_domain,
)
from delivery_service.domain.lifecycle import Channel
from delivery_service.settings import Settings
from delivery_service.store.suppressions import FIRST_ENTRY, EntryKind, EntryPlace, SuppressionList, Suppressions
from service_runtime.access import caller
from service_runtime.clock import Clock
from service_runtime.problems import InvalidInput

_LISTS: Final = TextTokens(b"l")
_ENTRIES: Final = TextTokens(b"e")


class SuppressionCalls:
    """Entries are kept in the form in which recipients' addresses are."""

    def __init__(self, suppressions: Suppressions, settings: Settings, clock: Clock) -> None:
        self._suppressions = suppressions
        self._settings = settings
        self._clock = clock

    async def create(self, request: pb.CreateSuppressionListRequest) -> pb.CreateSuppressionListResponse:
        given = request.suppression_list
        channel = given.channel or Channel.EMAIL
        if channel not in Channel.__members__.values():
            raise InvalidInput.of("suppression_list.channel", f"is {channel}: give EMAIL, SMS or PUSH")
        require_valid(
            [
                list_name_violation("suppression_list.name", given.name),
                text_violation("suppression_list.description", given.description, self._settings.label_characters_max),
            ]
        )
        created = await self._suppressions.create(
            given.name, Channel(channel), given.description, caller().subject, self._clock.now()
        )
        return pb.CreateSuppressionListResponse(suppression_list=_to_pb(created))

    async def get(self, request: pb.GetSuppressionListRequest) -> pb.GetSuppressionListResponse:
        return pb.GetSuppressionListResponse(suppression_list=_to_pb(await self._named(request.name)))

    async def list_lists(self, request: pb.ListSuppressionListsRequest) -> pb.ListSuppressionListsResponse:
        size = page_size_of(request.page_size, self._settings.page_size_default, self._settings.page_size_max)
        found = await self._suppressions.page(_LISTS.text(request.page_token), size + 1)
        return pb.ListSuppressionListsResponse(
            suppression_lists=map(_to_pb, found[:size]),
            next_page_token=_LISTS.token(found[size - 1].name) if len(found) > size else "",
        )

    async def delete(self, request: pb.DeleteSuppressionListRequest) -> pb.DeleteSuppressionListResponse:
        require_valid([list_name_violation("name", request.name)])
        await self._suppressions.delete(request.name, self._clock.now())
        return pb.DeleteSuppressionListResponse()

    async def add(self, request: pb.AddSuppressionEntriesRequest) -> pb.AddSuppressionEntriesResponse:
        channel = (await self._named(request.name)).channel
        addresses, domains = self._entries(request, channel)
        malformed = [given for given, address in addresses if address_problem(channel, address) != AddressProblem.NONE]
        malformed += [given for given, domain in domains if not is_domain(domain)]
        unusable = set(malformed)
        added = await self._suppressions.add(
            request.name,
            [address for given, address in addresses if given not in unusable],
            [domain for given, domain in domains if given not in unusable],
            self._clock.now(),
        )
        now = await self._suppressions.get(request.name)
        return pb.AddSuppressionEntriesResponse(added_count=added, malformed=malformed, suppression_list=_to_pb(now))

    async def remove(self, request: pb.RemoveSuppressionEntriesRequest) -> pb.RemoveSuppressionEntriesResponse:
        addresses, domains = self._entries(request, (await self._named(request.name)).channel)
        removed = await self._suppressions.remove(
            request.name,
            [address for _, address in addresses],
            [domain for _, domain in domains],
            self._clock.now(),
        )
        now = await self._suppressions.get(request.name)
        return pb.RemoveSuppressionEntriesResponse(removed_count=removed, suppression_list=_to_pb(now))

    async def list_entries(self, request: pb.ListSuppressionEntriesRequest) -> pb.ListSuppressionEntriesResponse:
        size = page_size_of(request.page_size, self._settings.page_size_default, self._settings.page_size_max)
        behind = _place(request.page_token)
        list_id = (await self._named(request.name)).list_id
        rows = await self._suppressions.entries(list_id, behind, size + 1)
        last = rows[size - 1] if len(rows) > size else None
        return pb.ListSuppressionEntriesResponse(
            entries=[
                pb.SuppressionEntry(
                    **{EntryKind(row["kind"]).name.lower(): row["value"]}, add_time=convert.timestamp(row["add_time"])
                )
                for row in rows[:size]
            ],
            next_page_token=_ENTRIES.token(f"{last['kind']}{last['value']}") if last else "",
        )

    async def _named(self, name: str) -> SuppressionList:
        require_valid([list_name_violation("name", name)])
        return await self._suppressions.get(name)

    def _entries(
        self, request: pb.AddSuppressionEntriesRequest | pb.RemoveSuppressionEntriesRequest, channel: Channel
    ) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Addresses and domains, each as it was given and as it is kept."""
        limits = self._settings
        number, number_max = len(request.addresses) + len(request.domains), limits.suppression_entries_per_call_max
        if not 1 <= number <= number_max:
            raise InvalidInput.of("addresses", f"and domains have {number} entries: give 1 to {number_max} a call")
        if request.domains and channel is not Channel.EMAIL:
            raise InvalidInput.of("domains", f"are of EMAIL alone, and the list is of channel {channel.name}")
        longest = limits.address_characters_max
        require_valid(
            text_violation(f"{field}[{index}]", given, longest)
            for field, texts in (("addresses", request.addresses), ("domains", request.domains))
            for index, given in enumerate(texts)
        )
        return (
            [(given, normalise_address(channel, given)) for given in request.addresses],
            [(given, normalise_domain(given)) for given in request.domains],
        )


def _place(token: str) -> EntryPlace:
    text = _ENTRIES.text(token)
    if not text:
        return FIRST_ENTRY
    return EntryPlace(int(text[0]) if text[0] in "12" else 0, text[1:])


def _to_pb(found: SuppressionList) -> pb.SuppressionList:
    return pb.SuppressionList(
        name=found.name,
        channel=delivery_pb2.Channel.ValueType(found.channel),
        description=found.description,
        address_count=found.address_count,
        domain_count=found.domain_count,
        creator=found.creator,
        create_time=convert.timestamp(found.create_time),
        update_time=convert.timestamp(found.update_time),
    )
