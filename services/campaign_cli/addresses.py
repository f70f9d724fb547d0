"""`campaign quarantine|denylist|allowlist …`: who is not to be written to, whatever the delivery."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TextIO

import click
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from campaign.delivery.v1 import address_health_service_pb2 as pb
from campaign.delivery.v1.address_health_service_pb2_grpc import AddressHealthServiceStub
from campaign.delivery.v1.delivery_pb2 import Channel
from campaign.delivery.v1.send_log_pb2 import Outcome, Reason
from campaign_cli import logs
from campaign_cli.client import CALL_SECONDS_MAX, Target, connect_addresses
from campaign_cli.options import Moment, json_option, limit_option, target_options
from campaign_cli.running import open_console, run
from campaign_cli.suppression import PAGE_SIZE_MAX, batches, entry_arguments, require_any
from campaign_cli.words import choices, label, local_time, plural

RELEASE_SECONDS_MAX = 600.0

channel_option = click.option(
    "--channel", type=click.Choice(list(choices(Channel))), default="email", show_default=True
)
note_option = click.option("--note", default="", help="Why, for people.")
status_option = click.option("--status", "statuses", type=click.Choice(list(choices(pb.AddressStatus))), multiple=True)
reason_option = click.option("--reason", "reasons", type=click.Choice(list(choices(Reason))), multiple=True)
domain_option = click.option("--domain", default="", help="Of this recipient domain alone.")
text_option = click.option("--text", default="", help="With this in what the receiving server said.")


@click.group()
def quarantine() -> None:
    """The quarantine: addresses that bounce, which no delivery writes to."""


@quarantine.command("list")
@status_option
@reason_option
@domain_option
@text_option
@click.option("--since", type=Moment(), help="Whose error happened at this time or later.")
@click.option("--until", type=Moment(), help="Whose error happened before this time.")
@limit_option
@json_option
@target_options
def show_list(
    statuses: tuple[str, ...], reasons: tuple[str, ...], domain: str, text: str, since: datetime | None,
    until: datetime | None, limit: int, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Lists addresses with errors."""
    request = pb.ListAddressesRequest(
        since_time=_timestamp(since), until_time=_timestamp(until), **_filter(statuses, reasons, domain, text)
    )

    def read(stub: AddressHealthServiceStub) -> Awaitable[pb.ListAddressesResponse]:
        return stub.ListAddresses(request, timeout=CALL_SECONDS_MAX)

    _show(where, request, read, lambda page: page.addresses, limit, as_json, _render_addresses)


@quarantine.command("show")
@click.argument("address_text", metavar="ADDRESS")
@channel_option
@json_option
@target_options
def show(address_text: str, channel: str, as_json: bool, **where: Any) -> None:
    """Shows all that is known of an address."""

    async def work() -> None:
        request = pb.GetAddressRequest(channel=choices(Channel)[channel], address=address_text)
        async with connect_addresses(Target(**where)) as stub:
            found = await stub.GetAddress(request, timeout=CALL_SECONDS_MAX)
        console = open_console()
        if as_json:
            logs.print_json(console, found)
            return
        console.print(_render_addresses([found.health]))
        if found.HasField("denial"):
            console.print(f"On the denylist: {label(pb.DenialCause, found.denial.cause)}", highlight=False)
        if found.HasField("allowlist_entry"):
            console.print("On the allowlist: it is never quarantined", highlight=False)
        if found.reports:
            console.print(_render_reports(found.reports))

    run(work())


@quarantine.command("add")
@entry_arguments
@channel_option
@note_option
@target_options
def add(entries: tuple[str, ...], file: TextIO | None, channel: str, note: str, **where: Any) -> None:
    """Quarantines addresses by hand."""

    async def send(stub: AddressHealthServiceStub, batch: list[str]) -> tuple[int, Sequence[str]]:
        request = pb.QuarantineAddressesRequest(channel=choices(Channel)[channel], addresses=batch, note=note)
        done = await stub.QuarantineAddresses(request, timeout=CALL_SECONDS_MAX)
        return done.quarantined_count, [*done.malformed, *(f"{each} (on the allowlist)" for each in done.allowlisted)]

    _change(where, entries, file, send, "quarantined")


@quarantine.command("release")
@entry_arguments
@channel_option
@target_options
def release(entries: tuple[str, ...], file: TextIO | None, channel: str, **where: Any) -> None:
    """Releases addresses: what was reported until now counts no more."""

    async def send(stub: AddressHealthServiceStub, batch: list[str]) -> tuple[int, Sequence[str]]:
        request = pb.ReleaseAddressesRequest(channel=choices(Channel)[channel], addresses=batch)
        return (await stub.ReleaseAddresses(request, timeout=CALL_SECONDS_MAX)).released_count, ()

    _change(where, entries, file, send, "released")


@quarantine.command("release-many")
@click.option("--since", type=Moment(), required=True, help="Whose error happened at this time or later.")
@click.option("--until", type=Moment(), required=True, help="Whose error happened before this time.")
@status_option
@reason_option
@domain_option
@text_option
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@target_options
def release_many(
    since: datetime, until: datetime, statuses: tuple[str, ...], reasons: tuple[str, ...], domain: str, text: str,
    dry_run: bool, yes: bool, **where: Any,
) -> None:  # fmt: skip
    """Releases all addresses whose error passes a filter, as after an outage of their provider."""

    async def work() -> None:
        console = open_console()
        request = pb.ReleaseMatchingAddressesRequest(
            since_time=_timestamp(since), until_time=_timestamp(until), validate_only=True,
            **_filter(statuses, reasons, domain, text),
        )  # fmt: skip
        async with connect_addresses(Target(**where)) as stub:
            found = await stub.ReleaseMatchingAddresses(request, timeout=RELEASE_SECONDS_MAX)
            console.print(f"{_number(found.released_count)} would be released.", highlight=False)
            for example in found.examples:
                console.out(f"  {example}", highlight=False)
            if dry_run or not found.released_count:
                return
            if not yes:
                click.confirm("Release them?", abort=True)
            request.validate_only = False
            done = await stub.ReleaseMatchingAddresses(request, timeout=RELEASE_SECONDS_MAX)
            console.print(f"{_number(done.released_count)} released.", highlight=False)

    run(work())


@click.group()
def denylist() -> None:
    """The denylist: who complained or unsubscribed, or was put on it."""


profiles_option = click.option("--profiles", is_flag=True, help="They are profile ids, not addresses.")


@denylist.command("list")
@limit_option
@json_option
@target_options
def show_denylist(limit: int, as_json: bool, **where: Any) -> None:
    """Lists the denylist: of each channel addresses, then profiles."""
    request = pb.ListDenialsRequest()

    def read(stub: AddressHealthServiceStub) -> Awaitable[pb.ListDenialsResponse]:
        return stub.ListDenials(request, timeout=CALL_SECONDS_MAX)

    _show(where, request, read, lambda page: page.denials, limit, as_json, _render_denials)


@denylist.command("add")
@entry_arguments
@profiles_option
@channel_option
@note_option
@target_options
def deny(entries: tuple[str, ...], file: TextIO | None, profiles: bool, channel: str, note: str, **where: Any) -> None:
    """Puts addresses, or profiles, on the denylist."""

    async def send(stub: AddressHealthServiceStub, batch: list[str]) -> tuple[int, Sequence[str]]:
        request = pb.AddDenialsRequest(channel=choices(Channel)[channel], note=note, **_who(batch, profiles))
        done = await stub.AddDenials(request, timeout=CALL_SECONDS_MAX)
        return done.added_count, done.malformed

    _change(where, entries, file, send, "added")


@denylist.command("remove")
@entry_arguments
@profiles_option
@channel_option
@target_options
def undeny(entries: tuple[str, ...], file: TextIO | None, profiles: bool, channel: str, **where: Any) -> None:
    """Takes addresses, or profiles, off the denylist."""

    async def send(stub: AddressHealthServiceStub, batch: list[str]) -> tuple[int, Sequence[str]]:
        request = pb.RemoveDenialsRequest(channel=choices(Channel)[channel], **_who(batch, profiles))
        return (await stub.RemoveDenials(request, timeout=CALL_SECONDS_MAX)).removed_count, ()

    _change(where, entries, file, send, "removed")


@click.group()
def allowlist() -> None:
    """The allowlist: addresses that are never quarantined."""


@allowlist.command("list")
@limit_option
@json_option
@target_options
def show_allowlist(limit: int, as_json: bool, **where: Any) -> None:
    """Lists the allowlist."""
    request = pb.ListAllowlistRequest()

    def read(stub: AddressHealthServiceStub) -> Awaitable[pb.ListAllowlistResponse]:
        return stub.ListAllowlist(request, timeout=CALL_SECONDS_MAX)

    _show(where, request, read, lambda page: page.entries, limit, as_json, _render_allowlist)


@allowlist.command("add")
@entry_arguments
@channel_option
@note_option
@target_options
def allow(entries: tuple[str, ...], file: TextIO | None, channel: str, note: str, **where: Any) -> None:
    """Puts addresses on the allowlist, and releases them from the quarantine."""

    async def send(stub: AddressHealthServiceStub, batch: list[str]) -> tuple[int, Sequence[str]]:
        request = pb.AddToAllowlistRequest(channel=choices(Channel)[channel], addresses=batch, note=note)
        done = await stub.AddToAllowlist(request, timeout=CALL_SECONDS_MAX)
        return done.added_count, done.malformed

    _change(where, entries, file, send, "added")


@allowlist.command("remove")
@entry_arguments
@channel_option
@target_options
def disallow(entries: tuple[str, ...], file: TextIO | None, channel: str, **where: Any) -> None:
    """Takes addresses off the allowlist."""

    async def send(stub: AddressHealthServiceStub, batch: list[str]) -> tuple[int, Sequence[str]]:
        request = pb.RemoveFromAllowlistRequest(channel=choices(Channel)[channel], addresses=batch)
        return (await stub.RemoveFromAllowlist(request, timeout=CALL_SECONDS_MAX)).removed_count, ()

    _change(where, entries, file, send, "removed")


def _change(
    where: dict[str, Any],
    entries: tuple[str, ...],
    file: TextIO | None,
    send: Callable[[AddressHealthServiceStub, list[str]], Awaitable[tuple[int, Sequence[str]]]],
    done: str,
) -> None:
    """Sends the entries in batches, and tells how many it was about and which were left out."""
    require_any(entries, file)

    async def work() -> None:
        number, left_out = 0, list[str]()
        async with connect_addresses(Target(**where)) as stub:
            for batch in batches(entries, file):
                count, refused = await send(stub, batch)
                number += count
                left_out += refused
        console = open_console()
        console.print(f"{plural(number, 'entry') if number == 1 else f'{number:,} entries'} {done}.", highlight=False)
        for each in left_out:
            console.print(Text(f"left out: {each}", style="yellow"))

    run(work())


def _show(
    where: dict[str, Any],
    request: Any,
    read: Callable[[AddressHealthServiceStub], Awaitable[Any]],
    rows_of: Callable[[Any], Iterable[Any]],
    limit: int,
    as_json: bool,
    render: Callable[[list[Any]], RenderableType],
) -> None:
    """Up to `limit` rows, page after page; a filtered page may be empty and still not be the last."""

    async def work() -> None:
        found: list[Message] = []
        async with connect_addresses(Target(**where)) as stub:
            while len(found) < limit:
                request.page_size = min(limit - len(found), PAGE_SIZE_MAX)
                page = await read(stub)
                found += rows_of(page)
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    break
        console = open_console()
        if as_json:
            for each in found:
                logs.print_json(console, each)
        else:
            console.print(render(found))

    run(work())


def _filter(statuses: tuple[str, ...], reasons: tuple[str, ...], domain: str, text: str) -> dict[str, Any]:
    return {
        "statuses": [choices(pb.AddressStatus)[each] for each in statuses],
        "reasons": [choices(Reason)[each] for each in reasons],
        "recipient_domain": domain,
        "text": text,
    }


def _who(batch: list[str], profiles: bool) -> dict[str, list[str]]:
    return {"profile_ids" if profiles else "addresses": batch}


def _number(count: int) -> str:
    return "1 address" if count == 1 else f"{count:,} addresses"


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    made = Timestamp()
    made.FromDatetime(moment)
    return made


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _render_addresses(found: Iterable[pb.AddressHealth]) -> RenderableType:
    table = _table("Address", "Status", "Errors", "Reason", "When", "What was said, or why")
    for each in found:
        table.add_row(
            Text(each.address), label(pb.AddressStatus, each.status) or "no errors", str(each.error_count or ""),
            "by hand" if each.adder else label(Reason, each.reason), local_time(each.error_time, seconds=False),
            Text(each.note or each.diagnostic),
        )  # fmt: skip
    return table


def _render_reports(found: Iterable[pb.AddressReport]) -> RenderableType:
    table = _table("When", "Report", "Reason", "Delivery", "#")
    for each in found:
        table.add_row(
            local_time(each.event_time), label(Outcome, each.outcome), label(Reason, each.reason),
            each.delivery_id, str(each.recipient),
        )  # fmt: skip
    return table


def _render_denials(found: Iterable[pb.Denial]) -> RenderableType:
    table = _table("Channel", "Address", "Profile", "Cause", "Since", "Note")
    for each in found:
        table.add_row(
            label(Channel, each.channel), Text(each.address), Text(each.profile_id),
            label(pb.DenialCause, each.cause), local_time(each.deny_time, seconds=False), Text(each.note),
        )  # fmt: skip
    return table


def _render_allowlist(found: Iterable[pb.AllowlistEntry]) -> RenderableType:
    table = _table("Channel", "Address", "Since", "By", "Note")
    for each in found:
        table.add_row(
            label(Channel, each.channel), Text(each.address), local_time(each.add_time, seconds=False),
            Text(each.adder), Text(each.note),
        )  # fmt: skip
    return table
