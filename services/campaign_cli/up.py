"""`campaign up`: the whole system in the foreground, until Ctrl-C."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from campaign_cli.connection import DEFAULT_FOLDER
from campaign_cli.stack import Stack, StackSettings, run_stack


async def run_up(settings: StackSettings, console: Console) -> None:
    """Starts everything, says where it is, and stops it in order when cancelled or when a part of it dies."""
    async with run_stack_shown(settings, console) as stack:
        console.print(render_stack(stack))
        await stack.while_alive(asyncio.Event().wait())


@asynccontextmanager
async def run_stack_shown(settings: StackSettings, console: Console) -> AsyncIterator[Stack]:
    """`run_stack`, telling on the console what is being waited for."""
    with console.status("Starting …") as status:
        async with run_stack(settings, lambda part: status.update(f"Starting {part} …")) as stack:
            status.stop()
            try:
                yield stack
            finally:
                status.update("Stopping …")
                status.start()


def render_stack(stack: Stack) -> RenderableType:
    """Where everything is, and how to use it."""
    connection, folder = stack.connection, stack.folder
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(style="dim")
    table.add_row("DeliveryService", connection.delivery, f"http://{connection.delivery_admin}/metrics")
    table.add_row("FeedbackService", connection.feedback, f"http://{connection.feedback_admin}/metrics")
    table.add_row("MTA side", connection.mta, stack.mta_side)
    table.add_row("Data and logs", _shown(folder), "kept for the next start")
    table.add_row("Your token", _shown(Path(connection.token_file)), "start-deliveries, administration")
    option = "" if folder == DEFAULT_FOLDER.resolve() else f" --data {_shown(folder)}"
    commands = (
        f"campaign send{option} --recipients FILE.csv --subject TEXT --html TEXT",
        f"campaign list{option}     (also: watch, kpis, logs, log, statistics)",
    )
    usage = [Text(f"  {command}", "cyan") for command in commands]
    return Group(table, Text("In another terminal:"), *usage, Text("Ctrl-C stops everything.", "dim"))


def _shown(path: Path) -> str:
    """Relative where that is shorter to read."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
