"""Reading JSON of others: whatever is missing or of another type is as if it were empty."""

from datetime import UTC, datetime
from typing import Any, Final

NUMBER_MAX: Final = 1_000_000_000
"""More than any code or count, and one more of it is still one that a field of the contract takes."""
SECONDS_MAX: Final = 4_102_444_800  # 2100-01-01
_MILLISECONDS_FROM: Final = 100_000_000_000
"""As seconds that is the year 5138: a number as large as this counts milliseconds, or less."""


def text(record: Any, *path: str) -> str:
    """The string (or number, as one) at a path."""
    value = at(record, *path)
    if isinstance(value, str):
        return _whole(value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def number(record: Any, *path: str) -> int:
    """The whole number at a path, or in the string there; 0 if it is more than a field of the contract takes."""
    value = at(record, *path)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= NUMBER_MAX:
        return 0
    return int(value)


def at(record: Any, *path: str) -> Any:
    """What is at a path; None if there is nothing."""
    for name in path:
        if not isinstance(record, dict):
            return None
        record = record.get(name)
    return record


def texts(record: Any, *path: str) -> list[str]:
    """The strings at a path where one or a list may stand."""
    value = at(record, *path)
    if isinstance(value, str):
        return [_whole(value)]
    return [_whole(each) for each in value if isinstance(each, str)] if isinstance(value, list) else []


def time_us(value: Any) -> int:
    """A time as microseconds: seconds, milliseconds or microseconds since the epoch, or ISO 8601. 0 if it is none."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return _iso_us(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e17:
        return 0
    seconds = float(value)
    while seconds >= _MILLISECONDS_FROM:
        seconds /= 1_000
    return round(seconds * 1_000_000)


def _iso_us(value: str) -> int:
    try:
        moment = datetime.fromisoformat(value.strip().replace(" UTC", "Z").replace("Z", "+00:00"))
    except ValueError:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, round(moment.timestamp() * 1_000_000))


def _whole(value: str) -> str:
    """JSON can have halves of characters, which no message of the contract can carry."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
