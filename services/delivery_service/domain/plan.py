"""Preparation's control rules, and the digest that binds a confirmation to exactly what was prepared."""

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from delivery_service.domain.address import AddressProblem, address_problem, normalise_address
from delivery_service.domain.audience import unusable_lists
from delivery_service.domain.delivery import VALIDITY_MAX, Delivery, ExclusionCause, Issue
from delivery_service.domain.lifecycle import Channel
from message_template.sandbox import check

_UNSUBSCRIBE: Final = re.compile(r"unsubscri|opt[-_ ]?out|désinscri|désabonne", re.IGNORECASE)


def control_errors(delivery: Delivery) -> list[Issue]:
    """What makes a send impossible. Empty: it may be prepared."""
    content, found = delivery.content, []
    if delivery.channel is Channel.EMAIL:
        if not content.subject.strip():
            found.append(Issue("content.subject", "is empty: give the email a subject"))
        sender = normalise_address(Channel.EMAIL, content.from_address)
        if address_problem(Channel.EMAIL, sender) is not AddressProblem.NONE:
            found.append(Issue("content.from_address", "is not an email address: set the sender's address"))
        reply_to = normalise_address(Channel.EMAIL, content.reply_to_address)
        if address_problem(Channel.EMAIL, reply_to) is AddressProblem.MALFORMED:
            found.append(Issue("content.reply_to_address", "is not an email address: correct it or leave it empty"))
    if not content.html.strip() and not content.text.strip():
        found.append(Issue("content", "has neither html nor text: give the message a body"))
    for field, source in (("subject", content.subject), ("html", content.html), ("text", content.text)):
        found += [
            Issue(f"content.{field}", f"line {problem.line}: {problem.message}: correct the template")
            for problem in check(source)
        ]
    return found


def audience_errors(delivery: Delivery, suppression_lists: Mapping[str, Channel]) -> list[Issue]:
    """What makes a send impossible beside its content. `suppression_lists` are those that exist of the ones that the
    delivery names."""
    return [
        Issue("audience_options.suppression_lists", f"{name!r} {problem}")
        for name, problem in unusable_lists(delivery.audience_options, delivery.channel, suppression_lists)
    ]


def control_warnings(delivery: Delivery, to_deliver: int) -> list[Issue]:
    """What is worth a look before confirming."""
    content, found = delivery.content, []
    if delivery.validity_period > VALIDITY_MAX:
        found.append(Issue("validity_period", "is longer than 3.5 days: 3.5 days are in force"))
    if delivery.pacing is not None and delivery.pacing.time_needed(to_deliver) > delivery.validity_in_force:
        found.append(Issue("pacing", "takes longer than the validity period: what has not left by its end expires"))
    if delivery.channel is Channel.EMAIL:
        for field, source in (("html", content.html), ("text", content.text)):
            if source.strip() and not _UNSUBSCRIBE.search(source):
                found.append(Issue(f"content.{field}", "has no unsubscribe link: most mailbox providers want one"))
    if to_deliver == 0:
        found.append(
            Issue("recipients", "no recipient is left to deliver to: add recipients, or confirm an empty send")
        )
    return found


def plan_digest(
    delivery: Delivery, exclusions: Mapping[ExclusionCause, int], to_deliver: int, exclusion_checksum: int
) -> str:
    """SHA-256 over all that a confirmation covers, as 64 hexadecimal digits.

    `audience_digest` chains every chunk of recipients in order; `exclusion_checksum` covers who was excluded and why.
    The same content, audience and rules give the same digest, so that preparing again without a change keeps it.
    """
    content = delivery.content
    parts: list[str | int] = [
        "campaign-plan-1",
        delivery.delivery_id,
        delivery.channel,
        delivery.feedback_mode,
        content.subject,
        content.html,
        content.text,
        content.from_address,
        content.from_name,
        content.reply_to_address,
        int(delivery.validity_in_force.total_seconds() * 1_000_000),
        *_schedule_parts(delivery),
        *(("requires-approval",) if delivery.requires_approval else ()),
        *_pacing_parts(delivery),
        *delivery.audience_options.canonical(),
        delivery.recipient_count,
        delivery.audience_digest.hex(),
        *(f"{cause.name}={exclusions.get(cause, 0)}" for cause in ExclusionCause),
        to_deliver,
        exclusion_checksum,
    ]
    digest = hashlib.sha256()
    for part in parts:
        encoded = str(part).encode()
        digest.update(len(encoded).to_bytes(8, "big"))  # lengths first: no two lists of parts read the same
        digest.update(encoded)
    return digest.hexdigest()


def _schedule_parts(delivery: Delivery) -> tuple[str, ...]:
    """What was written, and the instant that it stood for then: a zone may change its rules."""
    if delivery.schedule is None or delivery.contact_time is None:
        return ("at once",)
    return (delivery.schedule.canonical(), delivery.contact_time.isoformat())


def _pacing_parts(delivery: Delivery) -> tuple[str, ...]:
    if (pacing := delivery.pacing) is None:
        return ()
    return (f"paced {pacing.first_wave_count} {pacing.messages_per_hour}",)


def chain_audience_digest(previous: bytes, chunk: bytes) -> bytes:
    """The audience's digest after one more chunk (its serialised recipients)."""
    return hashlib.sha256(previous + hashlib.sha256(chunk).digest()).digest()
