"""Addresses as the preparation judges them. Anything may be added to an audience; here it is told what can be sent."""

import re
from enum import IntEnum
from functools import lru_cache
from typing import Final

from delivery_service.domain.lifecycle import Channel

_LOCAL_PART: Final = re.compile(r"[^\s@\"(),:;<>\[\\\]\x00-\x1f\x7f]{1,64}")
_DOMAIN: Final = re.compile(
    r"(?:[^\W_](?:(?:[^\W_]|-){0,61}[^\W_])?\.)+[^\W\d_](?:(?:[^\W_]|-){0,61}[^\W_])?",
    re.UNICODE,
)
_PHONE: Final = re.compile(r"\+?[0-9]{6,15}")
_EMAIL_LENGTH_MAX: Final = 254
_DOMAINS_CACHED_MAX: Final = 10_000


class AddressProblem(IntEnum):
    """What is wrong with an address; the numbers are stored."""

    NONE = 0
    EMPTY = 1
    MALFORMED = 2


def normalise_address(channel: Channel, address: str) -> str:
    """The form that is stored, compared and written to: trimmed, an email's domain in lower case."""
    address = address.strip()
    if channel is Channel.EMAIL:
        local, at, domain = address.rpartition("@")
        return f"{local}{at}{domain.lower()}"
    return address


def recipient_domain_of(text: str) -> str | None:
    """The form in which a recipient domain is compared; None if it can't be one."""
    recipient_domain = text.strip().lower()
    return recipient_domain if _well_formed_domain(recipient_domain) else None


def address_problem(channel: Channel, address: str) -> AddressProblem:
    """Judges a normalised address: by form alone, since only the receiving server knows the rest."""
    if not address:
        return AddressProblem.EMPTY
    well_formed = False
    match channel:
        case Channel.EMAIL:
            local_part, _, domain = address.rpartition("@")
            well_formed = (
                len(address) <= _EMAIL_LENGTH_MAX
                and _well_formed_domain(domain)
                and _LOCAL_PART.fullmatch(local_part) is not None
                and local_part[0] != "."
                and local_part[-1] != "."
                and ".." not in local_part
            )
        case Channel.SMS:
            well_formed = _PHONE.fullmatch(address) is not None
        case Channel.PUSH:
            well_formed = not any(character.isspace() for character in address)
    return AddressProblem.NONE if well_formed else AddressProblem.MALFORMED


def normalise_domain(domain: str) -> str:
    """The form in which an email's domain is compared."""
    return domain.strip().lower()


def is_domain(domain: str) -> bool:
    """Whether a normalised text can be an email's domain."""
    return len(domain) <= _EMAIL_LENGTH_MAX and _well_formed_domain(domain)


@lru_cache(_DOMAINS_CACHED_MAX)
def _well_formed_domain(domain: str) -> bool:
    """Kept, since an audience has many addresses in few domains."""
    return _DOMAIN.fullmatch(domain) is not None
