"""A whole message: subject, HTML and text, compiled once and rendered for many recipients."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from message_template.sandbox import InvalidTemplate, LimitExceeded, Template, TemplateProblem, compile_template

SUBJECT_CHARACTERS_MAX: Final = 2_000
BODY_CHARACTERS_MAX: Final = 1_024 * 1_024
ATTRIBUTES_CHARACTERS_MAX: Final = 64 * 1_024
COMPILED_MAX: Final = 32

_LINE_BREAKS_AND_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class NotRendered(Exception):
    """The message can't be made for this recipient. The text says why, and holds none of the recipient's data."""


@dataclass(frozen=True, slots=True)
class RenderedMessage:
    """What one recipient gets. The subject is one line."""

    subject: str
    html: str
    text: str


class MessageTemplate:
    """The compiled templates of one message. Raises `InvalidTemplate` if one can't be compiled.

    HTML escapes the attributes; subject and text show them as they are. An attribute that a recipient lacks is empty.
    """

    def __init__(self, subject: str, html: str, text: str) -> None:
        self._subject = _compile("subject", subject)
        self._html = _compile("html", html, autoescape=True)
        self._text = _compile("text", text)

    def render(self, attributes: Mapping[str, str]) -> RenderedMessage:
        """The message for one recipient; raises `NotRendered`."""
        values = dict(attributes)
        if sum(map(len, values.values())) > ATTRIBUTES_CHARACTERS_MAX:
            raise NotRendered(f"the attributes are longer than {ATTRIBUTES_CHARACTERS_MAX:,} characters together")
        subject = _render("subject", self._subject, values, SUBJECT_CHARACTERS_MAX)
        return RenderedMessage(
            # A line break from an attribute would begin a mail header of the recipient's own choice.
            subject=_LINE_BREAKS_AND_CONTROLS.sub(" ", subject).strip(),
            html=_render("html", self._html, values, BODY_CHARACTERS_MAX),
            text=_render("text", self._text, values, BODY_CHARACTERS_MAX),
        )


@lru_cache(maxsize=COMPILED_MAX)
def compiled(subject: str, html: str, text: str) -> MessageTemplate:
    """The template of this content, compiled at its first use; keyed by the content, so that it is never stale."""
    return MessageTemplate(subject, html, text)


def _compile(field: str, source: str, *, autoescape: bool = False) -> Template | str:
    if "{" not in source:
        return source  # plain text needs no engine, nor an escape: it is the author's own
    try:
        return compile_template(source, autoescape=autoescape)
    except InvalidTemplate as invalid:
        raise InvalidTemplate(
            TemplateProblem(problem.line, f"{field}: {problem.message}") for problem in invalid.problems
        ) from None


def _render(field: str, template: Template | str, attributes: dict[str, str], characters_max: int) -> str:
    if isinstance(template, str):
        return template
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.pieces(attributes):
            size += len(piece)
            if size > characters_max:
                raise LimitExceeded(f"it is longer than {characters_max:,} characters")
            pieces.append(piece)
    except LimitExceeded as exceeded:
        raise NotRendered(f"{field}: {exceeded}") from None
    except Exception as error:
        # Whatever a template does wrong, it does to its own recipient only. The engine's text may quote attributes.
        raise NotRendered(f"{field}: {type(error).__name__} while rendering: check how attributes are used") from error
    return "".join(pieces)
