"""The development key of a data folder, made once, and the tokens signed with it."""

import getpass
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from campaign_cli.connection import write_private
from campaign_cli.errors import CommandFailed
from service_runtime.development_keys import PRIVATE_KEY_FILE, PUBLIC_KEY_FILE, DevelopmentKeys

TOKEN_LIFETIME_SECONDS = 30 * 24 * 3_600.0
"""Renewed at every start; long enough that a development system is restarted before it ends."""

USER_ROLES = ("start-deliveries", "administration")
SERVICE_ROLES = {"delivery": "relay", "feedback": "feedback", "mta": "mta"}
"""What each process of the stack does to the next one."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the processes find key and tokens."""

    public_key: Path
    tokens: Path

    def token_file(self, holder: str) -> Path:
        """The token of a process (a key of `SERVICE_ROLES`), or of the `user`."""
        return self.tokens / f"{holder}.jwt"


def issue_credentials(folder: Path) -> Credentials:
    """Makes the key if there is none, and a fresh token for each process and for the user."""
    keys_folder, tokens = _keys_folder(folder), folder / "tokens"
    keys_folder.mkdir(mode=0o700, exist_ok=True)
    if not (keys_folder / PRIVATE_KEY_FILE).exists():
        DevelopmentKeys.generate().write(keys_folder)
    keys = DevelopmentKeys.read(keys_folder)
    tokens.mkdir(mode=0o700, exist_ok=True)
    credentials = Credentials(keys_folder / PUBLIC_KEY_FILE, tokens)
    for service, role in SERVICE_ROLES.items():
        write_private(credentials.token_file(service), keys.sign(service, [role], TOKEN_LIFETIME_SECONDS))
    write_private(credentials.token_file("user"), keys.sign(getpass.getuser(), USER_ROLES, TOKEN_LIFETIME_SECONDS))
    return credentials


def sign_token(folder: Path, subject: str | None, roles: Iterable[str], lifetime_seconds: float) -> str:
    """One more token, signed with the key of `folder`."""
    try:
        keys = DevelopmentKeys.read(_keys_folder(folder))
    except FileNotFoundError:
        message = f"there is no development key in {folder} yet"
        raise CommandFailed(message, ["campaign up makes it on its first start"]) from None
    return keys.sign(subject or getpass.getuser(), roles, lifetime_seconds)


def _keys_folder(folder: Path) -> Path:
    return folder / "keys"
