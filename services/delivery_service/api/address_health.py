"""AddressHealthService: the quarantine, the denylist and the allowlist, shown and changed by hand."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
from google.protobuf.timestamp_pb2 import Timestamp

from campaign.delivery.v1 import address_health_service_pb2 as pb
from campaign.delivery.v1 import delivery_pb2, send_log_pb2
from campaign.delivery.v1.address_health_service_pb2_grpc import AddressHealthServiceServicer
from delivery_service.api.page_tokens import TextTokens
from delivery_service.api.validation import enums_of, page_size_of, require_valid, text_violation
from delivery_service.convert import OUTCOME_OFFSET, timestamp
from delivery_service.domain.address import AddressProblem, address_problem, normalise_address, normalise_domain
from delivery_service.domain.lifecycle import Channel
from delivery_service.domain.outcome import Reason
from delivery_service.domain.quarantine import AddressStatus, QuarantineRules, counted_now
from delivery_service.settings import Settings
from delivery_service.store.address_health import (
    FIRST,
    FIRST_DENIAL,
    AddressFilter,
    AddressHealth,
    DenialKind,
    DenialPlace,
    Place,
)
from service_runtime.access import caller
from service_runtime.clock import Clock
from service_runtime.problems import InvalidInput

_ADDRESSES: Final = TextTokens(b"q")
_ALLOWLIST: Final = TextTokens(b"w")
_DENIALS: Final = TextTokens(b"d")
_STATUSES: Final = {int(status): status for status in AddressStatus if status}
_QUARANTINED: Final = {int(status): status for status in (AddressStatus.PROVISIONAL, AddressStatus.QUARANTINED)}
_REASONS: Final = {int(reason): reason for reason in Reason if reason}
_CHANNELS: Final = {int(channel): channel for channel in Channel}
_REPORTS_SHOWN: Final = 100
_EXAMPLES_SHOWN: Final = 20


# The methods bear the contract's names, and none needs gRPC's context: the interceptor has dealt with the caller.
class AddressHealthCalls(AddressHealthServiceServicer):
    """Addresses are compared in the form in which recipients' are kept."""

    def __init__(self, store: AddressHealth, rules: QuarantineRules, settings: Settings, clock: Clock) -> None:
        self._store = store
        self._rules = rules
        self._settings = settings
        self._clock = clock

    async def ListAddresses(self, request: pb.ListAddressesRequest, context: Any) -> pb.ListAddressesResponse:
        wanted = self._filter(request, _STATUSES)
        page = await self._store.page(_place(request.page_token, _ADDRESSES), wanted, self._size(request.page_size))
        return pb.ListAddressesResponse(
            addresses=[self._health(row) for row in page.rows],
            next_page_token=_token(_ADDRESSES, *page.next_place) if page.next_place else "",
        )

    async def GetAddress(self, request: pb.GetAddressRequest, context: Any) -> pb.GetAddressResponse:
        channel = _channel(request.channel)
        require_valid([text_violation("address", request.address, self._settings.address_characters_max)])
        address = normalise_address(channel, request.address)
        if address_problem(channel, address) is not AddressProblem.NONE:
            raise InvalidInput.of("address", f"{address[:40]!r} can't be an address of channel {channel.name}")
        found = await self._store.get(channel, address)
        denial = await self._store.denial(channel, DenialKind.ADDRESS, address)
        allowed = await self._store.allowed(channel, address)
        return pb.GetAddressResponse(
            health=self._health(found)
            if found
            else pb.AddressHealth(channel=delivery_pb2.Channel.ValueType(channel), address=address),
            reports=[_report(row) for row in await self._store.reports(channel, address, _REPORTS_SHOWN)],
            denial=_denial(denial) if denial else None,
            allowlist_entry=_allowlist_entry(allowed) if allowed else None,
        )

    async def QuarantineAddresses(
        self, request: pb.QuarantineAddressesRequest, context: Any
    ) -> pb.QuarantineAddressesResponse:
        channel, note = _channel(request.channel), self._note(request.note)
        addresses, malformed = self._addresses(channel, request.addresses)
        refused = await self._store.quarantine(channel, addresses, caller().subject, note, self._clock.now())
        return pb.QuarantineAddressesResponse(
            quarantined_count=len(addresses) - len(refused), allowlisted=refused, malformed=malformed
        )

    async def ReleaseAddresses(self, request: pb.ReleaseAddressesRequest, context: Any) -> pb.ReleaseAddressesResponse:
        channel = _channel(request.channel)
        addresses, _ = self._addresses(channel, request.addresses)
        released = await self._store.release([(channel, address) for address in addresses], self._clock.now())
        return pb.ReleaseAddressesResponse(released_count=released)

    async def ReleaseMatchingAddresses(
        self, request: pb.ReleaseMatchingAddressesRequest, context: Any
    ) -> pb.ReleaseMatchingAddressesResponse:
        wanted = self._filter(request, _QUARANTINED)
        for field, moment in (("since_time", wanted.since), ("until_time", wanted.until)):
            if moment is None:
                raise InvalidInput.of(field, "is missing: a release in bulk is of a time, give its beginning and end")
        assert wanted.since is not None
        assert wanted.until is not None
        response, after = pb.ReleaseMatchingAddressesResponse(), None
        while True:
            found, after = await self._store.with_error(wanted.since, wanted.until, after, wanted)
            if found and request.validate_only:
                response.released_count += len(found)
            elif found:
                response.released_count += await self._store.release(found, self._clock.now())
            response.examples.extend(address for _, address in found[: _EXAMPLES_SHOWN - len(response.examples)])
            if after is None:
                return response

    async def ListDenials(self, request: pb.ListDenialsRequest, context: Any) -> pb.ListDenialsResponse:
        size, text = self._size(request.page_size), _DENIALS.text(request.page_token)
        place = DenialPlace(int(text[0]), int(text[1]), text[2:]) if text[:2].isdecimal() else FIRST_DENIAL
        rows = await self._store.denylist(place, size + 1)
        last = rows[size - 1] if len(rows) > size else None
        return pb.ListDenialsResponse(
            denials=[_denial(row) for row in rows[:size]],
            next_page_token=_token(_DENIALS, last["channel"], f"{last['kind']}{last['value']}") if last else "",
        )

    async def AddDenials(self, request: pb.AddDenialsRequest, context: Any) -> pb.AddDenialsResponse:
        channel, note = _channel(request.channel), self._note(request.note)
        addresses, profile_ids, malformed = self._denied(channel, request)
        now, subject, added = self._clock.now(), caller().subject, 0
        for kind, values in ((DenialKind.ADDRESS, addresses), (DenialKind.PROFILE, profile_ids)):
            added += await self._store.deny(channel, kind, values, subject, note, now) if values else 0
        return pb.AddDenialsResponse(added_count=added, malformed=malformed)

    async def RemoveDenials(self, request: pb.RemoveDenialsRequest, context: Any) -> pb.RemoveDenialsResponse:
        channel = _channel(request.channel)
        addresses, profile_ids, _ = self._denied(channel, request)
        now, subject, removed = self._clock.now(), caller().subject, 0
        for kind, values in ((DenialKind.ADDRESS, addresses), (DenialKind.PROFILE, profile_ids)):
            removed += await self._store.undeny(channel, kind, values, subject, now) if values else 0
        return pb.RemoveDenialsResponse(removed_count=removed)

    async def ListAllowlist(self, request: pb.ListAllowlistRequest, context: Any) -> pb.ListAllowlistResponse:
        size = self._size(request.page_size)
        rows = await self._store.allowlist(_place(request.page_token, _ALLOWLIST), size + 1)
        last = rows[size - 1] if len(rows) > size else None
        return pb.ListAllowlistResponse(
            entries=[_allowlist_entry(row) for row in rows[:size]],
            next_page_token=_token(_ALLOWLIST, last["channel"], last["address"]) if last else "",
        )

    async def AddToAllowlist(self, request: pb.AddToAllowlistRequest, context: Any) -> pb.AddToAllowlistResponse:
        channel, note = _channel(request.channel), self._note(request.note)
        addresses, malformed = self._addresses(channel, request.addresses)
        added = await self._store.allow(channel, addresses, caller().subject, note, self._clock.now())
        return pb.AddToAllowlistResponse(added_count=added, malformed=malformed)

    async def RemoveFromAllowlist(
        self, request: pb.RemoveFromAllowlistRequest, context: Any
    ) -> pb.RemoveFromAllowlistResponse:
        channel = _channel(request.channel)
        addresses, _ = self._addresses(channel, request.addresses)
        removed = await self._store.disallow(channel, addresses, self._clock.now())
        return pb.RemoveFromAllowlistResponse(removed_count=removed)

    def _filter(
        self,
        request: pb.ListAddressesRequest | pb.ReleaseMatchingAddressesRequest,
        statuses: dict[int, AddressStatus],
    ) -> AddressFilter:
        limits = self._settings
        require_valid(
            [
                text_violation("recipient_domain", request.recipient_domain, limits.address_characters_max),
                text_violation("text", request.text, limits.label_characters_max),
            ]
        )
        return AddressFilter(
            channel=_channel(request.channel) if request.channel else None,
            statuses=enums_of("statuses", request.statuses, statuses),
            reasons=enums_of("reasons", request.reasons, _REASONS),
            domain=normalise_domain(request.recipient_domain),
            text=request.text,
            since=_moment("since_time", request.since_time) if request.HasField("since_time") else None,
            until=_moment("until_time", request.until_time) if request.HasField("until_time") else None,
        )

    def _size(self, page_size: int) -> int:
        return page_size_of(page_size, self._settings.page_size_default, self._settings.page_size_max)

    def _note(self, note: str) -> str:
        require_valid([text_violation("note", note, self._settings.label_characters_max)])
        return note

    def _addresses(self, channel: Channel, given: Iterable[str]) -> tuple[list[str], list[str]]:
        """As they are kept, each once, in order; and those that can't be one, as they were given."""
        texts = list(given)
        self._require_number("addresses", len(texts))
        return self._sound(channel, texts)

    def _sound(self, channel: Channel, texts: list[str]) -> tuple[list[str], list[str]]:
        longest = self._settings.address_characters_max
        require_valid(text_violation(f"addresses[{index}]", text, longest) for index, text in enumerate(texts))
        sound, malformed = set[str](), list[str]()
        for text in texts:
            address = normalise_address(channel, text)
            if address_problem(channel, address) is AddressProblem.NONE:
                sound.add(address)
            else:
                malformed.append(text)
        return sorted(sound), malformed

    def _denied(
        self, channel: Channel, request: pb.AddDenialsRequest | pb.RemoveDenialsRequest
    ) -> tuple[list[str], list[str], list[str]]:
        """Addresses and profiles, each once, in order; and the addresses that can't be one."""
        self._require_number("addresses", len(request.addresses) + len(request.profile_ids))
        longest = self._settings.profile_id_characters_max
        require_valid(
            text_violation(f"profile_ids[{index}]", text, longest) for index, text in enumerate(request.profile_ids)
        )
        if "" in request.profile_ids:
            raise InvalidInput.of("profile_ids", "has an empty one: give ids of profiles")
        addresses, malformed = self._sound(channel, list(request.addresses))
        return addresses, sorted(set(request.profile_ids)), malformed

    def _require_number(self, field: str, number: int) -> None:
        most = self._settings.suppression_entries_per_call_max
        if not 1 <= number <= most:
            raise InvalidInput.of(field, f"has {number} entries in all: give 1 to {most} a call")

    def _health(self, row: asyncpg.Record) -> pb.AddressHealth:
        count, status = row["error_count"], AddressStatus(row["status"])
        if status is not AddressStatus.QUARANTINED:
            count = counted_now(count, row["error_time"], Reason(row["reason"]), self._rules, self._clock.now())
            if status is AddressStatus.WITH_ERRORS and not count:
                status = AddressStatus.NONE
        released: datetime | None = row["release_time"] if row["release_time"].year > 1 else None
        return pb.AddressHealth(
            channel=delivery_pb2.Channel.ValueType(row["channel"]),
            address=row["address"],
            status=pb.AddressStatus.ValueType(status),
            error_count=count,
            failure_type=send_log_pb2.FailureType.ValueType(row["failure_type"]),
            reason=send_log_pb2.Reason.ValueType(row["reason"]),
            error_time=timestamp(row["error_time"]),
            delivery_id=str(row["delivery_id"] or ""),
            recipient=row["recipient"] or 0,
            diagnostic=row["diagnostic"],
            adder=row["adder"],
            note=row["note"],
            release_time=timestamp(released),
            update_time=timestamp(row["update_time"]),
        )


def _channel(number: int) -> Channel:
    if number and number not in _CHANNELS:
        raise InvalidInput.of("channel", f"is {number}: give EMAIL, SMS or PUSH")
    return _CHANNELS.get(number, Channel.EMAIL)


def _moment(field: str, given: Timestamp) -> datetime:
    try:
        return given.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidInput.of(field, "is not a time: give one between the years 1 and 9999") from None


def _token(tokens: TextTokens, channel: int, rest: str) -> str:
    return tokens.token(f"{channel}{rest}")


def _place(token: str, tokens: TextTokens) -> Place:
    text = tokens.text(token)
    return Place(int(text[0]), text[1:]) if text[:1].isdecimal() else FIRST


def _report(row: asyncpg.Record) -> pb.AddressReport:
    return pb.AddressReport(
        outcome=send_log_pb2.Outcome.ValueType(row["outcome"] + OUTCOME_OFFSET),
        failure_type=send_log_pb2.FailureType.ValueType(row["failure_type"]),
        reason=send_log_pb2.Reason.ValueType(row["reason"]),
        event_time=timestamp(row["event_time"]),
        delivery_id=str(row["delivery_id"]),
        recipient=row["recipient"],
    )


def _denial(row: asyncpg.Record) -> pb.Denial:
    denial = pb.Denial(
        channel=delivery_pb2.Channel.ValueType(row["channel"]),
        cause=pb.DenialCause.ValueType(row["cause"]),
        deny_time=timestamp(row["change_time"]),
        adder=row["changer"],
        note=row["note"],
        delivery_id=str(row["delivery_id"] or ""),
        recipient=row["recipient"] or 0,
    )
    if row["kind"] == DenialKind.ADDRESS:
        denial.address = row["value"]
    else:
        denial.profile_id = row["value"]
    return denial


def _allowlist_entry(row: asyncpg.Record) -> pb.AllowlistEntry:
    return pb.AllowlistEntry(
        channel=delivery_pb2.Channel.ValueType(row["channel"]),
        address=row["address"],
        add_time=timestamp(row["add_time"]),
        adder=row["adder"],
        note=row["note"],
    )
