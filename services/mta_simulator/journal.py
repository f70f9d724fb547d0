"""Every first answer, by message id, in SQLite: what makes "accepted once" true, across restarts if in a file.

Three tables: `journal` has one row per answered message; `playing` has one row per range of journal rows whose events
are not all acknowledged; `sent` counts how often a (delivery, address) was accepted.

What is guaranteed with a file: an answer is committed before it is given, and survives the end of the process however
it comes (the write-ahead log is not synced at each commit: not the loss of the machine's power). Ranges still
`playing` at the end are played again from their beginning at the next start, with the same event times: a repetition
of what had been acknowledged already, and nothing is missing.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from mta_simulator.truth import Truth

IN_MEMORY: Final = ":memory:"
KEEP_SECONDS: Final = 10.5 * 24 * 3_600
"""The longest validity period plus 7 days. Older entries go at the next start."""
CHECKPOINT_PAGES: Final = 10_000
"""Some 40 MB between two waits for the disk."""

WITHDRAWN: Final = b""
"""Stands for a refusal in the answer to a message that was withdrawn before it was taken."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (
    row INTEGER PRIMARY KEY,
    message_id TEXT NOT NULL UNIQUE,
    delivery INTEGER NOT NULL,
    address TEXT NOT NULL,
    answer_time_us INTEGER NOT NULL,
    refusal BLOB,
    outcome INTEGER NOT NULL,
    opened INTEGER NOT NULL,
    clicked INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS delivery (number INTEGER PRIMARY KEY, delivery_id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS playing (first_row INTEGER PRIMARY KEY, last_row INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS sent (recipient INTEGER PRIMARY KEY, times INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS sent_twice ON sent (times) WHERE times > 1;
CREATE TABLE IF NOT EXISTS made_by (script TEXT NOT NULL);
"""


class JournalUnusable(Exception):
    """The file is in use, or is no journal, or was written under other script options: playing on would then
    contradict what has been reported."""


class Entry(NamedTuple):
    """One message and its first answer."""

    message_id: str
    delivery_id: str
    address: str
    answer_time_us: int
    refusal: bytes | None
    """A serialised RelayRefusal; None if accepted; WITHDRAWN."""
    outcome: int
    opened: bool
    clicked: bool


class Answer(NamedTuple):
    """What was answered first."""

    answer_time_us: int
    refusal: bytes | None


class Recorded(NamedTuple):
    """What became of entries."""

    range_id: int
    """Names these entries for `settle`."""
    fresh: list[Entry]
    """Those that are new."""
    first_answers: dict[str, Answer]
    """By message id, the answers to those that are not, because someone else was faster."""


class Journal:
    """The journal.

    It works in the event loop's own thread, in short transactions that wait for no disk. In a thread of its own it was
    several times slower: sqlite3 gives the interpreter lock away at each row, and has to queue for it again.
    """

    def __init__(self, path: str, script: str, keep_since_us: int = 0) -> None:
        """Opens or makes the journal at `path`; `script` identifies the script options. Forgets older entries."""
        self._settled: list[tuple[int]] = []
        self._database = sqlite3.connect(path, isolation_level=None, timeout=0)
        try:
            self._open(script)
            self._forget(keep_since_us)
        except BaseException as error:
            self._database.close()
            if isinstance(error, sqlite3.Error):
                raise JournalUnusable(f"the journal {path} can't be used ({error}): give another file") from error
            raise
        self._last_row: int = self._value("SELECT coalesce(max(row), 0) FROM journal")

    def _open(self, script: str) -> None:
        # Exclusive: two simulators on one file would both believe that they alone give the first answers.
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        self._database.executescript(_SCHEMA)
        made_by = self._database.execute("SELECT script FROM made_by").fetchone()
        if made_by is None:
            self._database.execute("INSERT INTO made_by VALUES (?)", (script,))
        elif made_by[0] != script:
            raise JournalUnusable(
                f"the journal was written with {made_by[0]}, this run has {script}: use the same options, or a new file"
            )
        self._read_delivery_numbers()

    def _read_delivery_numbers(self) -> None:
        self._delivery_numbers = dict(self._database.execute("SELECT delivery_id, number FROM delivery"))

    def _forget(self, keep_since_us: int) -> None:
        self._database.execute("DELETE FROM journal WHERE answer_time_us < ?", (keep_since_us,))
        self._database.execute(
            "DELETE FROM playing WHERE NOT EXISTS (SELECT 1 FROM journal WHERE row BETWEEN first_row AND last_row)"
        )

    def known(self, message_ids: Sequence[str]) -> dict[str, Answer]:
        """The answers already given to any of these."""
        marks = ",".join("?" * len(message_ids))
        query = f"SELECT message_id, answer_time_us, refusal FROM journal WHERE message_id IN ({marks})"
        return {row[0]: Answer(row[1], row[2]) for row in self._database.execute(query, message_ids)}

    def record(self, entries: Sequence[Entry]) -> Recorded:
        """Commits first answers. Where one exists already, it stands, and is returned instead."""
        settled, self._settled = self._settled, []
        self._database.execute("BEGIN IMMEDIATE")
        try:
            recorded = self._insert(entries)
            self._database.executemany("DELETE FROM playing WHERE first_row = ?", settled)
            self._database.execute("COMMIT")
        except BaseException:
            self._database.execute("ROLLBACK")
            self._settled += settled
            self._read_delivery_numbers()
            raise
        return recorded

    def settle(self, range_id: int) -> None:
        """All events of a range are acknowledged: it need not be played again. Takes effect with the next commit."""
        self._settled.append((range_id,))

    def playing(self) -> list[int]:
        """The ranges left over from before."""
        return [row[0] for row in self._database.execute("SELECT first_row FROM playing ORDER BY 1")]

    def entries_of(self, range_id: int) -> list[Entry]:
        """The entries of a range."""
        query = """
            SELECT message_id, delivery_id, address, answer_time_us, refusal, outcome, opened, clicked
            FROM playing JOIN journal ON row BETWEEN first_row AND last_row JOIN delivery ON number = delivery
            WHERE first_row = ? ORDER BY row"""
        return [Entry(*row) for row in self._database.execute(query, (range_id,))]

    def restore(self, truth: Truth) -> None:
        """Counts all that is in the journal."""
        query = """
            SELECT delivery_id, outcome, refusal IS NULL, opened, clicked, count(*)
            FROM journal JOIN delivery ON number = delivery GROUP BY 1, 2, 3, 4, 5"""
        for delivery_id, outcome, accepted, opened, clicked, count in self._database.execute(query):
            truth.add(delivery_id, outcome, accepted=accepted, opened=opened, clicked=clicked, count=count)

    def duplicates_sent(self) -> int:
        """How many (delivery, address) were accepted more than once, under different message ids."""
        return self._value("SELECT count(*) FROM sent WHERE times > 1")

    def close(self) -> None:
        """Commits what is settled and closes the file."""
        self.record(())
        self._database.close()

    def _value(self, query: str) -> int:
        value: int = self._database.execute(query).fetchone()[0]
        return value

    def _insert(self, entries: Sequence[Entry]) -> Recorded:
        first_row = self._last_row + 1
        self._last_row += len(entries)
        changes = self._database.total_changes
        self._database.executemany(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (message_id) DO NOTHING",
            list(self._rows(first_row, entries)),
        )
        fresh, first_answers = list(entries), {}
        if self._database.total_changes - changes < len(entries):
            rows = dict(
                self._database.execute(
                    "SELECT row, message_id FROM journal WHERE row BETWEEN ? AND ?", (first_row, self._last_row)
                )
            )
            fresh = [entry for row, entry in enumerate(entries, first_row) if row in rows]
            first_answers = self.known([entry.message_id for entry in entries])
        accepted = [entry for entry in fresh if entry.refusal is None]
        self._database.executemany(
            "INSERT INTO sent VALUES (?, 1) ON CONFLICT (recipient) DO UPDATE SET times = times + 1",
            ((_recipient_key(entry),) for entry in accepted),
        )
        if accepted:
            self._database.execute("INSERT INTO playing VALUES (?, ?)", (first_row, self._last_row))
        return Recorded(first_row, fresh, first_answers)

    def _rows(self, first_row: int, entries: Sequence[Entry]) -> Iterator[tuple[Any, ...]]:
        for row, entry in enumerate(entries, first_row):
            number = self._delivery_numbers.get(entry.delivery_id)
            if number is None:
                insert = "INSERT INTO delivery (delivery_id) VALUES (?)"
                number = self._database.execute(insert, (entry.delivery_id,)).lastrowid or 0
                self._delivery_numbers[entry.delivery_id] = number
            yield (row, entry.message_id, number, *entry[2:])


def _recipient_key(entry: Entry) -> int:
    text = f"{entry.delivery_id}\0{entry.address}".encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)
