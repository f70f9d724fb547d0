"""A key pair and tokens for development, demos and tests. In production, the organisation's issuer signs."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from service_runtime.access import ALGORITHM, AUDIENCE
from service_runtime.clock import Clock, SystemClock

PRIVATE_KEY_FILE = "development-private-key.pem"
PUBLIC_KEY_FILE = "development-public-key.pem"


@dataclass(frozen=True)
class DevelopmentKeys:
    """An Ed25519 key pair that signs the tokens which `TokenVerifier` accepts."""

    private_key: Ed25519PrivateKey
    clock: Clock

    @classmethod
    def generate(cls, clock: Clock | None = None) -> Self:
        """A new pair, known to nobody else."""
        return cls(Ed25519PrivateKey.generate(), clock or SystemClock())

    @classmethod
    def read(cls, folder: Path, clock: Clock | None = None) -> Self:
        """The pair that `write` left in `folder`."""
        key = load_pem_private_key((folder / PRIVATE_KEY_FILE).read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{folder / PRIVATE_KEY_FILE} holds no Ed25519 private key: remove it and write a new one")
        return cls(key, clock or SystemClock())

    def write(self, folder: Path) -> None:
        """Writes both PEM files, readable by their owner only; refuses to replace a private key that is there."""
        folder.mkdir(parents=True, exist_ok=True)
        _write_private(folder / PRIVATE_KEY_FILE, self.private_pem, os.O_EXCL)
        _write_private(folder / PUBLIC_KEY_FILE, self.public_pem, os.O_TRUNC)

    @property
    def private_pem(self) -> bytes:
        return self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def public_pem(self) -> bytes:
        return self.private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(
        self, subject: str, roles: Iterable[str], lifetime_seconds: float = 3_600.0, *, audience: str = AUDIENCE
    ) -> str:
        """A token for `subject` with these roles. A negative lifetime makes one that has already expired."""
        now_seconds = self.clock.now_us() / 1_000_000
        claims = {
            "sub": subject,
            "aud": audience,
            "roles": sorted(roles),
            "iat": int(now_seconds),
            "exp": now_seconds + lifetime_seconds,
        }
        return jwt.encode(claims, self.private_key, algorithm=ALGORITHM)


def _write_private(path: Path, content: bytes, how: int) -> None:
    # The mode is given at creation: a chmod afterwards would leave the key readable for a moment.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600), "wb") as file:
        file.write(content)
