"""Whole mails that are odd in their shape, from their bytes to the verdict. The mails are made here."""

from textwrap import dedent

import pytest

from campaign_cli.qualify import qualified, reason_word, type_word
from mta_bridge.mail.reader import read_mail

UNKNOWN = ("hard", "User unknown")
FULL = ("soft", "Mailbox full")
REFUSED = ("soft", "Refused")


def verdicts(text: str, charset: str = "utf-8") -> list[tuple[str, str, str]]:
    found = qualified(read_mail(dedent(text).lstrip("\n").encode(charset)))
    return [(one.recipient.address, type_word(one.failure_type), reason_word(one.reason)) for one in found]


def test_recipients_on_the_folded_lines_of_a_header_are_all_read() -> None:
    assert verdicts("""
        From: Mailer-Daemon@exim.example
        To: news@example.com
        Subject: Mail delivery failed
        X-Failed-Recipients: anna@example.org,
          bert@example.org

        The following address(es) failed:

          anna@example.org
            host mx.example.org: 550 5.1.1 no such user
          bert@example.org
            host mx.example.org: 552 5.2.2 over quota
    """) == [("anna@example.org", *UNKNOWN), ("bert@example.org", *FULL)]


def test_an_id_of_the_original_message_does_not_begin_its_copy() -> None:
    assert verdicts("""
        From: postmaster@exchange.example
        To: news@example.com
        Subject: Undeliverable: Hello

        Your message did not reach the following recipient(s):

        anna@example.org on Mon, 2 Nov 2026 10:00:00 +0100
            The recipient name is not recognized
        \tThe MTS-ID of the original message is: c=xx;a= ;p=example;l=MX-1
            MSEXCH:IMS:EXAMPLE:MX 0 (000C05A6) Unknown Recipient
        bert@example.org on Mon, 2 Nov 2026 10:00:00 +0100
            The recipient name is not recognized
        \tThe MTS-ID of the original message is: c=xx;a= ;p=example;l=MX-1
            MSEXCH:IMS:EXAMPLE:MX 0 (000C05A6) Unknown Recipient
    """) == [("anna@example.org", *UNKNOWN), ("bert@example.org", *UNKNOWN)]


def test_a_report_whose_boundary_was_spoilt_is_read_from_the_text() -> None:
    assert verdicts("""
        From: MAILER-DAEMON@mx.example
        To: news@example.com
        Subject: Returned mail
        Content-Type: multipart/report; report-type=delivery-status; boundary=b

        --b
        Content-Type: text/plain

        The following addresses had delivery problems
        <anna@example.org> (unrecoverable error)

         --b
        Content-Type: message/delivery-status

        Reporting-MTA: dns; mx.example

        Final-Recipient: rfc822;anna@example.org
        Action: failed
        Status: 5.0.0
        Diagnostic-Code: smtp; 550 'anna@example.org' is not a
         registered user

        Final-Recipient: rfc822;bert@example.org
        Action: failed
        Status: 5.2.2

        --b--
    """) == [("anna@example.org", *UNKNOWN), ("bert@example.org", *FULL)]


def test_a_sender_that_writes_to_itself_is_told_of_itself() -> None:
    text = """
        From: MAILER-DAEMON@qmail.example
        To: anna@example.org
        Subject: failure notice

        Hi. I was not able to deliver your message.

        <anna@example.org>:
        Remote host said: 552 disk quota exceeded
    """
    assert verdicts(text) == [("anna@example.org", *FULL)]
    assert verdicts(text.replace("<anna@example.org>:", "<bert@example.org>:")) == [("bert@example.org", *FULL)]


def test_in_a_transcript_the_servers_words_belong_to_the_address_after_them_alone() -> None:
    assert verdicts("""
        From: MAILER-DAEMON@mx.example
        To: news@example.com
        Subject: Returned mail: User unknown

           ----- Transcript of session follows -----
        While talking to mx.example.org:
        >>> MAIL From:<news@example.com>
        <<< 501 <news@example.com>... no access from mail server which is an open relay
        554 <anna@example.org>... Remote protocol error
        550 example.net (smtp)... 550 Host unknown
        554 <bert@example.net>... 550 Host unknown
    """) == [("anna@example.org", *REFUSED), ("bert@example.net", "soft", "Invalid domain")]


SHAPES = {
    "a content type without its semicolon": (
        """
        From: MAILER-DAEMON
        To: news@example.com
        Subject: Returned Mail
        Content-Type: multipart/mixed boundary="b"

        --b
        Content-Type: text/plain charset="us-ascii"

        ---The following addresses had delivery errors---

        anna@example.org [User unknown]

        --b--
        """,
        UNKNOWN,
    ),
    "the server's message under a line of dashes": (
        """
        From: POSTMASTER <postmaster@filter.example>
        To: news@example.com
        Subject: failure notice
        Content-Type: text/plain; charset="ISO-2022-JP"

        以下のメールアドレスへの送信に失敗しました。
        anna@example.org


        -------server message
        550 unknown user <anna@example.org>

        -------SMTP command
        DATA

        -------original message
        From: news@example.com
        To: bert@example.org
        """,
        UNKNOWN,
    ),
    "a directory in Japanese, the reason before the address": (
        """
        From: postmaster@notes.example
        To: news@example.com
        Subject: Undeliverable message
        Content-Type: text/plain; charset=ISO-2022-JP

        ------- Failure Reasons  --------

        ディレクトリのリストにありません
        anna@example.org

        ------- Returned Message --------
        Received: from mx.example.com by notes.example with SMTP
        To: bert@example.org
        """,
        UNKNOWN,
    ),
    "Japanese in seven bits, in a header and a report that name no character set": (
        """
        From: postmaster@domino.example
        To: news@example.com
        Subject: メールエラー通知
        X-Test: ISO-2022-JP
        Content-Type: multipart/report; report-type=delivery-status; boundary=b

        --b
        Content-Type: message/delivery-status

        Reporting-MTA: dns;domino.example

        Final-Recipient: rfc822;anna@example.org
        Action: failed
        Status: 5.0.0
        Diagnostic-Code: X-Notes; ユーザー Anna (anna@example.org) はディレクトリには見つかりません。

        --b--
        """,
        UNKNOWN,
    ),
    "a subject in seven bits, and a sender like anyone": (
        """
        From: no-reply@provider.example
        To: news@example.com
        Subject: メールエラー通知
        Content-Type: text/plain; charset=ISO-2022-JP

        送信先のメールボックスが一杯のため、送信できませんでした。

        Your mail could not be delivered to: <anna@example.org>
        As their mailbox is full.
        """,
        FULL,
    ),
    "a sentence about when the original was received": (
        """
        From: postmaster@courier.example
        To: news@example.com
        Subject: NOTICE: mail delivery status.

        This is a delivery status notification from courier.example, running a mail server.

        The original message was received on Mon, 2 Nov 2026 10:00:00 +0100

        Your message to the following recipients cannot be delivered:

        <anna@example.org>:
        <<< 550 5.1.1 No such user
        """,
        UNKNOWN,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_mail_of_an_odd_shape_is_read_and_qualified(name: str) -> None:
    text, verdict = SHAPES[name]
    charset = "iso-2022-jp" if "ISO-2022-JP" in text else "utf-8"
    assert verdicts(text, charset) == [("anna@example.org", *verdict)]
