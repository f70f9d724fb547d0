"""Page tokens of lists whose place is more than one number. Opaque to callers."""

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
        return base64.urlsafe_b64encode(self._letter + self._layout.pack(*place)).decode().rstrip("=")

    def place(self, token: str) -> tuple[int | bytes, ...]:
        """The place that a token names; InvalidInput if it names none."""
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            if raw[:1] != self._letter:
                raise ValueError
            return self._layout.unpack(raw[1:])
        except (binascii.Error, ValueError, struct.error):
            raise InvalidInput.of(
                "page_token", "is not a token of this list: pass next_page_token on unchanged, or nothing"
            ) from None
