"""What came in and can't be tied to a message: kept, up to a bound, for a person to look at."""

import sqlite3
from typing import Any


class Parked:
    """The newest ones. The oldest go when there are too many."""

    def __init__(self, database: sqlite3.Connection, rows_max: int, bytes_max: int) -> None:
        self._database = database
        self._rows_max = rows_max
        self._bytes_max = bytes_max

    def add(self, source: str, time_us: int, reason: str, content: bytes) -> None:
        """Keeps its beginning. Committed when this returns."""
        cursor = self._database.execute(
            "INSERT INTO parked (source, time_us, reason, content) VALUES (?, ?, ?, ?)",
            (source, time_us, reason, content[: self._bytes_max]),
        )
        self._database.execute("DELETE FROM parked WHERE number <= ?", ((cursor.lastrowid or 0) - self._rows_max,))

    def list(self, limit: int, *, before: int | None = None) -> list[dict[str, Any]]:
        """The newest first, without their content."""
        rows = self._database.execute(
            "SELECT number, source, time_us, reason, length(content) FROM parked WHERE ? IS NULL OR number < ? "
            "ORDER BY number DESC LIMIT ?",
            (before, before, limit),
        ).fetchall()
        return [dict(zip(("number", "source", "time_us", "reason", "bytes"), row, strict=True)) for row in rows]

    def content(self, number: int) -> bytes | None:
        """One of them."""
        row = self._database.execute("SELECT content FROM parked WHERE number = ?", (number,)).fetchone()
        return None if row is None else bytes(row[0])
