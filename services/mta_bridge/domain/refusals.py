"""How a refusal in the SMTP dialogue counts, by its codes: for the relay's answer, which goes past FeedbackService."""

from typing import Final, NamedTuple


class Qualified(NamedTuple):
    """Type and reason, by the names of the contract."""

    failure_type: str
    reason: str


NOT_RENDERED: Final = Qualified("IGNORED", "NOT_RENDERED")
_NOT_DEFINED: Final = Qualified("SOFT", "NOT_DEFINED")
_BY_DETAIL: Final = {
    "1.1": Qualified("HARD", "USER_UNKNOWN"),
    "1.3": Qualified("HARD", "USER_UNKNOWN"),
    "1.6": Qualified("HARD", "USER_UNKNOWN"),
    "1.2": Qualified("SOFT", "INVALID_DOMAIN"),
    "1.10": Qualified("SOFT", "INVALID_DOMAIN"),
    "4.4": Qualified("SOFT", "INVALID_DOMAIN"),
    "2.1": Qualified("SOFT", "ACCOUNT_DISABLED"),
    "2.2": Qualified("SOFT", "MAILBOX_FULL"),
    "2.3": Qualified("SOFT", "REFUSED"),
    "3.4": Qualified("SOFT", "REFUSED"),
}


def qualify(enhanced_code: str) -> Qualified:
    """By the enhanced code alone: the texts are the receiving servers', and these are our own server's."""
    _, _, detail = enhanced_code.partition(".")
    if found := _BY_DETAIL.get(detail):
        return found
    if detail.startswith("7."):
        return Qualified("SOFT", "REFUSED")
    return _NOT_DEFINED
