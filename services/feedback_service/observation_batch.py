"""One batch for DeliveryService: columns filled from the events of many MTA streams, and the way back from its rows.

Events go from a client's batch straight into these columns, and no object is made for any of them: that is what keeps
the cost of an event near a microsecond.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

from campaign.delivery.v1 import observation_service_pb2 as observation_pb
from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from feedback_service.domain.events import (
    DIAGNOSTIC_CHARACTERS_MAX,
    EVENT_TIME_US_END,
    EVENT_TIME_US_MIN,
    MESSAGE_ID_CHARACTERS_MAX,
    NUL,
    SMTP_CODE_MAX,
    SMTP_CODE_MIN,
    VENDOR_CLASS_CHARACTERS_MAX,
    find_fault,
    is_enhanced_code,
)
from feedback_service.domain.qualification import implies_nothing, qualify
from feedback_service.domain.rules import RULES_VERSION
from feedback_service.domain.vocabulary import OUTCOME_OF_KIND, TRACKING_OF_KIND, MtaEventKind, Reason

DETAIL_CHARACTERS_MAX = 200
Rejection = tuple[int, str]
"""A RejectionReason, and the same for a person."""

# Plain ints and bound methods: an enum's member costs ten times as much to look up.
_DELIVERY = int(MtaEventKind.DELIVERY)
_CLICK = int(MtaEventKind.CLICK)
_COMPLAINT = int(MtaEventKind.COMPLAINT)
_ADMIN_BOUNCE = int(MtaEventKind.ADMIN_BOUNCE)
_NOT_DEFINED = int(Reason.NOT_DEFINED)
_NO_REASON = 0
_OUTCOMES = {int(kind): int(outcome) for kind, outcome in OUTCOME_OF_KIND.items()}


class ClientBatch:
    """A batch of an MTA's stream, until all its events are committed. It may be spread over several batches of ours."""

    __slots__ = ("event_count", "on_committed", "parts_left", "rejections", "sequence", "source_id")

    def __init__(
        self, source_id: str, sequence: int, event_count: int, on_committed: Callable[["ClientBatch"], None]
    ) -> None:
        self.source_id = source_id
        self.sequence = sequence
        self.event_count = event_count
        self.on_committed = on_committed
        self.parts_left = 0
        self.rejections: dict[int, Rejection] = {}
        """By the event's index."""

    def reject(self, index: int, reason: int, detail: str) -> None:
        """Notes that one event was not taken."""
        self.rejections[index] = (reason, detail[:DETAIL_CHARACTERS_MAX])


class _Part:
    """The events of one client batch in one batch of ours: which rows they became."""

    __slots__ = ("client_batch", "fact_indexes", "first_fact", "first_index", "first_row", "skipped")

    def __init__(self, client_batch: ClientBatch, first_index: int, first_row: int, first_fact: int) -> None:
        self.client_batch = client_batch
        self.first_index = first_index
        self.first_row = first_row
        self.first_fact = first_fact
        self.skipped: list[int] = []
        """Indexes, ascending, of the events that are not among the status rows."""
        self.fact_indexes: list[int] = []

    def index_of_row(self, row: int) -> int:
        """The index, in the client's batch, of the event that became this status row."""
        index = self.first_index + row - self.first_row
        for skipped in self.skipped:
            if skipped > index:
                break
            index += 1
        return index


class ObservationBatch:
    """Columns of status observations and of tracking facts, in the order in which the events came."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.followers: list[_Part] = []
        """Parts without any row, of events that came after this batch and are to be acked after it."""
        self.due = False
        """It has waited long enough for more."""
        self.received = [0] * (max(MtaEventKind) + 1)
        """Well-formed events by kind."""
        self.malformed = 0
        self.not_defined = 0
        self._source_ids: dict[str, int] = {}
        self._message_ids: list[str] = []
        self._outcomes: list[Any] = []
        self._times_us: list[int] = []
        self._smtp_codes: list[int] = []
        self._enhanced_codes: list[str] = []
        self._failure_types: list[Any] = []
        self._reasons: list[Any] = []
        self._diagnostics: list[str] = []
        self._attempts: list[int] = []
        self._sources: list[int] = []
        self._detail_rows: list[int] = []
        self._detail_kinds: list[int] = []
        self._detail_classes: list[str] = []
        self._fact_message_ids: list[str] = []
        self._fact_kinds: list[Any] = []
        self._fact_times_us: list[int] = []
        self._fact_urls: list[str] = []
        self._fact_sources: list[int] = []

    def __len__(self) -> int:
        return len(self._message_ids) + len(self._fact_message_ids)

    def add(self, client_batch: ClientBatch, first_index: int, events: Iterable[feedback_pb.MtaEvent]) -> None:
        """Takes `events`, which are those of the client's batch from `first_index` on. The hot path."""
        message_ids, facts_before = self._message_ids, len(self._fact_message_ids)
        part = _Part(client_batch, first_index, len(message_ids), facts_before)
        self.parts.append(part)
        client_batch.parts_left += 1
        outcome_of, received = _OUTCOMES.get, self.received
        add_message_id, add_outcome, add_time = message_ids.append, self._outcomes.append, self._times_us.append
        add_smtp_code, add_enhanced_code = self._smtp_codes.append, self._enhanced_codes.append
        add_failure_type, add_reason = self._failure_types.append, self._reasons.append
        add_diagnostic, add_attempt = self._diagnostics.append, self._attempts.append
        failures = 0
        for event in events:
            kind = event.kind
            outcome = outcome_of(kind)
            if outcome is None:
                self._add_fact(event, part)
                continue
            message_id = event.message_id
            time_us = event.event_time_us
            smtp_code = event.smtp_code
            enhanced_code = event.enhanced_code
            diagnostic = event.diagnostic
            attempt = event.attempt
            if (
                not 0 < len(message_id) <= MESSAGE_ID_CHARACTERS_MAX
                or not EVENT_TIME_US_MIN <= time_us < EVENT_TIME_US_END
                or (smtp_code and not SMTP_CODE_MIN <= smtp_code <= SMTP_CODE_MAX)
                or attempt < 0
                or NUL in message_id
                or NUL in diagnostic
                or (enhanced_code and not is_enhanced_code(enhanced_code))
            ):
                self._reject(event, part)
                continue
            if len(diagnostic) > DIAGNOSTIC_CHARACTERS_MAX:
                diagnostic = diagnostic[:DIAGNOSTIC_CHARACTERS_MAX]
            if kind == _DELIVERY:
                add_failure_type(0)
                add_reason(_NO_REASON)
            else:
                vendor_class = event.vendor_class
                if vendor_class and (len(vendor_class) > VENDOR_CLASS_CHARACTERS_MAX or NUL in vendor_class):
                    self._reject(event, part)
                    continue
                failure_type, reason = qualify(kind, smtp_code, enhanced_code, diagnostic, vendor_class, "")
                if reason == _NOT_DEFINED:
                    self.not_defined += 1
                if vendor_class or kind >= _ADMIN_BOUNCE:
                    # Else code, text and outcome are all that the rules have looked at.
                    self._detail_rows.append(len(message_ids))
                    self._detail_kinds.append(kind)
                    self._detail_classes.append(vendor_class)
                received[kind] += 1
                failures += 1
                add_failure_type(failure_type)
                add_reason(reason)
            add_message_id(message_id)
            add_outcome(outcome)
            add_time(time_us)
            add_smtp_code(smtp_code)
            add_enhanced_code(enhanced_code)
            add_diagnostic(diagnostic)
            add_attempt(attempt)
        rows, facts = len(message_ids) - part.first_row, len(self._fact_message_ids) - facts_before
        source = self._source_ids.setdefault(client_batch.source_id, len(self._source_ids))
        self._sources.extend(repeat(source, rows))
        self._fact_sources.extend(repeat(source, facts))
        received[_DELIVERY] += rows - failures

    def _add_fact(self, event: feedback_pb.MtaEvent, part: _Part) -> None:
        kind: int = event.kind
        message_id, url = event.message_id, event.url if kind == _CLICK else ""
        feedback_type = event.feedback_type if kind == _COMPLAINT else ""
        fault = find_fault(kind, message_id, event.event_time_us, 0, "", "", 0, url=url, feedback_type=feedback_type)
        if fault is not None:
            self._reject(event, part)
            return
        self.received[kind] += 1
        part.skipped.append(index := self._next_index(part))
        if implies_nothing(kind, feedback_type):
            return
        part.fact_indexes.append(index)
        self._fact_message_ids.append(message_id)
        self._fact_kinds.append(TRACKING_OF_KIND[kind])
        self._fact_times_us.append(event.event_time_us)
        self._fact_urls.append(url)

    def _reject(self, event: feedback_pb.MtaEvent, part: _Part) -> None:
        fault = find_fault(
            event.kind,
            event.message_id,
            event.event_time_us,
            event.smtp_code,
            event.enhanced_code,
            event.diagnostic,
            event.attempt,
            url=event.url,
            vendor_class=event.vendor_class,
            feedback_type=event.feedback_type,
        )
        index = self._next_index(part)
        part.skipped.append(index)
        part.client_batch.reject(index, observation_pb.REJECTION_REASON_MALFORMED, str(fault))
        self.malformed += 1

    def _next_index(self, part: _Part) -> int:
        return part.first_index + len(self._message_ids) - part.first_row + len(part.skipped)

    def request(self, sequence: int, start: int, stop: int) -> observation_pb.ApplyRequest:
        """The message for a range of this batch, counted over its status rows and then its facts."""
        row_count = len(self._message_ids)
        rows, facts = slice(start, stop), slice(self.first_fact_of(start), max(stop - row_count, 0))
        detailed = slice(bisect_left(self._detail_rows, start), bisect_left(self._detail_rows, stop))
        return observation_pb.ApplyRequest(
            batch=observation_pb.ObservationBatch(
                sequence=sequence,
                rules_version=RULES_VERSION,
                source_ids=list(self._source_ids),
                observations=observation_pb.StatusObservations(
                    message_ids=self._message_ids[rows],
                    outcomes=self._outcomes[rows],
                    event_times_us=self._times_us[rows],
                    smtp_codes=self._smtp_codes[rows],
                    enhanced_codes=self._enhanced_codes[rows],
                    failure_types=self._failure_types[rows],
                    reasons=self._reasons[rows],
                    diagnostics=self._diagnostics[rows],
                    attempts=self._attempts[rows],
                    sources=self._sources[rows],
                ),
                tracking_facts=observation_pb.TrackingFacts(
                    message_ids=self._fact_message_ids[facts],
                    kinds=self._fact_kinds[facts],
                    event_times_us=self._fact_times_us[facts],
                    urls=self._fact_urls[facts],
                    sources=self._fact_sources[facts],
                ),
                details=observation_pb.ObservationDetails(
                    indexes=[row - start for row in self._detail_rows[detailed]],
                    mta_event_kinds=self._detail_kinds[detailed],
                    vendor_classes=self._detail_classes[detailed],
                ),
            )
        )

    def first_fact_of(self, start: int) -> int:
        """The first fact of the range that begins at `start`."""
        return max(start - len(self._message_ids), 0)

    def reject_row(self, row: int, reason: int, detail: str) -> None:
        """Maps a rejected status row back to its event. IndexError: there is no such row."""
        if not 0 <= row < len(self._message_ids):
            raise IndexError(row)
        # Of parts that begin at the same row, all but the last have none.
        part = self.parts[bisect_right(self.parts, row, key=lambda part: part.first_row) - 1]
        part.client_batch.reject(part.index_of_row(row), reason, detail)

    def reject_fact(self, fact: int, reason: int, detail: str) -> None:
        """Maps a rejected fact back to its event. IndexError: there is no such fact."""
        if not 0 <= fact < len(self._fact_message_ids):
            raise IndexError(fact)
        part = self.parts[bisect_right(self.parts, fact, key=lambda part: part.first_fact) - 1]
        part.client_batch.reject(part.fact_indexes[fact - part.first_fact], reason, detail)

    def committed(self) -> Sequence[ClientBatch]:
        """Counts this batch as committed, and returns the client batches that it completes, in order."""
        completed: list[ClientBatch] = []
        for part in chain(self.parts, self.followers):
            client_batch = part.client_batch
            client_batch.parts_left -= 1
            if not client_batch.parts_left:
                completed.append(client_batch)
        return completed


@dataclass(slots=True)
class Piece:
    """What one message carries: as a rule a whole batch, a part of it where DeliveryService takes no more at a time."""

    batch: ObservationBatch
    start: int
    stop: int
    sequence: int = 0
    sent_seconds: float = 0.0

    @classmethod
    def whole(cls, batch: ObservationBatch) -> "Piece":
        """All of `batch`."""
        return cls(batch, 0, len(batch))

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def completes(self) -> bool:
        """Whether the batch is committed when this piece is. Pieces are sent in order."""
        return self.stop == len(self.batch)

    def halves(self) -> tuple["Piece", "Piece"]:
        """The same in two pieces."""
        middle = (self.start + self.stop) // 2
        return Piece(self.batch, self.start, middle), Piece(self.batch, middle, self.stop)

    def request(self) -> observation_pb.ApplyRequest:
        """The message."""
        return self.batch.request(self.sequence, self.start, self.stop)

    def reject(self, rejection: observation_pb.ObservationRejection) -> None:
        """Maps one rejection back to its event. IndexError: there is no such observation."""
        if rejection.tracking:
            fact = self.batch.first_fact_of(self.start) + rejection.index
            self.batch.reject_fact(fact, rejection.reason, rejection.detail)
        else:
            self.batch.reject_row(self.start + rejection.index, rejection.reason, rejection.detail)
