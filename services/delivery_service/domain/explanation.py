"""What a delivery still waits for, and why: facts from what is known about it, each with a sentence for a person.

A new cause of waiting is a value of `FactKind` (its number is the contract's), what it is told from in `Situation`, and
a few lines in the function of its stage.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from delivery_service.domain.domain_pauses import DomainPause
from delivery_service.domain.lifecycle import DeliveryState


class FactKind(IntEnum):
    """What a fact is about; the numbers are the contract's."""

    NOT_PREPARED = 1
    PREPARATION_RUNNING = 2
    PREPARATION_WAITING = 3
    PREPARATION_FAILED = 4
    NOT_CONFIRMED = 5
    WAITING_FOR_CONTACT_TIME = 6
    WAITING_FOR_START = 7
    PAUSED = 8
    STOPPED = 9
    MESSAGES_PREPARED = 10
    PARTS_FREE = 11
    PARTS_LEASED = 12
    PARTS_PUT_OFF = 13
    MTA_SIDE_AWAY = 14
    MESSAGES_WITHOUT_FEEDBACK = 15
    MESSAGES_RETRIED = 16
    FEEDBACK_SOURCES = 17
    FEEDBACK_SILENT = 18
    NEWEST_FEEDBACK = 19
    VALIDITY_OPEN = 20
    VALIDITY_CLOSED = 21
    NOT_SETTLED = 22
    SETTLED = 23
    PACED = 24
    DOMAIN_PAUSED = 90
    PARTS_HELD = 91


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing known about what is missing."""

    kind: FactKind
    sentence: str
    count: int = 0
    since: datetime | None = None
    until: datetime | None = None
    holder: str = ""


@dataclass(frozen=True, slots=True)
class OpenParts:
    """Parts that are not done and are in the same hands: of one process, put off (held by nobody), waiting for paused
    domains, or free."""

    parts: int
    messages: int
    held: bool
    holder: str
    available_time: datetime
    claim_count: int
    waits_for_domains: bool = False
    messages_to_paused_domains: int = 0


@dataclass(frozen=True, slots=True)
class LostContact:
    """A process that can't reach the MTA side."""

    holder: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the facts are made of. Leases are by the database's clock, everything else by ours."""

    state: DeliveryState
    time: datetime
    database_time: datetime
    update_time: datetime
    recipient_count: int
    prepared_through: int = 0
    preparation_held: bool = False
    preparation_lease_time: datetime | None = None
    preparation_errors: tuple[str, ...] = ()
    confirm_time: datetime | None = None
    contact_time: datetime | None = None
    """When a scheduled delivery starts; None: at once."""
    validity_end_time: datetime | None = None
    settled_time: datetime | None = None
    prepared: int = 0
    relayed: int = 0
    deferred: int = 0
    newest_event_time: datetime | None = None
    parts: tuple[OpenParts, ...] = ()
    lost_contacts: tuple[LostContact, ...] = ()
    sources_connected: int = 0
    source_heard_time: datetime | None = None
    paced_to: int | None = None
    """How many messages the pacing lets go so far; None: it holds none back."""
    paused_domains: tuple[DomainPause, ...] = ()


def explain(situation: Situation) -> list[Fact]:
    """The facts, in the order of a send."""
    return [*_before_the_start(situation), *_handing_over(situation), *_after_the_start(situation)]


def _before_the_start(s: Situation) -> Iterator[Fact]:
    match s.state:
        case DeliveryState.EDITING:
            yield Fact(
                FactKind.NOT_PREPARED,
                f"It is a draft with {_number(s.recipient_count, 'recipient')}: nobody has asked to prepare it.",
                s.recipient_count,
            )
        case DeliveryState.PREPARING:
            yield _preparation(s)
        case DeliveryState.PREPARATION_FAILED:
            errors = "; ".join(s.preparation_errors) or "see plan.errors"
            yield Fact(FactKind.PREPARATION_FAILED, f"The preparation failed: {errors}", since=s.update_time)
        case DeliveryState.READY:
            yield Fact(
                FactKind.NOT_CONFIRMED,
                "It is prepared, and waits for someone to confirm the send.",
                since=s.update_time,
            )
        case DeliveryState.START_PENDING:
            due = max(filter(None, (s.contact_time, s.confirm_time)), default=None)
            if due is not None and due > s.time:
                yield Fact(
                    FactKind.WAITING_FOR_CONTACT_TIME, f"It is confirmed, and starts at {_time(due)}.", until=due
                )
            else:
                yield Fact(
                    FactKind.WAITING_FOR_START, "It is confirmed and due: the next free worker starts it.", since=due
                )


def _preparation(s: Situation) -> Fact:
    done = max(s.prepared_through, 0)
    progress = f"{done:,} of {_number(s.recipient_count, 'recipient')} dealt with"
    lease_end = s.preparation_lease_time
    if s.preparation_held and lease_end is not None and lease_end > s.database_time:
        return Fact(
            FactKind.PREPARATION_RUNNING,
            f"A worker is preparing it, and holds it until {_time(lease_end)} unless it goes on: {progress}.",
            done,
            until=lease_end,
        )
    why = f"; the worker that had it was last alive before {_time(lease_end)}" if lease_end is not None else ""
    return Fact(
        FactKind.PREPARATION_WAITING,
        f"It is to be prepared, and no worker holds it{why}: {progress}.",
        done,
        since=lease_end or s.update_time,
    )


def _handing_over(s: Situation) -> Iterator[Fact]:
    if s.state is DeliveryState.PAUSED:
        yield Fact(FactKind.PAUSED, "It is paused: nothing leaves until someone resumes it.", since=s.update_time)
    if s.state in (DeliveryState.STOPPED, DeliveryState.FAILED):
        yield Fact(FactKind.STOPPED, "It has ended: what has not left never will.", since=s.update_time)
    if s.state not in (DeliveryState.IN_PROGRESS, DeliveryState.PAUSED):
        return
    if s.prepared:
        yield Fact(FactKind.MESSAGES_PREPARED, f"{_number(s.prepared, 'message')} not handed over yet.", s.prepared)
    if s.paced_to is not None:
        yield Fact(FactKind.PACED, f"Its pacing lets {_number(s.paced_to, 'message')} go so far.", s.paced_to)
    for pause in s.paused_domains:
        detail = f" ({pause.detail})" if pause.detail else ""
        yield Fact(
            FactKind.DOMAIN_PAUSED,
            f"Messages to {pause.recipient_domain} are held since {_time(pause.pause_time)} by {pause.pauser}{detail}.",
            since=pause.pause_time,
        )
    for group in s.parts:
        yield _parts(group)
    for contact in s.lost_contacts:
        yield Fact(
            FactKind.MTA_SIDE_AWAY,
            f"{contact.holder} has not reached the MTA side since {_time(contact.since)}.",
            since=contact.since,
            holder=contact.holder,
        )


def _parts(group: OpenParts) -> Fact:
    if group.waits_for_domains:
        messages = group.messages_to_paused_domains
        return Fact(
            FactKind.PARTS_HELD,
            f"{_number(group.parts, 'part')} with nothing left but {_number(messages, 'message')} to paused domains.",
            messages,
        )
    parts = f"{_number(group.parts, 'part')} with up to {_number(group.messages, 'message')}"
    if not group.held:
        return Fact(FactKind.PARTS_FREE, f"{parts}: free for the next worker.", group.parts)
    if group.holder:
        return Fact(
            FactKind.PARTS_LEASED,
            f"{parts} in flight: held by {group.holder} until {_time(group.available_time)}, unless it goes on.",
            group.parts,
            until=group.available_time,
            holder=group.holder,
        )
    return Fact(
        FactKind.PARTS_PUT_OFF,
        f"{parts} put off by the MTA side, or not handed over, after up to {_number(group.claim_count, 'attempt')}: "
        f"the next is tried at {_time(group.available_time)}.",
        group.parts,
        until=group.available_time,
    )


def _after_the_start(s: Situation) -> Iterator[Fact]:
    if s.state < DeliveryState.IN_PROGRESS:
        return
    if s.relayed:
        yield Fact(
            FactKind.MESSAGES_WITHOUT_FEEDBACK,
            f"{_number(s.relayed, 'message')} handed over that no MTA has reported on.",
            s.relayed,
        )
    if s.deferred:
        yield Fact(FactKind.MESSAGES_RETRIED, f"{_number(s.deferred, 'message')} that the MTA tries again.", s.deferred)
    if s.settled_time is None:
        yield _sources(s)
    if s.newest_event_time is not None:
        yield Fact(
            FactKind.NEWEST_FEEDBACK,
            f"The newest thing reported about it happened at {_time(s.newest_event_time)}, by the reporter's clock.",
            since=s.newest_event_time,
        )
    yield from _ends(s)


def _sources(s: Situation) -> Fact:
    if s.sources_connected:
        return Fact(
            FactKind.FEEDBACK_SOURCES,
            f"{_number(s.sources_connected, 'MTA source')} connected for feedback.",
            s.sources_connected,
        )
    since = f" since {_time(s.source_heard_time)}" if s.source_heard_time is not None else ""
    return Fact(FactKind.FEEDBACK_SILENT, f"No MTA source is connected{since}.", since=s.source_heard_time)


def _ends(s: Situation) -> Iterator[Fact]:
    if (end := s.validity_end_time) is not None:
        if end > s.time:
            yield Fact(FactKind.VALIDITY_OPEN, f"Messages may be tried until {_time(end)}.", until=end)
        else:
            yield Fact(FactKind.VALIDITY_CLOSED, f"The validity period ended at {_time(end)}.", since=end)
    if s.settled_time is not None:
        yield Fact(FactKind.SETTLED, "Nothing is missing any more.", since=s.settled_time)
    elif s.state in (DeliveryState.FINISHED, DeliveryState.STOPPED, DeliveryState.FAILED):
        yield Fact(FactKind.NOT_SETTLED, "Nothing is left to hand over; asynchronous bounces may still come in.")


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
