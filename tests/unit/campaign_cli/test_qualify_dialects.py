"""Whole mails in the dialects of many servers, from their bytes to the verdict. The mails are made here."""

from textwrap import dedent

import pytest

from campaign_cli.qualify import qualified, reason_word, type_word
from mta_bridge.mail.reader import read_mail

UNKNOWN = ("hard", "User unknown")
FULL = ("soft", "Mailbox full")
DISABLED = ("soft", "Account disabled")
REFUSED = ("soft", "Refused")
UNREACHABLE = ("soft", "Unreachable")
DOMAIN = ("soft", "Invalid domain")


def verdicts(text: str, charset: str = "utf-8") -> list[tuple[str, str, str]]:
    found = qualified(read_mail(dedent(text).lstrip("\n").encode(charset)))
    return [(one.recipient.address, type_word(one.failure_type), reason_word(one.reason)) for one in found]


DIALECTS = {
    "Domino": (
        """
        From: Postmaster@example.org
        To: news@example.com
        Subject: DELIVERY FAILURE: User anna (anna@example.org) not listed in Domino Directory
        Content-Type: text/plain

        Your message

          Subject: Hello

        was not delivered to:

          anna@example.org

        because:

          User anna (anna@example.org) not listed in Domino Directory
        """,
        UNKNOWN,
    ),
    "Notes, with the reason before the address": (
        """
        From: postmaster@notes.example
        To: news@example.com
        Subject: Undeliverable message

        ------- Failure Reasons  --------

        User not listed in public Name & Address Book
        anna@example.org

        ------- Returned Message --------
        Received: from mx.example.com by notes.example with SMTP
        From: news@example.com
        To: other@example.org
        """,
        UNKNOWN,
    ),
    "a Japanese provider": (
        """
        From: no-reply@provider.example
        To: news@example.com
        Subject: =?UTF-8?B?44Oh44O844Or44Ko44Op44O86YCa55+l?=
        Content-Type: text/plain; charset="ISO-2022-JP"

        送信先のメールボックスが一杯です。

        Your mail sent on: Thu, 29 Apr 2026 23:45:22 +0900
             Could not be delivered to: <anna@example.org>
             As their mailbox is full.
        """,
        FULL,
    ),
    "an old sendmail, which names no address but in the copy": (
        """
        From: Mail Delivery Subsystem <MAILER-DAEMON@mx.example>
        To: news@example.com
        Subject: Returned mail: Cannot send message for 4 days

           ----- Transcript of session follows -----
        421 example.org (smtp)... Deferred: Connection timed out during user open with example.org

           ----- Unsent message follows -----
        Received: by mx.example; (5.65/1.37) id 1
        From: news@example.com
        To: anna@example.org
        Subject: Hello
        """,
        UNREACHABLE,
    ),
    "a gateway to telephones, which is no daemon": (
        """
        From: post_master@phones.example
        To: news@example.com
        Subject: Re:Hello
        Content-Type: multipart/mixed; boundary="b"

        --b
        Content-Type: text/plain

        Error: Invalid user address

        Error message below:
        550 - Requested action not taken: no such user here

        Message details:
          Subject: Hello
          MAIL FROM: news@example.com
          RCPT TO: anna@phones.example
          From: news@example.com

        --b--
        """,
        UNKNOWN,
    ),
    "MailMarshal, with the reason first": (
        """
        From: postmaster@filter.example
        To: news@example.com
        Subject: Undeliverable Mail: "Hello"
        Content-Type: multipart/mixed; boundary="b"

        --b
        Content-Type: text/plain

        Your message:
           From:    news@example.com
           Subject: Hello

        Could not be delivered because of

        550 5.1.1 User unknown

        The following recipients were affected:
            anna@example.org

        Additional Information
        ======================
        Original Sender:    <news@example.com>

        --b--
        """,
        UNKNOWN,
    ),
    "the technical details apart from the address": (
        """
        From: Mail Delivery System <Mail.Delivery.System@mx.example>
        To: news@example.com
        Subject: Delivery status notification
        Content-Type: multipart/report; boundary="b"

        --b
        Content-Type: text/plain

        Delivery to the following recipients failed permanently:

           * anna@example.org

        ====================================
                 Technical details:

        SMTP:RCPT host 192.0.2.8: 553 5.3.0 <anna@example.org>... No such user here

        --b
        Content-Type: message/rfc822

        From: news@example.com
        To: anna@example.org
        --b--
        """,
        UNKNOWN,
    ),
    "Exchange 5.5": (
        """
        From: System Administrator <postmaster@exchange.example>
        To: news@example.com
        Subject: Undeliverable: Hello
        X-Mailer: Internet Mail Service (5.5.2657.72)

        Your message

          To:      other@example.net
          Subject: Hello
          Sent:    Thu, 29 Apr 2026 23:00:00 -0400

        did not reach the following recipient(s):

        anna@example.org on Thu, 29 Apr 2026 00:00:00 -0000
            The recipient name is not recognized
            MSEXCH:IMS:NNN:CAT:DOG 0 (000C05A6) Unknown Recipient
        """,
        UNKNOWN,
    ),
    "Sun's messaging server, whose text begins with the headers of the original": (
        """
        From: postmaster@sun.example
        To: news@example.com
        Subject: Delivery Notification: Delivery has failed
        Content-Type: multipart/report; report-type=delivery-status; boundary=b

        --b
        Content-Type: text/plain

        This report relates to a message you sent with the following header fields:

          Message-id: <1@example.com>
          From: news@example.com
          To: other@example.org

        Your message cannot be delivered to the following recipients:

          Recipient address: anna@example.org
          Reason: recipient reached disk quota

        --b
        Content-Type: message/delivery-status

        Reporting-MTA: dns;sun.example

        Final-recipient: rfc822;anna@example.org
        Action: failed
        Status: 5.0.0

        --b--
        """,
        FULL,
    ),
    "IMail": (
        """
        From: "Postmaster" <postmaster@imail.example>
        To: <news@example.com>
        Subject: Undeliverable Mail
        X-Mailer: <SMTP32 v990729>

        Unknown user: anna@example.org

        Original message follows.

        Received: from example.com by imail.example
        To: other@example.org
        """,
        UNKNOWN,
    ),
    "1&1, which gives a reason of its own words": (
        """
        From: "Mail Delivery System" <mailer-daemon@kundenserver.example>
        To: news@example.com
        Subject: Mail delivery failed: returning message to sender

        A message that you sent could not be delivered to one or more of
        its recipients. This is a permanent error.

        The following address failed:

        anna@example.org

        For the following reason:

        Mail size limit exceeded.

        --- The header of the original message is following. ---

        From: news@example.com
        """,
        REFUSED,
    ),
    "a sandwich of a report in a mail of another maker": (
        """
        From: mailer-daemon
        To: news@example.com
        Subject: There was an error sending your mail
        Auto-Submitted: auto-replied
        Content-Type: multipart/mx6d; boundary="b"

        --b
        Content-Type: text/plain

        We had trouble delivering your message.

        1 error(s):

        The following recipients returned permanent errors: anna@example.org. Reason: SMTP Server <192.0.2.2> refused
        to accept your message (DATA), with the following error message: [554 5.4.6 Hop count exceeded - possible mail
        loop]

        --b--
        """,
        UNREACHABLE,
    ),
    "a domain that is not there, by qmail": (
        """
        From: MAILER-DAEMON@qmail.example
        To: news@example.com
        Subject: failure notice

        <anna@example.invalid>:
        Sorry, I couldn't find any host named example.invalid. (#5.1.2)

        --- Below this line is a copy of the message.

        To: anna@example.invalid
        """,
        DOMAIN,
    ),
    "a mail that names its code in words": (
        """
        From: postmaster@mail.example
        To: news@example.com
        Subject: Undeliverable mail

        Delivery to the following address failed.

        anna@example.org: Requested action not taken: mailbox unavailable. [SMTP Error Code 550]
        """,
        UNKNOWN,
    ),
    "a mail that lost its boundary": (
        """
        From: MAILER-DAEMON@mx.example
        To: news@example.com
        Subject: Returned mail
        Content-Type: multipart/related; boundary="gone"

           ----- The following addresses had permanent fatal errors -----
        <anna@example.org>
            (reason: 552 5.2.2 Over quota)
            (expanded from: <alias@example.org>)
        """,
        FULL,
    ),
    "a daemon that says it replied by itself": (
        """
        From: <>
        To: news@example.com
        Auto-Submitted: auto-replied
        Subject: Your mail

        You sent mail to anna@example.org. That's not a valid user here.
        """,
        UNKNOWN,
    ),
    "a report that knows, under a notice about viruses": (
        """
        From: postmaster@exchange.example
        To: news@example.com
        Subject: Delivery Status Notification (Failure)
        Content-Type: multipart/report; report-type=delivery-status; boundary=b

        --b
        Content-Type: text/plain

        Delivery to the following recipients failed.

               anna@example.org

        This email has been scanned for viruses and potentially offensive content.

        --b
        Content-Type: message/delivery-status

        Reporting-MTA: dns;exchange.example

        Final-Recipient: rfc822;anna@example.org
        Action: failed
        Status: 5.1.1

        --b--
        """,
        UNKNOWN,
    ),
    "German": (
        """
        From: postmaster@mx.example
        To: news@example.com
        Subject: Unzustellbar: Hallo
        Content-Type: text/plain; charset=utf-8

        Ihre Nachricht konnte folgenden Empfängern nicht zugestellt werden:

          anna@example.org

        Grund: Der Empfänger ist unbekannt.
        """,
        UNKNOWN,
    ),
    "French": (
        """
        From: postmaster@mx.example
        To: news@example.com
        Subject: Échec de la remise
        Content-Type: text/plain; charset=utf-8

        Votre message n'a pas pu être remis au destinataire suivant :

        anna@example.org : la boîte aux lettres est pleine.
        """,
        FULL,
    ),
    "Spanish": (
        """
        From: postmaster@mx.example
        To: news@example.com
        Subject: No se pudo entregar: Hola
        Content-Type: text/plain; charset=utf-8

        El mensaje no pudo ser entregado a:

          anna@example.org
          La cuenta de correo no existe.
        """,
        UNKNOWN,
    ),
    "Portuguese": (
        """
        From: postmaster@mx.example
        To: news@example.com
        Subject: Falha na entrega da mensagem
        Content-Type: text/plain; charset=utf-8

        Não foi possível entregar a mensagem ao destinatário:

        anna@example.org
        A caixa de correio está cheia.
        """,
        FULL,
    ),
    "Italian": (
        """
        From: postmaster@mx.example
        To: news@example.com
        Subject: Mancata consegna
        Content-Type: text/plain; charset=utf-8

        Il messaggio non è stato consegnato ai seguenti destinatari:

        <anna@example.org>: la casella è stata disabilitata
        """,
        DISABLED,
    ),
    "Dutch": (
        """
        From: postmaster@mx.example
        To: news@example.com
        Subject: Onbestelbaar: Hallo
        Content-Type: text/plain; charset=utf-8

        Uw bericht kon niet worden afgeleverd bij de volgende geadresseerden:

        anna@example.org
        Deze gebruiker bestaat niet.
        """,
        UNKNOWN,
    ),
    "Polish": (
        """
        From: postmaster@mx.example
        To: news@example.com
        Subject: Nie doręczono wiadomości
        Content-Type: text/plain; charset=utf-8

        Wiadomość nie została dostarczona do:

        anna@example.org
        Podany adres nie istnieje.
        """,
        UNKNOWN,
    ),
    "Russian": (
        """
        From: postmaster@mx.example
        To: news@example.com
        Subject: Сообщение не доставлено
        Content-Type: text/plain; charset=utf-8

        Ваше сообщение не доставлено:

        anna@example.org
        Почтовый ящик переполнен.
        """,
        FULL,
    ),
    "Japanese": (
        """
        From: postmaster@mx.example
        To: news@example.com
        Subject: メール配信エラー
        Content-Type: text/plain; charset=utf-8

        下記の宛先へメールを配信できませんでした。

        anna@example.org

        宛先のメールアドレスが存在しません。
        """,
        UNKNOWN,
    ),
    "Chinese, with the address next to other letters": (
        """
        From: postmaster@mx.example
        To: news@example.com
        Subject: 系统退信
        Content-Type: text/plain; charset=utf-8

        您的邮件被退回

        收件人邮件地址anna@example.org
        退信原因 收件人邮箱已满
        """,
        FULL,
    ),
    "a table in HTML": (
        """
        From: PostMaster@mail.example
        To: news@example.com
        Subject: 系统退信
        Content-Type: text/html; charset=utf-8

        <html><table><tr><td>无法发送到</td><td><a href="mailto:anna@example.org">anna@example.org</a></td></tr>
        <tr><td>退信原因</td><td>收件人邮箱不存在。host mx said: 550 Mailbox not found.</td></tr></table></html>
        """,
        UNKNOWN,
    ),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_a_servers_dialect_is_read_and_qualified(name: str) -> None:
    text, (failure_type, reason) = DIALECTS[name]
    charset = "iso-2022-jp" if "ISO-2022-JP" in text else "utf-8"
    (found,) = verdicts(text, charset)
    assert found[0] in ("anna@example.org", "anna@example.invalid", "anna@phones.example")
    assert found[1:] == (failure_type, reason)


def test_recipients_of_one_mail_each_have_their_own_reason() -> None:
    assert verdicts("""
        From: MAILER-DAEMON@provider.example
        To: news@example.com
        Subject: Delivery failure

        Unable to deliver message to the following address(es).

        <anna@example.org>:
        This user doesn't have a provider.example account (anna@example.org) [0]

        <bert@example.org>:
        Sorry your message to bert@example.org cannot be delivered. This account has been disabled or discontinued.

        <carl@example.org>:
        552 5.2.2 over quota
    """) == [
        ("anna@example.org", *UNKNOWN),
        ("bert@example.org", *DISABLED),
        ("carl@example.org", *FULL),
    ]


def test_a_notification_of_amazon_ses_is_read_like_the_report_that_it_stands_for() -> None:
    assert verdicts("""
        From: AWS Notifications <no-reply@sns.amazonaws.com>
        To: news@example.com
        Subject: AWS Notification Message

        {"notificationType":"Bounce","bounce":{"bounceType":"Permanent","bounceSubType":"General","bouncedRecipients":[
        {"emailAddress":"anna@example.org","status":"5.1.1","diagnosticCode":"smtp; 550 5.1.1 user unknown"}]},
        "mail":{"source":"b+token@bounces.example.com","messageId":"7"}}

        --
        If you wish to stop receiving notifications, visit the link below
    """) == [("anna@example.org", *UNKNOWN)]


def test_a_notification_of_amazon_ses_without_a_reply_is_read_by_its_own_words() -> None:
    assert verdicts("""
        From: AWS Notifications <no-reply@sns.amazonaws.com>
        To: news@example.com
        Subject: AWS Notification Message

        {"eventType":"Bounce","bounce":{"bounceType":"Transient","bounceSubType":"MailboxFull",
        "bouncedRecipients":[{"emailAddress":"anna@example.org"}]}}
    """) == [("anna@example.org", *FULL)]
