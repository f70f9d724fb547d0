"""RetryFailed: a new draft to those whom a delivery that is over did not reach. Nothing is sent by itself."""

import secrets
from collections.abc import Callable
from typing import Final
from uuid import uuid4

from campaign.delivery.v1 import retry_pb2 as pb
from campaign.delivery.v1 import send_log_pb2
from delivery_service import convert
from delivery_service.api.send_log_filters import FAILURE_TYPES, REASONS
from delivery_service.api.validation import delivery_id_of, enums_of, require_valid, text_violation
from delivery_service.domain.address import is_domain, normalise_domain
from delivery_service.domain.delivery import Delivery, DeliveryKind
from delivery_service.domain.identifiers import new_delivery_id
from delivery_service.domain.lifecycle import Channel, Command, next_state
from delivery_service.domain.outcome import Outcome
from delivery_service.domain.problems import AlreadyRunning, KindProblem, NothingToRetry, RequestIdReused
from delivery_service.settings import Settings
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.kpis import KpiStore
from delivery_service.store.retries import Retries, Retry, RetryFilter
from service_runtime.access import caller
from service_runtime.clock import Clock
from service_runtime.problems import FieldViolation, InvalidInput

_FAILED: Final = frozenset({Outcome.EXPIRED, Outcome.BOUNCED})
"""Failures that nothing more is waited for."""
_OUTCOMES: Final = {outcome + convert.OUTCOME_OFFSET: outcome for outcome in _FAILED}
_REQUEST_ID_CHARACTERS_MAX: Final = 100
_EARLIER_MAX: Final = 100


class RetryCalls:
    """`changed` is called with each draft made, to wake the worker that copies its recipients."""

    def __init__(
        self,
        deliveries: Deliveries,
        retries: Retries,
        kpis: KpiStore,
        settings: Settings,
        clock: Clock,
        changed: Callable[[int], None],
    ) -> None:
        self._deliveries = deliveries
        self._retries = retries
        self._kpis = kpis
        self._settings = settings
        self._clock = clock
        self._changed = changed

    async def retry_failed(self, request: pb.RetryFailedRequest) -> pb.RetryFailedResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        limits = self._settings
        require_valid(
            [
                text_violation("label", request.label, limits.label_characters_max),
                text_violation("request_id", request.request_id, _REQUEST_ID_CHARACTERS_MAX),
            ]
        )
        delivery = await self._deliveries.get(delivery_id)
        _require_over(delivery)
        retry_filter = _filter(request.filter, delivery, limits)
        request_id = request.request_id or str(uuid4())
        if not request.validate_only:
            known = await self._retries.known(delivery_id, request_id)
            if known is not None:
                return await self._answer(delivery, known, request_id, retry_filter)
        retry = await self._counted(delivery, retry_filter)
        if request.validate_only:
            return await self._response(delivery, retry, None)
        return await self._make(delivery, request_id, request.label, retry)

    async def _counted(self, delivery: Delivery, retry_filter: RetryFilter) -> Retry:
        """A retry as it would be."""
        delivery_id = delivery.delivery_id
        failures = await self._retries.count(delivery_id, delivery.recipient_count, retry_filter)
        # Looked at behind the count: if its rows were being dropped, that was said before.
        (await self._deliveries.get(delivery_id)).require_log("retry its failures")
        if failures is None:
            raise AlreadyRunning(delivery_id, "a count of failures")
        if not failures:
            raise NothingToRetry(delivery_id)
        kpis = (await self._kpis.get([delivery_id]))[delivery_id]
        return Retry(0, retry_filter, failures, kpis.undecided)

    async def _make(self, delivery: Delivery, request_id: str, label: str, retry: Retry) -> pb.RetryFailedResponse:
        made = None
        while made is None:  # until an id is free
            (await self._deliveries.get(delivery.delivery_id)).require_log("retry its failures")
            now = self._clock.now()
            new = Retry(new_delivery_id(now, secrets.randbits(20)), retry.retry_filter, retry.failures, retry.undecided)
            made = await self._retries.make(delivery.delivery_id, request_id, new, label, caller().subject, now)
        self._changed(made)
        known = await self._retries.known(delivery.delivery_id, request_id)
        assert known is not None  # this call made it, or another one did with the same request_id
        return await self._answer(delivery, known, request_id, retry.retry_filter)

    async def _answer(
        self, delivery: Delivery, known: Retry, request_id: str, retry_filter: RetryFilter
    ) -> pb.RetryFailedResponse:
        """What a request has made; refused if it asked for something else."""
        if known.retry_filter != retry_filter:
            raise RequestIdReused(delivery.delivery_id, request_id, "retry with another filter", "retry")
        return await self._response(delivery, known, await self._deliveries.get(known.retry_id))

    async def _response(self, delivery: Delivery, retry: Retry, draft: Delivery | None) -> pb.RetryFailedResponse:
        earlier = await self._retries.retries_of(delivery.delivery_id, retry.retry_id, _EARLIER_MAX)
        return pb.RetryFailedResponse(
            delivery=convert.delivery_to_pb(draft) if draft else None,
            recipient_count=sum(each.volume for each in retry.failures),
            failures=[
                pb.FailureVolume(
                    failure_type=send_log_pb2.FailureType.ValueType(each.failure_type),
                    reason=send_log_pb2.Reason.ValueType(each.reason),
                    volume=each.volume,
                )
                for each in retry.failures
            ],
            undecided_count=retry.undecided,
            earlier_delivery_ids=map(str, earlier),
        )


def _require_over(delivery: Delivery) -> None:
    if delivery.kind is DeliveryKind.RECURRING:
        allowed = (DeliveryKind.PLAIN.name, DeliveryKind.CHILD.name)
        advice = "it sends nothing itself: retry its children"
        raise KindProblem(delivery.delivery_id, delivery.kind.name, "retry it", allowed, advice)
    next_state(delivery.delivery_id, delivery.state, Command.RETRY_FAILED)


def _filter(given: pb.RetryFilter, delivery: Delivery, limits: Settings) -> RetryFilter:
    for index, number in enumerate(given.outcomes):
        if number not in _OUTCOMES:
            raise InvalidInput.of(
                f"filter.outcomes[{index}]", f"is {number}: give EXPIRED or BOUNCED, the failures that are decided"
            )
    domains = [normalise_domain(domain) for domain in given.recipient_domains]
    field, domains_max = "filter.recipient_domains", limits.retry_domains_max
    if len(domains) > domains_max:
        raise InvalidInput.of(field, f"has {len(domains)} entries: at most {domains_max} are allowed")
    if domains and delivery.channel is not Channel.EMAIL:
        raise InvalidInput.of(field, f"are of EMAIL alone, and the delivery is of channel {delivery.channel.name}")
    require_valid(
        None if is_domain(domain) else FieldViolation(f"{field}[{index}]", f"{domain[:40]!r} is no domain: correct it")
        for index, domain in enumerate(domains)
    )
    return RetryFilter(
        frozenset(_OUTCOMES[number] for number in given.outcomes) or _FAILED,
        enums_of("filter.failure_types", given.failure_types, FAILURE_TYPES),
        enums_of("filter.reasons", given.reasons, REASONS),
        frozenset(domains),
    )
