"""How far a log has been read and acknowledged."""

import sqlite3
from typing import NamedTuple


class Place(NamedTuple):
    """A position in a file: its inode, and the bytes that are done with."""

    inode: int
    offset: int


class LogPlaces:
    """By the name of the log."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def get(self, name: str) -> Place | None:
        row = self._database.execute("SELECT inode, offset FROM log_place WHERE name = ?", (name,)).fetchone()
        return None if row is None else Place(row[0], row[1])

    def set(self, name: str, place: Place) -> None:
        self._database.execute("INSERT OR REPLACE INTO log_place VALUES (?, ?, ?)", (name, *place))
