"""Recipients out of a CSV file, line by line. Pure: bytes in, recipients and bad lines out.

A bad line is told with its number and its cause, and the rest goes on. An empty or malformed *address* is no bad line:
the preparation of the delivery excludes it, and says so in the plan.
"""

import csv
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

PROFILE_COLUMNS = ("profile_id", "id")
ADDRESS_COLUMNS = ("email", "address")
DELIMITERS = ",;"

# The limits of the contract (NewRecipient): what passes here is not refused there, where it would take a chunk along.
PROFILE_CHARACTERS_MAX = 200
ADDRESS_CHARACTERS_MAX = 320
ATTRIBUTES_MAX = 100
ATTRIBUTE_NAME_CHARACTERS_MAX = 100
ATTRIBUTES_BYTES_MAX = 16 * 1024

LINE_BYTES_MAX = 64 * 1024
"""No line within the limits above is longer, even if every character of it were a doubled quote."""
RECORD_LINES_MAX = 100
"""A quoted value may hold line breaks. One that does not end within so many lines was never meant to begin."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """One line that can be uploaded."""

    line: int
    profile_id: str
    address: str
    attributes: dict[str, str]


@dataclass(frozen=True, slots=True)
class BadLine:
    """One line that can't, and why."""

    line: int
    cause: str
    text: str


class HeaderProblem(Exception):
    """The first line does not say what the columns are: nothing of the file can be used."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What the header says."""

    delimiter: str
    count: int
    profile: int | None
    address: int
    attributes: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    text: str
    """Bytes that are not UTF-8 are kept as lone surrogates."""
    too_long: bool = False


def read_recipients(file: BinaryIO) -> Iterator[Recipient | BadLine]:
    """All recipients of the file, in order, with bad lines in their places. Memory does not grow with the file."""
    lines = _Lines(file)
    columns = _read_header(lines)
    while (line := lines.next()) is not None:
        if line.too_long:
            yield _bad(line, f"longer than {LINE_BYTES_MAX:,} bytes")
            continue
        try:
            values = _read_record(line, lines, columns.delimiter)
        except csv.Error as error:
            yield _bad(line, _say_csv_error(error))
            continue
        if values:  # a blank line is nothing at all
            yield _to_recipient(line, values, columns)


def _to_recipient(line: _Line, values: Sequence[str], columns: Columns) -> Recipient | BadLine:
    if cause := _find_fault(values, columns):
        return _bad(line, cause)
    profile_id = values[columns.profile].strip() if columns.profile is not None else ""
    address = values[columns.address].strip()
    attributes = {name: values[index] for index, name in columns.attributes}
    for name, value, characters_max in (
        ("profile id", profile_id, PROFILE_CHARACTERS_MAX),
        ("address", address, ADDRESS_CHARACTERS_MAX),
    ):
        if len(value) > characters_max:
            return _bad(line, f"{name} of {len(value):,} characters: at most {characters_max}")
    attributes_bytes = sum(len(name.encode()) + len(value.encode()) for name, value in attributes.items())
    if attributes_bytes > ATTRIBUTES_BYTES_MAX:
        return _bad(line, f"attributes of {attributes_bytes:,} bytes: at most {ATTRIBUTES_BYTES_MAX:,}")
    return Recipient(line.number, profile_id, address, attributes)


def _find_fault(values: Sequence[str], columns: Columns) -> str | None:
    text = "".join(values)
    if not text.isascii() and not _is_utf8(text):
        return "not valid UTF-8"
    if "\0" in text:
        return "contains a NUL character"
    if len(values) != columns.count:
        return f"{_count(len(values), 'value')}, but the header has {_count(columns.count, 'column')}"
    return None


def _read_record(line: _Line, lines: "_Lines", delimiter: str) -> list[str]:
    """The values of the record that begins with `line`; takes more lines only while a quoted value is open."""
    text, taken = line.text, deque[_Line]()
    while True:
        try:
            return next(csv.reader((text,), delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            # A quote left open by mistake would swallow the file: after a while, give up this one line only.
            more = lines.next() if _is_open(error) and len(taken) < RECORD_LINES_MAX - 1 else None
            if more is None or more.too_long:
                lines.put_back([*taken, *([more] if more else [])])
                raise
            taken.append(more)
            text += more.text


def _read_header(lines: "_Lines") -> Columns:
    line = lines.next()
    if line is None:
        raise HeaderProblem("the file is empty: the first line must name the columns, for example profile_id,email")
    text = line.text.removeprefix("\ufeff")
    if line.text.startswith(("\udcff\udcfe", "\udcfe\udcff")) or "\0" in text:
        raise HeaderProblem("the file looks like UTF-16: save it as UTF-8")
    if not _is_utf8(text) or line.too_long:
        raise HeaderProblem(
            "the first line is not valid UTF-8: save the file as UTF-8, its first line naming the columns"
        )
    by_delimiter: dict[str, list[str]] = {}
    problem = ""
    for delimiter in DELIMITERS:
        try:
            by_delimiter[delimiter] = next(csv.reader((text,), delimiter=delimiter, strict=True), [])
        except csv.Error as error:  # the wrong delimiter makes nonsense of quotes
            problem = problem or _say_csv_error(error)
    delimiter, names = max(by_delimiter.items(), key=lambda item: len(item[1]), default=("", []))
    if problem and len(names) < 2:
        raise HeaderProblem(f"the first line can't be read: {problem}")
    return _to_columns(delimiter, [name.strip() for name in names])


def _to_columns(delimiter: str, names: Sequence[str]) -> Columns:
    address = _find_column(names, ADDRESS_COLUMNS)
    if address is None:
        raise HeaderProblem(
            f"no column is called {' or '.join(ADDRESS_COLUMNS)}; the columns are: {', '.join(names) or 'none'}"
        )
    profile = _find_column(names, PROFILE_COLUMNS)
    attributes = tuple((index, name) for index, name in enumerate(names) if index not in (address, profile))
    seen: set[str] = set()
    for index, name in attributes:
        if not name:
            raise HeaderProblem(f"column {index + 1} has no name: name it, or remove it")
        if name in seen:
            raise HeaderProblem(f"two columns are called {name}: rename one")
        if len(name) > ATTRIBUTE_NAME_CHARACTERS_MAX:
            raise HeaderProblem(
                f"column {index + 1} has a name of more than {ATTRIBUTE_NAME_CHARACTERS_MAX} characters"
            )
        seen.add(name)
    if len(attributes) > ATTRIBUTES_MAX:
        raise HeaderProblem(f"{len(attributes)} attribute columns: at most {ATTRIBUTES_MAX}")
    return Columns(delimiter, len(names), profile, address, attributes)


def _find_column(names: Sequence[str], wanted: Iterable[str]) -> int | None:
    lowered = [name.lower() for name in names]
    return next((lowered.index(name) for name in wanted if name in lowered), None)


class _Lines:
    """The lines of a file, numbered from 1, each of bounded length; lines can be put back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._number = 0
        self._returned: deque[_Line] = deque()

    def next(self) -> _Line | None:
        if self._returned:
            return self._returned.popleft()
        raw = self._file.readline(LINE_BYTES_MAX + 1)
        if not raw:
            return None
        self._number += 1
        too_long = len(raw) > LINE_BYTES_MAX
        rest = raw
        while rest and not rest.endswith(b"\n"):
            rest = self._file.readline(LINE_BYTES_MAX)
        return _Line(self._number, raw.decode("utf-8", "surrogateescape"), too_long)

    def put_back(self, lines: Sequence[_Line]) -> None:
        self._returned.extendleft(reversed(lines))


def _bad(line: _Line, cause: str) -> BadLine:
    return BadLine(line.number, cause, line.text.rstrip("\r\n"))


def _is_utf8(text: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in text)


def _is_open(error: csv.Error) -> bool:
    return "unexpected end of data" in str(error)


def _say_csv_error(error: csv.Error) -> str:
    if _is_open(error):
        return "a quoted value does not end"
    if "expected after" in str(error):
        return "text follows the closing quote of a value (write a quote inside of a quoted value twice)"
    if "new-line" in str(error):
        return "a carriage return stands inside of an unquoted value"
    return str(error)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
