"""The parts of a mail, as far as anyone needs them to read a bounce: bounded, and content with anything.

By hand, and not by the standard library: that takes several times as long, reads a mail of 50 MB to its end, and goes
as deep as the mail does.
"""

import base64
import binascii
import codecs
import quopri
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from typing import Final

BYTES_READ_MAX: Final = 1024 * 1_024
PARTS_MAX: Final = 60
DEPTH_MAX: Final = 8
HEADERS_MAX: Final = 400
HEADER_CHARACTERS_MAX: Final = 4_000

_BREAK: Final = re.compile(rb"\r\n?")
_PARAMETER: Final = re.compile(r'[;\s]\s*([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))')
_NO_CHARSETS: Final = frozenset(("idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined"))
"""Codecs of Python's that are no character sets: some take quadratic time, some give halves of characters."""
_JAPANESE: Final = (b"\x1b$", "iso-2022-jp-ext")
"""What Japanese text in seven bits begins with, and how it is read: it is ASCII for whoever does not look."""
_HEADER: Final = re.compile(rb"([!-9;-~]{1,76})[ \t]*:[ \t]*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """A mail, or a part of one. Header names are in lower case."""

    headers: dict[str, list[str]]
    content_type: str
    parameters: dict[str, str]
    body: bytes
    parts: tuple["Part", ...] = field(default=())

    def header(self, name: str) -> str:
        """The first header of that name; empty if there is none."""
        return self.headers.get(name, [""])[0]

    def walk(self) -> Iterator["Part"]:
        """This part, and all parts below it, in the order of the mail."""
        yield self
        for part in self.parts:
            yield from part.walk()

    @property
    def preamble(self) -> str:
        """What stands before the first of its parts, where no mail reader shows it."""
        mark = b"\n--" + self.parameters.get("boundary", "").encode("utf-8", "replace")
        return decoded((b"\n" + self.body).partition(mark)[0], {}) if self.parts else ""

    @property
    def text(self) -> str:
        """The body of a text, decoded as it says; what can't be decoded is replaced."""
        return decoded(_transfer_decoded(self.body, self.header("content-transfer-encoding")), self.parameters)


def parse(raw: bytes) -> Part:
    """A mail; of a long one its beginning."""
    return _Parser().part(_BREAK.sub(b"\n", raw[:BYTES_READ_MAX]), 0)


def header_blocks(text: bytes) -> list[dict[str, list[str]]]:
    """Blocks of headers between empty lines, as in a delivery status."""
    return [block for chunk in re.split(rb"\n[ \t]*\n", text.strip(b"\n")) if (block := _headers(chunk))]


def decoded_header(value: str) -> str:
    """A header with its encoded words decoded."""
    if "=?" not in value:
        return value
    try:
        return _whole(str(make_header(decode_header(value))))
    except (HeaderParseError, LookupError, UnicodeError, ValueError):
        return value


def decoded(body: bytes, parameters: dict[str, str]) -> str:
    """Text in the character set that a part names, or in one that fits."""
    begins, japanese = _JAPANESE
    for charset in (japanese if begins in body else "", parameters.get("charset", ""), "utf-8"):
        try:
            if charset and codecs.lookup(charset).name not in _NO_CHARSETS:
                return _whole(body.decode(charset))
        except (LookupError, UnicodeDecodeError, ValueError):
            continue
    return body.decode("latin-1")


def _whole(text: str) -> str:
    """Without the halves of characters, which UTF-7 can spell and nothing else can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


class _Parser:
    def __init__(self) -> None:
        self._parts = 0

    def part(self, data: bytes, depth: int, default_type: str = "text/plain") -> Part:
        self._parts += 1
        data = data.lstrip(b"\n") if depth == 0 else data
        if depth == 0 and data.startswith((b"From ", b">From ")):  # the line of an mbox
            data = data.partition(b"\n")[2]
        if data.startswith(b"\n"):
            head, body = b"", data[1:]
        else:
            head, _, body = data.partition(b"\n\n")
        headers = _headers(head)
        content_type, parameters = _content_type(headers.get("content-type", [""])[0] or default_type)
        parts = tuple(self._below(content_type, parameters, body, depth))
        if not parts and content_type.startswith("multipart/"):  # it says so, and has none: what it has is text
            content_type = "text/plain"
        return Part(headers, content_type, parameters, body, parts)

    def _below(self, content_type: str, parameters: dict[str, str], body: bytes, depth: int) -> Iterator[Part]:
        if depth >= DEPTH_MAX:
            return
        if content_type.startswith("multipart/") and (boundary := parameters.get("boundary", "")):
            inner = "message/rfc822" if content_type == "multipart/digest" else "text/plain"
            for piece in _split(body, boundary):
                if self._parts >= PARTS_MAX:
                    return
                yield self.part(piece, depth + 1, inner)
        elif content_type in ("message/rfc822", "message/global") and self._parts < PARTS_MAX:
            yield self.part(body, depth + 1)


def _split(body: bytes, boundary: str) -> Iterator[bytes]:
    """The pieces between the lines of a boundary; a mail that was cut has no last line."""
    mark = b"\n--" + boundary.encode("utf-8", "replace")
    data = b"\n" + body
    at = data.find(mark)
    while at >= 0:
        line_end = data.find(b"\n", at + 1)
        if line_end < 0 or data[at + len(mark) : at + len(mark) + 2] == b"--":
            return
        following = data.find(mark, line_end)
        yield data[line_end + 1 : following if following >= 0 else len(data)]
        at = following


def _headers(head: bytes) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[bytes] = []
    for line in head.split(b"\n", HEADERS_MAX)[:HEADERS_MAX]:
        if line[:1] in (b" ", b"\t") and lines:
            if len(lines[-1]) < HEADER_CHARACTERS_MAX:
                lines[-1] += b"\n" + line
        else:
            lines.append(line)
    for line in lines:
        if match := _HEADER.match(line):
            name = match[1].decode("ascii", "replace").lower()
            found.setdefault(name, []).append(decoded(match[2][:HEADER_CHARACTERS_MAX], {}).strip())
    return found


def _content_type(value: str) -> tuple[str, dict[str, str]]:
    flat = " ".join(value.split())
    name = flat.partition(";")[0].partition(" ")[0].lower()
    parameters = {
        match[1].lower(): (match[2].replace("\\", "") if match[2] is not None else match[3])
        for match in _PARAMETER.finditer(flat)
    }
    return name, parameters


def _transfer_decoded(body: bytes, encoding: str) -> bytes:
    match encoding.strip().lower():
        case "quoted-printable":
            return quopri.decodestring(body)
        case "base64":
            try:
                compact = b"".join(body.split())
                return base64.b64decode(compact + b"=" * (-len(compact) % 4))
            except (binascii.Error, ValueError):
                return body
        case _:
            return body
