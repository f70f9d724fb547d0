"""Checks on requests. Each names the field, what is wrong with it, and what to do."""

import base64
import binascii
from collections.abc import Iterable
from typing import TypeVar

from delivery_service.domain.identifiers import parse_delivery_id
from service_runtime.problems import FieldViolation, InvalidInput

E = TypeVar("E")


def delivery_id_of(text: str, field: str = "delivery_id") -> int:
    """The id in a request."""
    if not text:
        raise InvalidInput.of(field, "is empty: give the id of a delivery")
    delivery_id = parse_delivery_id(text)
    if delivery_id is None:
        raise InvalidInput.of(
            field, f"{text[:40]!r} is not a delivery id: give the decimal digits that CreateDelivery gave"
        )
    return delivery_id


def text_violation(field: str, text: str, characters_max: int) -> FieldViolation | None:
    """A text must fit, and hold no NUL: Postgres can't store one."""
    if len(text) > characters_max:
        return FieldViolation(field, f"has {len(text)} characters: at most {characters_max} are allowed")
    if "\x00" in text:
        return FieldViolation(field, "contains a NUL character: remove it")
    return None


def require_valid(violations: Iterable[FieldViolation | None]) -> None:
    """Raises InvalidInput if anything was found."""
    found = [violation for violation in violations if violation is not None]
    if found:
        raise InvalidInput(found)


def page_size_of(page_size: int, default: int, maximum: int) -> int:
    """0: the default; too large: the maximum."""
    if page_size < 0:
        raise InvalidInput.of("page_size", f"is {page_size}: give 0 for the default of {default}, or 1 to {maximum}")
    return min(page_size or default, maximum)


def page_token(place: int) -> str:
    """An opaque token for a place in a list."""
    return base64.urlsafe_b64encode(b"p" + place.to_bytes(8, "big", signed=True)).decode().rstrip("=")


def place_of(token: str, first: int) -> int:
    """The place that a token names; an empty one: the first."""
    if not token:
        return first
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 9 or raw[:1] != b"p":
        raise InvalidInput.of(
            "page_token", "is not a token of this list: pass next_page_token on unchanged, or nothing"
        )
    return int.from_bytes(raw[1:], "big", signed=True)


def enums_of(field: str, numbers: Iterable[int], known: dict[int, E]) -> frozenset[E]:
    """The members behind enum numbers of a request; 0 (UNSPECIFIED) and unknown ones are refused."""
    result = set()
    for index, number in enumerate(numbers):
        if number not in known:
            raise InvalidInput.of(
                f"{field}[{index}]", f"is {number}: give one of {sorted(known)}, or leave the filter empty"
            )
        result.add(known[number])
    return frozenset(result)
