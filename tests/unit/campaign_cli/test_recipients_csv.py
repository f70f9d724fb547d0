"""Recipients out of CSV files of every kind, good and bad."""

import io
from collections.abc import Iterator

import pytest

from campaign_cli.recipients_csv import (
    ADDRESS_CHARACTERS_MAX,
    ATTRIBUTES_BYTES_MAX,
    ATTRIBUTES_MAX,
    LINE_BYTES_MAX,
    PROFILE_CHARACTERS_MAX,
    RECORD_LINES_MAX,
    BadLine,
    HeaderProblem,
    Recipient,
    read_recipients,
)

GOOD = b"P9,zoe@mail.test,Zoe\n"
HEADER = b"id,email,name\n"


def read(content: bytes) -> list[Recipient | BadLine]:
    return list(read_recipients(io.BytesIO(content)))


def recipients(content: bytes) -> list[Recipient]:
    rows = read(content)
    assert all(isinstance(row, Recipient) for row in rows), rows
    return [row for row in rows if isinstance(row, Recipient)]


def test_columns_are_profile_address_and_attributes() -> None:
    assert recipients(b"first_name,profile_id,city,email\nAnna,P1,Lyon,anna@mail.test\n") == [
        Recipient(2, "P1", "anna@mail.test", {"first_name": "Anna", "city": "Lyon"})
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"profile_id,email\nP1,anna@mail.test\n",
        b"id,address\nP1,anna@mail.test\n",
        b"ID , E-Mail".replace(b"E-Mail", b"Email") + b"\nP1, anna@mail.test \n",
        b"\xef\xbb\xbfid,email\nP1,anna@mail.test\n",
        b"id;email\nP1;anna@mail.test\n",
        b"id,email\r\nP1,anna@mail.test\r\n",
        b"id,email\nP1,anna@mail.test",
        b'"id","email"\n"P1","anna@mail.test"\n',
        b'\xef\xbb\xbf"id";"email"\nP1;anna@mail.test\n',
        b"id,email\n\n\r\nP1,anna@mail.test\n\n",
    ],
    ids=[
        "usual", "other names", "case and spaces", "BOM", "semicolon", "CRLF", "no last line end", "quoted",
        "quoted after a BOM", "blank lines",
    ],
)  # fmt: skip
def test_every_usual_way_to_write_a_file_is_read_the_same(content: bytes) -> None:
    assert [(row.profile_id, row.address) for row in recipients(content)] == [("P1", "anna@mail.test")]


def test_quoted_values_may_hold_delimiters_quotes_and_line_breaks() -> None:
    content = b'id,email,note\nP1,anna@mail.test,"one, ""two""\nthree"\nP2,bob@mail.test,four\n'
    rows = recipients(content)
    assert [(row.line, row.attributes["note"]) for row in rows] == [(2, 'one, "two"\nthree'), (4, "four")]


def test_a_comma_in_a_semicolon_file_is_text() -> None:
    assert recipients(b"id;email;note\nP1;anna@mail.test;a,b,c,d\n")[0].attributes == {"note": "a,b,c,d"}


def test_no_profile_column_is_needed() -> None:
    assert recipients(b"email\nanna@mail.test\n") == [Recipient(2, "", "anna@mail.test", {})]


@pytest.mark.parametrize("address", ["", "nobody", "two@@signs", "a b@c d"])
def test_an_empty_or_malformed_address_is_no_bad_line(address: str) -> None:
    assert recipients(HEADER + f"P1,{address},Anna\n".encode())[0].address == address


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b"P1,anna@mail.test\n", "2 values, but the header has 3 columns"),
        (b"P1,anna@mail.test,Anna,more\n", "4 values, but the header has 3 columns"),
        (b"P1\n", "1 value, but the header has 3 columns"),
        (b"P1,anna@mail.test,An\0na\n", "contains a NUL character"),
        (b"P1,anna@mail.test,Ren\xe9\n", "not valid UTF-8"),
        (b'P1,anna@mail.test,"Anna\n', "a quoted value does not end"),
        (b'P1,anna@mail.test,"An"na\n', "text follows the closing quote of a value"),
        (b"P1,anna@mail.test,An\rna\n", "a carriage return stands inside of an unquoted value"),
        (b"P1," + b"a" * ADDRESS_CHARACTERS_MAX + b"@mail.test,Anna\n", "address of 330 characters: at most 320"),
        (b"P" * (PROFILE_CHARACTERS_MAX + 1) + b",anna@mail.test,Anna\n", "profile id of 201 characters: at most 200"),
        (b"P1,anna@mail.test," + b"A" * ATTRIBUTES_BYTES_MAX + b"\n", "attributes of 16,388 bytes: at most 16,384"),
        (b"P1,anna@mail.test," + b"A" * LINE_BYTES_MAX + b"\n", "longer than 65,536 bytes"),
    ],
    ids=[
        "too few", "too many", "far too few", "NUL", "Latin-1", "open quote", "text after a quote", "carriage return",
        "long address", "long profile", "long attributes", "long line",
    ],
)  # fmt: skip
def test_a_bad_line_is_told_and_the_rest_goes_on(line: bytes, cause: str) -> None:
    bad, good = read(HEADER + line + GOOD)
    assert isinstance(bad, BadLine)
    assert bad.line == 2
    assert bad.cause.startswith(cause)
    assert good == Recipient(3, "P9", "zoe@mail.test", {"name": "Zoe"})


def test_a_quote_left_open_costs_its_own_line_only() -> None:
    good = b"".join(b"P%d,p%d@mail.test,Name\n" % (n, n) for n in range(3 * RECORD_LINES_MAX))
    rows = read(HEADER + b'P0,zero@mail.test,"Zero\n' + good)
    assert isinstance(rows[0], BadLine)
    assert [row.line for row in rows] == list(range(2, 3 + 3 * RECORD_LINES_MAX))
    assert all(isinstance(row, Recipient) for row in rows[1:])


def test_an_overlong_line_inside_of_an_open_quote_is_told_by_itself() -> None:
    rows = read(HEADER + b'P0,zero@mail.test,"Zero\n' + b"A" * (3 * LINE_BYTES_MAX) + b"\n" + GOOD)
    assert [(row.line, isinstance(row, BadLine)) for row in rows] == [(2, True), (3, True), (4, False)]


def test_bad_lines_keep_their_text_without_the_line_end() -> None:
    assert read(HEADER + b"P1,anna@mail.test\r\n") == [
        BadLine(2, "2 values, but the header has 3 columns", "P1,anna@mail.test")
    ]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "the file is empty"),
        (b"id,name\n", "no column is called email or address; the columns are: id, name"),
        (b"\n", "no column is called email or address; the columns are: none"),
        (b"email,,name\n", "column 2 has no name"),
        (b"email,name,name\n", "two columns are called name"),
        (b"email," + b"n" * 101 + b"\n", "column 2 has a name of more than 100 characters"),
        (b"email," + b",".join(b"a%d" % n for n in range(ATTRIBUTES_MAX + 1)) + b"\n", "101 attribute columns"),
        ("email,prénom\n".encode("latin-1"), "the first line is not valid UTF-8"),
        ("email,name\n".encode("utf-16"), "the file looks like UTF-16"),
        (b'email,"name\n', "the first line can't be read: a quoted value does not end"),
    ],
    ids=["empty", "no address", "blank", "no name", "twice", "long", "many", "Latin-1", "UTF-16", "open quote"],
)
def test_a_header_that_names_no_columns_is_refused(content: bytes, cause: str) -> None:
    with pytest.raises(HeaderProblem, match=f"^{cause}"):
        read(content)


def test_a_file_is_read_line_by_line() -> None:
    class Endless(io.RawIOBase):
        lines_read = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            self.lines_read += 1
            return HEADER if self.lines_read == 1 else GOOD

    file = Endless()
    rows: Iterator[Recipient | BadLine] = read_recipients(file)  # type: ignore[arg-type]  # only readline is used
    for _ in range(10):
        assert isinstance(next(rows), Recipient)
    assert file.lines_read == 11
