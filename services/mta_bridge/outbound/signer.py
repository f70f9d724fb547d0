"""DKIM (RFC 6376), by dkimpy."""

from pathlib import Path
from typing import Final, Protocol

import dkim

SIGNED_HEADERS: Final = [
    b"from", b"reply-to", b"to", b"subject", b"date", b"message-id", b"mime-version", b"content-type",
    b"list-unsubscribe", b"list-unsubscribe-post",
]  # fmt: skip
"""RFC 8058 wants the last two covered."""


class Sign(Protocol):
    """Adds what proves that a mail is ours."""

    def __call__(self, raw: bytes) -> bytes: ...


def unsigned(raw: bytes) -> bytes:
    """For who signs elsewhere, as in a milter of the mail server."""
    return raw


def dkim_signer(key_file: Path, selector: str, domain: str) -> Sign:
    """Signs with a private key. Raises ValueError if it is none."""
    key = key_file.read_bytes()

    def sign(raw: bytes) -> bytes:
        signature: bytes = dkim.sign(
            raw,
            selector.encode("ascii"),
            domain.encode("ascii"),
            key,
            canonicalize=(b"relaxed", b"relaxed"),
            include_headers=_present(raw),
        )
        return signature.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") + raw

    try:
        sign(b"From: <a@example.com>\r\nSubject: a\r\n\r\na\r\n")
    except dkim.DKIMException as error:
        raise ValueError(f"{key_file} can't sign ({error}): give an RSA private key as PEM") from error
    return sign


def _present(raw: bytes) -> list[bytes]:
    head = raw[: raw.index(b"\r\n\r\n")].lower()
    names = {line.split(b":", 1)[0] for line in head.split(b"\r\n")}
    return [name for name in SIGNED_HEADERS if name in names]
