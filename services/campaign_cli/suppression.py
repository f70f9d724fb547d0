"""`campaign suppression …`: lists of addresses and domains that deliveries may be told not to write to."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, TextIO

import click
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from campaign.delivery.v1 import suppression_pb2 as pb
from campaign.delivery.v1.delivery_pb2 import Channel
from campaign_cli import logs
from campaign_cli.client import Target, connect
from campaign_cli.options import json_option, limit_option, target_options
from campaign_cli.running import open_console, run
from campaign_cli.words import choices, label, local_time

ENTRIES_PER_CALL = 2_000
MALFORMED_SHOWN = 20
PAGE_SIZE_MAX = 1_000

name_argument = click.argument("name", metavar="NAME")


@click.group()
def suppression() -> None:
    """Suppression lists: addresses and domains that deliveries may be told not to write to."""


@suppression.command("create")
@name_argument
@click.option("--channel", type=click.Choice(list(choices(Channel))), default="email", show_default=True)
@click.option("--description", default="", help="What it is for.")
@json_option
@target_options
def create(name: str, channel: str, description: str, as_json: bool, **where: Any) -> None:
    """Creates an empty list."""

    async def work() -> None:
        made = pb.SuppressionList(name=name, channel=choices(Channel)[channel], description=description)
        async with connect(Target(**where)) as client:
            request = pb.CreateSuppressionListRequest(suppression_list=made)
            created = (await client.stub.CreateSuppressionList(request, timeout=30.0)).suppression_list
        console = open_console()
        logs.print_json(console, created) if as_json else console.print(f"Created {name}.", highlight=False)

    run(work())


def entry_arguments(command: Any) -> Any:
    """Which entries: given as such, or in a file."""
    for option in (
        click.argument("entries", nargs=-1, metavar="[ENTRY]..."),
        click.option("--file", type=click.File(encoding="utf-8"), help="A file with one entry a line; -: stdin."),
    ):
        command = option(command)
    return command


def entry_options(command: Any) -> Any:
    """The same, of addresses or of domains."""
    domains = click.option("--domains", is_flag=True, help="They are domains, each with its subdomains, not addresses.")
    return entry_arguments(domains(command))


@suppression.command("add")
@name_argument
@entry_options
@target_options
def add(name: str, entries: tuple[str, ...], file: TextIO | None, domains: bool, **where: Any) -> None:
    """Adds addresses, or domains, to a list. What is on it already is no harm."""
    require_any(entries, file)

    async def work() -> None:
        console, malformed, added = open_console(), list[str](), 0
        async with connect(Target(**where)) as client:
            for batch in batches(entries, file):
                request = pb.AddSuppressionEntriesRequest(name=name, **_as(batch, domains))
                answer = await client.call(client.stub.AddSuppressionEntries, request)
                added += answer.added_count
                malformed += answer.malformed
        console.print(f"{_entries(added)} added to {name}.", highlight=False)
        _show_malformed(console, malformed)

    run(work())


@suppression.command("remove")
@name_argument
@entry_options
@target_options
def remove(name: str, entries: tuple[str, ...], file: TextIO | None, domains: bool, **where: Any) -> None:
    """Removes addresses, or domains, from a list. What is not on it is no harm."""
    require_any(entries, file)

    async def work() -> None:
        removed = 0
        async with connect(Target(**where)) as client:
            for batch in batches(entries, file):
                request = pb.RemoveSuppressionEntriesRequest(name=name, **_as(batch, domains))
                removed += (await client.call(client.stub.RemoveSuppressionEntries, request)).removed_count
        open_console().print(f"{_entries(removed)} removed from {name}.", highlight=False)

    run(work())


@suppression.command("list")
@limit_option
@json_option
@target_options
def show_lists(limit: int, as_json: bool, **where: Any) -> None:
    """Lists the lists."""

    async def work() -> None:
        console, found = open_console(), list[pb.SuppressionList]()
        request = pb.ListSuppressionListsRequest()
        async with connect(Target(**where)) as client:
            while len(found) < limit:
                request.page_size = min(limit - len(found), PAGE_SIZE_MAX)
                page = await client.call(client.stub.ListSuppressionLists, request)
                found += page.suppression_lists
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    break
        if as_json:
            for each in found:
                logs.print_json(console, each)
        else:
            console.print(_render_lists(found))

    run(work())


@suppression.command("show")
@name_argument
@limit_option
@json_option
@target_options
def show(name: str, limit: int, as_json: bool, **where: Any) -> None:
    """Lists the entries of a list: addresses, then domains."""

    async def work() -> None:
        console, left = open_console(), limit
        request = pb.ListSuppressionEntriesRequest(name=name)
        async with connect(Target(**where)) as client:
            while left > 0:
                request.page_size = min(left, PAGE_SIZE_MAX)
                page = await client.call(client.stub.ListSuppressionEntries, request)
                for each in page.entries:
                    if as_json:
                        logs.print_json(console, each)
                    else:
                        console.out(each.address or f"@{each.domain}", highlight=False)
                left -= len(page.entries)
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    break

    run(work())


@suppression.command("delete")
@name_argument
@click.confirmation_option("--yes", prompt="Delete the list with all of its entries?")
@target_options
def delete(name: str, **where: Any) -> None:
    """Deletes a list that no delivery needs any more."""

    async def work() -> None:
        async with connect(Target(**where)) as client:
            await client.stub.DeleteSuppressionList(pb.DeleteSuppressionListRequest(name=name), timeout=30.0)
        open_console().print(f"Deleted {name}.", highlight=False)

    run(work())


def require_any(entries: tuple[str, ...], file: TextIO | None) -> None:
    if not entries and file is None:
        raise click.UsageError("Give entries, or a file of them with --file.")


def batches(entries: tuple[str, ...], file: TextIO | None) -> Iterator[list[str]]:
    """What was given and what the file has, without its empty lines."""
    lines = (line.strip() for line in file or ())
    batch: list[str] = []
    for entry in filter(None, chain(entries, lines)):
        batch.append(entry)
        if len(batch) == ENTRIES_PER_CALL:
            yield batch
            batch = []
    if batch:
        yield batch


def _as(batch: list[str], domains: bool) -> dict[str, list[str]]:
    return {"domains" if domains else "addresses": batch}


def _entries(number: int) -> str:
    return f"{number:,} entry" if number == 1 else f"{number:,} entries"


def _show_malformed(console: Console, malformed: list[str]) -> None:
    if not malformed:
        return
    console.print(f"[yellow]{_entries(len(malformed))} left out, being malformed:[/]", highlight=False)
    for each in malformed[:MALFORMED_SHOWN]:
        console.out(f"  {each}", highlight=False)
    if (more := len(malformed) - MALFORMED_SHOWN) > 0:
        console.print(f"  … and {more:,} more", style="dim", highlight=False)


def _render_lists(lists: Iterable[pb.SuppressionList]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Name", no_wrap=True)
    table.add_column("Channel", no_wrap=True)
    table.add_column("Addresses", justify="right", no_wrap=True)
    table.add_column("Domains", justify="right", no_wrap=True)
    table.add_column("Changed", no_wrap=True)
    table.add_column("Description", overflow="fold")
    for each in lists:
        table.add_row(
            Text(each.name),
            label(Channel, each.channel),
            f"{each.address_count:,}",
            f"{each.domain_count:,}",
            local_time(each.update_time, seconds=False),
            Text(each.description),
        )
    return table
