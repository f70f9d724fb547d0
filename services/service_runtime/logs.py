"""One log handler, to stderr: JSON lines for machines, or a readable line for humans in development.

Messages are constant sentences; what varies goes into `extra`, always with an `action`. grpc's C core writes to stderr
by itself: a service's `__main__` sets `GRPC_VERBOSITY=ERROR` in the environment before anything imports grpc.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

_STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_DISCONNECT_LOGGER = "grpc._cython.cygrpc"
_DISCONNECT_ERRORS = ("ExecuteBatchError", "GeneratorExit", "InternalError", "AbortError", "CancelledError")


def configure_logs(*, level: str = "INFO", human: bool = False, stream: TextIO | None = None) -> None:
    """Replaces all handlers of the root logger by one. Call it once, in `__main__`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(ConsoleFormatter() if human else json_formatter())
    handler.addFilter(drop_disconnects)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def json_formatter() -> logging.Formatter:
    """One JSON object a line: time, level, logger, message, then the extras and the traceback."""
    return _UtcJsonFormatter(
        ["levelname", "name", "message"], rename_fields={"levelname": "level", "name": "logger"}, timestamp=False
    )


def drop_disconnects(record: logging.LogRecord) -> bool:
    """Refuses what grpc logs as an error whenever a peer goes away while a write to it is pending."""
    if record.name != _DISCONNECT_LOGGER:
        return True
    kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
    return kind not in _DISCONNECT_ERRORS and not any(name in record.getMessage() for name in _DISCONNECT_ERRORS)


class _UtcJsonFormatter(JsonFormatter):
    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        log_data["time"] = _iso_time(record)
        super().add_fields(log_data, record, message_dict)


class ConsoleFormatter(logging.Formatter):
    """`12:00:00.000 INFO  relay: part relayed  action=relay_part count=3`."""

    def format(self, record: logging.LogRecord) -> str:
        extras = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD_ATTRIBUTES)
        line = (
            f"{_iso_time(record)[11:23]} {record.levelname:<7} {record.name}: {record.getMessage()}  {extras}".rstrip()
        )
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        if record.stack_info:
            line = f"{line}\n{self.formatStack(record.stack_info)}"
        return line


def _iso_time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
