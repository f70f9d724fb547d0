"""How the commands find the running system: `connection.json` in its data folder, and a lock that says it lives."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from campaign_cli.errors import CommandFailed

CONNECTION_FILE = "connection.json"
LOCK_FILE = "lock"
DEFAULT_FOLDER = Path(".campaign")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the parts of a running system listen, and with which token a person calls them."""

    delivery: str
    delivery_admin: str
    feedback: str
    feedback_admin: str
    mta: str
    token_file: str
    pid: int


def write_connection(folder: Path, connection: Connection) -> None:
    """Tells other commands that the system runs. It appears whole or not at all."""
    draft = folder / f"{CONNECTION_FILE}.new"
    draft.write_text(json.dumps(asdict(connection), indent=2) + "\n", "utf-8")
    draft.replace(folder / CONNECTION_FILE)


def remove_connection(folder: Path) -> None:
    """Takes it back."""
    (folder / CONNECTION_FILE).unlink(missing_ok=True)


def read_connection(folder: Path) -> Connection:
    """The connection of the system running on `folder`; `CommandFailed` if none does."""
    try:
        # The file alone proves nothing: whoever wrote it may have been killed.
        if not _is_locked(folder):
            raise FileNotFoundError
        return Connection(**json.loads((folder / CONNECTION_FILE).read_text("utf-8")))
    except FileNotFoundError:
        raise CommandFailed(
            f"nothing is running on the folder {folder}",
            ["start it with: campaign up", "or say where it runs with --data FOLDER, or --target HOST:PORT"],
        ) from None
    except (ValueError, TypeError) as error:
        raise CommandFailed(f"{folder / CONNECTION_FILE} can't be read: {error}", ["restart: campaign up"]) from None


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Makes `folder` if need be and keeps it for this process; `CommandFailed` if another one has it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandFailed(
                f"campaign up is running on the folder {folder} already",
                ["stop that one with Ctrl-C, or choose another folder with --data"],
            ) from None
        remove_connection(folder)  # of one that was killed
        try:
            yield
        finally:
            remove_connection(folder)


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read; readers see the old text or the new one."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


def _is_locked(folder: Path) -> bool:
    with (folder / LOCK_FILE).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
