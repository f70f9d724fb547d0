"""What can be wrong with a call on a delivery. The table in api/errors.py maps each to its status code.

Problem
 ├─ InvalidInput (service_runtime)
 │   └─ RequestIdReused
 ├─ DeliveryNotFound · SendLogNotFound · UploadNotFound
 ├─ StateProblem            the state refuses the command
 ├─ KindProblem             the delivery is plain, recurring or a child, and the command is for another kind
 ├─ PlanChanged · DeliveryChanged · AlreadyRunning
 ├─ ChunkOutOfOrder
 ├─ LimitReached
 ├─ LogOutOfRange · LogDropped · MessageNotRendered
 ├─ ApprovalMissing · SecondPersonNeeded
 ├─ SuppressionListNotFound · SuppressionListExists · SuppressionListInUse
 ├─ NothingToRetry · ErasureBlocked
 ├─ MtaSideUnavailable
 └─ RulesOutdated           newer qualification rules than the caller's are in force
"""

from collections.abc import Sequence
from datetime import datetime

from service_runtime.problems import FieldViolation, InvalidInput, Problem


class DeliveryNotFound(Problem):
    """There is no such delivery."""

    def __init__(self, delivery_id: int | str) -> None:
        super().__init__(
            f"delivery {delivery_id} does not exist: check delivery_id", metadata={"delivery_id": str(delivery_id)}
        )


class SendLogNotFound(Problem):
    """The delivery has no send log for the recipient."""

    def __init__(self, delivery_id: int, recipient: int) -> None:
        super().__init__(
            f"delivery {delivery_id} has no send log for recipient {recipient}: it was excluded, "
            "or does not exist, or the delivery is not prepared",
            metadata={"delivery_id": str(delivery_id), "recipient": str(recipient)},
        )


class UploadNotFound(Problem):
    """Nothing was committed under this upload id."""

    def __init__(self, delivery_id: int, upload_id: str) -> None:
        super().__init__(
            f"delivery {delivery_id} has no upload {upload_id!r}: no chunk of it was committed",
            metadata={"delivery_id": str(delivery_id), "upload_id": upload_id},
        )


class StateProblem(Problem):
    """The delivery's state refuses the command."""

    def __init__(self, delivery_id: int, state: str, command: str, allowed: Sequence[str]) -> None:
        wanted = ", ".join(allowed)
        super().__init__(
            f"delivery {delivery_id} is {state}: cannot {command}; that needs one of {wanted}",
            metadata={"delivery_id": str(delivery_id), "state": state, "allowed_states": wanted},
        )
        self.state = state


class PlanChanged(Problem):
    """The caller's digest is not the one of the present plan."""

    def __init__(self, delivery_id: int, plan_digest: str) -> None:
        super().__init__(
            f"the plan of delivery {delivery_id} is not the one you saw: look at it again, or prepare again",
            metadata={"delivery_id": str(delivery_id), "plan_digest": plan_digest},
        )


class DeliveryChanged(Problem):
    """The delivery changed between the caller's read and its write."""

    def __init__(self, delivery_id: int, etag: str) -> None:
        super().__init__(
            f"delivery {delivery_id} changed meanwhile: read it again, then repeat",
            metadata={"delivery_id": str(delivery_id), "etag": etag},
        )


class RequestIdReused(InvalidInput):
    """The same request_id came with another request than before."""

    def __init__(
        self, delivery_id: int, request_id: str, used_to: str = "confirm another plan_digest", new: str = "confirmation"
    ) -> None:
        violation = FieldViolation("request_id", f"was used to {used_to}: use a new request_id for a new {new}")
        super().__init__([violation], metadata={"delivery_id": str(delivery_id), "request_id": request_id})


class ChunkOutOfOrder(Problem):
    """A chunk's number leaves a gap."""

    def __init__(self, upload_id: str, expected: int, number: int) -> None:
        super().__init__(
            f"chunk {number} of upload {upload_id!r} leaves a gap: send chunk {expected} next",
            metadata={"upload_id": upload_id, "expected_chunk": str(expected), "chunk": str(number)},
        )


class LimitReached(Problem):
    """A limit of the service is reached."""

    def __init__(self, limit: str, value: int, advice: str, *, retry_delay_seconds: float | None = None) -> None:
        super().__init__(
            f"the limit {limit} = {value} is reached: {advice}",
            metadata={"limit": limit, "value": str(value)},
            retry_delay_seconds=retry_delay_seconds,
        )


class AlreadyRunning(Problem):
    """Another run of the same work holds the delivery."""

    def __init__(self, delivery_id: int, work: str) -> None:
        super().__init__(
            f"{work} of delivery {delivery_id} is running already: repeat when it has ended",
            metadata={"delivery_id": str(delivery_id)},
        )


class LogOutOfRange(Problem):
    """What is asked for lies outside the log that is kept."""

    def __init__(self, delivery_id: int, log_dropped_time: datetime | None) -> None:
        metadata = {"delivery_id": str(delivery_id)}
        if log_dropped_time is None:
            cause = "resume_token is of another delivery, or ahead of the log, as after a database was restored"
        else:
            cause = "its log is beyond the retention and was dropped"
            metadata["log_dropped_time"] = log_dropped_time.isoformat()
        advice = "begin with the resume_token of GetKpis" + (", or export without one" if not log_dropped_time else "")
        super().__init__(f"delivery {delivery_id}: {cause}: {advice}", metadata=metadata)


class LogDropped(Problem):
    """The command needs the audience or the logs of a delivery whose are beyond the retention."""

    def __init__(self, delivery_id: int, log_dropped_time: datetime, command: str) -> None:
        super().__init__(
            f"the audience and the logs of delivery {delivery_id} are beyond the retention and were dropped: cannot "
            f"{command}; its KPIs stay as they are, and its content can be duplicated",
            metadata={"delivery_id": str(delivery_id), "log_dropped_time": log_dropped_time.isoformat()},
        )


class MessageNotRendered(Problem):
    """The message can't be made for this recipient."""

    def __init__(self, delivery_id: int, recipient: int, why: str) -> None:
        super().__init__(
            f"the message of recipient {recipient} can't be rendered: {why}",
            metadata={"delivery_id": str(delivery_id), "recipient": str(recipient)},
        )


class ApprovalMissing(Problem):
    """The delivery requires an approval, and its present plan has none."""

    def __init__(self, delivery_id: int, plan_digest: str) -> None:
        super().__init__(
            f"delivery {delivery_id} requires an approval, and nobody has approved this plan: let a second person call "
            "ApproveDelivery",
            metadata={"delivery_id": str(delivery_id), "plan_digest": plan_digest},
        )


class SecondPersonNeeded(Problem):
    """One person does what takes two."""

    def __init__(self, delivery_id: int, subject: str, what: str) -> None:
        super().__init__(
            f"delivery {delivery_id}: {subject} {what}: let someone else do it",
            metadata={"delivery_id": str(delivery_id), "subject": subject},
        )


class SuppressionListNotFound(Problem):
    """There is no such suppression list."""

    def __init__(self, name: str) -> None:
        super().__init__(f"suppression list {name!r} does not exist: check its name", metadata={"name": name})


class SuppressionListExists(Problem):
    """The name is taken."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"suppression list {name!r} exists already: add to it, or choose another name", metadata={"name": name}
        )


class SuppressionListInUse(Problem):
    """Deliveries that are not over name the suppression list."""

    def __init__(self, name: str, delivery_ids: Sequence[int]) -> None:
        listed = ", ".join(map(str, delivery_ids))
        super().__init__(
            f"suppression list {name!r} is named by deliveries that are not over ({listed}): take it out of them first",
            metadata={"name": name, "delivery_ids": listed},
        )


class NothingToRetry(Problem):
    """No failed recipient passes the filter."""

    def __init__(self, delivery_id: int) -> None:
        super().__init__(
            f"delivery {delivery_id} has no failed recipient that passes the filter: there is nothing to retry",
            metadata={"delivery_id": str(delivery_id)},
        )


class ErasureBlocked(Problem):
    """Messages to the profile are still to leave."""

    def __init__(self, delivery_ids: Sequence[int]) -> None:
        listed = ", ".join(map(str, delivery_ids))
        super().__init__(
            f"messages to the profile are still to leave, of deliveries {listed}: unconfirm, stop or decline these, or "
            "wait until they have left; then erase again",
            metadata={"delivery_ids": listed},
        )


class MtaSideUnavailable(Problem):
    """The MTA side did not answer."""

    def __init__(self, delivery_id: int) -> None:
        super().__init__(
            f"the MTA side did not answer for delivery {delivery_id}, so what has left is not known: try again",
            metadata={"delivery_id": str(delivery_id)},
        )


class KindProblem(Problem):
    """The delivery is not of the kind that the command is for."""

    def __init__(self, delivery_id: int, kind: str, command: str, allowed: Sequence[str], advice: str) -> None:
        super().__init__(
            f"delivery {delivery_id} is {kind}: cannot {command}; {advice}",
            metadata={"delivery_id": str(delivery_id), "kind": kind, "allowed_kinds": ", ".join(allowed)},
        )


def child_is_fixed(delivery_id: int) -> KindProblem:
    """A child was confirmed with its parent: nobody may change what it sends."""
    advice = "its content and audience are its parent's: decline it, or stop it, and send another delivery"
    return KindProblem(delivery_id, "CHILD", "change it", ("PLAIN", "RECURRING"), advice)


class RulesOutdated(Problem):
    """Something was qualified by rules older than those that a delivery was re-qualified by."""

    def __init__(self, rules_version: int | None = None) -> None:
        given = "the" if rules_version is None else f"version {rules_version} of the"
        super().__init__(
            f"{given} qualification rules is outdated: a delivery was re-qualified by newer ones; nothing is lost, "
            "replace the process that qualifies by one with the newer rules",
            metadata={} if rules_version is None else {"rules_version": str(rules_version)},
        )
