"""The base of every error that a caller may be told about. Pure: it knows neither gRPC nor the domain.

    Exception
     └─ Problem            has a message for humans, machine-readable metadata, perhaps a retry delay
         └─ InvalidInput   names the fields that are wrong

A service derives its own errors from these and maps them to status codes in one table (`errors.ErrorTable`).
Anything that is no `Problem` and stands in no table is a bug, and its text never reaches a caller.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

_NO_METADATA: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field of a request: where (`recipients[3].address`) and what would be right."""

    field: str
    description: str


class Problem(Exception):
    """An error that its cause can act upon. The message says what is wrong AND what to do about it."""

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] = _NO_METADATA,
        violations: Iterable[FieldViolation] = (),
        retry_delay_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = MappingProxyType(dict(metadata))
        self.violations = tuple(violations)
        self.retry_delay_seconds = retry_delay_seconds


class InvalidInput(Problem):
    """The request is malformed whatever the state of the system: correct the named fields and send it again."""

    def __init__(self, violations: Iterable[FieldViolation], *, metadata: Mapping[str, str] = _NO_METADATA) -> None:
        found = tuple(violations)
        if not found:
            raise ValueError("InvalidInput needs at least one violation: the caller must learn what to correct")
        first = f"{found[0].field}: {found[0].description}"
        more = f" (and {len(found) - 1} more violations)" if len(found) > 1 else ""
        super().__init__(f"{first}{more}", metadata=metadata, violations=found)

    @classmethod
    def of(cls, field: str, description: str) -> Self:
        """The common case: a single wrong field."""
        return cls((FieldViolation(field, description),))
