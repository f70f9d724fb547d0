"""From the columns of an Apply batch to the columns of the store: checks, and the split into deliveries.

The checks look at whole columns first (a minimum, a joined text), which costs next to nothing, and look for the
culprits only if something is wrong. One bad observation is rejected by itself.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from campaign.delivery.v1 import observation_service_pb2 as pb
from delivery_service.convert import OUTCOME_OFFSET
from delivery_service.domain.identifiers import parse_message_ids
from delivery_service.domain.outcome import EVENT_TIME_US_MAX, EVENT_TIME_US_MIN, FailureType, Outcome, Reason
from delivery_service.store.feedback import DeadLetter, TrackingColumns
from delivery_service.store.observations import ObservationColumns
from delivery_service.store.requalification import Detail
from service_runtime.problems import InvalidInput

DIAGNOSTIC_CHARACTERS_MAX: Final = 1_000
ENHANCED_CODE_CHARACTERS_MAX: Final = 20
URL_CHARACTERS_MAX: Final = 2_000
VENDOR_CLASS_CHARACTERS_MAX: Final = 100
ATTEMPT_MAX: Final = 32_767
RULES_VERSION_MAX: Final = 32_767

NOT_OURS_DETAIL: Final = "message_id: not one of ours; kept as a dead letter"
_TRACKING_KINDS: Final = range(3, 8)
_OUTCOMES: Final = range(Outcome.RELAYED + OUTCOME_OFFSET, Outcome.BOUNCED + OUTCOME_OFFSET + 1)
_UNKNOWN: Final = pb.RejectionReason.REJECTION_REASON_UNKNOWN_MESSAGE
_MALFORMED: Final = pb.RejectionReason.REJECTION_REASON_MALFORMED

T = TypeVar("T")


@dataclass(slots=True)
class Columns:
    """One batch, ready for the store: what is sound, with its places in the request; and what is rejected already."""

    status: ObservationColumns = field(default_factory=ObservationColumns)
    status_places: list[int] = field(default_factory=list)
    details: list[Detail] = field(default_factory=list)
    facts: TrackingColumns = field(default_factory=TrackingColumns)
    fact_places: list[int] = field(default_factory=list)
    rejections: list[pb.ObservationRejection] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)


def read_batch(batch: pb.ObservationBatch, size_max: int) -> Columns:
    """Reads one batch; InvalidInput if the batch itself is malformed."""
    size = len(batch.observations.message_ids) + len(batch.tracking_facts.message_ids)
    if size > size_max:
        raise InvalidInput.of("batch", f"has {size} entries: at most {size_max} are allowed")
    if not 0 <= batch.rules_version <= RULES_VERSION_MAX:
        raise InvalidInput.of("batch.rules_version", f"is {batch.rules_version}: give 0 to {RULES_VERSION_MAX}")
    _require_equal("batch.observations", batch.observations)
    _require_equal("batch.tracking_facts", batch.tracking_facts)
    columns = Columns()
    _require_sound_details(batch)
    if batch.observations.message_ids:
        _read_status(batch, columns)
        _read_details(batch.details, columns)
    if batch.tracking_facts.message_ids:
        _read_facts(batch, columns)
    return columns


def storable_sources(source_ids: Iterable[str]) -> list[str]:
    """Source ids as they are kept: each once, cut, and without what Postgres can't store."""
    return list(dict.fromkeys(map(_storable, source_ids)))


def dead_letter_of_status(batch: pb.ObservationBatch, place: int, detail: str) -> DeadLetter:
    """The dead letter of one status observation of a batch."""
    rows = batch.observations
    return DeadLetter(
        message_id=_storable(rows.message_ids[place]),
        source_id=_source(batch, rows.sources[place]),
        outcome=rows.outcomes[place] - OUTCOME_OFFSET,
        tracking_kind=-1,
        event_time_us=rows.event_times_us[place],
        smtp_code=rows.smtp_codes[place],
        diagnostic=rows.diagnostics[place],
        detail=detail,
    )


def dead_letter_of_fact(batch: pb.ObservationBatch, place: int, detail: str) -> DeadLetter:
    """The dead letter of one tracking fact of a batch."""
    rows = batch.tracking_facts
    return DeadLetter(
        message_id=_storable(rows.message_ids[place]),
        source_id=_source(batch, rows.sources[place]),
        outcome=-1,
        tracking_kind=rows.kinds[place],
        event_time_us=rows.event_times_us[place],
        smtp_code=0,
        diagnostic="",
        detail=detail,
    )


def _read_status(batch: pb.ObservationBatch, columns: Columns) -> None:
    rows = batch.observations
    size = len(rows.message_ids)
    read = ObservationColumns(
        delivery_ids=[],
        recipients=[],
        outcomes=[outcome - OUTCOME_OFFSET for outcome in rows.outcomes],
        event_times_us=list(rows.event_times_us),
        failure_types=list(rows.failure_types),
        reasons=list(rows.reasons),
        smtp_codes=list(rows.smtp_codes),
        enhanced_codes=list(rows.enhanced_codes),
        diagnostics=list(rows.diagnostics),
        attempts=list(rows.attempts),
        rules_versions=[batch.rules_version] * size,
    )
    bad: dict[int, str] = {}
    _numbers(bad, "outcomes", rows.outcomes, _OUTCOMES.start, _OUTCOMES.stop - 1)
    _numbers(bad, "event_times_us", read.event_times_us, EVENT_TIME_US_MIN, EVENT_TIME_US_MAX)
    _numbers(bad, "failure_types", read.failure_types, 0, max(FailureType))
    _numbers(bad, "reasons", read.reasons, 0, max(Reason))
    _numbers(bad, "smtp_codes", read.smtp_codes, 0, 599)
    if any(0 < code < 200 for code in set(read.smtp_codes)):
        _each(bad, "smtp_codes", read.smtp_codes, lambda code: not 0 < code < 200, "must be 0 or 200 to 599")
    _numbers(bad, "attempts", read.attempts, 0, ATTEMPT_MAX)
    _texts(bad, "enhanced_codes", read.enhanced_codes, ENHANCED_CODE_CHARACTERS_MAX)
    _texts(bad, "diagnostics", read.diagnostics, DIAGNOSTIC_CHARACTERS_MAX)
    _reject(columns, bad, tracking=False)

    read.delivery_ids, read.recipients, not_ours = _split(rows.message_ids)
    for place in not_ours:
        if place not in bad:
            columns.rejections.append(pb.ObservationRejection(index=place, reason=_UNKNOWN, detail=NOT_OURS_DETAIL))
            columns.dead_letters.append(dead_letter_of_status(batch, place, NOT_OURS_DETAIL))
    if bad or not_ours:
        columns.status_places = [place for place in range(size) if place not in bad and place not in not_ours]
        columns.status = read.take(columns.status_places)
    else:
        columns.status_places, columns.status = list(range(size)), read
    columns.status.normalise()


def _require_sound_details(batch: pb.ObservationBatch) -> None:
    """FeedbackService checks each of them as it comes: a bad one here is a defect of the whole batch."""
    details, size = batch.details, len(batch.observations.message_ids)
    indexes, kinds, classes = details.indexes, details.mta_event_kinds, details.vendor_classes
    if not len(indexes) == len(kinds) == len(classes):
        raise InvalidInput.of("batch.details", "has columns of unequal length: give one entry of each")
    if any(not 0 <= index < size for index in indexes):
        raise InvalidInput.of("batch.details.indexes", f"must be 0 to {size - 1}, into observations")
    if any(not 0 <= kind <= RULES_VERSION_MAX for kind in kinds):
        raise InvalidInput.of("batch.details.mta_event_kinds", f"must be 0 to {RULES_VERSION_MAX}")
    if any(len(text) > VENDOR_CLASS_CHARACTERS_MAX or "\x00" in text for text in classes):
        raise InvalidInput.of(
            "batch.details.vendor_classes", f"must have at most {VENDOR_CLASS_CHARACTERS_MAX} characters and no NUL"
        )


def _read_details(details: pb.ObservationDetails, columns: Columns) -> None:
    status, places = columns.status, columns.status_places
    for place, kind, vendor_class in zip(details.indexes, details.mta_event_kinds, details.vendor_classes, strict=True):
        index = bisect_left(places, place)
        if index < len(places) and places[index] == place:
            columns.details.append(
                Detail(
                    status.delivery_ids[index],
                    status.recipients[index],
                    status.outcomes[index],
                    status.event_times_us[index],
                    kind,
                    vendor_class,
                )
            )


def _read_facts(batch: pb.ObservationBatch, columns: Columns) -> None:
    rows = batch.tracking_facts
    size = len(rows.message_ids)
    bad: dict[int, str] = {}
    _numbers(bad, "kinds", rows.kinds, _TRACKING_KINDS.start, _TRACKING_KINDS.stop - 1)
    _numbers(bad, "event_times_us", rows.event_times_us, EVENT_TIME_US_MIN, EVENT_TIME_US_MAX)
    _texts(bad, "urls", rows.urls, URL_CHARACTERS_MAX)
    _reject(columns, bad, tracking=True)
    delivery_ids, recipients, not_ours = _split(rows.message_ids)
    for place in not_ours:
        if place not in bad:
            rejection = pb.ObservationRejection(index=place, tracking=True, reason=_UNKNOWN, detail=NOT_OURS_DETAIL)
            columns.rejections.append(rejection)
            columns.dead_letters.append(dead_letter_of_fact(batch, place, NOT_OURS_DETAIL))
    columns.fact_places = [place for place in range(size) if place not in bad and place not in not_ours]
    columns.facts = TrackingColumns(
        delivery_ids=[delivery_ids[i] for i in columns.fact_places],
        recipients=[recipients[i] for i in columns.fact_places],
        kinds=[rows.kinds[i] for i in columns.fact_places],
        event_times_us=[rows.event_times_us[i] for i in columns.fact_places],
        urls=[rows.urls[i] for i in columns.fact_places],
    )


def _split(message_ids: Sequence[str]) -> tuple[list[int], list[int], set[int]]:
    """Message ids to deliveries and recipients; and the places of those that are none of ours (0 in the columns)."""
    delivery_ids, recipients = parse_message_ids(message_ids)
    not_ours = {place for place, recipient in enumerate(recipients) if recipient == 0} if 0 in recipients else set()
    return delivery_ids, recipients, not_ours


def _require_equal(path: str, rows: pb.StatusObservations | pb.TrackingFacts) -> None:
    size = len(rows.message_ids)
    for column in rows.DESCRIPTOR.fields:
        length = len(getattr(rows, column.name))
        if length != size:
            raise InvalidInput.of(
                f"{path}.{column.name}", f"has {length} entries: give one for each of {size} message_ids"
            )


def _numbers(bad: dict[int, str], name: str, column: Sequence[int], low: int, high: int) -> None:
    if min(column) < low or max(column) > high:
        _each(bad, name, column, lambda value: low <= value <= high, f"must be {low} to {high}")


def _texts(bad: dict[int, str], name: str, column: Sequence[str], characters_max: int) -> None:
    if max(map(len, column)) > characters_max:
        _each(
            bad,
            name,
            column,
            lambda text: len(text) <= characters_max,
            f"must have at most {characters_max} characters",
        )
    if "\x00" in "".join(column):
        _each(bad, name, column, lambda text: "\x00" not in text, "contains a NUL character: remove it")


def _each(bad: dict[int, str], name: str, column: Sequence[T], sound: Callable[[T], bool], advice: str) -> None:
    for place, value in enumerate(column):
        if not sound(value):
            bad.setdefault(place, f"{name}: {str(value)[:40]!r} {advice}")


def _reject(columns: Columns, bad: dict[int, str], *, tracking: bool) -> None:
    columns.rejections += [
        pb.ObservationRejection(index=place, tracking=tracking, reason=_MALFORMED, detail=detail[:200])
        for place, detail in sorted(bad.items())
    ]


def _source(batch: pb.ObservationBatch, index: int) -> str:
    return _storable(batch.source_ids[index]) if 0 <= index < len(batch.source_ids) else ""


def _storable(text: str) -> str:
    return text[:200].replace("\x00", "�")
