"""The qualification rules as data: from what an MTA said to how a failure counts, and why.

The first rule that matches wins. They stand in four groups: the MTA's own specific classes, then texts, then codes,
then the MTA's vague classes. Text comes before code because MTAs misuse codes: a full mailbox with 5.7.1, `5.0.0` for
everything, a too busy mailbox with x.2.1. A rule's row is its row in the documentation's table; its name never changes,
and is never given to another rule: it is what an explanation names.

The texts themselves are in `phrases`, with how they are compared, and in `languages`.

Raise RULES_VERSION with any change that can change an answer: what was qualified by older rules is known by it.
"""

from dataclasses import dataclass

from feedback_service.domain import languages, phrases
from feedback_service.domain.vocabulary import FailureType, MtaEventKind, Reason

RULES_VERSION = 6

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

    name: str
    """Group and what it is about: `text.mailbox-full`."""
    source: str
    """Where it comes from: the standard that says so, or those who were seen to say it."""
    row: int
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

ABOUT_SENDER = ("x.1.7", "x.1.8")
"""With these, an address or a domain that is spoken of is the sender's."""

VENDORS = "KumoMTA's labels, SparkPost's bounce classes"

_VENDOR_CLASSES = (
    Rule(
        name="class.answered",
        row=1,
        source=VENDORS,
        verdict=ERROR_IGNORED,
        vendor_classes=("autoreply", "subscribe", "challengeresponse", "60", "80", "100"),
    ),
    # Somebody opted out: no fault of the address.
    Rule(name="class.unsubscribed", row=1, source=VENDORS, verdict=ERROR_IGNORED, vendor_classes=("unsubscribe", "90")),
    # The MTA's own suppression list.
    Rule(name="class.suppressed", row=1, source=VENDORS, verdict=REMOVED, vendor_classes=("25",)),
    Rule(
        name="class.too-large",
        row=8,
        source=VENDORS,
        verdict=REFUSED,
        vendor_classes=("quotaissues", "22"),
        enhanced_codes=TOO_LARGE,
    ),
    Rule(name="class.mailbox-full", row=3, source=VENDORS, verdict=MAILBOX_FULL, vendor_classes=("quotaissues", "22")),
    Rule(
        name="class.account-inactive",
        row=4,
        source=VENDORS,
        verdict=ACCOUNT_DISABLED,
        vendor_classes=("inactivemailbox",),
    ),
    Rule(
        name="class.user-unknown",
        row=5,
        source=VENDORS,
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        vendor_classes=("invalidrecipient", "10", "30"),
    ),
    Rule(
        name="class.invalid-domain",
        row=7,
        source=VENDORS,
        verdict=INVALID_DOMAIN,
        vendor_classes=("baddomain", "routingerrors", "dnsfailure", "21"),
    ),
    Rule(
        name="class.refused",
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
        name="class.unreachable",
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
        name="text.auto-reply",
        row=1,
        source="RFC 3834 answers, told by an MTA as bounces",
        verdict=ERROR_IGNORED,
        kinds=(MtaEventKind.OUT_OF_BAND_BOUNCE,),
        texts=(*phrases.ANSWERS_BY_ITSELF, *languages.ANSWERS_BY_ITSELF),
    ),
    # What concerns the sender may speak of unknown or missing addresses too, and must never quarantine the recipient.
    Rule(
        name="text.sender-refused",
        row=8,
        source="RFC 5248 x.1.7 and x.1.8 in words; Exim, Postfix, sendmail, Exchange, Amazon SES",
        verdict=REFUSED,
        texts=(*phrases.ABOUT_SENDER, *languages.ABOUT_SENDER),
    ),
    Rule(
        name="text.greylisted",
        row=9,
        source="postgrey, Postfix, Exim, Exchange; RFC 6647",
        verdict=UNREACHABLE,
        texts=phrases.GREYLISTED,
    ),
    Rule(
        name="text.distrusted",
        row=8,
        source="Gmail 4.7.24 to 4.7.40, Exchange Online 4.7.650, GoDaddy IB110",
        verdict=REFUSED,
        texts=phrases.DISTRUSTED,
    ),
    Rule(
        name="text.command-refused",
        row=9,
        source="RFC 5321 section 4.2.2, 500 to 504",
        verdict=UNREACHABLE,
        texts=phrases.COMMAND_REFUSED,
        smtp_codes=(range(500, 505),),
    ),
    Rule(
        name="text.not-authenticated",
        row=8,
        source="RFC 4954 section 6",
        verdict=REFUSED,
        texts=phrases.NOT_AUTHENTICATED,
        smtp_codes=(530, 534, 535, 538),
    ),
    # Pacing is over soon, however much policy its texts speak of. Nor is a full quota for sending a full mailbox.
    Rule(
        name="text.pacing",
        row=9,
        source="Gmail, Exchange Online, Yahoo, Amazon SES, Postfix",
        verdict=UNREACHABLE,
        texts=(*phrases.PACED, *languages.PACED),
    ),
    # Whoever or whatever does not exist or is full by such a text: it is not the recipient.
    Rule(
        name="text.before-recipient",
        row=8,
        source="RFC 5321 section 3.3: the order of commands; Exim, Postfix, KDDI",
        verdict=REFUSED,
        texts=phrases.BEFORE_RECIPIENT,
        smtp_codes=(range(500, 600),),
    ),
    Rule(
        name="text.mailbox-full",
        row=3,
        source="RFC 5248 x.2.2 in words; all MTAs",
        verdict=MAILBOX_FULL,
        texts=(*phrases.MAILBOX_FULL, *languages.MAILBOX_FULL),
    ),
    Rule(
        name="text.account-gone",
        row=4,
        source="RFC 5248 x.2.1 in words, for good",
        verdict=ACCOUNT_GONE,
        verdict_if_temporary=ACCOUNT_DISABLED,
        texts=phrases.ACCOUNT_GONE,
    ),
    Rule(
        name="text.account-disabled",
        row=4,
        source="RFC 5248 x.2.1 and x.7.13 in words; Gmail, Yahoo, mail.ru, Cox, docomo",
        verdict=ACCOUNT_DISABLED,
        texts=(*phrases.ACCOUNT_DISABLED, *languages.ACCOUNT_DISABLED),
    ),
    Rule(
        name="text.user-unknown",
        row=5,
        source="RFC 5248 x.1.1 in words; all MTAs",
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        texts=(*phrases.USER_UNKNOWN, *languages.USER_UNKNOWN),
        except_enhanced_codes=ABOUT_SENDER,
    ),
    # Office 365's way of saying so; other servers mean policy by the same words.
    Rule(
        name="text.office-365-user-unknown",
        row=5,
        source="Exchange Online; SparkPost moved it from block to invalid recipient",
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        texts=("recipient address … access denied",),
        enhanced_codes=("x.4.1",),
    ),
    Rule(
        name="text.invalid-domain",
        row=7,
        source="RFC 5248 x.1.2, x.1.10 and x.4.4 in words; Postfix, Exim, sendmail, Exchange",
        verdict=INVALID_DOMAIN,
        texts=(*phrases.INVALID_DOMAIN, *languages.INVALID_DOMAIN),
        except_enhanced_codes=ABOUT_SENDER,
    ),
    Rule(
        name="text.refused",
        row=8,
        source="RFC 5248 x.7.*, x.6.*, x.2.3 and x.3.4 in words; block lists and filters of all makers",
        verdict=REFUSED,
        texts=(*phrases.REFUSED, *languages.REFUSED),
    ),
    Rule(
        name="text.unreachable",
        row=9,
        source="RFC 5248 x.3.* and x.4.* in words; Postfix, Exim, Exchange, sendmail, qmail",
        verdict=UNREACHABLE,
        texts=(*phrases.UNREACHABLE, *languages.UNREACHABLE),
    ),
    # Vague words, so the last. The standard's own wording for 550: a server that says no more means the address.
    Rule(
        name="text.mailbox-unavailable",
        row=5,
        source="RFC 5321 section 4.2.3",
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        texts=(*phrases.RECIPIENT_REFUSED, *languages.RECIPIENT_REFUSED),
        except_enhanced_codes=ABOUT_ANYTHING_ELSE,
    ),
    Rule(
        name="text.message-refused",
        row=8,
        source="RFC 5321 section 4.2.3, 554",
        verdict=REFUSED,
        texts=(*phrases.MESSAGE_REFUSED, *languages.MESSAGE_REFUSED),
    ),
)

_CODES = (
    Rule(name="code.mailbox-full", row=3, source="RFC 5248", verdict=MAILBOX_FULL, enhanced_codes=("x.2.2",)),
    Rule(
        name="code.storage-exceeded",
        row=3,
        source="RFC 5321",
        verdict=MAILBOX_FULL,
        smtp_codes=(552,),
        except_enhanced_codes=(*TOO_LARGE, "x.6.*", "x.7.*"),
    ),
    Rule(
        name="code.no-service",
        row=8,
        source="RFC 7504, by AOL, Yahoo and AT&T for senders that they block",
        verdict=REFUSED,
        smtp_codes=(521,),
    ),
    Rule(
        name="code.account-disabled",
        row=4,
        source="RFC 5248",
        verdict=ACCOUNT_DISABLED,
        enhanced_codes=("x.2.1", "x.7.13"),
        smtp_codes=(525,),
    ),
    Rule(
        name="code.user-unknown",
        row=5,
        source="RFC 5248",
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        enhanced_codes=("5.1.1", "5.1.3", "5.1.4", "5.1.6", "5.7.17"),
    ),
    Rule(
        name="code.invalid-domain",
        row=7,
        source="RFC 5248",
        verdict=INVALID_DOMAIN,
        enhanced_codes=("x.1.2", "x.1.10", "x.4.4", "5.7.18"),
        smtp_codes=(556,),
    ),
    Rule(
        name="code.refused",
        row=8,
        source="RFC 5248",
        verdict=REFUSED,
        enhanced_codes=("x.7.*", "x.1.7", "x.1.8", "x.6.*", *TOO_LARGE),
        smtp_codes=(571,),
    ),
    Rule(
        name="code.unreachable",
        row=9,
        source="RFC 5248",
        verdict=UNREACHABLE,
        enhanced_codes=("x.4.*", "x.3.*", "x.5.*", "4.*.*"),
        smtp_codes=(range(400, 500),),
    ),
)

_VAGUE_VENDOR_CLASSES = (
    Rule(name="class.temporary", row=9, source=VENDORS, verdict=UNREACHABLE, vendor_classes=("transientfailure", "70")),
    Rule(
        name="class.uncategorized",
        row=10,
        source=VENDORS,
        verdict=NOT_DEFINED,
        vendor_classes=("uncategorized", "1", "20", "40"),
    ),
)

RULES: tuple[Rule, ...] = (*_VENDOR_CLASSES, *_TEXTS, *_CODES, *_VAGUE_VENDOR_CLASSES)

VENDOR_CLASSES = frozenset(name for rule in RULES for name in rule.vendor_classes)
"""KumoMTA's labels and SparkPost's numbers. Any other class tells nothing."""
