"""The life of a delivery: every (state, command) cell."""

import pytest

from delivery_service.domain.lifecycle import TRANSITIONS, Command, DeliveryState, next_state
from delivery_service.domain.problems import StateProblem

# The table of the design, section 6, as far as it is built: state → command letters allowed in it.
ALLOWED = {
    DeliveryState.EDITING: {Command.EDIT, Command.PREPARE, Command.DELETE},
    DeliveryState.PREPARING: {
        Command.PREPARE,
        Command.FINISH_PREPARATION,
        Command.FAIL_PREPARATION,
        Command.CANCEL_PREPARATION,
    },
    DeliveryState.PREPARATION_FAILED: {Command.EDIT, Command.PREPARE, Command.DELETE},
    DeliveryState.READY: {
        Command.EDIT,
        Command.PREPARE,
        Command.CONFIRM,
        Command.DECLINE,
        Command.DELETE,
        Command.APPROVE,
        Command.SEND_PROOF,
    },
    DeliveryState.START_PENDING: {Command.START, Command.UNCONFIRM, Command.STOP, Command.SEND_PROOF},
    DeliveryState.IN_PROGRESS: {
        Command.FINISH,
        Command.PAUSE,
        Command.RESUME,
        Command.PAUSE_DOMAIN,
        Command.RESUME_DOMAIN,
        Command.STOP,
        Command.CLOSE_VALIDITY,
        Command.SEND_PROOF,
    },
    DeliveryState.PAUSED: {
        Command.PAUSE,
        Command.RESUME,
        Command.PAUSE_DOMAIN,
        Command.RESUME_DOMAIN,
        Command.STOP,
        Command.CLOSE_VALIDITY,
        Command.SEND_PROOF,
    },
    DeliveryState.STOPPED: {Command.STOP, Command.RETRY_FAILED},
    DeliveryState.FINISHED: {Command.RETRY_FAILED},
    DeliveryState.FAILED: {Command.RETRY_FAILED},
}


@pytest.mark.parametrize("state", DeliveryState, ids=lambda state: state.name)
@pytest.mark.parametrize("command", Command, ids=lambda command: command.name)
def test_a_command_is_allowed_only_where_the_table_says(state: DeliveryState, command: Command) -> None:
    if command in ALLOWED[state]:
        assert next_state(1, state, command) in DeliveryState
        return
    with pytest.raises(StateProblem) as problem:
        next_state(1, state, command)
    assert problem.value.metadata["state"] == state.name
    assert problem.value.metadata["allowed_states"] == ", ".join(before.name for before in TRANSITIONS[command])


def test_any_edit_leads_back_to_editing() -> None:
    assert set(TRANSITIONS[Command.EDIT].values()) == {DeliveryState.EDITING}
