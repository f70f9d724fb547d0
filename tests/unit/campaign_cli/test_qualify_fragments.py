"""Mails of which a part is missing, or stands where it does not belong. The mails are made here."""

import json
from textwrap import dedent

from campaign_cli.qualify import qualified, reason_word, type_word
from mta_bridge.mail.reader import read_mail

UNKNOWN = ("hard", "User unknown")
REFUSED = ("soft", "Refused")
UNREACHABLE = ("soft", "Unreachable")


def verdicts(text: str) -> list[tuple[str, str, str]]:
    found = qualified(read_mail(dedent(text).lstrip("\n").encode()))
    return [(one.recipient.address, type_word(one.failure_type), reason_word(one.reason)) for one in found]


def test_a_text_before_the_parts_is_read_if_there_is_none_in_them() -> None:
    assert verdicts("""
        From: postmaster@courier.example
        To: news@example.com
        Subject: WARNING: delayed mail.
        Content-Type: multipart/report; report-type=delivery-status; boundary="b"

        This is a delivery status notification from courier.example.

        <anna@example.org>:
            mx.example.org [192.0.2.1]:
        >>> RCPT TO:<anna@example.org>
        <<< 450 4.1.7 <news@example.com>: Sender address rejected: unverified address

        --b
        Content-Type: message/delivery-status

        Reporting-MTA: dns; courier.example

        Final-Recipient: rfc822; anna@example.org
        Action: delayed
        Status: 4.0.0

        --b--
    """) == [("anna@example.org", *REFUSED)]


def test_a_mail_whose_headers_ran_together_is_read_from_its_report() -> None:
    assert verdicts("""
          Date: Mon, 2 Nov 2026 10:00:00 +0100 From: Mail Delivery Subsystem
        <MAILER-DAEMON@mx.example> Subject: Returned mail To:
        <news@example.com> Content-Type: multipart/report; report-type=delivery-
        status;
               boundary="b"

        --b

        The following address had delivery problems

        --b
        Content-Type: message/delivery-status

        Reporting-MTA: dns; mx.example

        Final-Recipient: rfc822;anna@example.org
        Action: failed
        Status: 4.0.0
        Diagnostic-Code: smtp; 426 connection timed out

        --b--
    """) == [("anna@example.org", *UNREACHABLE)]


def test_a_recipient_that_a_header_spells_in_encoded_words_is_read() -> None:
    assert verdicts("""
        From: mailer-daemon@mx.example
        To: news@example.com
        Subject: Delivery Status Notification (Failure)
        X-Failed-Recipients: =?utf-8?b?8J+QtEBleGFtcGxlLm9yZw==?=

        Delivery to the following recipient failed permanently:

            550 5.1.1 no such user
    """) == [("\U0001f434@example.org", *UNKNOWN)]


def test_an_address_of_little_pictures_is_found_in_a_text() -> None:
    assert verdicts("""
        From: mailer-daemon@mx.example
        To: news@example.com
        Subject: failure notice

        <\U0001f434@example.org>:
        550 5.1.1 no such user
    """) == [("\U0001f434@example.org", *UNKNOWN)]


def test_an_original_that_went_to_a_local_name_tells_the_recipient() -> None:
    assert verdicts("""
        From: postmaster@notes
        To: news@example.com
        Subject: Undeliverable message

        ------- Failure Reasons --------

        Message has exceeded maximum hop count

        ------- Returned Message --------
        Received: from mx.example
        From: News <news@example.com>
        To: Anna <anna@notes>
    """) == [("anna@notes", *UNREACHABLE)]


def test_an_alert_of_a_mailing_list_that_turns_in_a_circle_names_the_list() -> None:
    assert verdicts("""
        From: list-admin@example.org
        To: list-admin@example.org
        Subject: Loop Alert: Duplicated Message-ID (list ML)

        Duplicated Message-ID in <list@example.org>.


        Original mail as follows:

           From owner-list@example.org  Mon Nov 2 10:00:00 2026
           Delivered-To: list@example.org
           To: <other@example.net>
           From: <news@example.com>
    """) == [("list@example.org", *UNREACHABLE)]


def test_a_notification_that_amazon_sns_has_wrapped_up_is_read() -> None:
    inner = {
        "notificationType": "Bounce",
        "bounce": {
            "bouncedRecipients": [{"emailAddress": "anna@example.org", "diagnosticCode": "smtp; 550 no such user"}]
        },
    }
    mail = "From: no-reply@sns.example\nSubject: Notification\n\n" + json.dumps(
        {"Type": "Notification", "Message": json.dumps(inner)}, indent=2
    )
    assert verdicts(mail) == [("anna@example.org", *UNKNOWN)]


def test_a_program_that_failed_is_no_fault_of_the_address() -> None:
    assert verdicts("""
        From: MAILER-DAEMON
        To: news@example.com
        Subject: Returned mail
        Content-Type: multipart/report; report-type=delivery-status; boundary="b"

        --b

        "|/some/script"
            (reason: 127)
            (expanded from: <anna@example.org>)

        --b
        Content-Type: message/delivery-status

        Reporting-MTA: dns; mx.example

        Final-Recipient: RFC822; anna@example.org
        X-Actual-Recipient: X-Unix; |/some/script
        Action: failed
        Status: 5.0.0
        Diagnostic-Code: X-Unix; 127

        --b--
    """) == [("anna@example.org", *UNREACHABLE)]
