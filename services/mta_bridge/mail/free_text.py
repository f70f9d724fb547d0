"""Bounces without a report: which addresses a text says failed, and what it says about each.

By the shape that such texts share, whoever wrote them: an address, near it a reply or words of failure, often behind a
sentence that announces it. What follows the text, the copy of the original mail, is not read.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from mta_bridge.mail.mime import Part, decoded_header, header_blocks
from mta_bridge.mail.phrases import (
    ABOUT_SENDER,
    ANNOUNCES,
    CONTINUES,
    COPY_BEGINS,
    DELAYS,
    FAILS,
    MACHINE,
    NO_COPY,
    SAYS_WHY,
)
from mta_bridge.mail.replies import EXPIRY_PHRASES, codes_in, has_expired
from mta_bridge.mail.report import Action, RecipientReport

LINES_MAX: Final = 250
LINE_CHARACTERS_MAX: Final = 600
CONTEXT_LINES_MAX: Final = 12
RECIPIENTS_MAX: Final = 200
MENTIONS_MAX: Final = 400
_ENOUGH: Final = 3
_COPY_BEHIND: Final = 40
"""Characters of its own that a mail has before what looks like the beginning of a copy."""

# Letters of scripts with words that end: where they don't, an address has no beginning. And little pictures.
_LETTER: Final = r"A-Za-z0-9_\u00c0-\u2fff\U0001f000-\U0001faff"
ADDRESS: Final = re.compile(
    rf"[{_LETTER}.!#$%&'*+/=?^`{{|}}~-]{{1,64}}@(?:[{_LETTER}-]{{1,63}}\.){{1,8}}[A-Za-z][{_LETTER}-]{{0,23}}"
)
_LOCAL: Final = re.compile(r"[^\s<>,;:\"]{1,64}@[^\s<>,;:\"]{1,255}")
"""In a header, which holds nothing else, an address whose domain is a single name."""
_KIND_OF_ADDRESS: Final = re.compile(r"^(?:smtp|rfc822|mailto)=", re.IGNORECASE)
_REFUSAL: Final = re.compile(r"(?:<<< |SMTP; ?|)[45]\d\d[ -]", re.IGNORECASE)
_REPLIED: Final = re.compile(r"[245]\d\d ")
_EXPANDED: Final = re.compile(r"\W*expanded from", re.IGNORECASE)
_NO_WORDS: Final = " <>:;,.()[]\"'*-=\t"
# Not an address between brackets: that has no attributes.
_TAG: Final = re.compile(r"<[a-zA-Z/!](?:[^<>@]{0,400}|[a-zA-Z0-9]{0,12}\s[^<>]{0,400})>")
_UNREAD: Final = re.compile(r"<(style|script)\b", re.IGNORECASE)
_UNREAD_NAMES: Final = ("style", "script")
_BREAKING_TAG: Final = re.compile(r"<(?:br|p|/p|div|/div|tr|/tr|li|h\d|td)\b[^<>]{0,200}>", re.IGNORECASE)


def text_of(mail: Part) -> str:
    """What a person would read of the mail itself."""
    plain = html = ""
    for part in _readable(mail):
        if part.content_type == "text/html" and not html:
            html = _without_tags(part.text)
        elif part.content_type in ("text/plain", "text", "") and not plain.strip():
            plain = part.text
    # Some write their text before the parts, and none into them.
    return next((text for text in (plain, html) if text.strip()), mail.preamble)


def recipients_in(mail: Part) -> list[RecipientReport]:
    """The recipients that the mail says something about; empty if there are none to be found."""
    lines = _own_lines(text_of(mail))
    everything = " ".join(lines)
    not_failed = _senders(mail)
    named = [
        address.strip("<> \t\n")
        for header in mail.headers.get("x-failed-recipients", [])
        for address in decoded_header(header).split(",")
    ]
    contexts = {address.lower(): (address, context_of(lines, address)) for address in named if "@" in address}
    if not contexts:
        # Last of all also the author of the original: people write to themselves.
        contexts = _by_shape(lines, not_failed) or _by_shape(lines, _correspondents(mail))
    if not contexts:
        contexts = {
            address.lower(): (address, everything) for address in addressed(mail) if address.lower() not in not_failed
        }
    if not contexts:
        # One that writes to itself from the address that bounces come to.
        contexts = _by_shape(lines, frozenset(), sure=True)
    delayed = bool(DELAYS.search(everything) or DELAYS.search(decoded_header(mail.header("subject"))))
    return [
        _report(address, context or everything, lines, everything, alone=len(contexts) == 1, delayed=delayed)
        for address, context in list(contexts.values())[:RECIPIENTS_MAX]
    ]


def quotes_refusal(mail: Part) -> bool:
    """Whether a line is a server's refusal: what a bounce has, even if nothing in its headers says that it is one."""
    return any(_REFUSAL.match(line) and SAYS_WHY.search(line) for line in lines_of(mail))


def _reply_in(lines: list[str]) -> str:
    """The first lines that begin with a reply."""
    first = next((number for number, line in enumerate(lines) if _REFUSAL.match(line)), None)
    if first is None:
        return ""
    last = next((number for number in range(first, len(lines)) if not lines[number]), len(lines))
    return " ".join(" ".join(lines[first : min(last, first + CONTEXT_LINES_MAX)]).split())


def context_of(lines: list[str], address: str) -> str:
    """What stands about an address; empty if it is not there."""
    for number, line in enumerate(lines):
        if address.lower() in line.lower():
            return _context(lines, number, address)
    return ""


def lines_of(mail: Part) -> list[str]:
    """The lines of the mail's own text."""
    return _own_lines(text_of(mail))


def _report(
    address: str, context: str, lines: list[str], everything: str, *, alone: bool, delayed: bool
) -> RecipientReport:
    code, enhanced = codes_in(context)
    if not code and (alone or not _says_why(context.replace(address, ""))):
        # What the server itself said is better than prose about it.
        context = _reply_in(lines) or context
        code, enhanced = codes_in(context)
        if not code and not enhanced:
            code, enhanced = codes_in(everything)
    if not _says_why(context.replace(address, "")):
        context = f"{context} {everything}"
    action = Action.FAILED
    if delayed and not any(phrase in everything.lower() for phrase in EXPIRY_PHRASES):
        action = Action.DELAYED
    elif has_expired(context, code, enhanced):
        action = Action.EXPIRED
    return RecipientReport(address, action, code, enhanced, context[:1_000])


@dataclass(frozen=True, slots=True)
class _Mention:
    """An address, as it stands in a line."""

    address: str
    context: str
    score: int
    begins_line: bool


def _by_shape(lines: list[str], not_failed: frozenset[str], *, sure: bool = False) -> dict[str, tuple[str, str]]:
    best: dict[str, _Mention] = {}
    for found in islice(_mentions(lines, not_failed), MENTIONS_MAX):
        if (known := best.get(found.address.lower())) is None or found.score > known.score:
            best[found.address.lower()] = found
    chosen = {key: found for key, found in best.items() if found.score >= _ENOUGH and (found.begins_line or not sure)}
    if not sure and not chosen and (most := max((found.score for found in best.values()), default=0)):
        first, *others = [key for key, found in best.items() if found.score == most]
        # One alone, but for a list: each at the beginning of its line.
        alike = [key for key in others if best[key].begins_line and best[first].begins_line]
        chosen = {key: best[key] for key in (first, *alike)}
    told = [found.context for found in chosen.values() if found.begins_line]
    return {
        key: (found.address, found.context)
        for key, found in chosen.items()
        # An address in the middle of what is said about another one: whom to ask.
        if found.begins_line or not any(found.address in context for context in told)
    }


def _mentions(lines: list[str], not_failed: frozenset[str]) -> Iterator[_Mention]:
    for number, line in enumerate(lines):
        if _EXPANDED.match(line) or ABOUT_SENDER.match(line):  # whom the alias before it belongs to; who wrote
            continue
        for match in ADDRESS.finditer(line):
            address = _KIND_OF_ADDRESS.sub("", match[0].strip(".'`"))
            if address.lower() in not_failed or MACHINE.match(address):
                continue
            context = _context(lines, number, address)
            score = _score(lines, number, line, match, context.replace(address, ""))
            yield _Mention(address, context, score, _begins(line, match))


def _score(lines: list[str], number: int, line: str, match: re.Match[str], context: str) -> int:
    code, enhanced = codes_in(context)
    before = " ".join(lines[max(0, number - 4) : number])
    return (
        3 * bool(code)
        + 2 * bool(enhanced)
        + 2 * bool(FAILS.search(context))
        + 2 * bool(ANNOUNCES.search(before) or ANNOUNCES.search(line[: match.start()]))
        + _begins(line, match)
    )


def _context(lines: list[str], number: int, address: str) -> str:
    """The line, and those that belong to it: up to the next address or reply, or to a gap after something was said."""
    found = [lines[number]]
    replies = bool(_REPLIED.match(lines[number]))
    if replies and number and lines[number - 1].startswith("<<< "):  # sendmail says after the server's words what of it
        found.insert(0, lines[number - 1])
    said = _says_why(lines[number].replace(address, ""))
    for line in lines[number + 1 : number + CONTEXT_LINES_MAX]:
        other = next((other for other in ADDRESS.finditer(line) if other[0].lower() != address.lower()), None)
        if other is not None and (said or (_begins(line, other) and _has_words(found))):
            break
        if said and (not line.strip() or (replies and _REPLIED.match(line))):
            break
        found.append(line)
        said = said or _says_why(line)
    return " ".join(" ".join(found).split())


def _begins(line: str, address: re.Match[str]) -> bool:
    return not line[: address.start()].strip(" <\t*->\"'(:")


def _has_words(lines: list[str]) -> bool:
    return bool(ADDRESS.sub("", " ".join(lines)).strip(_NO_WORDS))


def _says_why(text: str) -> bool:
    return bool(SAYS_WHY.search(text)) or codes_in(text) != (0, "")


def _own_lines(text: str) -> list[str]:
    lines: list[str] = []
    rest = [line[:LINE_CHARACTERS_MAX] for line in text.split("\n", LINES_MAX)[:LINES_MAX]]
    for number, line in enumerate(rest):
        if lines and _begins_copy(line) and len(" ".join(lines).strip()) > _COPY_BEHIND:
            # Sun's server first tells, indented, some headers of the original, and then what it has to say.
            goes_on = line[:1] == " " and next((at for at in range(number, len(rest)) if CONTINUES.match(rest[at])), 0)
            return lines + _own_lines("\n".join(rest[goes_on:])) if goes_on else lines
        lines.append(line.strip())
    return lines


def _begins_copy(line: str) -> bool:
    return bool(COPY_BEGINS.match(line)) and not NO_COPY.match(line)


def _readable(mail: Part) -> Iterable[Part]:
    """Its own parts, and not those of a mail inside it."""
    if mail.content_type.startswith("message/"):
        return
    if mail.parts:
        for part in mail.parts:
            yield from _readable(part)
    elif mail.content_type in ("", "text", "text/plain", "text/html"):
        yield mail


def _without_unread(html: str) -> str:
    """Without style sheets and scripts. Each character is looked at a few times at most: one that has no end stays."""
    lowered, pieces, at = html.lower(), [], 0
    unended: set[str] = set()
    while (begin := _UNREAD.search(html, at)) is not None:
        name = begin[1].lower()
        end = -1 if name in unended else lowered.find(f"</{name}", begin.end())
        if end < 0:
            unended.add(name)
            if len(unended) == len(_UNREAD_NAMES):
                break
            pieces.append(html[at : begin.end()])
            at = begin.end()
            continue
        pieces.append(html[at : begin.start()])
        closed = html.find(">", end)
        at = closed + 1 if closed >= 0 else len(html)
    pieces.append(html[at:])
    return "".join(pieces)


def _without_tags(html: str) -> str:
    text = _TAG.sub(" ", _BREAKING_TAG.sub("\n", _without_unread(html)))
    for entity, character in (
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&nbsp;", " "),
        ("&#64;", "@"),
        ("&quot;", '"'),
        ("&amp;", "&"),
    ):
        text = text.replace(entity, character)
    return text


def _senders(mail: Part) -> frozenset[str]:
    """Addresses that can hardly be those that failed: who bounced, to whom, and the author of the original."""
    found = set(_correspondents(mail))
    for original in originals(mail):
        for name in ("from", "sender", "return-path"):
            found.update(address.lower() for address in ADDRESS.findall(original.header(name)))
    return frozenset(found)


def _correspondents(mail: Part) -> frozenset[str]:
    headers = ("from", "to", "return-path", "reply-to", "delivered-to", "sender", "cc", "errors-to")
    values = (value for name in headers for value in mail.headers.get(name, []))
    return frozenset(address.lower() for value in values for address in ADDRESS.findall(value))


def addressed(mail: Part) -> list[str]:
    """To whom the original mail went, if a copy of it says so."""
    found: dict[str, str] = {}
    for original in originals(mail):
        for name in ("x-original-to", "envelope-to", "to", "cc"):
            for address in ADDRESS.findall(decoded_header(original.header(name))):
                found.setdefault(address.lower(), address)
    if not found:
        for line in re.findall(
            r"(?im)^[> \t]*(?:(?:rcpt |addressed )?to|envelope-to|an|pour|para):[^\n]{0,300}", text_of(mail)
        ):
            for address in ADDRESS.findall(line) or _LOCAL.findall(line):
                found.setdefault(address.lower(), address)
    return list(found.values())


def originals(mail: Part) -> Iterable[Part]:
    """The headers of the mails that it is about."""
    for part in mail.walk():
        if part.content_type in ("message/rfc822", "message/global") and part.parts:
            yield part.parts[0]
        elif part.content_type in ("text/rfc822-headers", "message/global-headers", "message/rfc822-headers"):
            blocks = header_blocks(part.text.encode())
            if blocks:
                yield Part(blocks[0], "", {}, b"")
