"""Page tokens of lists whose place is not one number. Opaque to callers."""

import base64
import binascii
import struct
from typing import Final

from service_runtime.problems import InvalidInput


class PageTokens:
    """Tokens of one list: a letter that says which list, and the fields of a place."""

    def __init__(self, letter: bytes, layout: str) -> None:
        self._letter = letter
        self._layout: Final = struct.Struct(f">{layout}")

    def token(self, *place: int | bytes) -> str:
        """The token of a place."""
        return _encoded(self._letter, self._layout.pack(*place))

    def place(self, token: str) -> tuple[int | bytes, ...]:
        """The place that a token names; InvalidInput if it names none."""
        try:
            return self._layout.unpack(_decoded(token, self._letter))
        except struct.error:
            raise _no_token() from None


class TextTokens:
    """Tokens of one list whose place is a text."""

    def __init__(self, letter: bytes) -> None:
        self._letter = letter

    def token(self, place: str) -> str:
        """The token of a place."""
        return _encoded(self._letter, place.encode())

    def text(self, token: str) -> str:
        """The place that a token names, an empty one: before all; InvalidInput if it names none."""
        if not token:
            return ""
        try:
            text = _decoded(token, self._letter).decode()
        except UnicodeDecodeError:
            raise _no_token() from None
        if "\x00" in text:  # Postgres can't compare one
            raise _no_token()
        return text


def _encoded(letter: bytes, place: bytes) -> str:
    return base64.urlsafe_b64encode(letter + place).decode().rstrip("=")


def _decoded(token: str, letter: bytes) -> bytes:
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _no_token() from None
    if raw[:1] != letter:
        raise _no_token()
    return raw[1:]


def _no_token() -> InvalidInput:
    return InvalidInput.of("page_token", "is not a token of this list: pass next_page_token on unchanged, or nothing")
