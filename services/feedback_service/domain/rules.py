"""The qualification rules as data: from what an MTA said to how a failure counts, and why.

The first rule that matches wins. They stand in four groups: the MTA's own specific classes, then texts, then codes,
then the MTA's vague classes. Text comes before code because MTAs misuse codes: a full mailbox with 5.7.1, `5.0.0` for
everything, a too busy mailbox with x.2.1. A rule's row is its row in the documentation's table.

The texts themselves are in `phrases`, with how they are compared.

Raise RULES_VERSION with any change that can change an answer: what was qualified by older rules is known by it.
"""

from dataclasses import dataclass

from feedback_service.domain import phrases
from feedback_service.domain.vocabulary import FailureType, MtaEventKind, Reason

RULES_VERSION = 3

Verdict = tuple[FailureType, Reason]

NOT_DEFINED: Verdict = (FailureType.SOFT, Reason.NOT_DEFINED)
MAILBOX_FULL: Verdict = (FailureType.SOFT, Reason.MAILBOX_FULL)
ACCOUNT_DISABLED: Verdict = (FailureType.SOFT, Reason.ACCOUNT_DISABLED)
ACCOUNT_GONE: Verdict = (FailureType.HARD, Reason.ACCOUNT_DISABLED)
USER_UNKNOWN: Verdict = (FailureType.HARD, Reason.USER_UNKNOWN)
INVALID_DOMAIN: Verdict = (FailureType.SOFT, Reason.INVALID_DOMAIN)
REFUSED: Verdict = (FailureType.SOFT, Reason.REFUSED)
UNREACHABLE: Verdict = (FailureType.SOFT, Reason.UNREACHABLE)
ERROR_IGNORED: Verdict = (FailureType.IGNORED, Reason.ERROR_IGNORED)
COMPLAINED: Verdict = (FailureType.HARD, Reason.REFUSED)
REMOVED: Verdict = (FailureType.IGNORED, Reason.NOT_DEFINED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """All conditions given must hold; of alternatives, one is enough. Codes, of either sort, are one condition."""

    row: int
    source: str
    """Where it comes from: the standard that says so, or those who were seen to say it."""
    verdict: Verdict
    verdict_if_temporary: Verdict | None = None
    """What it means while the refusal is not for good. Nothing temporary may be hard."""
    kinds: tuple[MtaEventKind, ...] = ()
    vendor_classes: tuple[str, ...] = ()
    """In lower case."""
    texts: tuple[str, ...] = ()
    smtp_codes: tuple[int | range, ...] = ()
    enhanced_codes: tuple[str, ...] = ()
    """`x` is any class, `*` any subject or detail."""
    except_enhanced_codes: tuple[str, ...] = ()


TOO_LARGE = ("x.2.3", "x.3.4")
ABOUT_ANYTHING_ELSE = ("x.1.2", "x.1.7", "x.1.8", "x.1.10", "x.2.*", "x.3.*", "x.4.*", "x.6.*", "x.7.*")
"""Codes that say more than a vague word about the recipient does."""

VENDORS = "KumoMTA's labels, SparkPost's bounce classes"

_VENDOR_CLASSES = (
    Rule(
        row=1,
        source=VENDORS,
        verdict=ERROR_IGNORED,
        vendor_classes=("autoreply", "subscribe", "challengeresponse", "60", "80", "100"),
    ),
    # Somebody opted out: no fault of the address.
    Rule(row=1, source=VENDORS, verdict=ERROR_IGNORED, vendor_classes=("unsubscribe", "90")),
    # The MTA's own suppression list.
    Rule(row=1, source=VENDORS, verdict=REMOVED, vendor_classes=("25",)),
    Rule(row=8, source=VENDORS, verdict=REFUSED, vendor_classes=("quotaissues", "22"), enhanced_codes=TOO_LARGE),
    Rule(row=3, source=VENDORS, verdict=MAILBOX_FULL, vendor_classes=("quotaissues", "22")),
    Rule(row=4, source=VENDORS, verdict=ACCOUNT_DISABLED, vendor_classes=("inactivemailbox",)),
    Rule(
        row=5,
        source=VENDORS,
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        vendor_classes=("invalidrecipient", "10", "30"),
    ),
    Rule(
        row=7, source=VENDORS, verdict=INVALID_DOMAIN, vendor_classes=("baddomain", "routingerrors", "dnsfailure", "21")
    ),
    Rule(
        row=8,
        source=VENDORS,
        verdict=REFUSED,
        vendor_classes=(
            *("spamblock", "spamcontent", "prohibitedattachment", "relaydenied", "relayingdenied", "contentrelated"),
            *("invalidsender", "policyrelated", "virusrelated", "authenticationfailed"),
            *("23", "50", "51", "52", "53", "54"),
        ),
    ),
    Rule(
        row=9,
        source=VENDORS,
        verdict=UNREACHABLE,
        vendor_classes=(
            *("noanswerfromhost", "badconnection", "messageexpired", "protocolerrors", "badconfiguration"),
            *("toomanyrecipients", "24"),
        ),
    ),
)

_TEXTS = (
    Rule(
        row=1,
        source="RFC 3834 answers, told by an MTA as bounces",
        verdict=ERROR_IGNORED,
        kinds=(MtaEventKind.OUT_OF_BAND_BOUNCE,),
        texts=phrases.ANSWERS_BY_ITSELF,
    ),
    # What concerns the sender may speak of unknown or missing addresses too, and must never quarantine the recipient.
    Rule(
        row=8,
        source="RFC 5248 x.1.7 and x.1.8 in words; Exim, Postfix, sendmail, Exchange, Amazon SES",
        verdict=REFUSED,
        texts=phrases.ABOUT_SENDER,
    ),
    # Pacing and grey lists are over soon, however much policy their texts speak of. Nor is a full quota for sending a
    # full mailbox.
    Rule(
        row=9,
        source="Gmail, Exchange Online, Yahoo, Amazon SES, Postfix, postgrey",
        verdict=UNREACHABLE,
        texts=phrases.PACED,
    ),
    Rule(
        row=3,
        source="RFC 5248 x.2.2 in words; all MTAs",
        verdict=MAILBOX_FULL,
        texts=phrases.MAILBOX_FULL,
    ),
    Rule(
        row=4,
        source="RFC 5248 x.2.1 in words, for good",
        verdict=ACCOUNT_GONE,
        verdict_if_temporary=ACCOUNT_DISABLED,
        texts=phrases.ACCOUNT_GONE,
    ),
    Rule(
        row=4,
        source="RFC 5248 x.2.1 and x.7.13 in words; Gmail, Yahoo, mail.ru, Cox, docomo",
        verdict=ACCOUNT_DISABLED,
        texts=phrases.ACCOUNT_DISABLED,
    ),
    Rule(
        row=5,
        source="RFC 5248 x.1.1 in words; all MTAs",
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        texts=phrases.USER_UNKNOWN,
    ),
    # Office 365's way of saying so; other servers mean policy by the same words.
    Rule(
        row=5,
        source="Exchange Online; SparkPost moved it from block to invalid recipient",
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        texts=("recipient address rejected: access denied",),
        enhanced_codes=("x.4.1",),
    ),
    Rule(
        row=7,
        source="RFC 5248 x.1.2, x.1.10 and x.4.4 in words; Postfix, Exim, sendmail, Exchange",
        verdict=INVALID_DOMAIN,
        texts=phrases.INVALID_DOMAIN,
    ),
    Rule(
        row=8,
        source="RFC 5248 x.7.*, x.6.*, x.2.3 and x.3.4 in words; block lists and filters of all makers",
        verdict=REFUSED,
        texts=phrases.REFUSED,
    ),
    Rule(
        row=9,
        source="RFC 5248 x.3.* and x.4.* in words; Postfix, Exim, Exchange, sendmail, qmail",
        verdict=UNREACHABLE,
        texts=phrases.UNREACHABLE,
    ),
    # Vague words, so the last. The standard's own wording for 550: a server that says no more means the address.
    Rule(
        row=5,
        source="RFC 5321 section 4.2.3",
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        texts=phrases.RECIPIENT_REFUSED,
        except_enhanced_codes=ABOUT_ANYTHING_ELSE,
    ),
    Rule(
        row=8,
        source="RFC 5321 section 4.2.3, 554",
        verdict=REFUSED,
        texts=phrases.MESSAGE_REFUSED,
    ),
)

_CODES = (
    Rule(row=3, source="RFC 5248", verdict=MAILBOX_FULL, enhanced_codes=("x.2.2",)),
    Rule(row=3, source="RFC 5321", verdict=MAILBOX_FULL, smtp_codes=(552,), except_enhanced_codes=TOO_LARGE),
    Rule(row=4, source="RFC 5248", verdict=ACCOUNT_DISABLED, enhanced_codes=("x.2.1", "x.7.13"), smtp_codes=(525,)),
    Rule(
        row=5,
        source="RFC 5248",
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        enhanced_codes=("5.1.1", "5.1.3", "5.1.4", "5.1.6", "5.7.17"),
    ),
    Rule(
        row=7,
        source="RFC 5248",
        verdict=INVALID_DOMAIN,
        enhanced_codes=("x.1.2", "x.1.10", "x.4.4", "5.7.18"),
        smtp_codes=(556,),
    ),
    Rule(
        row=8,
        source="RFC 5248",
        verdict=REFUSED,
        enhanced_codes=("x.7.*", "x.1.7", "x.1.8", "x.6.*", *TOO_LARGE),
        smtp_codes=(571,),
    ),
    Rule(
        row=9,
        source="RFC 5248",
        verdict=UNREACHABLE,
        enhanced_codes=("x.4.*", "x.3.*", "x.5.*", "4.*.*"),
        smtp_codes=(range(400, 500),),
    ),
)

_VAGUE_VENDOR_CLASSES = (
    Rule(row=9, source=VENDORS, verdict=UNREACHABLE, vendor_classes=("transientfailure", "70")),
    Rule(row=10, source=VENDORS, verdict=NOT_DEFINED, vendor_classes=("uncategorized", "1", "20", "40")),
)

RULES: tuple[Rule, ...] = (*_VENDOR_CLASSES, *_TEXTS, *_CODES, *_VAGUE_VENDOR_CLASSES)

VENDOR_CLASSES = frozenset(name for rule in RULES for name in rule.vendor_classes)
"""KumoMTA's labels and SparkPost's numbers. Any other class tells nothing."""
