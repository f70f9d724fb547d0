"""Ties what comes in to the message that it is about."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from mta_bridge.domain.reports import Clues, Found, Report
from mta_bridge.domain.tokens import DigestToken, Tokens
from mta_bridge.store.journal import Journal

MESSAGE_ID_CHARACTERS_MAX: Final = 100
"""No message has a longer one."""


class Correlation:
    """By return path, then by a token anywhere, then by the id that someone trusted gives."""

    def __init__(self, tokens: Tokens, journal: Journal) -> None:
        self._tokens = tokens
        self._journal = journal

    def message_of(self, clues: Clues) -> str | None:
        """The message id; None if nothing leads to one."""
        for found in self._found(clues):
            if (message_id := self._journal.message_of(found)) is not None:
                return message_id
        return clues.message_id if 0 < len(clues.message_id) <= MESSAGE_ID_CHARACTERS_MAX else None

    def tie(self, found: Found) -> Report | None:
        """The report with its message id, if it can be tied to one."""
        message_id = self.message_of(found.clues)
        return None if message_id is None else replace(found.report, message_id=message_id)

    def _found(self, clues: Clues) -> Iterator[str | DigestToken]:
        for address in clues.addresses:
            yield from self._of_address(address)
        for text in clues.texts:
            yield from self._tokens.find(text)

    def _of_address(self, address: str) -> Iterator[str | DigestToken]:
        local = address.strip().removeprefix("<").partition("@")[0].removesuffix(">")
        for candidate in (local.partition("+")[2], local):
            if candidate and (found := self._tokens.read(candidate)) is not None:
                yield found
