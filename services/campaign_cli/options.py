"""Options that many commands have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from campaign_cli.connection import DEFAULT_FOLDER

Command = TypeVar("Command", bound=Callable[..., Any])

data_option = click.option(
    "--data", "folder", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_FOLDER, show_default=True,
    envvar="CAMPAIGN_DATA", help="The folder that the system keeps its data in.",
)  # fmt: skip
limit_option = click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def target_options(command: Command) -> Command:
    """Which DeliveryService to call: the fields of a `Target`."""
    for option in (
        click.option("--target", "address", metavar="HOST:PORT", help="Call another DeliveryService."),
        click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path), help="The token for --target."),
        data_option,
    ):
        command = option(command)
    return command
