"""Reading the mails that come back. The mails are made here, in the shapes that MTAs give them."""

import time
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_bridge.mail.mime import DEPTH_MAX, PARTS_MAX, parse
from mta_bridge.mail.reader import read_mail
from mta_bridge.mail.report import Action, MailKind, MailReport


def mail(text: str) -> bytes:
    return dedent(text).lstrip("\n").encode()


def only(report: MailReport) -> tuple[str, Action, int, str]:
    (one,) = report.recipients
    return one.address, one.action, one.smtp_code, one.enhanced_code


REPORT = mail("""
    From: MAILER-DAEMON@mx.example.net
    To: b+token@bounces.example.com
    Subject: Undelivered Mail Returned to Sender
    Content-Type: multipart/report; report-type=delivery-status; boundary="=_x"

    --=_x
    Content-Type: text/plain

    Something went wrong.

    --=_x
    Content-Type: message/delivery-status

    Reporting-MTA: dns; mx.example.net
    Original-Envelope-Id: envelope-7

    Final-Recipient: rfc822; anna@example.org
    Original-Recipient: rfc822;Anna@Example.org
    Action: failed
    Status: 5.0.0
    Diagnostic-Code: smtp; 550 5.1.1 <anna@example.org>: no such
        user here

    Final-Recipient: rfc822; bert@example.org
    Action: delayed
    Status: 4.2.2

    Final-Recipient: rfc822; carl@example.org
    Action: relayed
    Status: 2.0.0

    --=_x
    Content-Type: message/rfc822

    From: news@example.com
    X-Campaign-Message-Id: 17-4
    Message-ID: <17-4@example.com>
    Subject: Hello

    Hello
    --=_x--
""")


def test_a_delivery_status_tells_about_each_recipient() -> None:
    report = read_mail(REPORT)

    assert (report.kind, report.reporter, report.envelope_id) == (
        MailKind.DELIVERY_STATUS,
        "mx.example.net",
        "envelope-7",
    )
    assert [(one.address, one.action, one.smtp_code, one.enhanced_code) for one in report.recipients] == [
        ("Anna@Example.org", Action.FAILED, 550, "5.1.1"),  # the server's word beats 5.0.0
        ("bert@example.org", Action.DELAYED, 0, "4.2.2"),
        ("carl@example.org", Action.DELIVERED, 0, "2.0.0"),
    ]
    assert report.recipients[0].diagnostic == "550 5.1.1 <anna@example.org>: no such user here"
    assert report.clues[:3] == ("b+token@bounces.example.com", "17-4", "<17-4@example.com>")


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_line_ends_make_no_difference(line_end: bytes) -> None:
    assert read_mail(REPORT.replace(b"\n", line_end)) == read_mail(REPORT)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("Action: failed\nStatus: 4.4.1", Action.EXPIRED),
        ("Action: failed\nStatus: 5.0.0\nDiagnostic-Code: smtp; 450 later: retry timeout exceeded", Action.EXPIRED),
        ("Action: delayed\nStatus: 4.4.7", Action.EXPIRED),
        ("Action: delayed\nStatus: 4.4.1", Action.DELAYED),
        ("Action: delayed\nStatus: 4.2.0\nDiagnostic-Code: smtp; 450 <a+expired@b.example>: later", Action.DELAYED),
        ("Action: delayed\nStatus: 4.0.0\nDiagnostic-Code: smtp; envelope expired", Action.EXPIRED),
        ("Action: delivered\nStatus: 2.0.0", Action.DELIVERED),
        ("Status: 5.1.1", Action.FAILED),
        ("Action: undeliverable\nStatus: 5.1.1", Action.FAILED),
        ("Action: fehlgeschlagen\nStatus: 5.1.1", Action.FAILED),
    ],
)
def test_what_happens_next_is_told_by_action_status_and_words(fields: str, expected: Action) -> None:
    raw = REPORT.partition(b"Final-Recipient")[0] + f"Final-Recipient: rfc822; a@example.org\n{fields}\n".encode()
    assert only(read_mail(raw))[1] is expected  # cut off in mid-mail as well


@pytest.mark.parametrize("action", ["deliverable", "Expanded"])
def test_a_report_that_nothing_happened_names_nobody(action: str) -> None:
    raw = mail(f"""
        From: MAILER-DAEMON@mx.example
        Subject: Mail Delivery Status Report
        Content-Type: multipart/report; report-type=delivery-status; boundary=b

        --b

        <anna@example.org>: delivery via mx.example.org: 250 2.1.5 Ok

        --b
        Content-Type: message/delivery-status

        Reporting-MTA: dns; mx.example

        Final-Recipient: rfc822; anna@example.org
        Action: {action}
        Status: 2.1.5

        --b--
    """)
    assert read_mail(raw) == MailReport(MailKind.OTHER)


def test_an_address_whose_kind_is_told_twice_is_read() -> None:
    raw = REPORT.replace(b"rfc822;Anna@Example.org", b"rfc822; rfc822;Anna@Example.org")
    assert read_mail(raw).recipients[0].address == "Anna@Example.org"


def test_an_address_outside_ascii_is_read() -> None:
    raw = REPORT.replace(b"message/delivery-status", b"message/global-delivery-status").replace(
        b"rfc822;Anna@Example.org", b"utf-8; f\\x{FC}r@example.org"
    )
    assert read_mail(raw).recipients[0].address == "für@example.org"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            """
            From: MAILER-DAEMON@qmail.example
            To: news@example.com
            Subject: failure notice

            I was not able to deliver your message to the following addresses.

            <anna@example.org>:
            192.0.2.1 does not like recipient.
            Remote host said: 550 5.1.1 No such user
            Giving up on 192.0.2.1.

            --- Below this line is a copy of the message.

            To: somebody@else.example
            """,
            ("anna@example.org", Action.EXPIRED, 550, "5.1.1"),
        ),
        (
            """
            From: Mail Delivery System <Mailer-Daemon@exim.example>
            To: news@example.com
            X-Failed-Recipients: anna@example.org
            Subject: Mail delivery failed: returning message to sender

            A message that you sent could not be delivered.

              anna@example.org
                host mx.example.org [192.0.2.1]
                SMTP error from remote mail server after RCPT TO:<anna@example.org>:
                552 5.2.2 Mailbox is full

            ------ This is a copy of the message, including all the headers. ------
            """,
            ("anna@example.org", Action.FAILED, 552, "5.2.2"),
        ),
        (
            """
            From: postmaster@exchange.example
            To: news@example.com
            Subject: Undeliverable: Hello

            Your message did not reach some or all of the intended recipients.

                  Subject: Hello

            The following recipient(s) could not be reached:

                  anna@example.org on 3/2/2026 9:00 AM
                        The e-mail account does not exist at the organization this message was sent to.
                        <mx.example.org #5.1.1>
            """,
            ("anna@example.org", Action.FAILED, 0, "5.1.1"),
        ),
        (
            """
            From: Mail Delivery Subsystem <MAILER-DAEMON@sendmail.example>
            To: news@example.com
            Subject: Warning: could not send message for past 4 hours

                *** THIS IS A WARNING MESSAGE ONLY ***

               ----- The following addresses had transient non-fatal errors -----
            <anna@example.org>

               ----- Transcript of session follows -----
            <anna@example.org>... Deferred: Connection timed out with mx.example.org.
            Warning: message still undelivered after 4 hours
            """,
            ("anna@example.org", Action.DELAYED, 0, ""),
        ),
        (
            """
            From: MAILER-DAEMON@html.example
            To: news@example.com
            Subject: Delivery Status Notification (Failure)
            Content-Type: text/html; charset=utf-8

            <html><style>p { color: red }</style><p>Your message wasn't delivered to <b>anna@example.org</b> because
            the address couldn't be found.</p><p>The response was:<br>550 5.1.1 The email account does not exist.</p>
            """,
            ("anna@example.org", Action.FAILED, 550, "5.1.1"),
        ),
    ],
    ids=["qmail", "exim", "exchange", "sendmail warning", "html alone"],
)
def test_a_bounce_without_a_report_is_read_from_its_text(text: str, expected: tuple[str, Action, int, str]) -> None:
    report = read_mail(mail(text))
    assert report.kind is MailKind.FREE_TEXT
    address, _, code, enhanced = only(report)
    assert (address, code, enhanced) == (expected[0], expected[2], expected[3])
    if expected[1] is not Action.EXPIRED:
        assert report.recipients[0].action is expected[1]


def test_a_report_without_words_takes_them_from_the_text() -> None:
    raw = mail("""
        From: Mailer Daemon <MAILER-DAEMON@smtpd.example>
        Subject: Delivery status notification: error
        Content-Type: multipart/mixed; boundary=b

        --b
        Content-Type: text/plain

        anna@example.org: 550 5.1.1 no such user

        --b
        Content-Type: message/delivery-status

        Reporting-MTA: dns; smtpd.example

        Final-Recipient: rfc822; anna@example.org
        Action: failed
        Status: 5.0.0

        --b--
    """)
    assert only(read_mail(raw)) == ("anna@example.org", Action.FAILED, 550, "5.1.1")


def test_a_complaint_names_its_recipient_and_its_type() -> None:
    raw = mail("""
        From: feedback@provider.example
        Subject: complaint
        Content-Type: multipart/report; report-type=feedback-report; boundary=b

        --b
        Content-Type: message/feedback-report

        Feedback-Type: abuse
        Version: 1
        Original-Rcpt-To: <anna@example.org>

        --b
        Content-Type: message/rfc822

        To: anna@example.org
        X-Campaign-Message-Id: 17-4

        Hello
        --b--
    """)
    report = read_mail(raw)
    assert (report.kind, report.feedback_type, report.recipients[0].address) == (
        MailKind.COMPLAINT,
        "abuse",
        "anna@example.org",
    )
    assert "17-4" in report.clues


def test_a_mail_marked_as_junk_at_microsoft_is_a_complaint_without_a_report() -> None:
    raw = mail("""
        From: staff@provider.example
        To: abuse@example.com
        Subject: complaint about message from 192.0.2.1
        Content-Type: multipart/mixed; boundary=b

        --b
        Content-Type: message/rfc822

        X-HmXmrOriginalRecipient: anna@example.org
        X-Campaign-Message-Id: 17-4
        To: undisclosed

        Hello
        --b--
    """)
    report = read_mail(raw)
    assert (report.kind, report.feedback_type, [one.address for one in report.recipients]) == (
        MailKind.COMPLAINT,
        "abuse",
        ["anna@example.org"],
    )
    assert "17-4" in report.clues


@pytest.mark.parametrize(
    "header", ["Auto-Submitted: auto-replied", "X-Autoreply: yes", "Subject: Out of office: Hello"]
)
def test_an_answer_by_a_machine_is_told_from_a_bounce(header: str) -> None:
    raw = f"From: Anna <anna@example.org>\nTo: news@example.com\n{header}\n\nI am away until Monday.\n".encode()
    report = read_mail(raw)
    assert (report.kind, report.recipients[0].address) == (MailKind.AUTO_REPLY, "anna@example.org")


def test_a_letter_is_no_bounce() -> None:
    raw = mail("""
        From: Anna <anna@example.org>
        To: news@example.com
        Subject: Thank you

        I liked it. Ask bert@example.org too.
    """)
    assert read_mail(raw).kind is MailKind.OTHER
    assert read_mail(raw).recipients == ()


def test_a_mail_that_nests_without_end_is_read_to_a_bound() -> None:
    nested = b"Content-Type: message/rfc822\n\n" * 1_000 + b"Subject: x\n\nend"
    assert len(list(parse(nested).walk())) <= DEPTH_MAX + 1
    many = b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 10_000 + b"--b--"
    assert len(list(parse(many).walk())) <= PARTS_MAX + 1


def test_of_a_huge_mail_only_the_beginning_is_read() -> None:
    huge = REPORT + b"x" * (50 * 1_024 * 1_024)
    began = time.process_time()
    assert read_mail(huge).recipients == read_mail(REPORT).recipients
    assert time.process_time() - began < WORK_SECONDS_MAX


@given(st.binary(max_size=2_000))
def test_no_bytes_make_it_raise(raw: bytes) -> None:
    assert isinstance(read_mail(raw), MailReport)


@given(st.lists(st.tuples(st.integers(0, len(REPORT) - 1), st.binary(max_size=30)), max_size=8), st.integers(0, 2_000))
@settings(max_examples=200)
def test_no_damage_to_a_report_makes_it_raise(damage: list[tuple[int, bytes]], cut: int) -> None:
    raw = bytearray(REPORT)
    for at, piece in damage:
        raw[at : at + len(piece)] = piece
    assert isinstance(read_mail(bytes(raw[: len(raw) - cut])), MailReport)


PIECES = [
    *(
        "<",
        "a@",
        "a.",
        "5.1.",
        "(",
        "<style>",
        "<br ",
        "&lt;",
        "=?utf-8?q?a?= ",
        "-",
        "- ",
        "--",
        "=",
        "=20",
        " ",
        "\t",
    ),
    *("\n", "\n ", ";a=", ';a="', "+", "a@b.cc ", "a@b.cc\n", "<a@b.cc>: 550 5.1.1 no such user\n", "550 5.7.1 spam "),
    *(
        "To: a@b.cc\n",
        "X-A: b\n",
        " Message-ID: <x>\n",
        "(reason: ",
        "will not be ",
        "x" * 600 + "\n",
        "\\x{41}",
        "\x1b$B",
    ),
    *("a" * 64 + "@", "Final-Recipient: rfc822;a@b.c\nAction: failed\n\n", "Content-Type: message/rfc822\n\n"),
]
SHAPES = {
    "a text": "From: MAILER-DAEMON@a.example\nSubject: failure\n\n{0}",
    "a page": "From: MAILER-DAEMON@a.example\nSubject: failure\nContent-Type: text/html\n\n{0}",
    "quoted": "From: MAILER-DAEMON@a.example\nContent-Transfer-Encoding: quoted-printable\n\n{0}",
    "headers": "From: MAILER-DAEMON@a.example\nX-Failed-Recipients: {0}\n\n{0}",
    "a content type": "Content-Type: {0}\n\n{0}",
    "a report": "Content-Type: multipart/report; boundary=b\n\n--b\n\n{0}\n--b\n"
    "Content-Type: message/delivery-status\n\nReporting-MTA: dns;x\n\nFinal-Recipient: rfc822;a@b.c\n"
    "Action: failed\nStatus: 5.0.0\nDiagnostic-Code: {0}\n\n{0}",
    "a complaint": "Content-Type: multipart/report; boundary=b\n\n--b\nContent-Type: message/feedback-report\n\n"
    "Original-Rcpt-To: {0}\n\n--b\nContent-Type: message/rfc822\n\nTo: {0}",
}
WORK_SECONDS_MAX = 1.0
"""Of processor time, for a quarter of a megabyte. It takes about a fiftieth; anything quadratic takes minutes."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("piece", PIECES)
def test_no_repetition_makes_it_work_for_long(piece: str, shape: str) -> None:
    raw = SHAPES[shape].format(piece * (250_000 // len(piece))).encode()
    began = time.process_time()
    assert isinstance(read_mail(raw), MailReport)
    assert time.process_time() - began < WORK_SECONDS_MAX


@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from([1, 3, 500, 5_000])), max_size=8))
@settings(max_examples=60, deadline=None)
def test_no_mixture_of_such_pieces_makes_it_work_for_long(pieces: list[tuple[str, int]]) -> None:
    text = "".join(piece * times for piece, times in pieces)[:250_000]
    for shape in SHAPES.values():
        began = time.process_time()
        assert isinstance(read_mail(shape.format(text).encode()), MailReport)
        assert time.process_time() - began < WORK_SECONDS_MAX


@pytest.mark.parametrize("charset", ["punycode", "idna", "unicode_escape", "utf-7", "zlib", "no-such", '"\0"'])
def test_no_character_set_makes_it_work_for_long_or_give_what_is_no_text(charset: str) -> None:
    head = f"From: MAILER-DAEMON@a.example\nSubject: failure\nContent-Type: text/plain; charset={charset}\n\n"
    for text in ("a-b" * 80_000, "\\ud800 a@b.example: 550 no such user"):
        began = time.process_time()
        report = read_mail((head + text).encode())
        assert time.process_time() - began < WORK_SECONDS_MAX
        for one in report.recipients:
            assert one.diagnostic.encode()


def test_bytes_above_ascii_are_read_whatever_the_mail_says_of_them() -> None:
    words = "Empfänger unbekannt: Postfach gelöscht"
    for raw in (words.encode("utf-8"), words.encode("latin-1")):
        report = read_mail(REPORT.replace(b"no such\n    user here", raw).replace(b"Something", raw))
        assert (report.recipients[0].address, report.recipients[0].enhanced_code) == ("Anna@Example.org", "5.1.1")
        assert words in report.recipients[0].diagnostic
        assert len(report.recipients) == 3


@pytest.mark.parametrize("depth", [1, 3, 1_000])
def test_a_report_below_other_mails_is_found_as_far_as_anyone_looks(depth: int) -> None:
    report = read_mail(b"Content-Type: message/rfc822\n\n" * depth + REPORT)
    assert (report.kind is MailKind.DELIVERY_STATUS) == (depth < DEPTH_MAX)


@given(st.integers(0, len(REPORT)))
def test_a_report_that_was_cut_anywhere_names_nobody_else(length: int) -> None:
    told = {one.address for one in read_mail(REPORT[:length]).recipients}
    whole = {one.address for one in read_mail(REPORT).recipients}
    assert all(any(address.startswith(part) for address in (*whole, "anna@example.org")) for part in told)


@pytest.mark.parametrize(
    "header",
    [
        "Content-Type: multipart/report; report-type=disposition-notification; boundary=b",
        "Content-Type: multipart/report; report-type=tlsrpt; boundary=b",
    ],
)
def test_a_report_that_is_about_no_delivery_is_no_bounce(header: str) -> None:
    raw = mail(f"""
        From: anna@example.org
        To: news@example.com
        Subject: Report about your mail
        {header}

        --b
        Content-Type: text/plain

        Ask bert@example.org about what failed.

        --b--
    """)
    assert read_mail(raw) == MailReport(MailKind.OTHER, clues=("news@example.com",))


@pytest.mark.parametrize(
    "headers",
    [
        "Subject: Re: Your delivery problem\n        Auto-Submitted: auto-replied",
        "Subject: [Ticket 12] Hello\n        Auto-Submitted: auto-generated",
        "Subject: Afwezig: Hello",
        "Subject: Re: Hello\n        X-Autoreply: yes",
    ],
)
def test_an_answer_by_a_machine_is_one_whatever_it_speaks_of(headers: str) -> None:
    report = read_mail(
        mail(f"""
        From: anna@example.org
        To: news@example.com
        {headers}

        I am away. If your message failed, write to bert@example.org.
    """)
    )
    assert (report.kind, [one.address for one in report.recipients]) == (MailKind.AUTO_REPLY, ["anna@example.org"])


def test_a_machine_that_quotes_a_refusal_tells_of_a_bounce_whatever_it_calls_itself() -> None:
    report = read_mail(
        mail("""
        From: gateway@example.org
        To: news@example.com
        Subject: Your mail
        Auto-Submitted: auto-generated

        RCPT TO: anna@example.org
        550 5.1.1 no such user
    """)
    )
    assert report.kind is MailKind.FREE_TEXT
    assert only(report)[0] == "anna@example.org"


def notification(text: str) -> MailReport:
    return read_mail(b"From: no-reply@sns.example\nSubject: Notification\n\n" + text.encode())


def test_a_notification_of_amazon_ses_tells_of_bounces_complaints_and_deliveries() -> None:
    bounce = notification(
        '{"notificationType": "Bounce", "bounce": {"bouncedRecipients": [{"emailAddress": "anna@example.org", '
        '"status": "5.0.0", "diagnosticCode": "smtp; 550 5.1.1 no"}]}, "mail": {"source": "b+token@x.test"}}'
    )
    assert only(bounce) == ("anna@example.org", Action.FAILED, 550, "5.1.1")
    assert bounce.clues == ("b+token@x.test",)

    complaint = notification(
        '{"notificationType": "Complaint", "complaint": {"complaintFeedbackType": "Abuse", '
        '"complainedRecipients": [{"emailAddress": "anna@example.org"}]}}'
    )
    assert (complaint.kind, complaint.feedback_type) == (MailKind.COMPLAINT, "abuse")

    delivery = notification('{"eventType": "Delivery", "delivery": {"recipients": ["anna@example.org", 7]}}')
    assert only(delivery) == ("anna@example.org", Action.DELIVERED, 0, "")


@pytest.mark.parametrize(
    "text",
    [
        '{"notificationType": "Bounce"',
        '{"notificationType": ["Bounce"]}',
        '{"notificationType": "Bounce", "bounce": 7}',
        '{"notificationType": "Bounce", "bounce": {"bouncedRecipients": {"emailAddress": "a@b.test"}}}',
        '{"notificationType": "Bounce", "bounce": {"bouncedRecipients": [7, {"emailAddress": "\\ud800"}]}}',
        '{"notificationType": ' + "[" * 100_000,
    ],
)
def test_a_notification_that_is_damaged_names_nobody(text: str) -> None:
    assert notification(text).recipients == ()
