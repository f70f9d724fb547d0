"""The journal: the first answer to every message id, in SQLite, committed before it is given.

A message's entry is made when its final dot is about to be sent. So what a crash leaves in the state SENDING is exactly
what nobody can know: between the final dot and its answer. At the next start those become UNKNOWN, are counted, and are
answered as accepted: the one thing that must not happen is a second mail. Everything before the dot is in memory alone:
it has not been sent, and comes again.

One process has a file to itself, so "the first verb wins" is decided in memory and needs no lock. Writes of one turn of
the event loop are committed together, then their callbacks run.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from mta_bridge.domain.tokens import DigestToken, digest_of, needs_digest

log = logging.getLogger(__name__)

KEEP_SECONDS: Final = 10.5 * 24 * 3_600
"""The longest validity period plus 7 days."""
PRUNED_ROWS_MAX: Final = 5_000
"""In one go: about 20 ms in which nothing else runs."""
CHECKPOINT_PAGES: Final = 10_000
EXPIRY_ASKED_MAX: Final = 10
EXPIRY_ASKED_AGAIN_SECONDS: Final = 10
"""After which a message that has not ended is asked for again; twice as long each time, so for three hours in all."""
IN_MEMORY: Final = ":memory:"

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS journal (
    message_id TEXT NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    answer_time_us INTEGER NOT NULL,
    deadline_us INTEGER NOT NULL DEFAULT 0,
    queue_id TEXT NOT NULL DEFAULT '',
    refusal BLOB,
    waits_for_expiry INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS journal_queue_id ON journal (queue_id) WHERE queue_id <> '';
CREATE INDEX IF NOT EXISTS journal_deadline ON journal (deadline_us) WHERE waits_for_expiry;
CREATE TABLE IF NOT EXISTS long_id (digest BLOB PRIMARY KEY, message_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS unknown (message_id TEXT PRIMARY KEY, time_us INTEGER NOT NULL, resolved TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS log_place (name TEXT PRIMARY KEY, inode INTEGER NOT NULL, offset INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS parked (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    source TEXT NOT NULL,
    time_us INTEGER NOT NULL,
    reason TEXT NOT NULL,
    content BLOB NOT NULL
);
"""


class JournalUnusable(Exception):
    """The file is in use by another process, or is no journal."""


class State(IntEnum):
    """What the journal says about a message."""

    SENDING = 1
    """Its final dot may be on its way."""
    ACCEPTED = 2
    REFUSED = 3
    WITHDRAWN = 4
    UNKNOWN = 5
    """It ended while SENDING: accepted or not, nobody can know."""


class Answer(NamedTuple):
    """A first answer."""

    state: State
    time_us: int
    refusal: bytes | None
    """A serialised RelayRefusal."""


class Write(NamedTuple):
    """One change of an entry, and what to do once it is committed."""

    sql: str
    values: tuple[Any, ...]
    then: Callable[[], None] | None


class Journal:
    """See above. Everything is synchronous but the group commit: a statement takes microseconds."""

    def __init__(
        self,
        path: str | Path,
        *,
        synchronous: Literal["normal", "full"] = "normal",
        on_failure: Callable[[sqlite3.Error], None] | None = None,
    ) -> None:
        self._path = str(path)
        self._on_failure = on_failure
        self._writes: list[Write] = []
        self._flushing = False
        self.unknown_total = 0
        """Messages that ever became UNKNOWN, resolved ones included."""
        self._database = sqlite3.connect(self._path, isolation_level=None, timeout=0)
        try:
            # Exclusive: two processes on one file would both believe that they alone give the first answers.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute(f"PRAGMA synchronous = {synchronous}")
            self._database.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            self._database.executescript(_SCHEMA)
            self.unknown_total = self._value("SELECT count(*) FROM unknown")
        except sqlite3.Error as error:
            self._database.close()
            raise JournalUnusable(f"the journal {path} can't be used ({error}): give another file") from error

    @property
    def database(self) -> sqlite3.Connection:
        """For the other tables of the file."""
        return self._database

    def recover(self, now_us: int, *, resend: bool) -> int:
        """What an earlier process left SENDING becomes UNKNOWN (or, to be sent again, is forgotten). How many."""
        with self._transaction():
            left = self._database.execute(
                "SELECT message_id, answer_time_us FROM journal WHERE state = ?", (State.SENDING,)
            ).fetchall()
            for message_id, time_us in left:
                self._database.execute(*self._becomes_unknown(message_id, time_us or now_us, resend=resend)[0])
                self._database.execute(*self._becomes_unknown(message_id, time_us or now_us, resend=resend)[1])
        self.unknown_total = self._value("SELECT count(*) FROM unknown")
        return len(left)

    # What is known

    def known(self, message_ids: Sequence[str]) -> dict[str, Answer]:
        """The first answers to these, as far as there are any. Not to what is being sent."""
        marks = ",".join("?" * len(message_ids))
        query = f"SELECT message_id, state, answer_time_us, refusal FROM journal WHERE message_id IN ({marks})"
        return {
            row[0]: Answer(State(row[1]), row[2], row[3])
            for row in self._database.execute(query, message_ids)
            if row[1] != State.SENDING
        }

    def message_of_queue_id(self, queue_id: str) -> str | None:
        """Which message the mail server took under this name; the latest, should it use names again."""
        row = self._database.execute(
            "SELECT message_id FROM journal WHERE queue_id = ? ORDER BY answer_time_us DESC LIMIT 1", (queue_id,)
        ).fetchone()
        return None if row is None else str(row[0])

    def message_of(self, found: str | DigestToken) -> str | None:
        """The message id that a token stands for."""
        if not isinstance(found, DigestToken):
            return found
        row = self._database.execute("SELECT message_id FROM long_id WHERE digest = ?", (bytes(found),)).fetchone()
        return None if row is None else str(row[0])

    def counts(self) -> dict[str, int]:
        """Entries by state."""
        rows = self._database.execute("SELECT state, count(*) FROM journal GROUP BY state").fetchall()
        return {State(state).name.lower(): count for state, count in rows}

    def unknown(self) -> list[dict[str, Any]]:
        """The messages that became UNKNOWN, and what was learnt of them since."""
        rows = self._database.execute("SELECT message_id, time_us, resolved FROM unknown ORDER BY time_us").fetchall()
        return [{"message_id": row[0], "time_us": row[1], "resolved": row[2]} for row in rows]

    # Changes; each takes effect with the next group commit

    def begin_sending(self, message_id: str, now_us: int, deadline_us: int, then: Callable[[], None]) -> None:
        """The final dot is about to be sent: `then` sends it."""
        if needs_digest(message_id):
            self._write("INSERT OR IGNORE INTO long_id VALUES (?, ?)", (digest_of(message_id), message_id), None)
        self._write(
            "INSERT INTO journal (message_id, state, answer_time_us, deadline_us) VALUES (?, ?, ?, ?)",
            (message_id, State.SENDING, now_us, deadline_us),
            then,
        )

    def accepted(
        self, message_id: str, time_us: int, queue_id: str, *, expires: bool, then: Callable[[], None]
    ) -> None:
        """The mail server has taken what was SENDING."""
        self._write(
            "UPDATE journal SET state = ?, answer_time_us = ?, queue_id = ?, waits_for_expiry = ? WHERE message_id = ?",
            (State.ACCEPTED, time_us, queue_id, expires and queue_id != "", message_id),
            then,
        )

    def refused(self, message_id: str, time_us: int, refusal: bytes, then: Callable[[], None]) -> None:
        """It will never be taken, whether its sending had begun or not."""
        self._write(
            "INSERT INTO journal (message_id, state, answer_time_us, refusal) VALUES (?, ?, ?, ?) ON CONFLICT "
            "(message_id) DO UPDATE SET state = excluded.state, answer_time_us = excluded.answer_time_us, "
            "refusal = excluded.refusal",
            (message_id, State.REFUSED, time_us, refusal),
            then,
        )

    def put_off(self, message_id: str, then: Callable[[], None]) -> None:
        """It was SENDING, and was surely not taken: as if it had never come."""
        self._write("DELETE FROM journal WHERE message_id = ?", (message_id,), then)

    def withdrawn(self, message_id: str, time_us: int, then: Callable[[], None]) -> None:
        """It never came, and never will."""
        self._write(
            "INSERT INTO journal (message_id, state, answer_time_us) VALUES (?, ?, ?)",
            (message_id, State.WITHDRAWN, time_us),
            then,
        )

    def became_unknown(self, message_id: str, time_us: int, *, resend: bool, then: Callable[[], None]) -> None:
        """The connection was lost between the final dot and its answer."""
        first, second = self._becomes_unknown(message_id, time_us, resend=resend)
        self._write(*first, None)
        self._write(*second, then)
        self.unknown_total += 1

    def tie(self, message_id: str, queue_id: str) -> None:
        """The mail server's log says that it has this message. Settles what was unknown."""
        self._write(
            "UPDATE unknown SET resolved = 'accepted' WHERE message_id = ? AND resolved = ''", (message_id,), None
        )
        self._write(
            "UPDATE journal SET queue_id = ?, state = CASE state WHEN ? THEN ? ELSE state END "
            "WHERE message_id = ? AND queue_id = ''",
            (queue_id, State.UNKNOWN, State.ACCEPTED, message_id),
            None,
        )

    def ended(self, message_ids: Iterable[str]) -> None:
        """The mail server is done with these: nothing is left to expire."""
        for message_id in message_ids:
            self._write("UPDATE journal SET waits_for_expiry = 0 WHERE message_id = ?", (message_id,), None)

    def asked_to_expire(self, message_ids: Iterable[str], now_us: int) -> None:
        """The mail server was asked. One that it was just trying, it may have deferred all the same: that one is asked
        for again, unless it has ended meanwhile."""
        for message_id in message_ids:
            # waits_for_expiry counts: 1 before the first time.
            self._write(
                "UPDATE journal SET deadline_us = ? + (? << (waits_for_expiry - 1)), "
                "waits_for_expiry = (waits_for_expiry + 1) * (waits_for_expiry < ?) "
                "WHERE message_id = ? AND waits_for_expiry",
                (now_us, EXPIRY_ASKED_AGAIN_SECONDS * 1_000_000, EXPIRY_ASKED_MAX, message_id),
                None,
            )

    # Housekeeping

    def take_overdue(self, now_us: int, most: int) -> list[tuple[str, str]]:
        """(message id, queue id) of accepted messages whose deadline has passed, or that are to be asked for again."""
        self.flush()
        rows = self._database.execute(
            "SELECT message_id, queue_id FROM journal WHERE waits_for_expiry AND deadline_us <= ? "
            "ORDER BY deadline_us LIMIT ?",
            (now_us, most),
        ).fetchall()
        return [(row[0], row[1]) for row in rows]

    def prune(self, now_us: int) -> int:
        """Forgets what nobody can ask for any more; how many entries."""
        before_us = now_us - int(KEEP_SECONDS * 1_000_000)
        with self._transaction():
            gone = self._database.execute(
                "DELETE FROM journal WHERE rowid IN (SELECT rowid FROM journal WHERE answer_time_us < ? "
                "AND state <> ? ORDER BY rowid LIMIT ?)",
                (before_us, State.SENDING, PRUNED_ROWS_MAX),
            ).rowcount
            if gone:
                self._database.execute("DELETE FROM long_id WHERE message_id NOT IN (SELECT message_id FROM journal)")
        return gone

    def close(self) -> None:
        """Commits what is left and closes the file."""
        self.flush()
        self._database.close()

    # The group commit

    def flush(self) -> None:
        """Commits everything that is waiting, then calls back."""
        self._flushing = False
        while self._writes:
            writes, self._writes = self._writes, []
            try:
                with self._transaction():
                    for write in writes:
                        self._database.execute(write.sql, write.values)
            except sqlite3.Error as error:
                # What the file says is behind what was done: only a new start, from the file, puts that right. A
                # message that is SENDING is counted as unknown then; nothing is answered that is not written.
                log.error("the journal can't be written, stopping", extra={"action": "write_journal"}, exc_info=error)
                if self._on_failure is not None:
                    self._on_failure(error)
                return
            for write in writes:
                if write.then is not None:
                    write.then()

    def _write(self, sql: str, values: tuple[Any, ...], then: Callable[[], None] | None) -> None:
        self._writes.append(Write(sql, values, then))
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def _becomes_unknown(
        self, message_id: str, time_us: int, *, resend: bool
    ) -> tuple[tuple[str, tuple[Any, ...]], tuple[str, tuple[Any, ...]]]:
        noted = (
            "INSERT INTO unknown VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (message_id, time_us, "sent again" if resend else ""),
        )
        if resend:
            return noted, ("DELETE FROM journal WHERE message_id = ?", (message_id,))
        return noted, (
            "UPDATE journal SET state = ?, answer_time_us = ? WHERE message_id = ?",
            (State.UNKNOWN, time_us, message_id),
        )

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._database)

    def _value(self, query: str) -> int:
        value: int = self._database.execute(query).fetchone()[0]
        return value


class _Transaction:
    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._database.execute("COMMIT" if kind is None else "ROLLBACK")
