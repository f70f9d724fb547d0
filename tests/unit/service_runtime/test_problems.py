import pytest

from service_runtime.problems import FieldViolation, InvalidInput, Problem


def test_a_problem_carries_its_message_and_frozen_metadata() -> None:
    given = {"state": "PAUSED"}
    problem = Problem("it is PAUSED: resume it", metadata=given, retry_delay_seconds=2.0)
    given["state"] = "changed afterwards"
    assert (str(problem), dict(problem.metadata)) == ("it is PAUSED: resume it", {"state": "PAUSED"})
    assert problem.retry_delay_seconds == 2.0


def test_invalid_input_names_its_first_field_and_how_many_more_are_wrong() -> None:
    assert str(InvalidInput.of("name", "must not be empty")) == "name: must not be empty"
    several = InvalidInput(
        [FieldViolation("a", "too long"), FieldViolation("b", "too short"), FieldViolation("c", "?")]
    )
    assert str(several) == "a: too long (and 2 more violations)"
    assert [violation.field for violation in several.violations] == ["a", "b", "c"]


def test_invalid_input_without_any_violation_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="at least one violation"):
        InvalidInput([])
