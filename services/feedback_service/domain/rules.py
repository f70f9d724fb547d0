"""The qualification rules as data: from what an MTA said to how a failure counts, and why.

The first rule that matches wins. They stand in four groups: the MTA's own specific classes, then texts, then codes,
then the MTA's vague classes. Text comes before code because MTAs misuse codes: a full mailbox with 5.7.1, `5.0.0` for
everything, a too busy mailbox with x.2.1. A rule's row is its row in the documentation's table; its name never changes,
and is never given to another rule: it is what an explanation names.

Texts are compared with the normalised diagnostic: lower case, white space collapsed, every word with a digit or an `@`
in it (addresses, codes, queue ids) replaced by `#`. An ellipsis in a text stands for a short gap.

Raise RULES_VERSION with any change that can change an answer: what was qualified by older rules is known by it.
"""

from dataclasses import dataclass

from feedback_service.domain.vocabulary import FailureType, MtaEventKind, Reason

RULES_VERSION = 2

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
    """Where it comes from, for a person: a standard, a vendor's list, what was seen."""
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


KUMOMTA = "KumoMTA's bounce classes"
SPARKPOST = "SparkPost's bounce classes"
VENDORS = "KumoMTA's bounce classes and SparkPost's"
REPLIES_SEEN = "replies and bounce mails seen of many MTAs"
OFFICE_365 = "Office 365's replies"
RFC_5321 = "RFC 5321, section 4.2.2"
RFC_3463 = "RFC 3463"
CODE_REGISTRY = "IANA's registry of enhanced status codes"

TOO_LARGE = ("x.2.3", "x.3.4")

_VENDOR_CLASSES = (
    Rule(
        name="class.answered",
        source=VENDORS,
        row=1,
        verdict=ERROR_IGNORED,
        vendor_classes=("autoreply", "subscribe", "challengeresponse", "60", "80", "100"),
    ),
    # Somebody opted out: no fault of the address.
    Rule(
        name="class.unsubscribed",
        source=VENDORS,
        row=1,
        verdict=ERROR_IGNORED,
        vendor_classes=("unsubscribe", "90"),
    ),
    # The MTA's own suppression list.
    Rule(
        name="class.suppressed",
        source=SPARKPOST,
        row=1,
        verdict=REMOVED,
        vendor_classes=("25",),
    ),
    Rule(
        name="class.too-large",
        source=VENDORS,
        row=8,
        verdict=REFUSED,
        vendor_classes=("quotaissues", "22"),
        enhanced_codes=TOO_LARGE,
    ),
    Rule(
        name="class.mailbox-full",
        source=VENDORS,
        row=3,
        verdict=MAILBOX_FULL,
        vendor_classes=("quotaissues", "22"),
    ),
    Rule(
        name="class.account-inactive",
        source=KUMOMTA,
        row=4,
        verdict=ACCOUNT_DISABLED,
        vendor_classes=("inactivemailbox",),
    ),
    Rule(
        name="class.user-unknown",
        source=VENDORS,
        row=5,
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        vendor_classes=("invalidrecipient", "10", "30"),
    ),
    Rule(
        name="class.invalid-domain",
        source=VENDORS,
        row=7,
        verdict=INVALID_DOMAIN,
        vendor_classes=("baddomain", "routingerrors", "dnsfailure", "21"),
    ),
    Rule(
        name="class.refused",
        source=VENDORS,
        row=8,
        verdict=REFUSED,
        vendor_classes=(
            *("spamblock", "spamcontent", "prohibitedattachment", "relaydenied", "relayingdenied", "contentrelated"),
            *("invalidsender", "policyrelated", "virusrelated", "authenticationfailed"),
            *("23", "50", "51", "52", "53", "54"),
        ),
    ),
    Rule(
        name="class.unreachable",
        source=VENDORS,
        row=9,
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
        source=REPLIES_SEEN,
        row=1,
        verdict=ERROR_IGNORED,
        kinds=(MtaEventKind.OUT_OF_BAND_BOUNCE,),
        texts=(
            *("out of office", "out of the office", "on vacation", "vacation reply", "vacation message"),
            *("auto-reply", "autoreply", "auto reply", "automatic reply", "automatic response", "auto-response"),
            *("challenge-response", "challenge/response", "absent du bureau", "réponse automatique", "abwesenheit"),
        ),
    ),
    # What concerns the sender may speak of unknown or missing addresses too, and must never quarantine the recipient.
    Rule(
        name="text.sender-refused",
        source=REPLIES_SEEN,
        row=8,
        verdict=REFUSED,
        texts=(
            *("sender address rejected", "sender rejected", "sender denied", "unknown sender", "sender unknown"),
            *("invalid sender", "sender … does not exist", "sender … not found", "sender domain", "domain of sender"),
            *("sender verify failed", "sender verification", "callback to verify the sender", "mail from domain"),
        ),
    ),
    # Pacing and grey lists are over soon, however much policy their texts speak of. Nor is a full quota for sending a
    # full mailbox.
    Rule(
        name="text.pacing",
        source=REPLIES_SEEN,
        row=9,
        verdict=UNREACHABLE,
        texts=(
            *("greylist", "graylist", "grey-list", "gray-list", "grey listed", "rate limit", "rate-limit"),
            *("ratelimit", "throttl", "receiving mail too quickly", "receiving mail at a rate", "too many connections"),
            *("too many concurrent", "too many messages", "sending quota", "sending limit", "quota for sending"),
        ),
    ),
    Rule(
        name="text.mailbox-full",
        source=REPLIES_SEEN,
        row=3,
        verdict=MAILBOX_FULL,
        texts=(
            *("quota", "mailbox full", "mailbox is full", "mailbox … is full", "mailfolder is full", "mailfolder full"),
            *("inbox full", "inbox is full", "account is full", "user is full", "folder is full", "overdrawn"),
            *("out of storage", "over storage", "storage limit", "storage allocation", "mailbox … storage"),
            *("recipient … storage", "user … storage", "not enough storage", "mailbox size", "mailbox has exceeded"),
            *("mailbox exceeded", "mailbox … limit", "no space left in mailbox", "not enough space", "boite pleine"),
            *("boîte pleine", "postfach voll", "buzon lleno", "mailbox over", "full mailbox", "mailbox … quota"),
        ),
    ),
    Rule(
        name="text.account-gone",
        source=REPLIES_SEEN,
        row=4,
        verdict=ACCOUNT_GONE,
        verdict_if_temporary=ACCOUNT_DISABLED,
        texts=(
            *("account … permanently", "mailbox … permanently", "user … permanently", "permanently disabled"),
            *("permanently suspended", "account … deleted", "mailbox … deleted", "account … closed"),
            *(
                "mailbox … closed",
                "account … terminated",
                "mailbox … terminated",
                "closed account",
                "user … terminated",
            ),
        ),
    ),
    Rule(
        name="text.account-disabled",
        source=REPLIES_SEEN,
        row=4,
        verdict=ACCOUNT_DISABLED,
        texts=(
            *("account … disabled", "mailbox … disabled", "user … disabled", "recipient … disabled"),
            *("address … disabled", "disabled account", "disabled mailbox", "disabled user", "disabled recipient"),
            *("account … suspended", "mailbox … suspended", "user … suspended", "recipient … suspended"),
            *("account … inactive", "mailbox … inactive", "user … inactive", "recipient … inactive"),
            *("inactive account", "inactive mailbox", "inactive user", "inactive recipient", "account … not active"),
            *("mailbox … not active", "user … not active", "account … locked", "mailbox … locked", "mailbox … frozen"),
            *("account … deactivated", "mailbox … deactivated", "user … deactivated", "account … expired"),
            *("account … discontinued", "compte … désactivé", "compte … suspendu"),
        ),
    ),
    Rule(
        name="text.user-unknown",
        source=REPLIES_SEEN,
        row=5,
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        texts=(
            *("user unknown", "unknown user", "recipient unknown", "unknown recipient", "mailbox unknown"),
            *("unknown mailbox", "address unknown", "unknown address", "addressee unknown", "unknown addressee"),
            *("unknown local part", "unknown local-part", "unknown email address", "unknown or illegal alias"),
            *("unknown account", "account unknown", "no such user", "no such recipient", "no such mailbox"),
            *("no such address", "no such person", "no such account", "no such local user", "no such email"),
            *("no such alias", "no mailbox here by that name", "no mailbox by that name", "no user here by that name"),
            *("there is no one at this address", "is not a known user", "not a valid mailbox", "not a valid recipient"),
            *("not a valid user", "not a valid address", "not our customer", "not a local user", "user not found"),
            *("user … not found", "mailbox not found", "mailbox … not found", "recipient not found"),
            *("recipientnotfound", "recipnotfound", "address not found", "account not found", "user does not exist"),
            *("user … does not exist", "mailbox … does not exist", "recipient … does not exist"),
            *("address … does not exist", "account … does not exist", "alias … does not exist"),
            *("user … doesn't exist", "mailbox … doesn't exist", "recipient … doesn't exist"),
            *("address … doesn't exist", "account … doesn't exist", "user … doesn't have a", "user … does not have a"),
            *("invalid recipient", "invalid mailbox", "invalid user", "invalid local part", "recipient is invalid"),
            *("recipient … is not valid", "bad destination mailbox", "nonexistent user", "non-existent user"),
            *("nonexistent mailbox", "non-existent mailbox", "user has moved", "user … has moved", "recipient … moved"),
            *("user … moved", "mailbox … moved", "no longer valid", "no longer in use", "no longer on server"),
            *("utilisateur inconnu", "destinataire inconnu", "destinataire invalide", "adresse inconnue"),
            *("empfänger unbekannt", "usuario desconocido", "user not known", "not listed in", "userid"),
        ),
    ),
    # Office 365's way of saying so; other servers mean policy by the same words.
    Rule(
        name="text.office-365-user-unknown",
        source=OFFICE_365,
        row=5,
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        texts=("recipient address rejected: access denied",),
        enhanced_codes=("x.4.1",),
    ),
    Rule(
        name="text.invalid-domain",
        source=REPLIES_SEEN,
        row=7,
        verdict=INVALID_DOMAIN,
        texts=(
            *("domain not found", "host not found", "domain name not found", "name or service not known", "nxdomain"),
            *("unrouteable", "unroutable", "unable to route", "domain does not exist", "domain … does not exist"),
            *("domain doesn't exist", "no such domain", "unknown domain", "invalid domain", "nullmx", "null mx"),
            *("no mx", "no valid mx", "does not accept mail", "doesn't accept mail", "does not receive mail"),
            *("bad destination host", "name service error", "dns lookup fail", "dns error", "dns failure"),
            *("could not resolve", "cannot resolve", "unknown host", "host unknown", "domain … not exist"),
        ),
    ),
    Rule(
        name="text.refused",
        source=REPLIES_SEEN,
        row=8,
        verdict=REFUSED,
        texts=(
            *("spam", "unsolicited", "bulk mail", "junk", "phish", "blacklist", "black list", "blocklist"),
            *("block list", "blocked", "denylist", "banned", "dnsbl", "barracuda", "reputation", "complaints"),
            *("dkim", "dmarc", "spf", "reverse dns", "reverse lookup", "rdns", "ptr record", "virus", "malware"),
            *("infected", "relaying denied", "relay access denied", "relay denied", "relaying not allowed"),
            *("relay not permitted", "relaying prohibited", "unable to relay", "not permitted to relay"),
            *("we do not relay", "content rejected", "message content", "rejected … content", "prohibited"),
            *("policy", "policies", "too large", "too big", "message size", "size limit", "attachment"),
            *("not authorized", "not authorised", "authentication required", "unauthenticated", "access denied"),
            *("not allowed to send", "not accepted from", "client host rejected", "rejected for"),
        ),
    ),
    Rule(
        name="text.unreachable",
        source=REPLIES_SEEN,
        row=9,
        verdict=UNREACHABLE,
        texts=(
            *("timed out", "timeout", "time-out", "time out", "connection refused", "connection reset"),
            *("connection lost", "lost connection", "connection dropped", "connection closed", "connection failed"),
            *("connect to", "unreachable", "no route to host", "try again", "try later", "retry later", "come back"),
            *("temporar", "deferred", "service unavailable", "service not available", "server busy", "too busy"),
            *("system resources", "system storage", "disk space", "disk full", "out of memory", "overloaded"),
            *(
                "high load",
                "expired",
                "retry time",
                "too many hops",
                "mail loop",
                "looping",
                "routing loop",
                "mail exchanger failed",
            ),
        ),
    ),
    # The standard's own wording for 550: a server that says no more means the address.
    Rule(
        name="text.mailbox-unavailable",
        source=RFC_5321,
        row=5,
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        texts=("mailbox unavailable", "mailbox … unavailable", "mailbox not available"),
        smtp_codes=(550, 551, 553, 450, 451),
    ),
)

_CODES = (
    Rule(
        name="code.mailbox-full",
        source=RFC_3463,
        row=3,
        verdict=MAILBOX_FULL,
        enhanced_codes=("x.2.2",),
    ),
    Rule(
        name="code.storage-exceeded",
        source=RFC_5321,
        row=3,
        verdict=MAILBOX_FULL,
        smtp_codes=(552,),
        except_enhanced_codes=TOO_LARGE,
    ),
    Rule(
        name="code.account-disabled",
        source=CODE_REGISTRY,
        row=4,
        verdict=ACCOUNT_DISABLED,
        enhanced_codes=("x.2.1", "x.7.13"),
        smtp_codes=(525,),
    ),
    Rule(
        name="code.user-unknown",
        source=CODE_REGISTRY,
        row=5,
        verdict=USER_UNKNOWN,
        verdict_if_temporary=UNREACHABLE,
        enhanced_codes=("5.1.1", "5.1.3", "5.1.4", "5.1.6", "5.7.17"),
    ),
    Rule(
        name="code.invalid-domain",
        source=CODE_REGISTRY,
        row=7,
        verdict=INVALID_DOMAIN,
        enhanced_codes=("x.1.2", "x.1.10", "x.4.4", "5.7.18"),
        smtp_codes=(556,),
    ),
    Rule(
        name="code.refused",
        source=CODE_REGISTRY,
        row=8,
        verdict=REFUSED,
        enhanced_codes=("x.7.*", "x.1.7", "x.1.8", "x.6.*", *TOO_LARGE),
        smtp_codes=(571,),
    ),
    Rule(
        name="code.unreachable",
        source=RFC_3463,
        row=9,
        verdict=UNREACHABLE,
        enhanced_codes=("x.4.*", "x.3.*", "x.5.*", "4.*.*"),
        smtp_codes=(range(400, 500),),
    ),
)

_VAGUE_VENDOR_CLASSES = (
    Rule(
        name="class.temporary",
        source=VENDORS,
        row=9,
        verdict=UNREACHABLE,
        vendor_classes=("transientfailure", "70"),
    ),
    Rule(
        name="class.uncategorized",
        source=VENDORS,
        row=10,
        verdict=NOT_DEFINED,
        vendor_classes=("uncategorized", "1", "20", "40"),
    ),
)

RULES: tuple[Rule, ...] = (*_VENDOR_CLASSES, *_TEXTS, *_CODES, *_VAGUE_VENDOR_CLASSES)

VENDOR_CLASSES = frozenset(name for rule in RULES for name in rule.vendor_classes)
"""KumoMTA's labels and SparkPost's numbers. Any other class tells nothing."""
