"""The qualification: one test per row of its table, real phrasings, the order of the rules, and what always holds."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback_service.domain import rules
from feedback_service.domain.qualification import NO_RULE, decide, first_rule, implies_nothing, qualify
from feedback_service.domain.vocabulary import OUTCOME_OF_KIND, FailureType, MtaEventKind, Reason

BOUNCE = MtaEventKind.BOUNCE
RETRY = MtaEventKind.TRANSIENT_FAILURE
EXPIRED = MtaEventKind.EXPIRATION
ASYNCHRONOUS = MtaEventKind.OUT_OF_BAND_BOUNCE

FULL = rules.MAILBOX_FULL
DISABLED = rules.ACCOUNT_DISABLED
GONE = rules.ACCOUNT_GONE
UNKNOWN = rules.USER_UNKNOWN
DOMAIN = rules.INVALID_DOMAIN
REFUSED = rules.REFUSED
UNREACHABLE = rules.UNREACHABLE
IGNORED = rules.ERROR_IGNORED
UNDEFINED = rules.NOT_DEFINED

# kind, SMTP code, enhanced code, text, verdict
PHRASINGS: Sequence[tuple[MtaEventKind, int, str, str, rules.Verdict]] = [
    # Postfix
    (BOUNCE, 550, "5.1.1", "550 5.1.1 <a@example.test>: Recipient address rejected: User unknown", UNKNOWN),
    (
        BOUNCE,
        550,
        "5.1.1",
        "<a@b.test>: Recipient address rejected: User unknown in virtual mailbox table",
        UNKNOWN,
    ),
    (RETRY, 450, "4.2.0", "450 4.2.0 <a@example.test>: greylisted, try later", UNREACHABLE),
    (
        RETRY,
        450,
        "4.2.0",
        "<a@b.test>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/",
        UNREACHABLE,
    ),
    (RETRY, 0, "4.4.1", "connect to 127.0.0.1[127.0.0.1]:2699: Connection refused", UNREACHABLE),
    (BOUNCE, 554, "5.7.1", "554 5.7.1 Message rejected as spam", REFUSED),
    (BOUNCE, 554, "5.7.1", "554 5.7.1 content rejected (in reply to end of DATA)", REFUSED),
    (BOUNCE, 552, "5.2.2", "552 5.2.2 <a@example.test>: over quota", FULL),
    (BOUNCE, 0, "5.4.4", "Host or domain name not found. Name service error for name=nowhere.test type=MX", DOMAIN),
    (RETRY, 450, "4.1.2", "<a@b.test>: Recipient address rejected: Domain not found", DOMAIN),
    (RETRY, 450, "4.1.8", "<news@brand.test>: Sender address rejected: Domain not found", REFUSED),
    (BOUNCE, 554, "5.7.1", "<a@b.test>: Relay access denied", REFUSED),
    (BOUNCE, 0, "5.4.6", "mail for b.test loops back to myself", UNREACHABLE),
    # Exim: a status that says nothing, the reply in the text
    (BOUNCE, 0, "5.0.0", "host mx.b.test [192.0.2.1]: 550 5.1.1 mail to this one is not possible", UNKNOWN),
    (BOUNCE, 0, "5.0.0", "smtp; 550 no such user here", UNKNOWN),
    (BOUNCE, 0, "5.0.0", "450 4.2.0 try again later: retry timeout exceeded", UNREACHABLE),
    (BOUNCE, 550, "", "550 Unrouteable address", DOMAIN),
    (RETRY, 0, "", "H=mx.b.test [192.0.2.1]: SMTP timeout after initial connection", UNREACHABLE),
    (BOUNCE, 550, "", "Sender verify failed", REFUSED),
    # OpenSMTPD
    (BOUNCE, 0, "5.0.0", "rcpt: 550 5.1.1 <a@b.test>: Recipient rejected", UNKNOWN),
    (EXPIRED, 0, "4.4.7", "Envelope expired", UNREACHABLE),
    # Gmail
    (
        BOUNCE,
        550,
        "5.1.1",
        "550-5.1.1 The email account that you tried to reach does not exist. Please try "
        "550-5.1.1 double-checking the recipient's email address - gsmtp",
        UNKNOWN,
    ),
    (
        RETRY,
        452,
        "4.2.2",
        "452-4.2.2 The email account that you tried to reach is over quota. Please direct "
        "https://support.google.com/mail/?p=OverQuotaTemp ab12-20020a17 - gsmtp",
        FULL,
    ),
    (BOUNCE, 552, "5.2.2", "https://support.google.com/mail/?p=OverQuotaPerm x1 - gsmtp", FULL),
    (BOUNCE, 550, "5.2.1", "550 5.2.1 The email account that you tried to reach is disabled.", DISABLED),
    (BOUNCE, 550, "5.2.1", "550 5.2.1 The email account that you tried to reach is inactive.", DISABLED),
    (
        RETRY,
        450,
        "4.2.1",
        "450-4.2.1 The user you are trying to contact is receiving mail too quickly.",
        UNREACHABLE,
    ),
    (
        BOUNCE,
        552,
        "5.7.0",
        "552-5.7.0 This message was blocked because its content presents a potential security issue",
        REFUSED,
    ),
    (
        BOUNCE,
        550,
        "5.7.26",
        "550-5.7.26 Unauthenticated email from brand.test is not accepted due to domain's DMARC policy",
        REFUSED,
    ),
    (RETRY, 421, "4.7.28", "421-4.7.28 Our system has detected an unusual rate of unsolicited mail", REFUSED),
    (BOUNCE, 550, "5.4.5", "550 5.4.5 Daily user sending quota exceeded", UNREACHABLE),
    # Microsoft
    (BOUNCE, 550, "5.4.1", "550 5.4.1 Recipient address rejected: Access denied. AS(201806281)", UNKNOWN),
    (BOUNCE, 554, "5.7.1", "554 5.7.1 <a@b.test>: Recipient address rejected: Access denied", REFUSED),
    (BOUNCE, 550, "5.1.10", "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address", UNKNOWN),
    (BOUNCE, 554, "5.2.2", "554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException", FULL),
    (
        BOUNCE,
        550,
        "5.7.1",
        "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. part of their network is on our block list",
        REFUSED,
    ),
    (BOUNCE, 550, "", "550 Requested action not taken: mailbox unavailable", UNKNOWN),
    (RETRY, 451, "4.7.500", "451 4.7.500 Server busy. Please try again later from [192.0.2.1]", UNREACHABLE),
    # Yahoo, AOL
    (BOUNCE, 554, "", "554 delivery error: dd This user doesn't have a yahoo.com account (a@yahoo.com) [0]", UNKNOWN),
    (
        BOUNCE,
        554,
        "",
        "554 delivery error: dd Sorry your message cannot be delivered. This account has been disabled or discontinued",
        DISABLED,
    ),
    (
        RETRY,
        421,
        "4.7.0",
        "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints",
        REFUSED,
    ),
    # Others
    (BOUNCE, 550, "5.7.1", "550 5.7.1 no such user", UNKNOWN),
    (BOUNCE, 550, "", "550 MAILBOX NOT FOUND", UNKNOWN),
    (BOUNCE, 550, "", "550 Invalid recipient a@b.test", UNKNOWN),
    (BOUNCE, 551, "", "551 User has moved; please try another address", UNKNOWN),
    (BOUNCE, 550, "", "550 Utilisateur inconnu", UNKNOWN),
    (RETRY, 450, "", "450 user unknown", UNREACHABLE),
    (BOUNCE, 450, "4.1.1", "450 4.1.1 <a@b.test>: user unknown", UNREACHABLE),
    (BOUNCE, 550, "5.2.1", "550 5.2.1 mailbox has been permanently closed", GONE),
    (RETRY, 450, "4.2.1", "450 4.2.1 mailbox has been closed for now", DISABLED),
    (BOUNCE, 554, "", "554 The account has been suspended", DISABLED),
    (BOUNCE, 552, "", "552 Requested mail action aborted: exceeded storage allocation", FULL),
    (BOUNCE, 552, "5.3.4", "552 5.3.4 Message size exceeds fixed limit", REFUSED),
    (RETRY, 452, "4.3.1", "452 4.3.1 Insufficient system storage", UNREACHABLE),
    (BOUNCE, 556, "5.1.10", "556 5.1.10 recipient's domain has a null MX", DOMAIN),
    (BOUNCE, 550, "", "550 5.7.1 Service unavailable; client [192.0.2.1] listed at zen.spamhaus.org", REFUSED),
    (BOUNCE, 550, "", "550 rejected because the sender does not exist", REFUSED),
    (BOUNCE, 550, "5.7.25", "550 5.7.25 The IP address sending this message does not have a PTR record", REFUSED),
    (RETRY, 421, "", "421 Too many concurrent SMTP connections", UNREACHABLE),
    (BOUNCE, 0, "", "lost connection with mx.b.test while receiving the initial server greeting", UNREACHABLE),
    (ASYNCHRONOUS, 0, "", "I am out of office until Monday", IGNORED),
    (ASYNCHRONOUS, 0, "5.1.1", "Vacation reply", IGNORED),
    (BOUNCE, 550, "", "550 this looks like an auto-reply; user unknown", UNKNOWN),
    # Whose status is vague in other ways
    (BOUNCE, 550, "5.0.350", "550 5.0.350 Remote server returned an error -> 550 5.1.1 not possible", UNKNOWN),
    (BOUNCE, 550, "5.1.0", "550 #5.1.0 Address rejected.", UNKNOWN),
    (BOUNCE, 550, "5.7.1", "550 5.7.1 Recipient rejected", REFUSED),
    (BOUNCE, 550, "5.5.0", "550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302)", UNKNOWN),
    (BOUNCE, 554, "", "554 Rcpt <a@b.test> does not exist", UNKNOWN),
    (BOUNCE, 550, "", "550 <a@b.test> not found", UNKNOWN),
    (BOUNCE, 0, "", "procmail: command not found", UNDEFINED),
    # Many are in no language but their own
    (BOUNCE, 550, "", "550 Benutzer hat zuviele Mails auf dem Server.", FULL),
    (BOUNCE, 550, "", "550 Boite du destinataire pleine.", FULL),
    (BOUNCE, 550, "", "550 casella piena", FULL),
    (BOUNCE, 550, "", "550 Adresse d au moins un destinataire invalide", UNKNOWN),
    (BOUNCE, 550, "", "550 nie ma takiego uzytkownika", UNKNOWN),
    (BOUNCE, 550, "", "550 destinatario sconosciuto", UNKNOWN),
    (BOUNCE, 554, "", "554 konto jest zablokowane", DISABLED),
    # The sender's fault, though it speaks of what does not exist
    (BOUNCE, 553, "5.1.8", "553 5.1.8 Domain of sender address news@b.test does not exist", REFUSED),
    (BOUNCE, 550, "", "550 Cannot resolve your address.", REFUSED),
    (BOUNCE, 550, "5.7.134", "550 5.7.134 Sender was not authenticated for mailbox; user unknown to it", REFUSED),
    (BOUNCE, 554, "", "554 Error: no valid recipients from 192.0.2.1", REFUSED),
    # Over soon
    (BOUNCE, 550, "", "550 Too many invalid recipients", UNREACHABLE),
    (BOUNCE, 550, "5.2.121", "550 5.2.121 Recipient's per hour message receive limit exceeded", UNREACHABLE),
    (BOUNCE, 550, "", "550 Connection frequency limited", UNREACHABLE),
    (BOUNCE, 554, "5.4.6", "554 5.4.6 Too many hops", UNREACHABLE),
    (BOUNCE, 554, "", "554 mail server configuration error", UNREACHABLE),
    # Block lists that are named by their address alone; what a filter says
    (BOUNCE, 554, "", "554 see https://www.spamhaus.org/query/ip/192.0.2.1", REFUSED),
    (BOUNCE, 550, "", "550 permanent failure for one or more recipients (a@b.test:blocked)", REFUSED),
    (BOUNCE, 554, "", "554 Denied (Mode: normal)", REFUSED),
    (BOUNCE, 553, "", "553-Message filtered.", REFUSED),
    (BOUNCE, 550, "", "550 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)", REFUSED),
    (BOUNCE, 550, "", "550 This account is protected by a list of allowed senders", REFUSED),
    # The account
    (BOUNCE, 550, "", "550 mailbox currently suspended", DISABLED),
    (BOUNCE, 550, "", "550 due to extended inactivity new mail is not currently being accepted", DISABLED),
    (BOUNCE, 551, "", "551 <a@b.test> is a deactivated mailbox", DISABLED),
    # Distrust that shows as a limit: Gmail's, Exchange Online's and GoDaddy's lists of replies
    (RETRY, 421, "4.7.26", "This mail has been rate limited because it is unauthenticated.", REFUSED),
    (RETRY, 451, "4.7.650", "The mail server has been temporarily rate limited due to IP reputation.", REFUSED),
    (BOUNCE, 554, "", "This IP has been blocked for content judged to be spam. Too many messages sent", REFUSED),
    (RETRY, 451, "4.7.1", "Greylisted, see our policy on reputation", UNREACHABLE),
    (BOUNCE, 521, "5.2.1", "521 5.2.1 : (CON:B1) https://postmaster.example/error-codes", REFUSED),
    # Facebook, i.ua, iCloud, Symantec, docomo, Yahoo: from their lists
    (BOUNCE, 550, "", "550 Refused due to recipient preferences", REFUSED),
    (BOUNCE, 550, "", "550 Mailbox is not used for more than 3 months", DISABLED),
    (BOUNCE, 550, "5.1.1", "<a@b.test>: inactive email address", DISABLED),
    (BOUNCE, 553, "", "553 Recipient mailbox is not allowed", UNKNOWN),
    (BOUNCE, 553, "5.7.2", "All messages from 192.0.2.1 will be permanently deferred", REFUSED),
    (BOUNCE, 550, "5.4.1", "All recipient addresses rejected : Access denied. AS(201806271)", UNKNOWN),
    (BOUNCE, 552, "5.7.0", "552 5.7.0 no", REFUSED),
    # qmail gives up, and says nothing about the length of the message
    (BOUNCE, 0, "4.4.1", "I'm not going to try again; this message has been in the queue too long.", UNREACHABLE),
    (BOUNCE, 0, "5.4.6", "Although I'm listed as a best-preference MX or A for that host, it isn't in", UNREACHABLE),
    # Local delivery
    (BOUNCE, 0, "", "maildir delivery failed: create maildir file /x: Permission denied", UNREACHABLE),
    (BOUNCE, 0, "", "an MX or SRV record indicated no SMTP service", DOMAIN),
    (BOUNCE, 0, "", "TLS is required, but was not offered by host mx.b.test", REFUSED),
    # The sender is verified, in vain
    (BOUNCE, 550, "", "550-Verification failed for <n@brand.test> 550-No Such User Here", REFUSED),
    # What is unknown or invalid besides the recipient
    (BOUNCE, 554, "", "554 Delivery to the recipient failed for an unknown reason", UNDEFINED),
    (BOUNCE, 550, "", "550 Message to this user rejected: invalid header", REFUSED),
    (BOUNCE, 535, "", "535 Authentication failed: user or password is invalid", REFUSED),
    # The same words in other orders, and without spaces
    (BOUNCE, 550, "", "554 5.0.0 unresolvable address: nosuchuser", UNKNOWN),
    (BOUNCE, 550, "", "550_user_does_not_exist_here", UNKNOWN),
    (BOUNCE, 552, "", "522_mailbox_full", FULL),
    (BOUNCE, 550, "", "550 Sorry, that address isn't in my list of allowed recipients", UNKNOWN),
    (BOUNCE, 550, "", "550-Mailbox is over the maximum allowed number of messages", FULL),
    (BOUNCE, 550, "", "550 email name is not found", UNKNOWN),
    (BOUNCE, 550, "", "550 <a@b.test> not used", UNKNOWN),
    (BOUNCE, 550, "", "550 the IP address of this recipient's gateway: ip address unknown", REFUSED),
    (BOUNCE, 550, "", "550-Access denied...abc123", REFUSED),
    # Languages: things and their states, with and without accents
    (BOUNCE, 550, "", "550 La cuenta de correo no existe", UNKNOWN),
    (BOUNCE, 550, "", "550 No existe el usuario", UNKNOWN),
    (BOUNCE, 552, "", "El buzón del destinatario está lleno", FULL),
    (BOUNCE, 550, "", "550 Usuario deshabilitado", DISABLED),
    (BOUNCE, 550, "", "550 Usuário não encontrado", UNKNOWN),
    (BOUNCE, 550, "", "550 Caixa postal inativa", DISABLED),
    (BOUNCE, 550, "", "L\u2019adresse de messagerie que vous avez entrée est introuvable", UNKNOWN),
    (BOUNCE, 550, "", "550 boite aux lettres saturee", FULL),
    (BOUNCE, 550, "", "550 Compte bloqué", DISABLED),
    (BOUNCE, 550, "", "Die E-Mail-Adresse konnte nicht gefunden werden", UNKNOWN),
    (BOUNCE, 550, "", "550 Empfaenger existiert nicht", UNKNOWN),
    (BOUNCE, 550, "", "550 Postfach gesperrt", DISABLED),
    (BOUNCE, 550, "", "550 L'utente non esiste", UNKNOWN),
    (BOUNCE, 550, "", "550 casella disabilitata", DISABLED),
    (BOUNCE, 550, "", "550 Deze gebruiker bestaat niet", UNKNOWN),
    (BOUNCE, 550, "", "Het postvak van de geadresseerde is vol", FULL),
    (BOUNCE, 550, "", "550 Schránka neexistuje", UNKNOWN),
    (BOUNCE, 552, "", "552 Skrzynka jest przepełniona", FULL),
    (BOUNCE, 550, "", "550 нет такого пользователя", UNKNOWN),
    (BOUNCE, 550, "", "550 Почтовый ящик отключён", DISABLED),
    (BOUNCE, 550, "", "550 宛先のメールアドレスが存在しません", UNKNOWN),
    (BOUNCE, 550, "", "550 受信拒否", REFUSED),
    (BOUNCE, 550, "", "550 收件人邮箱不存在", UNKNOWN),
    (BOUNCE, 550, "", "550 该帐号已被停用", DISABLED),
    (BOUNCE, 550, "", "550 존재하지 않는 사용자입니다", UNKNOWN),
    # … and what is said of a domain or of the sender in them
    (BOUNCE, 550, "", "550 usuario: el dominio no existe", DOMAIN),
    (BOUNCE, 550, "", "550 домен не существует", DOMAIN),
    (BOUNCE, 550, "", "550 remitente no existe", REFUSED),
    (BOUNCE, 550, "", "550 Adresse IP source bloquée pour incident de spam", REFUSED),
    # Refused before anyone had named a recipient, as Exim, Postfix and a transcript tell it
    (BOUNCE, 553, "5.1.0", "SMTP error after MAIL FROM:<a@b.test> SIZE=9: 553 5.1.0 b.test does not exist", REFUSED),
    (BOUNCE, 550, "5.1.1", "550 5.1.1 User unknown (in reply to MAIL FROM command)", REFUSED),
    (BOUNCE, 550, "", ">>> MAIL FROM:<a@b.test> <<< 550 mailbox unavailable", REFUSED),
    (BOUNCE, 550, "", ">>> MAIL FROM:<a@b.test> >>> RCPT TO:<c@d.test> <<< 550 mailbox unavailable", UNKNOWN),
    (BOUNCE, 550, "", "550 no such user (in reply to RCPT TO command)", UNKNOWN),
    (EXPIRED, 0, "", "SMTP timeout after initial connection: timed out", UNREACHABLE),
    (BOUNCE, 554, "", "554 after initial connection: daily relay quota reached", UNREACHABLE),
    # The code tells whose domain it is
    (BOUNCE, 550, "5.1.7", "550 5.1.7 No such domain example.test", REFUSED),
    (BOUNCE, 550, "5.1.8", "550 5.1.8 user unknown", REFUSED),
    (BOUNCE, 550, "5.1.2", "550 5.1.2 No such domain example.test", DOMAIN),
    # A heading over several recipients is no reason
    (BOUNCE, 0, "", "Each of the following recipients was rejected by a remote server", REFUSED),
    (BOUNCE, 550, "", "550 All recipients rejected", UNKNOWN),
    (BOUNCE, 550, "", "550 recipient <a@b.test> rejected", UNKNOWN),
    (BOUNCE, 0, "", "Server does not advertise AUTH capability", REFUSED),
    # Groups that may not be written to, and directories, in other languages
    (BOUNCE, 0, "", "グループが存在しないか、投稿する権限がない可能性があります", REFUSED),
    (BOUNCE, 0, "", "Sie haben keine Berechtigung, an diese Gruppe zu schreiben", REFUSED),
    (BOUNCE, 0, "", "You may not have permission to post messages to the group", REFUSED),
    (BOUNCE, 0, "", "ディレクトリのリストにありません", UNKNOWN),
    (BOUNCE, 550, "", "550 該当するユーザはいません", UNKNOWN),
    (BOUNCE, 552, "", "552 メールボックスに空きがありません", FULL),
    (BOUNCE, 550, "", "550 no", UNDEFINED),
    (BOUNCE, 0, "", "", UNDEFINED),
]


@pytest.mark.parametrize(("kind", "code", "enhanced", "text", "verdict"), PHRASINGS)
def test_a_phrasing_seen_in_the_wild_is_read_right(
    kind: MtaEventKind, code: int, enhanced: str, text: str, verdict: rules.Verdict
) -> None:
    assert qualify(kind, code, enhanced, text, "", "") == verdict


def test_row_1_a_machines_answer_is_an_ignored_error() -> None:
    assert qualify(ASYNCHRONOUS, 0, "", "Automatic reply: away", "", "") == IGNORED
    assert qualify(BOUNCE, 550, "", "confirm that you are a person", "ChallengeResponse", "") == IGNORED
    assert qualify(BOUNCE, 550, "", "", "60", "") == IGNORED


@pytest.mark.parametrize("feedback_type", ["abuse", "fraud", "virus", "other", ""])
def test_row_2_a_complaint_is_hard_and_refused(feedback_type: str) -> None:
    verdict = qualify(MtaEventKind.COMPLAINT, 0, "", "", "", feedback_type)
    assert verdict == (FailureType.HARD, Reason.REFUSED)
    assert not implies_nothing(MtaEventKind.COMPLAINT, feedback_type)


def test_row_2_a_report_that_it_was_no_spam_is_ignored() -> None:
    assert qualify(MtaEventKind.COMPLAINT, 0, "", "", "", "not-spam") == IGNORED
    assert implies_nothing(MtaEventKind.COMPLAINT, "Not-Spam")


def test_row_2_a_report_that_a_mail_could_not_be_authenticated_is_no_complaint() -> None:
    assert qualify(MtaEventKind.COMPLAINT, 0, "", "", "", "auth-failure") == IGNORED
    assert implies_nothing(MtaEventKind.COMPLAINT, "auth-failure")


def test_row_3_a_full_mailbox_is_soft_by_text_or_by_code() -> None:
    assert qualify(BOUNCE, 550, "5.7.1", "mailbox is full", "", "") == FULL
    assert qualify(BOUNCE, 550, "5.2.2", "no", "", "") == FULL
    assert qualify(BOUNCE, 552, "", "no", "", "") == FULL


@pytest.mark.parametrize("enhanced", ["5.2.3", "5.3.4"])
def test_row_3_a_552_for_a_message_too_large_is_refused_instead(enhanced: str) -> None:
    assert qualify(BOUNCE, 552, enhanced, "no", "", "") == REFUSED


def test_row_4_a_disabled_account_is_soft_and_one_that_is_gone_is_hard() -> None:
    assert qualify(BOUNCE, 550, "5.2.1", "no", "", "") == DISABLED
    assert qualify(BOUNCE, 550, "5.7.13", "no", "", "") == DISABLED
    assert qualify(BOUNCE, 525, "", "no", "", "") == DISABLED
    assert qualify(BOUNCE, 550, "", "account terminated", "", "") == GONE


@pytest.mark.parametrize("enhanced", ["5.1.1", "5.1.3", "5.1.4", "5.1.6", "5.7.17"])
def test_row_5_a_code_for_an_unknown_user_is_hard(enhanced: str) -> None:
    assert qualify(BOUNCE, 550, enhanced, "no", "", "") == UNKNOWN


@pytest.mark.parametrize("code", [550, 551, 553, 554])
def test_row_5_a_permanent_refusal_that_says_user_unknown_is_hard(code: int) -> None:
    assert qualify(BOUNCE, code, "", "user unknown", "", "") == UNKNOWN


@pytest.mark.parametrize(
    ("kind", "code", "enhanced"), [(BOUNCE, 450, ""), (BOUNCE, 0, "4.1.1"), (RETRY, 550, "5.1.1"), (RETRY, 0, "")]
)
def test_row_6_user_unknown_for_the_moment_is_soft_and_unreachable(
    kind: MtaEventKind, code: int, enhanced: str
) -> None:
    assert qualify(kind, code, enhanced, "user unknown", "", "") == UNREACHABLE


@pytest.mark.parametrize(
    ("code", "enhanced"), [(550, "5.1.2"), (556, ""), (550, "5.1.10"), (550, "5.4.4"), (550, "5.7.18"), (450, "4.1.2")]
)
def test_row_7_a_code_for_a_missing_domain_is_an_invalid_domain(code: int, enhanced: str) -> None:
    assert qualify(BOUNCE, code, enhanced, "no", "", "") == DOMAIN


@pytest.mark.parametrize(
    ("code", "enhanced"),
    [(550, "5.7.1"), (550, "5.1.7"), (550, "5.1.8"), (550, "5.6.0"), (550, "5.2.3"), (550, "5.3.4"), (571, "")],
)
def test_row_8_a_code_for_policy_content_or_sender_is_refused_and_soft(code: int, enhanced: str) -> None:
    assert qualify(BOUNCE, code, enhanced, "no", "", "") == REFUSED


@pytest.mark.parametrize(
    ("code", "enhanced"), [(0, "5.4.1"), (0, "4.3.2"), (0, "5.5.0"), (421, ""), (450, ""), (459, ""), (0, "4.0.0")]
)
def test_row_9_a_code_for_a_server_in_trouble_is_unreachable(code: int, enhanced: str) -> None:
    assert qualify(BOUNCE, code, enhanced, "no", "", "") == UNREACHABLE


def test_row_10_anything_else_is_soft_and_not_defined() -> None:
    assert qualify(BOUNCE, 550, "5.0.0", "no", "", "") == UNDEFINED
    assert qualify(BOUNCE, 0, "", "   ", "", "") == UNDEFINED


def test_an_expiry_keeps_a_full_mailbox_or_a_disabled_account_and_else_is_unreachable() -> None:
    assert qualify(EXPIRED, 452, "4.2.2", "mailbox full", "", "") == FULL
    assert qualify(EXPIRED, 450, "4.2.1", "no", "", "") == DISABLED
    assert qualify(EXPIRED, 550, "", "account terminated", "", "") == DISABLED
    assert qualify(EXPIRED, 450, "", "user unknown", "", "") == UNREACHABLE
    assert qualify(EXPIRED, 554, "5.7.1", "spam", "", "") == UNREACHABLE
    assert qualify(EXPIRED, 0, "", "", "", "") == UNREACHABLE


def test_a_removal_by_an_administrator_is_ignored_and_not_defined() -> None:
    verdict = qualify(MtaEventKind.ADMIN_BOUNCE, 550, "5.1.1", "user unknown", "InvalidRecipient", "")
    assert verdict == (FailureType.IGNORED, Reason.NOT_DEFINED)


VENDOR_VERDICTS: Sequence[tuple[str, rules.Verdict]] = [
    ("InvalidRecipient", UNKNOWN),
    ("BadDomain", DOMAIN),
    ("RoutingErrors", DOMAIN),
    ("DNSFailure", DOMAIN),
    ("InactiveMailbox", DISABLED),
    ("QuotaIssues", FULL),
    ("NoAnswerFromHost", UNREACHABLE),
    ("BadConnection", UNREACHABLE),
    ("TransientFailure", UNREACHABLE),
    ("MessageExpired", UNREACHABLE),
    ("ProtocolErrors", UNREACHABLE),
    ("BadConfiguration", UNREACHABLE),
    ("TooManyRecipients", UNREACHABLE),
    ("SpamBlock", REFUSED),
    ("SpamContent", REFUSED),
    ("ProhibitedAttachment", REFUSED),
    ("RelayDenied", REFUSED),
    ("ContentRelated", REFUSED),
    ("InvalidSender", REFUSED),
    ("PolicyRelated", REFUSED),
    ("VirusRelated", REFUSED),
    ("AuthenticationFailed", REFUSED),
    ("AutoReply", IGNORED),
    ("Subscribe", IGNORED),
    ("ChallengeResponse", IGNORED),
    ("Unsubscribe", IGNORED),
    ("Uncategorized", UNDEFINED),
    ("1", UNDEFINED),
    ("10", UNKNOWN),
    ("20", UNDEFINED),
    ("21", DOMAIN),
    ("22", FULL),
    ("23", REFUSED),
    ("24", UNREACHABLE),
    ("25", rules.REMOVED),
    ("30", UNKNOWN),
    ("40", UNDEFINED),
    ("50", REFUSED),
    ("51", REFUSED),
    ("52", REFUSED),
    ("53", REFUSED),
    ("54", REFUSED),
    ("60", IGNORED),
    ("70", UNREACHABLE),
    ("80", IGNORED),
    ("90", IGNORED),
    ("100", IGNORED),
]


@pytest.mark.parametrize(("vendor_class", "verdict"), VENDOR_VERDICTS)
def test_the_class_that_the_mta_gives_decides(vendor_class: str, verdict: rules.Verdict) -> None:
    assert qualify(BOUNCE, 550, "", "no", vendor_class, "") == verdict


def test_every_vendor_class_of_the_rules_is_tested() -> None:
    assert {name.lower() for name, _ in VENDOR_VERDICTS} | {"relayingdenied"} == rules.VENDOR_CLASSES


def test_a_vague_vendor_class_leaves_the_word_to_text_and_code() -> None:
    assert qualify(BOUNCE, 550, "", "mailbox full", "Uncategorized", "") == FULL
    assert qualify(BOUNCE, 550, "5.1.1", "no", "40", "") == UNKNOWN


def test_an_unknown_vendor_class_tells_nothing() -> None:
    assert qualify(BOUNCE, 550, "", "mailbox full", "OurOwnClass", "") == FULL


def test_a_vendors_quota_class_for_a_message_too_large_is_refused() -> None:
    assert qualify(BOUNCE, 552, "5.3.4", "no", "QuotaIssues", "") == REFUSED


def test_a_vendors_invalid_recipient_is_not_hard_while_the_mta_retries() -> None:
    assert qualify(RETRY, 450, "4.1.1", "no", "InvalidRecipient", "") == UNREACHABLE


@pytest.mark.parametrize(
    ("text", "code", "enhanced", "verdict"),
    [
        ("mailbox full, user unknown", 550, "", FULL),  # 3 before 5
        ("account disabled, user unknown", 550, "", DISABLED),  # 4 before 5
        ("user unknown, rejected as spam", 550, "", UNKNOWN),  # 5 before 8
        ("domain not found, spam", 550, "", DOMAIN),  # 7 before 8
        ("spam, connection timed out", 550, "", REFUSED),  # 8 before 9
        ("sender unknown, mailbox full", 550, "", REFUSED),  # what concerns the sender before all
        ("(in reply to MAIL FROM command), mailbox full", 550, "", REFUSED),  # nor was any recipient named yet
        ("user unknown", 550, "5.2.2", UNKNOWN),  # text before code
        ("no", 552, "5.1.1", FULL),  # 3 before 5
        ("no", 525, "5.1.1", DISABLED),  # 4 before 5
    ],
)
def test_the_first_rule_that_matches_wins(text: str, code: int, enhanced: str, verdict: rules.Verdict) -> None:
    assert qualify(BOUNCE, code, enhanced, text, "", "") == verdict


def test_a_sentence_about_a_domain_does_not_make_the_user_unknown() -> None:
    assert qualify(BOUNCE, 550, "", "the address has a domain that does not exist", "", "") == DOMAIN


def test_an_address_or_an_id_in_the_text_decides_nothing() -> None:
    assert qualify(BOUNCE, 550, "", "<spam-quota@disabled.test> refused, id=quota77", "", "") == UNDEFINED


def test_case_and_white_space_do_not_matter() -> None:
    assert qualify(BOUNCE, 550, "", "  MAILBOX\r\n\t Is   Full ", "", "") == FULL


def test_nothing_temporary_is_ever_hard() -> None:
    for rule in rules.RULES:
        if rule.verdict[0] == FailureType.HARD:
            assert rule.verdict_if_temporary is not None
            assert rule.verdict_if_temporary[0] == FailureType.SOFT


def test_what_no_rule_reads_matches_no_rule() -> None:
    assert first_rule(BOUNCE, 550, "5.0.0", "", "") is None


TEXTS = st.text(max_size=1_200) | st.lists(
    st.sampled_from([phrase for rule in rules.RULES for phrase in rule.texts] + ["550", "4.2.2", "…", "\0"])
).map(" ".join)
ENHANCED_CODES = st.sampled_from(["", "4.2.2", "5.1.1", "5.0.0", "5.999.999", "nonsense", "5", "..", "x.y"])


@given(
    st.integers(-5, 20),
    st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 450, 550, 552]),
    ENHANCED_CODES,
    TEXTS,
    st.text(max_size=20) | st.sampled_from(sorted(rules.VENDOR_CLASSES)),
    st.text(max_size=10),
)
def test_qualification_never_fails_and_always_answers_the_same(
    kind: int, code: int, enhanced: str, text: str, vendor_class: str, feedback_type: str
) -> None:
    failure_type, reason = qualify(kind, code, enhanced, text, vendor_class, feedback_type)
    assert qualify(kind, code, enhanced, text, vendor_class, feedback_type) == (failure_type, reason)
    is_failure = kind in OUTCOME_OF_KIND and kind != MtaEventKind.DELIVERY
    if is_failure or kind == MtaEventKind.COMPLAINT:
        assert failure_type != FailureType.NONE
        assert reason != Reason.NONE
    else:
        assert (failure_type, reason) == (FailureType.NONE, Reason.NONE)
    if kind in (RETRY, EXPIRED):
        assert failure_type != FailureType.HARD


def test_every_rule_has_a_name_of_its_own_and_tells_where_it_comes_from() -> None:
    names = [rule.name for rule in rules.RULES]
    assert len(set(names)) == len(names)
    for rule in rules.RULES:
        assert re.fullmatch(r"(class|text|code)\.[a-z0-9-]+", rule.name), rule.name
        assert rule.name.startswith("text.") == bool(rule.texts), rule.name
        assert rule.source, rule.name


@pytest.mark.parametrize(
    ("kind", "code", "enhanced", "text", "vendor_class", "rule"),
    [
        (MtaEventKind.BOUNCE, 550, "5.7.1", "mailbox is full", "", "text.mailbox-full"),
        (MtaEventKind.BOUNCE, 550, "5.1.1", "", "", "code.user-unknown"),
        (MtaEventKind.TRANSIENT_FAILURE, 450, "4.1.1", "user unknown", "", "text.user-unknown"),
        (MtaEventKind.BOUNCE, 550, "5.1.1", "user unknown", "InactiveMailbox", "class.account-inactive"),
        (MtaEventKind.BOUNCE, 554, "", "no reason given", "", NO_RULE),
        (MtaEventKind.EXPIRATION, 450, "4.2.2", "", "", "code.mailbox-full"),
        (MtaEventKind.EXPIRATION, 0, "", "", "", "kind.expiration"),
        (MtaEventKind.ADMIN_BOUNCE, 550, "5.1.1", "user unknown", "", "kind.admin-bounce"),
        (MtaEventKind.COMPLAINT, 0, "", "", "", "kind.complaint"),
        (MtaEventKind.DELIVERY, 250, "2.0.0", "ok", "", ""),
    ],
)
def test_a_decision_names_the_rule_that_decided(
    kind: MtaEventKind, code: int, enhanced: str, text: str, vendor_class: str, rule: str
) -> None:
    assert decide(kind, code, enhanced, text, vendor_class, "").rule == rule
