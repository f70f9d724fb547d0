"""The control rules, and what the plan's digest covers."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from delivery_service.domain.delivery import Content, Delivery, ExclusionCause
from delivery_service.domain.lifecycle import Channel, DeliveryState
from delivery_service.domain.plan import chain_audience_digest, control_errors, control_warnings, plan_digest
from delivery_service.domain.schedule import AggregationPeriod, Recurrence, Schedule
from delivery_service.domain.status import FeedbackMode

NOW = datetime(2026, 3, 2, tzinfo=UTC)
CONTENT = Content(subject="s", html="<a>unsubscribe</a>", from_address="a@example.com")
DELIVERY = Delivery(
    delivery_id=1,
    label="",
    channel=Channel.EMAIL,
    feedback_mode=FeedbackMode.WITH_EFS,
    content=CONTENT,
    validity_period=timedelta(days=1),
    state=DeliveryState.PREPARING,
    creator="",
    create_time=NOW,
    update_time=NOW,
    recipient_count=3,
)


SCHEDULE = Schedule(datetime(2026, 3, 2), "UTC")  # noqa: DTZ001
RECURRENCE = Recurrence("FREQ=DAILY")


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"subject": " "}, "content.subject"),
        ({"subject": "{{ a"}, "content.subject"),
        ({"html": "", "text": ""}, "content"),
        ({"html": "<p>\n{% if %}"}, "content.html"),
        ({"text": "{{ a | nosuchfilter }}"}, "content.text"),
        ({"from_address": ""}, "content.from_address"),
        ({"from_address": "nobody"}, "content.from_address"),
        ({"reply_to_address": "nobody"}, "content.reply_to_address"),
    ],
)
def test_a_control_rule_names_the_field_that_it_stops_at(content: dict[str, Any], field: str) -> None:
    found = control_errors(replace(DELIVERY, content=replace(CONTENT, **content)))

    assert [issue.field for issue in found] == [field]


def test_a_template_error_tells_its_line() -> None:
    (issue,) = control_errors(replace(DELIVERY, content=replace(CONTENT, html="<p>\n{% if %}")))

    assert issue.description.startswith("line 2: ")


def test_a_sound_delivery_has_neither_errors_nor_warnings() -> None:
    assert control_errors(DELIVERY) == []
    assert control_warnings(DELIVERY, 3) == []


def test_another_channel_needs_no_subject_and_no_sender() -> None:
    sms = replace(DELIVERY, channel=Channel.SMS, content=Content(text="Hi"))

    assert control_errors(sms) == []
    assert control_warnings(sms, 3) == []


@pytest.mark.parametrize(
    ("changes", "to_deliver", "field"),
    [
        ({"content": replace(CONTENT, html="<p>")}, 3, "content.html"),
        ({"validity_period": timedelta(days=9)}, 3, "validity_period"),
        ({}, 0, "recipients"),
    ],
)
def test_a_warning_names_its_field(changes: dict[str, Any], to_deliver: int, field: str) -> None:
    assert [issue.field for issue in control_warnings(replace(DELIVERY, **changes), to_deliver)] == [field]


@pytest.mark.parametrize(
    "changes",
    [
        {"content": replace(CONTENT, subject="t")},
        {"content": replace(CONTENT, subject="s<a>unsubscribe</a>", html="")},
        {"content": replace(CONTENT, from_name="A")},
        {"audience_digest": b"x"},
        {"recipient_count": 4},
        {"validity_period": timedelta(days=2)},
        {"channel": Channel.SMS},
        {"feedback_mode": FeedbackMode.WITHOUT_EFS},
        {"delivery_id": 2},
        {"schedule": SCHEDULE, "contact_time": NOW},
    ],
)
def test_the_digest_covers_all_that_is_confirmed(changes: dict[str, Any]) -> None:
    assert plan_digest(replace(DELIVERY, **changes), {}, 3, 0) != plan_digest(DELIVERY, {}, 3, 0)


@pytest.mark.parametrize(
    ("schedule", "contact_time"),
    [
        (replace(SCHEDULE, local_time=datetime(2026, 3, 2, 1)), NOW),  # noqa: DTZ001
        (replace(SCHEDULE, time_zone="Europe/London"), NOW),
        (SCHEDULE, NOW + timedelta(hours=1)),
        (replace(SCHEDULE, recurrence=RECURRENCE), NOW),
        (replace(SCHEDULE, recurrence=replace(RECURRENCE, rule="FREQ=WEEKLY")), NOW),
        (replace(SCHEDULE, recurrence=replace(RECURRENCE, end=datetime(2027, 1, 1))), NOW),  # noqa: DTZ001
        (replace(SCHEDULE, recurrence=replace(RECURRENCE, aggregation_period=AggregationPeriod.DAY)), NOW),
        (replace(SCHEDULE, recurrence=replace(RECURRENCE, request_confirmation=True)), NOW),
        (replace(SCHEDULE, recurrence=replace(RECURRENCE, max_lateness=timedelta(hours=2))), NOW),
    ],
)
def test_the_digest_covers_every_part_of_the_schedule(schedule: Schedule, contact_time: datetime) -> None:
    digests = {
        plan_digest(replace(DELIVERY, schedule=one, contact_time=at), {}, 3, 0)
        for one, at in ((None, None), (SCHEDULE, NOW), (replace(SCHEDULE, recurrence=RECURRENCE), NOW))
        if one != schedule
    }

    assert plan_digest(replace(DELIVERY, schedule=schedule, contact_time=contact_time), {}, 3, 0) not in digests


def test_the_digest_covers_who_was_excluded() -> None:
    digests = {
        plan_digest(DELIVERY, {}, 3, 0),
        plan_digest(DELIVERY, {ExclusionCause.DUPLICATE: 1}, 3, 0),
        plan_digest(DELIVERY, {ExclusionCause.DUPLICATE: 1}, 2, 0),
        plan_digest(DELIVERY, {ExclusionCause.DUPLICATE: 1}, 2, 77),
    }

    assert len(digests) == 4


def test_the_digest_leaves_out_what_is_not_sent() -> None:
    changed = replace(DELIVERY, label="new", version=9, update_time=NOW + timedelta(days=1))

    assert plan_digest(changed, {}, 3, 0) == plan_digest(DELIVERY, {}, 3, 0)


def test_validity_beyond_the_maximum_is_the_maximum_to_the_digest() -> None:
    digests = {plan_digest(replace(DELIVERY, validity_period=timedelta(days=d)), {}, 3, 0) for d in (3.5, 4, 30)}

    assert len(digests) == 1


def test_the_audience_digest_depends_on_the_order_of_chunks() -> None:
    one = chain_audience_digest(chain_audience_digest(b"", b"a"), b"b")
    other = chain_audience_digest(chain_audience_digest(b"", b"b"), b"a")

    assert one != other
