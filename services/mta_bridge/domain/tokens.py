"""Tokens: a message id that survives a mail address, and that nobody else can make.

A bounce comes back to `b+TOKEN@bounce-domain`, whatever the mail server that wrote it understands of reports. Mail
servers may change the case of a local part and cut what is longer than 64 characters; people may guess ids. So a token
is lower-case base32 (read in any case), short, and ends with a MAC.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence
from typing import Final

_MAC_BYTES: Final = 10
_PACKED, _PLAIN, _DIGEST = b"\x01", b"\x02", b"\x03"
_PLAIN_BYTES_MAX: Final = 20
DIGEST_BYTES: Final = 16
TOKEN_CHARACTERS_MAX: Final = 56
"""With a prefix of up to eight characters it fits into a local part."""
KEY_BYTES_MIN: Final = 16

_OUR_FORM = re.compile(r"([1-9][0-9]{0,18})-([1-9][0-9]{0,9})")
_CANDIDATE = re.compile(rb"(?<![a-z2-7])[a-z2-7]{18,56}(?![a-z2-7])", re.IGNORECASE)
CANDIDATES_MAX: Final = 2_000
"""Looked at in one text: a bound on the work that a hostile mail can cause."""


class DigestToken(bytes):
    """The digest of a message id that was too long for a token: the journal knows the id."""


class Tokens:
    """Makes and reads tokens. The first key signs; all of them are good for reading, so that keys can be changed."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) < KEY_BYTES_MIN for key in keys):
            raise ValueError(f"a token key has at least {KEY_BYTES_MIN} bytes: write a longer one")
        self._keys = [hashlib.blake2b(key, digest_size=32).digest() for key in keys]

    def make(self, message_id: str) -> str:
        """The token of a message id."""
        payload = _pack(message_id)
        return base64.b32encode(payload + _mac(self._keys[0], payload)).decode("ascii").rstrip("=").lower()

    def read(self, token: str) -> str | DigestToken | None:
        """The message id (or its digest) behind a token in any case; None if it is none of ours."""
        if not 18 <= len(token) <= TOKEN_CHARACTERS_MAX or not token.isascii():
            return None
        try:
            raw = base64.b32decode(token.upper() + "=" * (-len(token) % 8))
        except ValueError:
            return None
        payload, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if not any(hmac.compare_digest(mac, _mac(key, payload)) for key in self._keys):
            return None
        return _unpack(payload)

    def find(self, text: bytes) -> Iterator[str | DigestToken]:
        """Whatever tokens of ours stand in a text, in their order. Nobody else can have put one there by accident."""
        for number, match in enumerate(_CANDIDATE.finditer(text)):
            if number >= CANDIDATES_MAX:
                return
            if (found := self.read(match[0].decode("ascii"))) is not None:
                yield found


def digest_of(message_id: str) -> bytes:
    """What stands in a token instead of an id that is too long."""
    return hashlib.blake2b(message_id.encode(), digest_size=DIGEST_BYTES).digest()


def needs_digest(message_id: str) -> bool:
    """Whether the token of this id has only its digest."""
    return _OUR_FORM.fullmatch(message_id) is None and len(message_id.encode()) > _PLAIN_BYTES_MAX


def _pack(message_id: str) -> bytes:
    if match := _OUR_FORM.fullmatch(message_id):
        delivery, recipient = int(match[1]), int(match[2])
        return _PACKED + delivery.to_bytes(8, "big") + recipient.to_bytes((recipient.bit_length() + 7) // 8, "big")
    plain = message_id.encode()
    return _PLAIN + plain if len(plain) <= _PLAIN_BYTES_MAX else _DIGEST + digest_of(message_id)


def _unpack(payload: bytes) -> str | DigestToken | None:
    kind, rest = payload[:1], payload[1:]
    if kind == _PACKED and len(rest) > 8:
        return f"{int.from_bytes(rest[:8], 'big')}-{int.from_bytes(rest[8:], 'big')}"
    if kind == _PLAIN:
        return rest.decode("utf-8", "replace")
    if kind == _DIGEST and len(rest) == DIGEST_BYTES:
        return DigestToken(rest)
    return None


def _mac(key: bytes, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, key=key, digest_size=_MAC_BYTES, person=b"campaign-token").digest()
