"""What mail servers say, by what it means: the texts of the qualification rules, and where they were met.

Compared as substrings of a diagnostic in lower case and without accents, with its white space collapsed, each address
in it replaced by `@`, each number in a link and each other word with a digit by `#`. An ellipsis stands for a short
gap; around it, bars stand between alternatives. A phrase is as short as it can be without meaning anything else, so
that it covers the wordings of servers that nobody has met yet. Other languages than English are in `languages`.
"""

from typing import Final

Phrases = tuple[str, ...]

# Answers that a person's mailbox gives by itself.
ANSWERS_BY_ITSELF: Final[Phrases] = (
    *("out of office", "out of the office", "on vacation", "vacation reply", "vacation message", "auto-reply"),
    *("autoreply", "auto reply", "automatic reply", "automatic response", "auto-response", "challenge-response"),
    "challenge/response",
)

# Exim's callouts, Postfix' restrictions, sendmail's checks, Exchange's 5.1.7 to 5.1.90 and 5.7.1xx, Amazon SES.
ABOUT_SENDER: Final[Phrases] = (
    *("sender address rejected", "sender email address", "sender rejected", "sender denied", "sender refused"),
    *("unknown sender", "sender unknown", "invalid sender", "bad sender", "bad outbound sender", "banned sender"),
    *("sender … does not exist", "sender … not found", "sender … invalid", "sender … blacklisted", "sender domain"),
    *("from domain", "sender has", "ip address … unknown|not valid|invalid|not found|not listed|not recogni"),
    *("valid from", "from: address", "sending domain", "smtp of your provider", "badmailfrom", "domain of sender"),
    *("valid sender", "sender's domain", "sender verify failed", "sender verification", "verification failed"),
    *("verify callout", "callout verification", "verify the sender", "verify sender", "sender could not be verified"),
    *("sender not ", "sender is not", "sender was not", "sender ip", "sender's ip", "unroutable sender", "null sender"),
    *("empty sender", "empty envelope sender", "envelope sender", "mail from domain", "mail from not", "from: domain"),
    *("sending ip", "sending mta", "banned sending", "does not accept mail from", "does not accept email over"),
    *("does not accept email from", "resolve your", "your hostname", "helo command rejected", "helo/ehlo", "bad helo"),
    *("ehlo/helo", "invalid helo", "client ip", "relay host name", "purported responsible address"),
    *("no valid recipients from", "email address is not verified", "client host not", "connecting host"),
    *("helo name", "rdns", "reverse dns", "no ptr", "spf check", "blocked you", "password"),
    "from address|from header|return address|return path|return-path|reply-to|envelope from|envelope-from"
    "|bounce address … not valid|invalid|not exist|n't exist|not found|unknown|no such",
    *("relaying denied", "relay access denied", "unable to relay", "relaying from"),
)

# A dialogue that went wrong, with 500 to 504; and a relay of ours that does not know us, with 530 to 538.
COMMAND_REFUSED: Final[Phrases] = (
    *("command not recogni", "command unrecogni", "unrecognized command", "unrecognised command"),
    *("command not implemented", "unknown command", "bad sequence"),
)
NOT_AUTHENTICATED: Final[Phrases] = ("authenticat",)

# The step of the dialogue that was refused, as Exim and Postfix name it, and as transcripts show it: no recipient had
# been named by then.
BEFORE_RECIPIENT: Final[Phrases] = (
    *("after mail from", "after pipelined mail from", "after initial connection", "after ehlo", "after helo"),
    *("in reply to mail from", "in reply to ehlo", "in reply to helo", ">>> mail from:<@> <<<"),
)

# What a grey list says, whatever it is called after.
GREYLISTED: Final[Phrases] = ("greylist", "graylist", "grey-list", "gray-list", "grey listed", "gray listed")

# Gmail, Exchange Online, Yahoo and GoDaddy slow down or block for a while whom they distrust. It is the distrust that
# has to be mended, and waiting does not mend it.
DISTRUSTED: Final[Phrases] = (
    *("reputation", "unauthenticated", "senders to authenticate", "authentication didn't pass", "spf record", "dmarc"),
    *("aligned with", "over a tls connection", "unsolicited", "unusual rate of mail", "judged to be spam"),
)

# Gmail's, Exchange's, Yahoo's and Amazon SES' limits; Postfix' anvil. Over soon, whatever else is said.
PACED: Final[Phrases] = (
    *("rate limit", "rate-limit", "ratelimit", "throttl", "receiving mail too quickly", "receiving mail at a rate"),
    *("too many connections", "too many sessions", "too many concurrent", "too many recipients"),
    *("too many invalid recipients", "too many unknown", "excessive … unknown", "too many messages from"),
    *("number of invalid", "number of unknown"),
    *("too many messages in … session|minute|hour|day|time|period|short", "too many messages sent", "sent too many"),
    *("too much mail from", "too fast", "slow down", "slower", "sending quota", "sending limit", "sending rate"),
    *("quota for sending", "submission quota", "message quota", "hourly limit", "daily limit", "per hour", "this hour"),
    *("per session", "frequency of", "message threshold", "receive limit", "relay limit"),
    *("limit exceeded for customer", "permitted limits", "has exceeded threshold", "per-domain", "connection limit"),
    *("relay quota", "daily quota", "hourly quota", "daily … quota"),
    *("connection rate", "thread limit", "maximum number of connections", "bad commands", "frequency limit"),
)

# Every MTA's quota, the maildrops of Courier, qmail and vpopmail, Exchange's store, 1&1, Orange, La Poste, Aruba.
MAILBOX_FULL: Final[Phrases] = (
    *("quota", "mailbox full", "mailbox is full", "mailbox … is full", "mailfolder is full", "mailfolder full"),
    *("mail box full", "mail box is full", "mail box … full", "mailbox … full", "inbox full", "inbox is full"),
    *("account is full", "user is full", "folder is full", "maildir … full", "full mailbox", "overdrawn"),
    *("recipient full", "out of storage", "over storage", "storage limit", "storage allocation", "mailbox … storage"),
    *("storage full", "recipient … storage", "user … storage", "not enough storage", "storage space", "mailbox size"),
    *("mail file size", "mailbox has exceeded", "mailbox exceeded", "too many messages … mailbox|inbox|maildrop"),
    *("used up", "any more mail", "space available", "enough diskspace"),
    "exceed|over the|reached … storage|diskspace|disk space|message count|number of messages|mailbox size",
    *("mailbox … exceed", "mailbox would exceed", "mailbox … limit", "exceeds allowed size", "user has exceeded"),
    *("no space left in mailbox", "enough space", "space not enough", "disk space limit", "mailbox over"),
    *("mailbox … quota", "overquota", "over limit", "too many messages on", "too many messages for"),
)

ACCOUNT_GONE: Final[Phrases] = (
    *("account … permanently", "mailbox … permanently", "user … permanently", "permanently disabled"),
    *("permanently suspended", "account … deleted", "mailbox … deleted", "account … closed", "mailbox … closed"),
    *("account … terminated", "mailbox … terminated", "user … terminated", "closed account"),
)

# Gmail and Yahoo, mail.ru, Cox, vpopmail, docomo, La Poste.
ACCOUNT_DISABLED: Final[Phrases] = (
    *("account … disabled", "mailbox … disabled", "user … disabled", "recipient … disabled", "address … disabled"),
    *("disabled account", "disabled mailbox", "disabled user", "disabled recipient", "recipient's mailbox … disabled"),
    *("account … suspended", "mailbox … suspended", "user … suspended", "recipient … suspended", "is suspended"),
    *("has been suspended", "currently suspended", "suspended account", "suspended mailbox", "suspend the service"),
    *("account … inactive", "mailbox … inactive", "user … inactive", "recipient … inactive", "inactive account"),
    *("inactive mailbox", "inactive user", "invalid/inactive", "inactive recipient", "inactivity"),
    *("temporarily inactive", "inactive address", "inactive email", "inactive e-mail"),
    *("mailbox|account … not used|not been used", "not been used", "account … not active", "mailbox … not active"),
    *("user … not active", "account … locked", "mailbox … locked", "user … locked", "temporary locked"),
    *("temporarily locked", "mailbox … frozen", "account … frozen", "account … blocked", "mailbox … blocked"),
    *("account … deactivated", "mailbox … deactivated", "user … deactivated", "deactivated mailbox"),
    *("deactivated account", "deactivated user", "account … expired", "mailbox … expired", "expired account"),
    *("account … discontinued", "banned recipient", "mailbox cannot be accessed", "unavailable or access denied"),
    "currently being accepted for this mailbox",
)

# Every MTA there is: Postfix' tables, Exim's routers, sendmail, qmail and its patches (badrcptto, validrcptto),
# Exchange's resolver, Domino's and GroupWise's directories, Gmail, Yahoo, Orange, docomo.
USER_UNKNOWN: Final[Phrases] = (
    "user unknown",
    "user|recipient|mailbox|mail box|account|addressee|alias … not valid|not known|not found|not exist|is invalid",
    "email name … not found",
    "user|recipient|mailbox|account|address … not recogni|not listed|non-existent|not used|n't exist|not registered",
    "address … not valid|not known|not found|not exist|not recogni|is unknown|n't exist|in my list|no longer",
    *("not a recogni", "not a registered", "invalid e-mail address", "invalid email address", "invalid final"),
    *("not have a final", "n't have an account", "not have an email", "not known at", "@ not used", "unknown user"),
    *("userunknown", "user is unknown", "recipient unknown", "unknown recipient", "recipient is unknown"),
    *("mailbox unknown", "unknown mailbox", "address unknown", "address is unknown", "unknown address"),
    *("addressee unknown", "unknown addressee", "unknown local part", "unknown local-part", "unknown email address"),
    *("unknown e-mail address", "unknown or illegal", "unknown or invalid", "unknown virtual user", "unknown account"),
    *("account unknown", "addresses were unknown", "userid", "user id … unknown", "no such user", "nosuchuser"),
    *("unresolvable address", "illegal character … user|address|recipient", "no such recipient", "no such mailbox"),
    *("no such address", "no such person", "no such account", "no such local user", "no such email", "no such alias"),
    *("no such mail drop", "no such name", "no such id", "no mailbox", "mailbox is not allowed"),
    *("mailbox name not allowed", "no mail box", "no user here", "no user by", "no account by", "no one at"),
    *("no one with that", "not a known user", "not a valid mailbox", "not a valid recipient", "not a valid user"),
    *("not a valid address", "not a valid email", "not an active address", "not our customer", "not a local"),
    *("not an employee", "no longer an employee", "no longer with", "no longer at ", "employee … no longer"),
    *("has left", "no longer works", "no longer employed", "no longer on server"),
    "user|recipient|mailbox|mail box|account|e-mail|email|person|@ … no longer valid|no longer in use|no longer accept"
    "|no longer available|no longer active|no longer exist",
    *("user not found", "user … not found", "user not exist", "user … not exist", "user not known"),
    *("user is not known", "user name is not", "mailbox not found", "mailbox … not found", "mailbox not present"),
    *("mailbox … not exist", "recipient not found", "recipient … not found", "recipient not exist"),
    *("recipient … not exist", "recipientnotfound", "recipnotfound", "recipient is not local", "recipient not ok"),
    *("not recognized", "address not found", "address … not found", "address … not exist", "address not exist"),
    *("address could not be found", "wasn't found at", "was not found at", "address couldn't be found"),
    *("address not known", "account not found", "account … not found", "account … not exist", "alias … not exist"),
    *("rcpt … not exist", "user does not exist", "user … does not exist", "user doesn't exist", "user … doesn't exist"),
    *("mailbox does not exist", "mailbox … does not exist", "mailbox … doesn't exist", "recipient does not exist"),
    *("recipient … does not exist", "recipient … doesn't exist", "address … does not exist", "address … doesn't exist"),
    *("account … does not exist", "account … doesn't exist", "alias … does not exist", "user … doesn't have a"),
    *("user … doesnt have a", "user … does not have a", "@ does not exist", "@ doesn't exist", "@ not found"),
    *("@ is unknown", "@ unknown", "@ is not a valid", "invalid recipient", "invalid-recipient", "invalid mailbox"),
    *("invalid user", "invalid local part", "invalid account", "invalid or unknown", "recipient is invalid"),
    *("recipients are invalid", "recipient … is not valid", "user invalid", "user is invalid", "mailbox invalid"),
    *("mailbox is invalid", "bad destination mailbox", "bad destination address", "bad-recipient", "bad recipient"),
    *("illegal user", "illegal alias", "nonexistent user", "non-existent user", "nonexistent mailbox"),
    *("non-existent mailbox", "nonexistent recipient", "non-existent recipient", "nonexistent address"),
    *("non-existent address", "user has moved", "user … has moved", "recipient … moved", "user … moved"),
    *("mailbox … moved", "address … changed", "does not like recipient", "badrcptto", "badrecipientto", "validrcptto"),
    *("domain or user … my list", "envelope recipient has been denied", "refuses to accept your mail"),
    *("can't accept user", "missing home directory", "recipient cannot be verified", "recipient could not be verified"),
    *("unable to validate recipient", "no valid recipients,", "archived recipient", "incorrectly addressed"),
    *("not present in directory", "not listed in", "not in the directory", "name directory"),
    *("matches to nameserver query", "not email addresses", "not found in ldap", "unable to find alias"),
    *("handle mail for that user", "account unavailable", "account is unavailable", "rejected recipients"),
    *("not known to this system", "not known here"),
)

# Postfix' and Exim's name service, Exchange's resolver, sendmail's "Host unknown", Domino, and null MX (RFC 7505).
INVALID_DOMAIN: Final[Phrases] = (
    *("domain not found", "host not found", "domain name not found", "host or domain name"),
    *("name or service not known", "nxdomain", "unrouteable", "unroutable", "unable to route", "unable to resolve"),
    *("no route for current request", "domain does not exist", "domain … does not exist", "domain doesn't exist"),
    *("domain … not exist", "no such domain", "domain must exist", "domain must resolve", "domain missing"),
    *("domain not used", "domain is not reachable", "mail domain … unknown", "unknown domain", "domain unknown"),
    *("domain is unknown", "invalid domain", "domain is invalid", "nonexistent domain", "nonexistentdomain", "nullmx"),
    *("null mx", "no mx", "no valid mx", "no mail server", "does not accept mail", "doesn't accept mail"),
    *("does not receive mail", "bad destination host", "bad destination system", "name service error"),
    *("name server reply", "name lookup failure", "nameserver … failure", "dns lookup fail", "dns error"),
    *("dns failure", "dns records", "could not load drd", "could not resolve", "cannot resolve", "couldn't resolve"),
    *("host unknown", "unknown host", "host name is unknown", "any host named", "any host by that name"),
    *("find the recipient domain", "find a mail exchanger", "non-existent host", "nonexistent host"),
    *("indicated no smtp service", "no route found", "dns query", "illegal host/domain", "domain may not exist"),
)

# Block lists, content filters and policies of all makers; authentication (SPF, DKIM, DMARC, SMTP AUTH, TLS); relaying;
# size; lists that only members may write to.
REFUSED: Final[Phrases] = (
    *("spam", "unsolicited", "unsolicted", "bulk mail", "bulk email", "junk", "phish", "blacklist", "black list"),
    *("black-list", "blocklist", "block list", "block-list", "blocked", "denylist", "whitelist", "white list"),
    *("banned", "dnsbl", "rbl", "surbl", "uribl", "abus", "listed at", "listed by", "listed on", "listed in"),
    *("barracuda", "reputation", "complaint", "unwanted", "suspicious", "dynamic ip", "dynamic-ip", "dial-up"),
    *("bad ip", "ip profile", "your ip", "open proxy", "dkim", "domainkeys", "dmarc", "spf", "sender policy framework"),
    *("tlsa", "dane ", "reverse dns", "reverse lookup", "reverse name", "rdns", "ptr record", "dns ptr", "virus"),
    *("malware", "infected", "trojan", "worm", "relaying denied", "relay access denied", "relay denied", "relaying"),
    *("relay not permitted", "as a relay", "relays", "mail relay", "open relay", "to relay", "do not relay"),
    *("not relay", "not a gateway", "not local host", "rcpthosts", "invalid data", "content rejected"),
    *("message content", "invalid content", "rejected … content", "unsafe content", "content policy", "content … not"),
    *("content denied", "filter", "as bulk", "stray", "rule imposed", "held before", "held for", "prohibited"),
    *("prohibition", "policy", "policies", "security", "too large", "too big", "line too long", "lines too long"),
    *("line is too long", "header too long", "headers too long", "message too long", "message is too long"),
    *("name too long", "message size", "email size", "message length", "size limit", "size exceeds", "header size"),
    *("file size", "line limit", "larger than", "attachment", "executable", "file type", "file extension", "zip file"),
    *("mime", "base64", "binary content", "message header", "header error", "headers are", "header are"),
    *("invalid header", "invalid characters", "duplicate header", "not authorized", "not authorised", "unauthorized"),
    *("not authenticated", "authenticat", "credential", "unauthenticated", "tls required", "requires tls"),
    *("requires encryption", "tls is required", "not rfc", "ciphers", "certificate", "starttls", "access denied"),
    *("smtp auth", "advertise auth"),
    *("forbidden", "not allowed to", "not permitted to", "not allowed access", "not accepted from"),
    *("not currently accepting mail from", "client host rejected", "host network not allowed", "no access from"),
    *("rejected for", "permanently deferred", "confirm this mail server", "requires confirmation"),
    *("requires that you verify", "verification", "not pre-approved", "user rules", "user rule"),
    *("organizational settings", "protected by", "by the recipient", "by recipients", "recipient preferences"),
    *("recipient's preferences", "invalid ip", "members-only", "members only", "mailing list", "not a member"),
    *("non-member", "nonmember", "not subscribed", "to post to", "permission to post", "captcha", "low priority"),
    *("restricted", "restriction", "batv", "unsigned dsn", "empty envelope", "go away", "not welcome", "validation"),
    *("recursive cname", "does not comply", "not compliant", "rfc compliant", "comply with", "smtp server of your isp"),
    *("is listed as", "are listed as", "been listed as", "we do not accept", "ask your postmaster for help"),
    *(":blocked", "server did not offer", "not offered by host", "no longer accept", "dynamically assigned"),
)

# Postfix' and Exim's deferrals, Exchange's transport, sendmail's mailers, qmail's and SmarterMail's tries; loops.
UNREACHABLE: Final[Phrases] = (
    *("timed out", "timeout", "time-out", "time out", "connection refused", "connection reset", "connection lost"),
    *("lost connection", "connection dropped", "connection was dropped", "connection closed", "connection failed"),
    *("connection failure", "connection error", "connect to", "could not connect", "couldn't connect"),
    *("unable to connect", "refused to talk", "not accepting connections", "not accepting network messages"),
    *("establish … connection", "unreachable", "not reachable", "not reached", "no route to host", "network error"),
    *("not responding", "did not respond", "no answer", "try again", "try later", "retry later", "come back"),
    *("temporar", "deferred", "has been delayed", "not yet been delivered", "will be retried", "being retried"),
    *("attempts", "have been failing", "it has not been collected", "no message collected", "service unavailable"),
    *("service not available", "service currently unavailable", "not available at this time", "at this time"),
    *("server busy", "too busy", "agent busy", "system resource", "system storage", "system full", "disk space"),
    *("disk full", "no space left", "out of memory", "overloaded", "high load", "load is too high", "expired"),
    *("retry time", "queue lifetime", "too many hops", "could not be delivered for", "records point to local"),
    *("record points to local", "best-preference mx", "hop count", "loop", "mail exchanger failed", "find a gateway"),
    *("config error", "configuration error", "misconfigured", "incorrectly configured", "local error"),
    *("internal error", "system error", "internal server error", "read error", "transient", "mail transport"),
    *("time limit exceeded", "deleted from queue", "server error", "error while being processed"),
    *("interrupted system call", "write error", "maildir delivery failed", "create maildir", "cannot open"),
    *("cannot update", "i/o error", "input/output error", "unable to process", "replicat", "protocol violation"),
    *("x-unix", "requests to connect", "socket error", "duplicated message-id", "duplicate message-id"),
    *("transaction failed", "closing transmission channel", "database", "lookup failure", "server down", "is down"),
)

# RFC 5321's own wording for 550, and refusals of the address that say no more. Of several recipients that were
# rejected tells a heading, and not a reason: hence the space behind the one.
RECIPIENT_REFUSED: Final[Phrases] = (
    *("mailbox unavailable", "unavailable mailbox", "mailbox … unavailable", "mailbox not available"),
    *("mailbox is not available", "recipient rejected", "recipient  … rejected", "recipient address rejected"),
    "recipients rejected",
    *("recipient refused", "address rejected", "recipient not accepted", "rejected recipient", "recipient not allowed"),
    *("recipient denied", "invalid address", "address invalid", "address is invalid", "address not valid"),
    *("bad address", "user reject", "rejected user", "no recipients", "no valid recipient", "does not exist"),
    *("doesn't exist", "not exist", "malformed address", "malformed recipient", "user not local"),
)

MESSAGE_REFUSED: Final[Phrases] = (
    *("message rejected", "message refused", "message denied", "message was rejected", "message has been rejected"),
    *("message not accepted", "mail rejected", "mail refused", "mail not accepted", "email rejected", "email refused"),
    *("e-mail rejected", "delivery rejected", "transaction rejected", "rejected by", "refused by", "denied by"),
    *("rejected due to", "rejected message", "reject the message", "refused - see", "rejected - see", "refused mail"),
    *("not accepting", "won't accept", "will not accept", "does not accept", "://postmaster.", "unacceptable"),
    *("rejected", "denied"),
)
