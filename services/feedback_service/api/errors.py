"""The errors of FeedbackService and their statuses."""

import grpc

from service_runtime.errors import ErrorStatus, ErrorTable
from service_runtime.problems import Problem

ERROR_DOMAIN = "campaign"


class LimitReached(Problem):
    """A limit of this process is reached."""

    def __init__(self, limit: str, value: int) -> None:
        super().__init__(
            f"{limit} is reached ({value}): try another replica, or again later",
            metadata={"limit": limit, "value": str(value)},
            retry_delay_seconds=5.0,
        )


class RulesOutdated(Problem):
    """A delivery was re-qualified by newer rules than those of this process."""

    def __init__(self, rules_version: int) -> None:
        super().__init__(
            f"version {rules_version} of the qualification rules is outdated: call a replica that has newer ones",
            metadata={"rules_version": str(rules_version)},
        )


class OutdatedHere(RulesOutdated):
    """So this process takes no events any more; others do."""


class DeliveryNotFound(Problem):
    """DeliveryService knows no such delivery."""


class DeliveryServiceUnavailable(Problem):
    """DeliveryService did not do its part."""

    def __init__(self, code: str) -> None:
        super().__init__(
            f"DeliveryService answered {code}: call again, what was done stays done", retry_delay_seconds=1.0
        )


ERROR_TABLE: ErrorTable = {
    LimitReached: ErrorStatus(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED"),
    RulesOutdated: ErrorStatus(grpc.StatusCode.FAILED_PRECONDITION, "RULES_OUTDATED"),
    OutdatedHere: ErrorStatus(grpc.StatusCode.UNAVAILABLE, "RULES_OUTDATED"),
    DeliveryNotFound: ErrorStatus(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"),
    DeliveryServiceUnavailable: ErrorStatus(grpc.StatusCode.UNAVAILABLE, "DELIVERY_SERVICE_UNAVAILABLE"),
}
