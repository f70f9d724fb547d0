import logging
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from service_runtime.access import PermissionDenied, TokenExpired, Unauthenticated
from service_runtime.errors import DETAILS_BYTES_MAX, MESSAGE_BYTES_MAX, ErrorStatus, ErrorTranslator, ShuttingDown, cut
from service_runtime.problems import FieldViolation, InvalidInput, Problem

METHOD = "/test.v1.TestService/Do"


class NotThere(Problem):
    pass


class BookNotThere(NotThere):
    pass


class Forgotten(Problem):
    pass


TRANSLATOR = ErrorTranslator(
    {
        NotThere: ErrorStatus(grpc.StatusCode.NOT_FOUND, "NOT_THERE"),
        ConnectionError: ErrorStatus(grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"),
    },
    "test.example",
)


def detail(status: Status, kind: Any) -> Any:
    found = kind()
    assert any(packed.Unpack(found) for packed in status.details)
    return found


def trailer_bytes(status: Status) -> int:
    """What the status takes in trailing metadata at the worst: base64, and three bytes per byte of the message."""
    return len(status.SerializeToString()) * 4 // 3 + 3 * len(status.message.encode()) + 3 * 64


def test_a_subclass_takes_the_row_of_its_nearest_base() -> None:
    status = TRANSLATOR.status_of(BookNotThere("no such book: list them"), METHOD)
    assert (status.code, status.message) == (grpc.StatusCode.NOT_FOUND.value[0], "no such book: list them")
    assert detail(status, ErrorInfo) == ErrorInfo(reason="NOT_THERE", domain="test.example")


@pytest.mark.parametrize(
    ("problem", "code", "reason"),
    [
        (InvalidInput.of("a", "b"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        (Unauthenticated("who?"), grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
        (TokenExpired("late"), grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"),
        (PermissionDenied("no"), grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING"),
        (ShuttingDown(), grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"),
    ],
)
def test_the_runtimes_own_problems_need_no_row(problem: Problem, code: grpc.StatusCode, reason: str) -> None:
    status = TRANSLATOR.status_of(problem, METHOD)
    assert (status.code, detail(status, ErrorInfo).reason) == (code.value[0], reason)


def test_a_services_row_replaces_the_runtimes_own() -> None:
    row = ErrorStatus(grpc.StatusCode.OUT_OF_RANGE, "MINE")
    status = ErrorTranslator({InvalidInput: row}, "test.example").status_of(InvalidInput.of("a", "b"), METHOD)
    assert (status.code, detail(status, ErrorInfo).reason) == (grpc.StatusCode.OUT_OF_RANGE.value[0], "MINE")


def test_a_retry_delay_becomes_retry_info() -> None:
    status = TRANSLATOR.status_of(ShuttingDown(), METHOD)
    assert detail(status, RetryInfo).retry_delay.ToMilliseconds() == 500


def test_an_error_of_a_driver_never_shows_its_text_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    status = TRANSLATOR.status_of(ConnectionRefusedError("postgres://user:password@host"), METHOD)
    assert status.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert "password" not in str(status)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.expects_errors
@pytest.mark.parametrize("error", [KeyError("secret"), Forgotten("secret")])
def test_what_stands_in_no_table_is_internal_with_an_id_that_is_logged(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    status = TRANSLATOR.status_of(error, METHOD)
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in str(status)
    error_id = detail(status, ErrorInfo).metadata["error_id"]
    assert error_id in status.message
    (record,) = caplog.records
    assert vars(record)["error_id"] == error_id
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_fifty_short_violations_are_listed_and_the_fifty_first_is_counted() -> None:
    violations = [FieldViolation(f"f{i}", "wrong") for i in range(51)]
    complete = TRANSLATOR.status_of(InvalidInput(violations[:50]), METHOD)
    assert len(detail(complete, BadRequest).field_violations) == 50
    assert "violations_left_out" not in detail(complete, ErrorInfo).metadata
    capped = TRANSLATOR.status_of(InvalidInput(violations), METHOD)
    assert [violation.field for violation in detail(capped, BadRequest).field_violations] == [
        f"f{i}" for i in range(50)
    ]
    assert detail(capped, ErrorInfo).metadata["violations_left_out"] == "1"
    assert "1 of 51 violations are not listed" in capped.message


def test_the_largest_possible_error_fits_into_eight_kibibytes_of_trailing_metadata() -> None:
    text = "€" * 10_000
    problem = InvalidInput(
        (FieldViolation(text, text) for _ in range(1_000)), metadata={f"{i}{text}": text for i in range(100)}
    )
    problem.retry_delay_seconds = 1.0
    status = TRANSLATOR.status_of(problem, METHOD)
    assert len(status.message.encode()) <= MESSAGE_BYTES_MAX
    assert trailer_bytes(status) < 8_192
    assert len(detail(status, BadRequest).field_violations) >= 1
    assert detail(status, ErrorInfo).metadata["violations_left_out"]
    assert "not listed" in status.message


def test_many_long_violations_fill_the_limit_and_do_not_pass_it() -> None:
    problem = InvalidInput(FieldViolation(f"rows[{i}]", "x" * 200) for i in range(60))
    status = TRANSLATOR.status_of(problem, METHOD)
    assert DETAILS_BYTES_MAX - 500 < status.ByteSize() <= DETAILS_BYTES_MAX


def test_a_cut_never_splits_a_character() -> None:
    assert cut("short", 5) == "short"
    assert cut("ééééé", 8) == "éé…"
    assert all(len(cut("€" * 20, size).encode()) <= size for size in range(3, 70))
    assert cut("\ud800", 10) == "?"
