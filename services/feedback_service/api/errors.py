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


ERROR_TABLE: ErrorTable = {LimitReached: ErrorStatus(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED")}
