"""What receiving servers say, in the words of several of them. Data only.

The codes and texts are as real servers send them, so that whoever qualifies them is tested on the real thing:
with and without enhanced codes, the text contradicting the code, the MTA's own class sometimes given.
"""

from typing import Final, NamedTuple

from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb

Kind = feedback_pb.MtaEventKind


class Report(NamedTuple):
    """What one event says, whichever message it is about."""

    kind: feedback_pb.MtaEventKind.ValueType
    smtp_code: int = 0
    enhanced_code: str = ""
    diagnostic: str = ""
    vendor_class: str = ""
    url: str = ""


DELIVERED: Final = (
    Report(Kind.MTA_EVENT_KIND_DELIVERY, 250, "2.0.0", "250 2.0.0 Ok: queued as 4jXx9m1RCqzJfPc"),
    Report(Kind.MTA_EVENT_KIND_DELIVERY, 250, "2.0.0", "250 2.0.0 OK  1764000000 5b1f17b1804b1-477a9 - gsmtp"),
    Report(Kind.MTA_EVENT_KIND_DELIVERY, 250, "2.6.0", "250 2.6.0 <m@mail.test> Queued mail for delivery"),
    Report(Kind.MTA_EVENT_KIND_DELIVERY, 250, "", "250 OK id=1vNx2K-00000000Abc-1xYz"),
)

DEFERRED: Final = (
    Report(Kind.MTA_EVENT_KIND_TRANSIENT_FAILURE, 450, "4.2.0", "450 4.2.0 Greylisted, please try again later"),
    Report(Kind.MTA_EVENT_KIND_TRANSIENT_FAILURE, 421, "4.7.0", "421 4.7.0 Too many connections, slow down"),
    Report(
        Kind.MTA_EVENT_KIND_TRANSIENT_FAILURE,
        *(452, "4.2.2", "452 4.2.2 The recipient's inbox is out of storage space", "QuotaIssues"),
    ),
    Report(Kind.MTA_EVENT_KIND_TRANSIENT_FAILURE, 451, "", "451 Temporary local problem, please try later"),
    Report(Kind.MTA_EVENT_KIND_TRANSIENT_FAILURE, 0, "4.4.1", "connect to mx.mail.test[192.0.2.25]:25: timed out"),
)

EXPIRED: Final = (
    Report(Kind.MTA_EVENT_KIND_EXPIRATION, 450, "4.2.0", "450 4.2.0 Greylisted; message expired, returned to sender"),
    Report(Kind.MTA_EVENT_KIND_EXPIRATION, 0, "4.4.7", "Envelope expired", "MessageExpired"),
    Report(Kind.MTA_EVENT_KIND_EXPIRATION, 451, "5.0.0", "451 Temporary local problem: retry timeout exceeded"),
    Report(Kind.MTA_EVENT_KIND_EXPIRATION, 0, "4.4.1", "connect to mx.mail.test[192.0.2.25]:25: Connection refused"),
)

BOUNCED: Final = (
    Report(
        Kind.MTA_EVENT_KIND_BOUNCE,
        *(550, "5.1.1", "550 5.1.1 <*>: Recipient address rejected: User unknown in virtual mailbox table"),
    ),
    Report(
        Kind.MTA_EVENT_KIND_BOUNCE,
        *(550, "5.1.1", "550-5.1.1 The email account that you tried to reach does not exist.", "InvalidRecipient"),
    ),
    Report(Kind.MTA_EVENT_KIND_BOUNCE, 550, "5.0.0", "550 no such user here"),
    Report(Kind.MTA_EVENT_KIND_BOUNCE, 550, "5.7.1", "550 5.7.1 Mailbox unavailable: no such recipient here", "10"),
)

MAILBOX_FULL: Final = (
    Report(Kind.MTA_EVENT_KIND_BOUNCE, 552, "5.2.2", "552 5.2.2 Mailbox full", "QuotaIssues"),
    Report(Kind.MTA_EVENT_KIND_BOUNCE, 552, "5.2.2", "552-5.2.2 The recipient's inbox is over quota. OverQuotaPerm"),
    Report(Kind.MTA_EVENT_KIND_BOUNCE, 552, "", "552 Requested mail action aborted: exceeded storage allocation"),
)

OUT_OF_BAND: Final = (
    Report(Kind.MTA_EVENT_KIND_OUT_OF_BAND_BOUNCE, 550, "5.1.1", "smtp; 550 5.1.1 <*> User doesn't exist"),
    Report(Kind.MTA_EVENT_KIND_OUT_OF_BAND_BOUNCE, 0, "5.0.0", "rcpt: no such user here"),
    Report(
        Kind.MTA_EVENT_KIND_OUT_OF_BAND_BOUNCE,
        *(554, "5.7.1", "smtp; 554 5.7.1 Message rejected as spam by content scanner", "SpamContent"),
    ),
)

OPENED: Final = Report(Kind.MTA_EVENT_KIND_OPEN)
CLICKED: Final = Report(Kind.MTA_EVENT_KIND_CLICK, url="https://shop.campaign.test/offer?utm_source=mail")

REFUSED: Final = Report(Kind.MTA_EVENT_KIND_BOUNCE, 550, "5.1.1", "550 5.1.1 <*>: no mailbox here by that name")
"""Not an event: the relay's own answer."""
TRY_LATER: Final = Report(Kind.MTA_EVENT_KIND_TRANSIENT_FAILURE, 421, "4.3.2", "421 4.3.2 Busy, try again later")
"""Likewise."""
