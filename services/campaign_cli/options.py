"""Options that many commands have."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
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


_AGE = re.compile(r"(\d+)([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class Moment(click.ParamType[datetime]):
    """A point in time: ISO 8601, in the zone of the machine unless it names one; or how long ago, such as 36h or 7d."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            if match := _AGE.fullmatch(value):
                return datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time: give 2027-01-31, 2027-01-31T08:00, or an age such as 36h or 7d", param, ctx
            )


def feedback_options(command: Command) -> Command:
    """Which FeedbackService to call: the fields of a `Target`."""
    for option in (
        click.option("--target", "address", metavar="HOST:PORT", help="Call another FeedbackService."),
        click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path), help="The token for --target."),
        data_option,
    ):
        command = option(command)
    return command


def target_options(command: Command) -> Command:
    """Which DeliveryService to call: the fields of a `Target`."""
    for option in (
        click.option("--target", "address", metavar="HOST:PORT", help="Call another DeliveryService."),
        click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path), help="The token for --target."),
        data_option,
    ):
        command = option(command)
    return command
