"""How a failure counts and why: a pure function of what the MTA said, by the rules of `rules`."""

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

from feedback_service.domain.rules import (
    COMPLAINED,
    ERROR_IGNORED,
    NOT_DEFINED,
    REMOVED,
    RULES,
    UNREACHABLE,
    VENDOR_CLASSES,
    Rule,
    Verdict,
)
from feedback_service.domain.vocabulary import FailureType, MtaEventKind, Reason

CACHED_DECISIONS_MAX = 8_192
"""At most some 10 MB. Failures repeat a few hundred phrasings, so nearly all are found there."""
CACHED_WORDS_MAX = 16_384
TEXT_CHARACTERS_MAX = 1_000
GAP_CHARACTERS_MAX = 50
"""How much an ellipsis in a rule's text may stand for."""

NO_RULE = "none"
"""In the place of a rule's name: what was said matches none."""
_NOTHING_FAILED: Verdict = (FailureType.NONE, Reason.NONE)
_NO_COMPLAINTS = ("not-spam", "auth-failure", "dkim")
"""What a feedback report may be about besides: nobody complained of the mail (RFC 5965, RFC 6591)."""
# Plain ints: looking an enum's member up costs ten times as much.
_KINDS_SAID_WHY: frozenset[int] = frozenset(
    map(
        int,
        (
            MtaEventKind.TRANSIENT_FAILURE,
            MtaEventKind.EXPIRATION,
            MtaEventKind.BOUNCE,
            MtaEventKind.OUT_OF_BAND_BOUNCE,
        ),
    )
)
_RETRYING_KINDS = (MtaEventKind.TRANSIENT_FAILURE, MtaEventKind.EXPIRATION)
_EXPIRY_KEEPS_ROWS = (3, 4)

_VARIABLE = re.compile(r"[@\d]")
_ADDRESS = re.compile(r"[^\s<>()\[\]:;,\"']{1,100}@[^\s<>()\[\]:;,\"']{1,100}")
_NO_WORD = "<>()[]:;,.\"'"
_LINE_OF_REPLY = re.compile(r"[245]\d\d-(?=[^\W\d])")
_DIGITS = re.compile(r"\d+")
_SMTP_CODE_IN_TEXT = re.compile(r"(?:^|[:;] ?)([45]\d\d)(?=[ -])")
_ENHANCED_CODE_IN_TEXT = re.compile(r"(?<![\d.])([45]\.[1-9]\d{0,2}\.\d{1,3})(?!\.?\d)")
_GAP = " … "
_BAR = "|"
# Letters that are not one with an accent; the codes are those of a dotless i and of a typographic apostrophe.
_LETTERS: dict[int, str] = {
    **{ord(letter): plain for letter, plain in (("ł", "l"), ("ß", "ss"), ("ø", "o"), ("đ", "d"), ("æ", "ae"))},
    0x131: "i",
    0x2019: "'",
}


class Decision(NamedTuple):
    """A verdict, and what decided: the name of a rule, `kind.…` where the kind alone did, NO_RULE, or empty."""

    verdict: Verdict
    rule: str


class _Phrases:
    """The texts of a rule, ready to be looked for. Plain searches only: no text can make them slow."""

    def __init__(self, phrases: tuple[str, ...]) -> None:
        sides = [phrase.partition(_GAP) for phrase in phrases]
        self._plain = tuple(_folded(phrase) for phrase, gap, _ in sides if not gap)
        self._gapped = tuple(
            (tuple(_folded(heads).split(_BAR)), tuple(_folded(tails).split(_BAR))) for heads, gap, tails in sides if gap
        )

    def found_in(self, text: str) -> bool:
        """Whether one of them stands in `text`."""
        for phrase in self._plain:
            if phrase in text:
                return True
        for heads, tails in self._gapped:
            for head in heads:
                if head in text:
                    for tail in tails:
                        if tail in text and _near(text, head, tail):
                            return True
        return False


def _near(text: str, head: str, tail: str) -> bool:
    """Whether `tail` follows `head` after a gap that is short and about nothing else."""
    start = text.find(head)
    while start >= 0:
        after = start + len(head)
        end = text.find(tail, after, after + GAP_CHARACTERS_MAX + len(tail))
        if end >= 0 and not any(stop in text[after:end] for stop in _GAP_STOPS):
            return True
        start = text.find(head, after)
    return False


def _folded(text: str) -> str:
    """Lower case, without the accents that one server writes and another leaves out."""
    lowered = text.lower()
    if lowered.isascii():
        return lowered
    apart = unicodedata.normalize("NFKD", lowered)
    return "".join(character for character in apart if not unicodedata.combining(character)).translate(_LETTERS)


_GAP_STOPS = tuple(
    _folded(stop)
    for stop in (
        *("domain", "host", "sender", "dominio", "domane", "domena", "домен", "ドメイン", "域名", "도메인", " ip "),
        *("database", " header", "credential", "password", "contrase", "senha", "passwort", "mot de passe"),
    )
)
"""With one of these between its two ends, a text is about something else than the recipient."""
_RULES = tuple((rule, _Phrases(rule.texts)) for rule in RULES)


def implies_nothing(kind: int, feedback_type: str) -> bool:
    """Whether the event is to be acknowledged and forgotten: a report that a mail was NOT spam is no complaint,
    nor is one that it could not be authenticated."""
    return kind == MtaEventKind.COMPLAINT and feedback_type.strip().lower() in _NO_COMPLAINTS


def qualify(
    kind: int, smtp_code: int, enhanced_code: str, diagnostic: str, vendor_class: str, feedback_type: str
) -> Verdict:
    """The failure type and the reason of an event; NONE and NONE for kinds that are no failure."""
    return decide(kind, smtp_code, enhanced_code, diagnostic, vendor_class, feedback_type).verdict


def decide(
    kind: int, smtp_code: int, enhanced_code: str, diagnostic: str, vendor_class: str, feedback_type: str
) -> Decision:
    """The same, with the rule that decided."""
    if kind not in _KINDS_SAID_WHY:
        if kind == MtaEventKind.ADMIN_BOUNCE:
            return Decision(REMOVED, "kind.admin-bounce")
        if kind == MtaEventKind.COMPLAINT:
            return Decision(ERROR_IGNORED if implies_nothing(kind, feedback_type) else COMPLAINED, "kind.complaint")
        return Decision(_NOTHING_FAILED, "")
    words = _folded(diagnostic[:TEXT_CHARACTERS_MAX]).replace("...", " ... ").split()
    # The reply in the text beats a status that says no more than "failed"; some MTAs report nothing better.
    if words and not smtp_code and (found := _SMTP_CODE_IN_TEXT.search(" ".join(words))):
        smtp_code = int(found[1])
    if words and enhanced_code[1:3] in ("", ".0"):
        enhanced_code = found[1] if (found := _ENHANCED_CODE_IN_TEXT.search(" ".join(words))) else enhanced_code
    vendor_class = vendor_class.strip().lower() if vendor_class else ""
    return _decide(
        kind,
        smtp_code,
        enhanced_code,
        vendor_class if vendor_class in VENDOR_CLASSES else "",
        " ".join(map(_mask, words)),
    )


@lru_cache(maxsize=CACHED_WORDS_MAX)
def _mask(word: str) -> str:
    """The word, or what stands for it where it differs from one event to the next: addresses, codes, ids."""
    if "_" in word and "@" not in word:
        return " ".join(map(_mask, word.split("_")))
    if not _VARIABLE.search(word):
        return word
    if _LINE_OF_REPLY.match(word):
        return f"# {_mask(word[4:])}"
    if "@" in word:
        word = _ADDRESS.sub("@", word)
        return "@" if word.strip(_NO_WORD) == "@" or _VARIABLE.search(word.replace("@", "")) else word
    # Whose site tells why is said in its name.
    return _DIGITS.sub("#", word) if "://" in word else "#"


@lru_cache(maxsize=CACHED_DECISIONS_MAX)
def _decide(kind: int, smtp_code: int, enhanced_code: str, vendor_class: str, text: str) -> Decision:
    rule = first_rule(kind, smtp_code, enhanced_code, vendor_class, text)
    if kind == MtaEventKind.EXPIRATION:
        if rule is not None and rule.row in _EXPIRY_KEEPS_ROWS:
            return Decision((FailureType.SOFT, rule.verdict[1]), rule.name)
        return Decision(UNREACHABLE, "kind.expiration")
    if rule is None:
        return Decision(NOT_DEFINED, NO_RULE)
    if rule.verdict_if_temporary is not None and _is_temporary(kind, smtp_code, enhanced_code, text):
        return Decision(rule.verdict_if_temporary, rule.name)
    return Decision(rule.verdict, rule.name)


def first_rule(kind: int, smtp_code: int, enhanced_code: str, vendor_class: str, text: str) -> Rule | None:
    """The first rule that matches a normalised event; None: anything else, or nothing said."""
    for rule, phrases in _RULES:
        if (
            (not rule.kinds or kind in rule.kinds)
            and (not rule.vendor_classes or vendor_class in rule.vendor_classes)
            and (not rule.texts or phrases.found_in(text))
            and _has_code(rule, smtp_code, enhanced_code)
        ):
            return rule
    return None


def _has_code(rule: Rule, smtp_code: int, enhanced_code: str) -> bool:
    if any(_enhanced_matches(pattern, enhanced_code) for pattern in rule.except_enhanced_codes):
        return False
    if not rule.smtp_codes and not rule.enhanced_codes:
        return True
    return any(_enhanced_matches(pattern, enhanced_code) for pattern in rule.enhanced_codes) or any(
        smtp_code in codes if isinstance(codes, range) else smtp_code == codes for codes in rule.smtp_codes
    )


def _enhanced_matches(pattern: str, enhanced_code: str) -> bool:
    if not enhanced_code:
        return False
    return all(
        wanted in ("x", "*", part) for wanted, part in zip(pattern.split("."), enhanced_code.split("."), strict=False)
    )


def _is_temporary(kind: int, smtp_code: int, enhanced_code: str, text: str) -> bool:
    if kind in _RETRYING_KINDS or "retry timeout exceeded" in text:
        return True
    return 400 <= smtp_code < 500 if smtp_code else enhanced_code.startswith("4")
