"""Events to columns, and rows back to events."""

from campaign.delivery.v1 import observation_service_pb2 as observation_pb
from campaign.delivery.v1 import send_log_pb2
from campaign.feedback.v1 import feedback_service_pb2 as pb
from feedback_service.domain.rules import RULES_VERSION
from feedback_service.observation_batch import ClientBatch, ObservationBatch, Piece

TIME_US = 1_795_415_948_000_000
UNKNOWN_MESSAGE = observation_pb.REJECTION_REASON_UNKNOWN_MESSAGE


def event(kind: "pb.MtaEventKind.ValueType" = pb.MTA_EVENT_KIND_DELIVERY, **fields: object) -> pb.MtaEvent:
    return pb.MtaEvent(**{"message_id": "m", "kind": kind, "event_time_us": TIME_US, **fields})  # type: ignore[arg-type]


def client_batch(count: int, source_id: str = "mta", sequence: int = 1) -> ClientBatch:
    return ClientBatch(source_id, sequence, count, lambda _: None)


def filled(*events: pb.MtaEvent) -> tuple[ClientBatch, ObservationBatch]:
    theirs, ours = client_batch(len(events)), ObservationBatch()
    ours.add(theirs, 0, events)
    return theirs, ours


def sent(batch: ObservationBatch) -> observation_pb.ObservationBatch:
    return Piece.whole(batch).request().batch


def test_an_event_becomes_a_row_with_all_that_was_reported() -> None:
    _, batch = filled(
        event(
            pb.MTA_EVENT_KIND_BOUNCE,
            message_id="m-1",
            smtp_code=550,
            enhanced_code="5.1.1",
            diagnostic="user unknown",
            attempt=3,
        )
    )
    message = sent(batch)
    assert message.rules_version == RULES_VERSION
    assert list(message.source_ids) == ["mta"]
    assert message.observations == observation_pb.StatusObservations(
        message_ids=["m-1"],
        outcomes=[send_log_pb2.OUTCOME_BOUNCED],
        event_times_us=[TIME_US],
        smtp_codes=[550],
        enhanced_codes=["5.1.1"],
        failure_types=[send_log_pb2.FAILURE_TYPE_HARD],
        reasons=[send_log_pb2.REASON_USER_UNKNOWN],
        diagnostics=["user unknown"],
        attempts=[3],
        sources=[0],
    )


def test_a_delivery_is_sent_as_reported_and_has_no_failure() -> None:
    _, batch = filled(event(smtp_code=250, enhanced_code="2.0.0", diagnostic="Ok: queued"))
    rows = sent(batch).observations
    assert list(rows.outcomes) == [send_log_pb2.OUTCOME_DELIVERED]
    assert list(rows.failure_types) == [send_log_pb2.FAILURE_TYPE_UNSPECIFIED]
    assert list(rows.reasons) == [send_log_pb2.REASON_UNSPECIFIED]
    assert list(rows.diagnostics) == ["Ok: queued"]


def test_tracking_events_become_facts_beside_the_rows() -> None:
    _, batch = filled(
        event(pb.MTA_EVENT_KIND_OPEN, url="ignored"),
        event(),
        event(pb.MTA_EVENT_KIND_CLICK, url="https://example.com/"),
        event(pb.MTA_EVENT_KIND_UNSUBSCRIBE),
        event(pb.MTA_EVENT_KIND_COMPLAINT, feedback_type="abuse"),
        event(pb.MTA_EVENT_KIND_AUTO_REPLY),
    )
    facts = sent(batch).tracking_facts
    assert list(facts.kinds) == [
        send_log_pb2.TIMELINE_ENTRY_KIND_OPEN,
        send_log_pb2.TIMELINE_ENTRY_KIND_CLICK,
        send_log_pb2.TIMELINE_ENTRY_KIND_UNSUBSCRIBE,
        send_log_pb2.TIMELINE_ENTRY_KIND_COMPLAINT,
        send_log_pb2.TIMELINE_ENTRY_KIND_AUTO_REPLY,
    ]
    assert list(facts.urls) == ["", "https://example.com/", "", "", ""]
    assert list(facts.sources) == [0] * 5
    assert len(sent(batch).observations.message_ids) == 1


def test_a_report_that_it_was_no_spam_has_no_effect_and_is_no_rejection() -> None:
    theirs, batch = filled(event(pb.MTA_EVENT_KIND_COMPLAINT, feedback_type="not-spam"))
    assert not batch
    assert not theirs.rejections


def test_a_long_diagnostic_is_cut() -> None:
    _, batch = filled(event(pb.MTA_EVENT_KIND_BOUNCE, diagnostic="é" * 1_500), event(diagnostic="x" * 1_001))
    assert [len(text) for text in sent(batch).observations.diagnostics] == [1_000, 1_000]


def test_bad_events_are_rejected_singly_and_leave_the_columns_even() -> None:
    theirs, batch = filled(
        event(),
        event(message_id=""),
        event(diagnostic="\0"),
        event(message_id="m-3"),
        event(pb.MTA_EVENT_KIND_OPEN, event_time_us=0),
        event(pb.MTA_EVENT_KIND_BOUNCE, vendor_class="\0"),
        event(99),  # type: ignore[arg-type]
        event(smtp_code=700),
        event(message_id="m-8"),
    )
    assert sorted(theirs.rejections) == [1, 2, 4, 5, 6, 7]
    assert {reason for reason, _ in theirs.rejections.values()} == {observation_pb.REJECTION_REASON_MALFORMED}
    assert theirs.rejections[1][1].startswith("message_id is missing: ")
    rows = sent(batch).observations
    columns = [values for _, values in rows.ListFields()]
    assert list(rows.message_ids) == ["m", "m-3", "m-8"]
    assert {len(values) for values in columns} == {3}
    assert batch.malformed == 6


def test_a_rejected_row_is_mapped_back_to_its_event() -> None:
    theirs, batch = filled(
        event(pb.MTA_EVENT_KIND_OPEN),
        event(),
        event(message_id=""),
        event(),
        event(pb.MTA_EVENT_KIND_CLICK, url="u"),
        event(),
    )
    for row, index in ((0, 1), (1, 3), (2, 5)):
        batch.reject_row(row, UNKNOWN_MESSAGE, "no such message")
        assert theirs.rejections[index] == (UNKNOWN_MESSAGE, "no such message")
    for fact, index in ((0, 0), (1, 4)):
        batch.reject_fact(fact, UNKNOWN_MESSAGE, "no such message")
        assert theirs.rejections[index] == (UNKNOWN_MESSAGE, "no such message")


def test_a_rejected_row_finds_its_client_batch_among_many() -> None:
    ours = ObservationBatch()
    many = [client_batch(2, f"mta-{i % 3}", i) for i in range(10)]
    for theirs in many:
        ours.add(theirs, 0, [event(), event()])
        ours.add(client_batch(1), 0, [event(message_id="")])  # parts without a row in between
    for row in range(20):
        ours.reject_row(row, UNKNOWN_MESSAGE, str(row))
    assert [theirs.rejections for theirs in many] == [
        {0: (UNKNOWN_MESSAGE, str(2 * i)), 1: (UNKNOWN_MESSAGE, str(2 * i + 1))} for i in range(10)
    ]
    assert list(sent(ours).source_ids) == ["mta-0", "mta", "mta-1", "mta-2"]


def test_a_client_batch_is_committed_with_the_last_of_its_parts() -> None:
    theirs, first, second = client_batch(3), ObservationBatch(), ObservationBatch()
    events = [event(message_id=str(i)) for i in range(3)]
    first.add(theirs, 0, events[:2])
    second.add(theirs, 2, events[2:])
    second.reject_row(0, UNKNOWN_MESSAGE, "")
    assert theirs.rejections.keys() == {2}
    assert first.committed() == []
    assert second.committed() == [theirs]


def test_a_batch_too_large_is_divided_and_rejections_still_find_their_event() -> None:
    theirs, batch = filled(
        *(event(message_id=str(i)) for i in range(5)), *(event(pb.MTA_EVENT_KIND_OPEN) for _ in range(4))
    )
    left, right = Piece.whole(batch).halves()
    assert not left.completes
    assert right.completes
    assert list(left.request().batch.observations.message_ids) == ["0", "1", "2", "3"]
    assert list(right.request().batch.observations.message_ids) == ["4"]
    assert len(right.request().batch.tracking_facts.message_ids) == 4
    last = right.halves()[1]
    assert len(last.request().batch.tracking_facts.message_ids) == 3
    right.reject(observation_pb.ObservationRejection(index=0, reason=UNKNOWN_MESSAGE))
    last.reject(observation_pb.ObservationRejection(index=1, tracking=True, reason=UNKNOWN_MESSAGE))
    assert theirs.rejections.keys() == {4, 7}


def test_what_came_in_is_counted_by_kind() -> None:
    _, batch = filled(
        event(),
        event(),
        event(pb.MTA_EVENT_KIND_BOUNCE, diagnostic="no"),
        event(pb.MTA_EVENT_KIND_OPEN),
        event(message_id=""),
    )
    assert batch.received[pb.MTA_EVENT_KIND_DELIVERY] == 2
    assert batch.received[pb.MTA_EVENT_KIND_BOUNCE] == 1
    assert batch.received[pb.MTA_EVENT_KIND_OPEN] == 1
    assert batch.not_defined == 1
    assert batch.malformed == 1


def test_only_what_the_columns_do_not_say_is_sent_beside_them_in_each_piece() -> None:
    events = [
        event(pb.MTA_EVENT_KIND_BOUNCE),
        event(pb.MTA_EVENT_KIND_BOUNCE, vendor_class="BadDomain"),
        event(),
        event(pb.MTA_EVENT_KIND_OPEN),
        event(pb.MTA_EVENT_KIND_OUT_OF_BAND_BOUNCE),
        event(pb.MTA_EVENT_KIND_ADMIN_BOUNCE),
    ]
    _, batch = filled(*events)

    def details(piece: Piece) -> list[tuple[int, int, str]]:
        told = piece.request().batch.details
        return list(zip(told.indexes, told.mta_event_kinds, told.vendor_classes, strict=True))

    bounce, out_of_band, removed = 4, 6, 5
    assert details(Piece.whole(batch)) == [(1, bounce, "BadDomain"), (3, out_of_band, ""), (4, removed, "")]
    first, second = Piece.whole(batch).halves()
    assert (details(first), details(second)) == ([(1, bounce, "BadDomain")], [(0, out_of_band, ""), (1, removed, "")])
