"""Numbers, enums and times as people read them."""

from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from campaign.delivery.v1.kpis_pb2 import Rate

NONE = "—"


def label(enum: Any, number: int) -> str:
    """An enum's value in lower case without its prefix: `mailbox full`. Empty for UNSPECIFIED; `?9` for a newer one."""
    if number == 0:
        return ""
    values = enum.DESCRIPTOR.values_by_number
    if number not in values:
        return f"?{number}"
    prefix = enum.DESCRIPTOR.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(values[number].name).removeprefix(prefix).lower().replace("_", " ")


def choices(enum: Any) -> dict[str, Any]:
    """An enum's values by what one types on a command line: `mailbox-full`. Without UNSPECIFIED."""
    numbers = sorted(number for number in enum.DESCRIPTOR.values_by_number if number != 0)
    return {label(enum, number).replace(" ", "-"): number for number in numbers}


def percent(rate: Rate) -> str:
    """`71.3 %`, or a dash where there is no rate. Neither 0 nor 100 is shown for what only rounds to it."""
    if not rate.HasField("rate"):
        return NONE
    text = f"{rate.rate:.1%}"
    if text == "100.0%" and rate.count < rate.base:
        text = "99.9%"
    if text == "0.0%" and rate.count > 0:
        text = "<0.1%"
    return text.replace("%", " %")


def fraction(rate: Rate) -> str:
    """`12,834 of 18,000`."""
    return f"{rate.count:,} of {rate.base:,}"


def local_time(moment: Timestamp, *, seconds: bool = True) -> str:
    """A time in the zone of the machine; empty if unset."""
    if not moment.seconds and not moment.nanos:
        return ""
    local: datetime = moment.ToDatetime(tzinfo=datetime.now().astimezone().tzinfo)
    return local.strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def plural(number: int, noun: str) -> str:
    """`1 line`, `2,000 lines`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
