"""The life of a delivery, as a table: which command is allowed in which state, and where it leads."""

from enum import Enum, IntEnum, auto
from typing import Final

from delivery_service.domain.problems import StateProblem


class Channel(IntEnum):
    """How the messages travel."""

    EMAIL = 1
    SMS = 2
    PUSH = 3


class DeliveryState(IntEnum):
    """Where a delivery stands; the numbers are stored."""

    EDITING = 1
    PREPARING = 2
    PREPARATION_FAILED = 3
    READY = 4
    START_PENDING = 5
    IN_PROGRESS = 6
    PAUSED = 7
    STOPPED = 8
    FINISHED = 9
    FAILED = 10


class Command(Enum):
    """What may happen to a delivery."""

    EDIT = auto()
    PREPARE = auto()
    FINISH_PREPARATION = auto()
    FAIL_PREPARATION = auto()
    CONFIRM = auto()
    START = auto()
    FINISH = auto()
    PAUSE = auto()
    RESUME = auto()
    PAUSE_DOMAIN = auto()
    RESUME_DOMAIN = auto()
    STOP = auto()
    CLOSE_VALIDITY = auto()
    UNCONFIRM = auto()
    CANCEL_PREPARATION = auto()
    DECLINE = auto()
    DELETE = auto()
    APPROVE = auto()
    SEND_PROOF = auto()
    RETRY_FAILED = auto()


_BEING_SENT: Final = {
    DeliveryState.IN_PROGRESS: DeliveryState.IN_PROGRESS,
    DeliveryState.PAUSED: DeliveryState.PAUSED,
}

TRANSITIONS: Final[dict[Command, dict[DeliveryState, DeliveryState]]] = {
    Command.EDIT: {
        DeliveryState.EDITING: DeliveryState.EDITING,
        DeliveryState.READY: DeliveryState.EDITING,
        DeliveryState.PREPARATION_FAILED: DeliveryState.EDITING,
    },
    Command.PREPARE: {
        DeliveryState.EDITING: DeliveryState.PREPARING,
        DeliveryState.READY: DeliveryState.PREPARING,
        DeliveryState.PREPARATION_FAILED: DeliveryState.PREPARING,
        DeliveryState.PREPARING: DeliveryState.PREPARING,  # goes on
    },
    Command.FINISH_PREPARATION: {DeliveryState.PREPARING: DeliveryState.READY},
    Command.FAIL_PREPARATION: {DeliveryState.PREPARING: DeliveryState.PREPARATION_FAILED},
    Command.CONFIRM: {DeliveryState.READY: DeliveryState.START_PENDING},
    Command.START: {DeliveryState.START_PENDING: DeliveryState.IN_PROGRESS},
    Command.FINISH: {DeliveryState.IN_PROGRESS: DeliveryState.FINISHED},
    # The commands below may be repeated: the second time they change nothing.
    Command.PAUSE: {
        DeliveryState.IN_PROGRESS: DeliveryState.PAUSED,
        DeliveryState.PAUSED: DeliveryState.PAUSED,
    },
    Command.RESUME: {
        DeliveryState.PAUSED: DeliveryState.IN_PROGRESS,
        DeliveryState.IN_PROGRESS: DeliveryState.IN_PROGRESS,
    },
    Command.PAUSE_DOMAIN: _BEING_SENT,
    Command.RESUME_DOMAIN: _BEING_SENT,
    Command.STOP: {
        DeliveryState.START_PENDING: DeliveryState.STOPPED,
        DeliveryState.IN_PROGRESS: DeliveryState.STOPPED,
        DeliveryState.PAUSED: DeliveryState.STOPPED,
        DeliveryState.STOPPED: DeliveryState.STOPPED,
    },
    # FAILED instead of FINISHED if nothing was ever handed over.
    Command.CLOSE_VALIDITY: {
        DeliveryState.IN_PROGRESS: DeliveryState.FINISHED,
        DeliveryState.PAUSED: DeliveryState.FINISHED,
    },
    Command.UNCONFIRM: {DeliveryState.START_PENDING: DeliveryState.READY},
    Command.CANCEL_PREPARATION: {DeliveryState.PREPARING: DeliveryState.EDITING},
    # Of a child of a recurring delivery alone.
    Command.DECLINE: {DeliveryState.READY: DeliveryState.STOPPED},
    # There is no state after it: the delivery is gone.
    Command.DELETE: {
        DeliveryState.EDITING: DeliveryState.EDITING,
        DeliveryState.READY: DeliveryState.READY,
        DeliveryState.PREPARATION_FAILED: DeliveryState.PREPARATION_FAILED,
    },
    Command.APPROVE: {DeliveryState.READY: DeliveryState.READY},
    Command.SEND_PROOF: {
        state: state
        for state in (
            DeliveryState.READY,
            DeliveryState.START_PENDING,
            DeliveryState.IN_PROGRESS,
            DeliveryState.PAUSED,
        )
    },
    # It makes another delivery.
    Command.RETRY_FAILED: {
        state: state for state in (DeliveryState.STOPPED, DeliveryState.FINISHED, DeliveryState.FAILED)
    },
}
"""command → state before → state after. A state that is missing refuses the command."""

HAS_SEND_LOGS: Final = frozenset(DeliveryState) - {
    DeliveryState.EDITING,
    DeliveryState.PREPARING,
    DeliveryState.PREPARATION_FAILED,
}
"""States in which the send logs of the plan exist. Rows left over from an earlier preparation are not shown."""


def next_state(delivery_id: int, state: DeliveryState, command: Command) -> DeliveryState:
    """The state after a command; StateProblem if this state refuses it."""
    allowed = TRANSITIONS[command]
    if state not in allowed:
        raise StateProblem(delivery_id, state.name, command.name.lower().replace("_", " "), [s.name for s in allowed])
    return allowed[state]
