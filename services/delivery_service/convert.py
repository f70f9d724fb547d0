"""Domain to contract. The enums share their numbers, except Outcome: the proto's are the rank + 1, since 0 is
UNSPECIFIED there (a contract test says so)."""

import base64
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

import asyncpg
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from campaign.delivery.v1 import audience_pb2, delivery_pb2, kpis_pb2, occurrence_pb2, schedule_pb2, send_log_pb2
from delivery_service.domain.audience import EVERYBODY, AudienceOptions
from delivery_service.domain.delivery import Confirmation, Content, Delivery, ParentOccurrence, Plan
from delivery_service.domain.domain_pauses import DomainPause
from delivery_service.domain.identifiers import message_id
from delivery_service.domain.kpis import Counts, DeliveryKpis, Engagement, Projection, Rate
from delivery_service.domain.outcome import FailureType, Outcome
from delivery_service.domain.recurrence import OccurrenceState
from delivery_service.domain.schedule import LocalTimeKind, resolve, zone
from delivery_service.domain.status import STATUS_OF, FeedbackMode, Status, reason_shown
from delivery_service.store.recurrences import RecordedOccurrence, Totals
from delivery_service.store.send_logs import SendLog

OUTCOME_OFFSET: Final = 1
"""Outcome number in the proto less its rank in the lattice."""


def timestamp(moment: datetime | None) -> Timestamp | None:
    """None stays unset."""
    if moment is None:
        return None
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def duration(span: timedelta) -> Duration:
    result = Duration()
    result.FromTimedelta(span)
    return result


def content_to_pb(content: Content) -> delivery_pb2.Content:
    return delivery_pb2.Content(
        subject=content.subject,
        html=content.html,
        text=content.text,
        from_address=content.from_address,
        from_name=content.from_name,
        reply_to_address=content.reply_to_address,
    )


def plan_to_pb(plan: Plan) -> delivery_pb2.Plan:
    return delivery_pb2.Plan(
        targeted=plan.targeted,
        exclusions=[
            delivery_pb2.ExclusionVolume(cause=delivery_pb2.ExclusionCause.ValueType(cause), volume=volume)
            for cause, volume in plan.exclusions.items()
        ],
        to_deliver=plan.to_deliver,
        warnings=[delivery_pb2.PlanIssue(field=i.field, description=i.description) for i in plan.warnings],
        errors=[delivery_pb2.PlanIssue(field=i.field, description=i.description) for i in plan.errors],
        plan_digest=plan.plan_digest,
        prepare_time=timestamp(plan.prepare_time),
        preparer=plan.preparer,
    )


def confirmation_to_pb(confirmation: Confirmation) -> delivery_pb2.Confirmation:
    return delivery_pb2.Confirmation(
        confirmer=confirmation.confirmer,
        confirm_time=timestamp(confirmation.confirm_time),
        plan_digest=confirmation.plan_digest,
        request_id=confirmation.request_id,
    )


def local_time(moment: datetime) -> str:
    """A local time without an offset."""
    return moment.isoformat(timespec="seconds")


def local_time_kind(kind: LocalTimeKind) -> schedule_pb2.LocalTimeKind.ValueType:
    return schedule_pb2.LocalTimeKind.ValueType(kind)


def schedule_to_pb(delivery: Delivery) -> schedule_pb2.Schedule | None:
    """With the instant that it stands for, as it was resolved when it was set."""
    schedule = delivery.schedule
    if schedule is None:
        return None
    result = schedule_pb2.Schedule(
        local_time=local_time(schedule.local_time),
        time_zone=schedule.time_zone,
        contact_time=timestamp(delivery.contact_time),
    )
    if (recurrence := schedule.recurrence) is None:
        result.local_time_kind = local_time_kind(resolve(schedule.local_time, zone(schedule.time_zone)).kind)
    else:
        result.recurrence.CopyFrom(
            schedule_pb2.Recurrence(
                rule=recurrence.rule,
                local_end_time=local_time(recurrence.end) if recurrence.end else "",
                aggregation_period=schedule_pb2.AggregationPeriod.ValueType(recurrence.aggregation_period),
                request_confirmation=recurrence.request_confirmation,
                max_lateness=duration(recurrence.max_lateness),
            )
        )
    return result


def parent_occurrence_to_pb(occurrence: ParentOccurrence | None) -> schedule_pb2.ParentOccurrence | None:
    if occurrence is None:
        return None
    return schedule_pb2.ParentOccurrence(
        delivery_id=str(occurrence.parent_id),
        local_time=local_time(occurrence.local_time),
        confirm_by_time=timestamp(occurrence.confirm_by_time),
        confirmed_by_system=occurrence.system_confirms,
    )


def occurrence_to_pb(occurrence: RecordedOccurrence) -> occurrence_pb2.Occurrence:
    has_child = occurrence.state in (OccurrenceState.SPAWNED, OccurrenceState.AGGREGATED)
    return occurrence_pb2.Occurrence(
        local_time=local_time(occurrence.local_time),
        due_time=timestamp(occurrence.due_time),
        state=occurrence_pb2.OccurrenceState.ValueType(occurrence.state),
        child_delivery_id=str(occurrence.child_id) if has_child else "",
        update_time=timestamp(occurrence.update_time),
    )


def totals_to_pb(delivery: Delivery, totals: Totals, now: datetime) -> occurrence_pb2.RecurrenceTotals:
    """In each mode of the channel, by the formulas of a single delivery."""
    kpis = DeliveryKpis(
        delivery_id=delivery.delivery_id,
        channel=delivery.channel,
        state=delivery.state,
        feedback_mode=delivery.feedback_mode,
        slot_revisions=(),
        counts=totals.counts,
        validity_closed=False,
        engagement=Engagement(),
        commit_time=None,
        newest_event_time=None,
    )
    modes = {}
    for mode in kpis.modes():
        projection = kpis.projection(mode)
        modes[mode] = occurrence_pb2.ModeTotals(
            delivered=_rate(projection.delivered),
            bounces_and_errors=_rate(projection.bounces_and_errors),
            processed=projection.processed,
        )
    return occurrence_pb2.RecurrenceTotals(
        delivery_id=str(delivery.delivery_id),
        children=totals.children,
        skipped_occurrences=totals.skipped,
        children_without_log=totals.children_without_log,
        to_deliver=totals.counts.to_deliver,
        outcomes=outcomes_to_pb(totals.counts),
        with_efs=modes.get(FeedbackMode.WITH_EFS),
        without_efs=modes[FeedbackMode.WITHOUT_EFS],
        unique_opened=totals.unique_opened,
        unique_clicked=totals.unique_clicked,
        opens=totals.opens,
        clicks=totals.clicks,
        as_of_time=timestamp(now),
    )


def delivery_to_pb(delivery: Delivery) -> delivery_pb2.Delivery:
    return delivery_pb2.Delivery(
        delivery_id=str(delivery.delivery_id),
        label=delivery.label,
        channel=delivery_pb2.Channel.ValueType(delivery.channel),
        feedback_mode=delivery_pb2.FeedbackMode.ValueType(delivery.feedback_mode),
        content=content_to_pb(delivery.content),
        validity_period=duration(delivery.validity_period),
        state=delivery_pb2.DeliveryState.ValueType(delivery.state),
        recipient_count=delivery.recipient_count,
        plan=plan_to_pb(delivery.plan) if delivery.plan else None,
        confirmation=confirmation_to_pb(delivery.confirmation) if delivery.confirmation else None,
        create_time=timestamp(delivery.create_time),
        update_time=timestamp(delivery.update_time),
        start_time=timestamp(delivery.start_time),
        finish_time=timestamp(delivery.finish_time),
        validity_end_time=timestamp(delivery.validity_end_time),
        creator=delivery.creator,
        etag=str(delivery.version),
        schedule=schedule_to_pb(delivery),
        parent_occurrence=parent_occurrence_to_pb(delivery.parent_occurrence),
        stop=_stop(delivery),
        pause=_pause(delivery),
        paused_domains=[_domain_pause(pause) for pause in delivery.domain_pauses.paused],
        validity_closed_time=timestamp(delivery.validity_closed_time),
        settled_time=timestamp(delivery.settled_time),
        log_dropped_time=timestamp(delivery.log_dropped_time),
        requires_approval=delivery.requires_approval,
        approval=_approval(delivery),
        pacing=_pacing(delivery),
        audience_options=_audience_options(delivery.audience_options),
        retry_of_delivery_id=str(delivery.retry_of_id) if delivery.retry_of_id is not None else "",
    )


def _approval(delivery: Delivery) -> delivery_pb2.Approval | None:
    if (approval := delivery.approval) is None:
        return None
    return delivery_pb2.Approval(
        approver=approval.approver,
        approve_time=timestamp(approval.approve_time),
        plan_digest=approval.plan_digest,
    )


def _pacing(delivery: Delivery) -> delivery_pb2.Pacing | None:
    if (pacing := delivery.pacing) is None:
        return None
    return delivery_pb2.Pacing(first_wave_count=pacing.first_wave_count, messages_per_hour=pacing.messages_per_hour)


def _audience_options(options: AudienceOptions) -> audience_pb2.AudienceOptions | None:
    if options == EVERYBODY:
        return None
    result = audience_pb2.AudienceOptions(suppression_lists=options.suppression_lists)
    if (group := options.control_group) is not None:
        if group.share is not None:
            result.control_group.share = group.share
        else:
            result.control_group.profiles.CopyFrom(audience_pb2.ProfileList(profile_ids=group.profile_ids))
    return result


def _pause(delivery: Delivery) -> delivery_pb2.Pause | None:
    if delivery.pause_time is None:
        return None
    return delivery_pb2.Pause(
        pauser=delivery.pauser,
        pause_time=timestamp(delivery.pause_time),
        cause=delivery_pb2.PauseCause.ValueType(delivery.pause_cause),
        detail=delivery.pause_detail,
    )


def _domain_pause(pause: DomainPause) -> delivery_pb2.DomainPause:
    return delivery_pb2.DomainPause(
        recipient_domain=pause.recipient_domain,
        pause=delivery_pb2.Pause(
            pauser=pause.pauser,
            pause_time=timestamp(pause.pause_time),
            cause=delivery_pb2.PauseCause.ValueType(pause.cause),
            detail=pause.detail,
        ),
    )


def _stop(delivery: Delivery) -> delivery_pb2.Stop | None:
    if delivery.stop_time is None:
        return None
    return delivery_pb2.Stop(
        stopper=delivery.stopper,
        stop_time=timestamp(delivery.stop_time),
        in_flight_count=delivery.stop_in_flight or 0,
        left_count=delivery.stop_left or 0,
        complete=delivery.finish_time is not None,
    )


def _rate(rate: Rate) -> kpis_pb2.Rate:
    return kpis_pb2.Rate(count=rate.count, base=rate.base, rate=rate.rate)


def outcomes_to_pb(counts: Counts) -> kpis_pb2.OutcomeCounts:
    return kpis_pb2.OutcomeCounts(**{outcome.name.lower(): counts.of(outcome) for outcome in Outcome})


def statuses_to_pb(statuses: Mapping[Status, int]) -> kpis_pb2.StatusCounts:
    return kpis_pb2.StatusCounts(**{status.name.lower(): number for status, number in statuses.items()})


def _projection(projection: Projection) -> kpis_pb2.KpiProjection:
    return kpis_pb2.KpiProjection(
        delivered=_rate(projection.delivered),
        bounces_and_errors=_rate(projection.bounces_and_errors),
        processed=projection.processed,
        delivered_of_not_canceled=_rate(projection.delivered_of_not_canceled),
        bounces_and_errors_of_not_canceled=_rate(projection.bounces_and_errors_of_not_canceled),
        delivered_min_final=projection.delivered_min_final,
        delivered_max_final=projection.delivered_max_final,
        final=projection.final,
        statuses=statuses_to_pb(projection.statuses),
        failures=kpis_pb2.FailureCounts(
            soft=projection.failures[FailureType.SOFT],
            hard=projection.failures[FailureType.HARD],
            ignored=projection.failures[FailureType.IGNORED],
        ),
        opened=_rate(projection.opened),
        clicked=_rate(projection.clicked) if projection.clicked is not None else None,
        unsubscribed=_rate(projection.unsubscribed),
        complained=_rate(projection.complained),
    )


def resume_token(delivery_id: int, slot_revisions: tuple[int, ...]) -> str:
    """The vector of slot revisions of one delivery, opaque."""
    raw = b"v1" + b"".join(number.to_bytes(8, "big") for number in (delivery_id, *slot_revisions))
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def kpis_to_pb(kpis: DeliveryKpis, sources_connected: int) -> kpis_pb2.Kpis:
    engagement = kpis.engagement
    projections = {mode: _projection(kpis.projection(mode)) for mode in kpis.modes()}
    return kpis_pb2.Kpis(
        delivery_id=str(kpis.delivery_id),
        state=delivery_pb2.DeliveryState.ValueType(kpis.state),
        feedback_mode=delivery_pb2.FeedbackMode.ValueType(kpis.feedback_mode),
        revision=kpis.revision,
        resume_token=resume_token(kpis.delivery_id, kpis.slot_revisions),
        to_deliver=kpis.counts.to_deliver,
        outcomes=outcomes_to_pb(kpis.counts),
        with_efs=projections.get(FeedbackMode.WITH_EFS),
        without_efs=projections[FeedbackMode.WITHOUT_EFS],
        handed_over=kpis.handed_over,
        retrying=kpis.counts.of(Outcome.DEFERRED),
        unresolved=kpis.unresolved,
        engagement=kpis_pb2.EngagementTotals(
            opened=engagement.opened,
            clicked=engagement.clicked,
            opens=engagement.opens,
            clicks=engagement.clicks,
            unsubscribed=engagement.unsubscribed,
            unsubscribes=engagement.unsubscribes,
            complained=engagement.complained,
            complaints=engagement.complaints,
            as_of_time=timestamp(engagement.as_of_time),
        ),
        freshness=kpis_pb2.Freshness(
            commit_time=timestamp(kpis.commit_time),
            newest_event_time=timestamp(kpis.newest_event_time),
            sources_connected=sources_connected,
            lag=duration(kpis.lag),
        ),
    )


def send_log_to_pb(send_log: SendLog, mode: FeedbackMode, tolerance: timedelta) -> send_log_pb2.SendLog:
    """In one mode's projection: it hides the reason of a message that it shows as sent."""
    shown = reason_shown(mode, send_log.outcome)
    return send_log_pb2.SendLog(
        delivery_id=str(send_log.delivery_id),
        recipient=send_log.recipient,
        profile_id=send_log.profile_id,
        address=send_log.address,
        status=send_log_pb2.SendLogStatus.ValueType(STATUS_OF[mode][send_log.outcome]),
        outcome=send_log_pb2.Outcome.ValueType(send_log.outcome + OUTCOME_OFFSET),
        failure_type=send_log_pb2.FailureType.ValueType(send_log.failure_type if shown else 0),
        reason=send_log_pb2.Reason.ValueType(send_log.reason if shown else 0),
        smtp_code=send_log.smtp_code if shown or send_log.outcome is Outcome.DELIVERED else 0,
        enhanced_code=send_log.enhanced_code if shown or send_log.outcome is Outcome.DELIVERED else "",
        diagnostic=send_log.diagnostic if shown else "",
        attempt=send_log.attempt,
        event_time=timestamp(send_log.event_time),
        update_time=timestamp(send_log.update_time),
        message_id=message_id(send_log.delivery_id, send_log.recipient),
        event_time_ahead=send_log.event_time > send_log.update_time + tolerance,
    )


def timeline_entry_to_pb(row: asyncpg.Record) -> send_log_pb2.TimelineEntry:
    """A row of the query get_timeline; -1 stands for what the entry does not have."""
    return send_log_pb2.TimelineEntry(
        kind=send_log_pb2.TimelineEntryKind.ValueType(row["kind"]),
        before=send_log_pb2.Outcome.ValueType(row["before"] + OUTCOME_OFFSET),
        outcome=send_log_pb2.Outcome.ValueType(row["outcome"] + OUTCOME_OFFSET),
        failure_type=send_log_pb2.FailureType.ValueType(row["failure_type"]),
        reason=send_log_pb2.Reason.ValueType(row["reason"]),
        smtp_code=row["smtp_code"],
        enhanced_code=row["enhanced_code"],
        diagnostic=row["diagnostic"],
        attempt=row["attempt"],
        rules_version=row["rules_version"],
        event_time=timestamp(row["event_time"]),
        commit_time=timestamp(row["commit_time"]),
        slot=row["slot"],
        revision=row["revision"],
        url=row["url"],
        correction=row["correction"],
        mta_event_kind=row["mta_event_kind"],
        vendor_class=row["vendor_class"],
    )
