import io
import json
import logging
import sys

import pytest

from service_runtime.logs import ConsoleFormatter, drop_disconnects, json_formatter


def record(message: str = "part relayed", name: str = "relay", level: int = logging.INFO) -> logging.LogRecord:
    found = logging.LogRecord(name, level, __file__, 1, message, (), None)
    found.__dict__.update(action="relay_part", count=3)
    return found


def with_error(found: logging.LogRecord, error: BaseException) -> logging.LogRecord:
    try:
        raise error
    except BaseException:
        found.exc_info = sys.exc_info()
    return found


def test_json_lines_have_time_level_logger_message_and_extras() -> None:
    line = json_formatter().format(record())
    assert "\n" not in line
    fields = json.loads(line)
    assert fields.pop("time").endswith("Z")
    assert fields == {
        "level": "INFO",
        "logger": "relay",
        "message": "part relayed",
        "action": "relay_part",
        "count": 3,
    }


def test_a_traceback_stays_inside_its_json_line() -> None:
    line = json_formatter().format(with_error(record(), ValueError("boom")))
    assert "\n" not in line
    assert "ValueError: boom" in json.loads(line)["exc_info"]


def test_console_lines_show_the_extras_after_the_message() -> None:
    text = ConsoleFormatter().format(with_error(record(), ValueError("boom")))
    first, *rest = text.splitlines()
    assert first.endswith("INFO    relay: part relayed  action=relay_part count=3")
    assert rest[-1] == "ValueError: boom"


def test_the_noise_of_peers_that_leave_is_dropped_and_other_errors_of_grpc_are_not() -> None:
    class ExecuteBatchError(Exception):
        pass

    grpc_logger = "grpc._cython.cygrpc"
    assert not drop_disconnects(with_error(record("Unexpected [...]", grpc_logger, logging.ERROR), ExecuteBatchError()))
    assert not drop_disconnects(record("Unexpected [ExecuteBatchError] raised by servicer method", grpc_logger))
    assert drop_disconnects(with_error(record("Unexpected [...]", grpc_logger, logging.ERROR), ValueError()))
    assert drop_disconnects(with_error(record(), ExecuteBatchError()))


@pytest.mark.parametrize("human", [True, False])
def test_the_handler_writes_whole_lines(human: bool) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(ConsoleFormatter() if human else json_formatter())
    handler.handle(record())
    assert stream.getvalue().count("\n") == 1
