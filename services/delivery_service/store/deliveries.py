"""Deliveries in Postgres. Writers compare the version they read before they set; False: it changed meanwhile."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import orjson

from delivery_service.domain.audience import AudienceOptions, ControlGroup
from delivery_service.domain.breaker import PauseCause
from delivery_service.domain.delivery import (
    Approval,
    Confirmation,
    Content,
    Delivery,
    ExclusionCause,
    Issue,
    ParentOccurrence,
    Plan,
)
from delivery_service.domain.domain_pauses import NO_DOMAIN_PAUSES, DomainPause, DomainPauses
from delivery_service.domain.lifecycle import Channel, DeliveryState
from delivery_service.domain.pacing import Pacing
from delivery_service.domain.problems import DeliveryNotFound, LogOutOfRange, SendLogNotFound
from delivery_service.domain.schedule import AggregationPeriod, Recurrence, Schedule
from delivery_service.domain.status import FeedbackMode
from delivery_service.store.queries import query

FIRST_PAGE = 2**63 - 1
"""Above every id: where a list that runs from the newest begins."""


class Deliveries:
    """The table delivery, and the confirmations."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def create(self, delivery: Delivery) -> bool:
        """Stores a new draft with its slot 0. False: the id is taken."""
        content = delivery.content
        created = await self._pool.fetchval(
            query("create_delivery"),
            delivery.delivery_id,
            delivery.label,
            delivery.channel,
            delivery.feedback_mode,
            content.subject,
            content.html,
            content.text,
            content.from_address,
            content.from_name,
            content.reply_to_address,
            delivery.validity_period,
            delivery.state,
            delivery.creator,
            delivery.create_time,
            schedule_to_json(delivery.schedule),
            delivery.contact_time,
            delivery.is_recurring,
            delivery.requires_approval,
            delivery.pacing.messages_per_hour if delivery.pacing else None,
            delivery.pacing.first_wave_count if delivery.pacing else 0,
            *_audience_columns(delivery.audience_options),
        )
        return created is not None

    async def get(self, delivery_id: int) -> Delivery:
        """One delivery; DeliveryNotFound."""
        row = await self._pool.fetchrow(query("get_delivery"), delivery_id)
        if row is None:
            raise DeliveryNotFound(delivery_id)
        return _delivery(row)

    @asynccontextmanager
    async def log_kept(self, delivery_id: int) -> AsyncIterator[None]:
        """Around the reading of a delivery's rows: LogOutOfRange if any of them may be gone.

        Looked at behind the reading: retention says so, and commits it, before it drops anything."""
        try:
            yield
        except SendLogNotFound:
            await self._require_log(delivery_id)
            raise
        await self._require_log(delivery_id)

    async def _require_log(self, delivery_id: int) -> None:
        row = await self._pool.fetchrow(query("log_dropped_time"), delivery_id)
        if row is None:
            raise DeliveryNotFound(delivery_id)
        if row["log_dropped_time"] is not None:
            raise LogOutOfRange(delivery_id, row["log_dropped_time"])

    async def page(
        self, states: list[DeliveryState], below: int, limit: int, parent_id: int | None = None
    ) -> list[Delivery]:
        """The newest `limit` deliveries in one of these states (none given: any) with an id below `below`: the children
        of `parent_id`, or those that are no children."""
        rows = await self._pool.fetch(query("list_deliveries"), below, states, limit, parent_id)
        return [_delivery(row) for row in rows]

    async def update(self, delivery: Delivery) -> bool:
        """Writes the editable fields and the state over the version that `delivery` was read at."""
        content = delivery.content
        return None is not await self._pool.fetchval(
            query("update_delivery"),
            delivery.delivery_id,
            delivery.version,
            delivery.label,
            delivery.feedback_mode,
            content.subject,
            content.html,
            content.text,
            content.from_address,
            content.from_name,
            content.reply_to_address,
            delivery.validity_period,
            delivery.state,
            delivery.update_time,
            schedule_to_json(delivery.schedule),
            delivery.contact_time,
            delivery.is_recurring,
            delivery.requires_approval,
            delivery.pacing.messages_per_hour if delivery.pacing else None,
            delivery.pacing.first_wave_count if delivery.pacing else 0,
            *_audience_columns(delivery.audience_options),
        )

    async def begin_preparation(self, delivery: Delivery, preparer: str, now: datetime) -> bool:
        """Takes the version that was read to PREPARING."""
        return None is not await self._pool.fetchval(
            query("begin_preparation"), delivery.delivery_id, delivery.version, now, preparer
        )

    async def confirm(self, delivery: Delivery, confirmation: Confirmation) -> bool:
        """Takes the version that was read from READY to START_PENDING, with its confirmation."""
        try:
            return None is not await self._pool.fetchval(
                query("confirm_send"),
                delivery.delivery_id,
                delivery.version,
                confirmation.request_id,
                confirmation.plan_digest,
                confirmation.confirm_time,
                confirmation.confirmer,
                confirmation.start_time,
            )
        except asyncpg.UniqueViolationError:  # the request_id has confirmed meanwhile: the caller reads again
            return False

    async def confirmation(self, delivery_id: int, request_id: str) -> Confirmation | None:
        """What this request confirmed, if it did."""
        row = await self._pool.fetchrow(query("get_confirmation"), delivery_id, request_id)
        if row is None:
            return None
        return Confirmation(
            row["confirmer"], row["confirm_time"], row["plan_digest"], row["request_id"], row["start_time"]
        )

    async def in_state(self, state: DeliveryState, limit: int) -> list[int]:
        """Ids of deliveries that a worker may have something to do for; oldest first."""
        rows = await self._pool.fetch(query("deliveries_in_state"), state, limit)
        return [row["delivery_id"] for row in rows]

    async def relayable(self, delivery_ids: set[int], now: datetime) -> dict[int, int]:
        """Those of these whose messages may leave now: IN_PROGRESS, and within their validity. With the version of
        their paused domains."""
        rows = await self._pool.fetch(query("relayable"), delivery_ids, now)
        return {row["delivery_id"]: row["domain_pause_version"] for row in rows}

    async def to_start(self, now: datetime, limit: int) -> list[int]:
        """Ids of confirmed deliveries whose time has come."""
        rows = await self._pool.fetch(query("deliveries_to_start"), now, limit)
        return [row["delivery_id"] for row in rows]

    async def start(self, delivery_id: int, now: datetime) -> bool:
        """START_PENDING to IN_PROGRESS. False: another replica did, or the state changed, or it is not time yet."""
        return await self._pool.fetchval(query("start_delivery"), delivery_id, now) is not None

    async def finish(self, delivery_id: int, now: datetime) -> bool:
        """IN_PROGRESS to FINISHED, if no PREPARED row is left."""
        return await self._pool.fetchval(query("finish_delivery"), delivery_id, now) is not None


def plan_to_json(plan: Plan) -> str:
    """The form of a plan in the column `plan`."""
    return orjson.dumps(
        {
            "targeted": plan.targeted,
            "exclusions": {cause.name: volume for cause, volume in plan.exclusions.items()},
            "to_deliver": plan.to_deliver,
            "warnings": [{"field": issue.field, "description": issue.description} for issue in plan.warnings],
            "errors": [{"field": issue.field, "description": issue.description} for issue in plan.errors],
            "plan_digest": plan.plan_digest,
            "prepare_time": plan.prepare_time.isoformat(),
            "preparer": plan.preparer,
        }
    ).decode()


def _plan(text: str) -> Plan:
    stored: dict[str, Any] = orjson.loads(text)
    return Plan(
        targeted=stored["targeted"],
        # In the order of evaluation, which jsonb does not keep.
        exclusions={
            cause: stored["exclusions"][cause.name] for cause in ExclusionCause if cause.name in stored["exclusions"]
        },
        to_deliver=stored["to_deliver"],
        warnings=tuple(Issue(**issue) for issue in stored["warnings"]),
        errors=tuple(Issue(**issue) for issue in stored["errors"]),
        plan_digest=stored["plan_digest"],
        prepare_time=datetime.fromisoformat(stored["prepare_time"]),
        preparer=stored["preparer"],
    )


def schedule_to_json(schedule: Schedule | None) -> str | None:
    """The form of a schedule in the column `schedule`."""
    if schedule is None:
        return None
    stored: dict[str, Any] = {"local_time": schedule.local_time.isoformat(), "time_zone": schedule.time_zone}
    if (recurrence := schedule.recurrence) is not None:
        stored["recurrence"] = {
            "rule": recurrence.rule,
            "end": recurrence.end.isoformat() if recurrence.end else None,
            "aggregation_period": recurrence.aggregation_period.name,
            "request_confirmation": recurrence.request_confirmation,
            "max_lateness_seconds": recurrence.max_lateness.total_seconds(),
        }
    return orjson.dumps(stored).decode()


def schedule_from_json(text: str | None) -> Schedule | None:
    """A schedule from the column `schedule`."""
    if text is None:
        return None
    stored: dict[str, Any] = orjson.loads(text)
    recurrence = None
    if (given := stored.get("recurrence")) is not None:
        recurrence = Recurrence(
            rule=given["rule"],
            end=datetime.fromisoformat(given["end"]) if given["end"] else None,
            aggregation_period=AggregationPeriod[given["aggregation_period"]],
            request_confirmation=given["request_confirmation"],
            max_lateness=timedelta(seconds=given["max_lateness_seconds"]),
        )
    return Schedule(datetime.fromisoformat(stored["local_time"]), stored["time_zone"], recurrence)


def _parent_occurrence(row: asyncpg.Record) -> ParentOccurrence | None:
    if row["parent_id"] is None:
        return None
    return ParentOccurrence(
        row["parent_id"], row["occurrence_local_time"], row["confirm_by_time"], row["system_confirms"]
    )


def _approval(row: asyncpg.Record) -> Approval | None:
    if row["approve_time"] is None:
        return None
    return Approval(row["approver"], row["approve_time"], row["approved_digest"])


def _pacing(row: asyncpg.Record) -> Pacing | None:
    if row["messages_per_hour"] is None:
        return None
    return Pacing(row["first_wave_count"], row["messages_per_hour"])


def domain_pauses_to_json(pauses: DomainPauses) -> tuple[str, str]:
    """The forms in the columns `paused_domains` and `overruled_domains`."""
    paused = [
        {
            "recipient_domain": pause.recipient_domain,
            "pauser": pause.pauser,
            "pause_time": pause.pause_time.isoformat(),
            "cause": int(pause.cause),
            "detail": pause.detail,
        }
        for pause in pauses.paused
    ]
    overruled = {name: sorted(causes) for name, causes in pauses.overruled.items()}
    return orjson.dumps(paused).decode(), orjson.dumps(overruled).decode()


def domain_pauses_from_json(paused: str, overruled: str) -> DomainPauses:
    """Those of the columns."""
    return DomainPauses(
        tuple(
            DomainPause(
                stored["recipient_domain"],
                stored["pauser"],
                datetime.fromisoformat(stored["pause_time"]),
                PauseCause(stored["cause"]),
                stored["detail"],
            )
            for stored in orjson.loads(paused)
        ),
        {name: frozenset(map(PauseCause, causes)) for name, causes in orjson.loads(overruled).items()},
    )


def _domain_pauses(row: asyncpg.Record) -> DomainPauses:
    if row["paused_domains"] == "[]" and row["overruled_domains"] == "{}":  # nearly always
        return NO_DOMAIN_PAUSES
    return domain_pauses_from_json(row["paused_domains"], row["overruled_domains"])


def _audience_columns(options: AudienceOptions) -> tuple[float | None, tuple[str, ...] | None, tuple[str, ...]]:
    group = options.control_group
    if group is None:
        return None, None, options.suppression_lists
    return group.share, group.profile_ids if group.share is None else None, options.suppression_lists


def _audience_options(row: asyncpg.Record) -> AudienceOptions:
    group = None
    if row["control_group_share"] is not None or row["control_group_profile_ids"] is not None:
        group = ControlGroup(row["control_group_share"], tuple(row["control_group_profile_ids"] or ()))
    return AudienceOptions(group, tuple(row["suppression_lists"]))


def _delivery(row: asyncpg.Record) -> Delivery:
    confirmation = None
    if row["confirm_plan_digest"] is not None:
        confirmation = Confirmation(
            row["confirmer"], row["confirm_time"], row["confirm_plan_digest"], row["confirm_request_id"]
        )
    validity: timedelta = row["validity_period"]
    return Delivery(
        delivery_id=row["delivery_id"],
        label=row["label"],
        channel=Channel(row["channel"]),
        feedback_mode=FeedbackMode(row["feedback_mode"]),
        content=Content(
            subject=row["subject"],
            html=row["html"],
            text=row["body_text"],
            from_address=row["from_address"],
            from_name=row["from_name"],
            reply_to_address=row["reply_to_address"],
        ),
        validity_period=validity,
        state=DeliveryState(row["state"]),
        creator=row["creator"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        version=row["version"],
        recipient_count=row["recipient_count"],
        audience_digest=row["audience_digest"],
        preparer=row["preparer"],
        plan=_plan(row["plan"]) if row["plan"] is not None else None,
        confirmation=confirmation,
        start_time=row["start_time"],
        finish_time=row["finish_time"],
        validity_end_time=row["validity_end_time"],
        pause_time=row["pause_time"],
        pauser=row["pauser"],
        pause_cause=PauseCause(row["pause_cause"]),
        pause_detail=row["pause_detail"],
        stop_time=row["stop_time"],
        stopper=row["stopper"],
        stop_in_flight=row["stop_in_flight"],
        stop_left=row["stop_left"],
        validity_closed_time=row["validity_closed_time"],
        settled_time=row["settled_time"],
        schedule=schedule_from_json(row["schedule"]),
        contact_time=row["contact_time"],
        parent_occurrence=_parent_occurrence(row),
        requires_approval=row["requires_approval"],
        last_approval=_approval(row),
        pacing=_pacing(row),
        domain_pauses=_domain_pauses(row),
        audience_options=_audience_options(row),
        retry_of_id=row["retry_of_id"],
        audience_source_id=row["audience_source_id"],
        log_dropped_time=row["log_dropped_time"],
    )
