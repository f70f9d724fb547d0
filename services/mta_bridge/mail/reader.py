"""From a mail's bytes to what it says: `read_mail`."""

from dataclasses import replace
from typing import Final

from mta_bridge.mail import delivery_status, free_text
from mta_bridge.mail.mime import Part, decoded_header, header_blocks, parse
from mta_bridge.mail.notification import read_notification
from mta_bridge.mail.phrases import ANSWERS, BOUNCE_SUBJECT, DAEMON, REPLIES_BY_ITSELF
from mta_bridge.mail.replies import codes_in, is_vague
from mta_bridge.mail.report import Action, MailKind, MailReport, RecipientReport

COMPLAINT_TYPE: Final = "message/feedback-report"
_JUNKED: Final = "x-hmxmroriginalrecipient"
"""What Microsoft adds to the copy of a mail that somebody marked as junk; it sends no report beside it (JMRP)."""
DELIVERY: Final = "delivery-status"
"""The reports that are about a delivery. Others tell that a mail was read, or what connections were encrypted."""


def read_mail(raw: bytes) -> MailReport:
    """What a mail says. Never raises, whatever the bytes."""
    mail = parse(raw)
    return replace(_read(mail), date=mail.header("date"))


def _read(mail: Part) -> MailReport:
    report = delivery_status.report_part(mail)
    complaint = next((part for part in mail.walk() if part.content_type == COMPLAINT_TYPE), None)
    if complaint is not None:
        return _complaint(mail, complaint)
    if report is None and (junked := _junked(mail)):
        return MailReport(MailKind.COMPLAINT, junked, feedback_type="abuse", clues=_clues(mail))
    if report is not None and (recipients := delivery_status.recipients_of(report)):
        return _with_status(mail, report, recipients)
    if report is not None and delivery_status.tells_of_nothing(report):
        return MailReport(MailKind.OTHER, clues=_clues(mail))
    if mail.body[:20].lstrip().startswith(b"{") and (notification := read_notification(mail.text)) is not None:
        return notification
    if _is_auto_reply(mail):
        return MailReport(MailKind.AUTO_REPLY, _writer(mail), clues=_clues(mail))
    if report is not None or _is_bounce(mail) or free_text.quotes_refusal(mail):
        if (in_text := delivery_status.report_in(free_text.text_of(mail))) is not None and (
            recipients := [one for one in delivery_status.recipients_of(in_text) if one.address]
        ):
            return _with_status(mail, in_text, recipients)
        found = tuple(free_text.recipients_in(mail))
        return MailReport(MailKind.FREE_TEXT if found else MailKind.OTHER, found, clues=_clues(mail))
    return MailReport(MailKind.OTHER, clues=_clues(mail))


def _with_status(mail: Part, report: Part, recipients: list[RecipientReport]) -> MailReport:
    fields = delivery_status.message_fields(report)
    lines: list[str] | None = None
    filled = []
    for one in recipients:
        # Some MTAs put the server's words into the text alone.
        if one.action is not Action.DELIVERED and (not one.address or not one.diagnostic):
            lines = lines if lines is not None else free_text.lines_of(mail)
            filled.append(_filled(mail, one, lines))
        else:
            filled.append(one)
    named = tuple(one for one in filled if one.address)
    return MailReport(
        MailKind.DELIVERY_STATUS,
        named or tuple(filled),
        reporter=fields.get("reporting-mta", [""])[0].partition(";")[2].strip().lower(),
        envelope_id=fields.get("original-envelope-id", [""])[0],
        clues=_clues(mail),
    )


def _filled(mail: Part, one: RecipientReport, lines: list[str]) -> RecipientReport:
    address = one.address
    if not address:
        told = free_text.recipients_in(mail)
        address = told[0].address if told else ""
    context = (free_text.context_of(lines, address) if address else "") or " ".join(" ".join(lines).split())
    code, enhanced = codes_in(context)
    vague = is_vague(one.enhanced_code)
    if not vague and not code:  # a status that says why, and prose about it, or about other things
        context = ""
    better = enhanced and vague
    return RecipientReport(
        address,
        one.action,
        one.smtp_code or code,
        enhanced if better else one.enhanced_code,
        one.diagnostic or context[:1_000],
    )


def _complaint(mail: Part, complaint: Part) -> MailReport:
    blocks = header_blocks(complaint.text.encode())
    fields = {name: values for block in reversed(blocks) for name, values in block.items()}
    addresses = [
        address
        for value in fields.get("original-rcpt-to", []) or fields.get("removal-recipient", [])
        for address in free_text.ADDRESS.findall(value)
    ]
    if not addresses:
        addresses = free_text.addressed(mail)
    return MailReport(
        MailKind.COMPLAINT,
        tuple(RecipientReport(address, Action.DELIVERED) for address in dict.fromkeys(addresses or [""])),
        envelope_id=fields.get("original-envelope-id", [""])[0],
        feedback_type=fields.get("feedback-type", [""])[0].lower(),
        clues=_clues(mail),
    )


def _junked(mail: Part) -> tuple[RecipientReport, ...]:
    values = [original.header(_JUNKED) for original in free_text.originals(mail)]
    addresses = [address for value in values for address in free_text.ADDRESS.findall(value)]
    return tuple(RecipientReport(address, Action.DELIVERED) for address in dict.fromkeys(addresses))


def _is_bounce(mail: Part) -> bool:
    return bool(
        "x-failed-recipients" in mail.headers
        or "from" not in mail.headers  # a machine's, or its headers were spoilt on their way
        or DAEMON.search(decoded_header(mail.header("from")))
        or mail.header("return-path").replace(" ", "") == "<>"
        or BOUNCE_SUBJECT.search(decoded_header(mail.header("subject")))
        or (mail.content_type == "multipart/report" and mail.parameters.get("report-type", DELIVERY) == DELIVERY)
    )


def _is_auto_reply(mail: Part) -> bool:
    subject = decoded_header(mail.header("subject"))
    if REPLIES_BY_ITSELF.search(subject):
        return True
    if "x-failed-recipients" in mail.headers or DAEMON.search(decoded_header(mail.header("from"))):
        return False
    if BOUNCE_SUBJECT.search(subject) and not ANSWERS.search(subject):
        return False
    submitted = mail.header("auto-submitted").lower()
    marked = any(name in mail.headers for name in ("x-autoreply", "x-autorespond", "x-autoresponse"))
    if submitted.startswith("auto-replied") or marked or mail.header("precedence").lower() == "auto_reply":
        return True
    # Any other machine's mail (RFC 3834), unless it is one of those that tell of a failure and don't say so.
    return bool(submitted) and not submitted.startswith("no") and not free_text.quotes_refusal(mail)


def _writer(mail: Part) -> tuple[RecipientReport, ...]:
    addresses = free_text.ADDRESS.findall(decoded_header(mail.header("from")))
    return tuple(RecipientReport(address, Action.DELIVERED) for address in addresses[:1])


def _clues(mail: Part) -> tuple[str, ...]:
    """Where the mail came to, and what the original said of itself."""
    found = [mail.header(name) for name in ("delivered-to", "x-original-to", "to")]
    for original in free_text.originals(mail):
        found += [original.header(name) for name in ("x-campaign-message-id", "return-path", "message-id")]
    found += [mail.header(name) for name in ("in-reply-to", "references")]
    return tuple(clue for clue in found if clue)
