"""Messages of a part that must not be relayed any more: their addresses were quarantined or denied meanwhile.

They are BOUNCED through the one apply path, unless they have left: if the part was claimed before, the MTA side is
asked for them first, as when a delivery is stopped, and what it had accepted or refused is committed as that.
"""

from collections.abc import Sequence

from campaign.mta.v1 import relay_service_pb2 as pb
from delivery_service.domain.outcome import FailureType, Outcome, Reason
from delivery_service.store.apply_writer import ApplyWriter
from delivery_service.store.observations import ObservationColumns
from delivery_service.store.relay_parts import Claim
from delivery_service.workers.relay_answers import observations
from delivery_service.workers.withdrawal import Withdraw, withdrawn
from service_runtime.clock import Clock


class BarredMessages:
    """Settles them, part by part."""

    def __init__(self, withdraw: Withdraw, writer: ApplyWriter, clock: Clock) -> None:
        self._withdraw = withdraw
        self._writer = writer
        self._clock = clock

    async def settle(self, claim: Claim, barred: Sequence[tuple[int, Reason]]) -> bool:
        """Commits what becomes of them. False: the MTA side could not be asked; they stay PREPARED."""
        recipients = [recipient for recipient, _ in barred]
        kept = dict(barred)
        if claim.claim_count > 1:  # someone had the part before us
            answer = await withdrawn(self._withdraw, claim.delivery_id, recipients)
            if answer is None:
                return False
            had_left = observations(claim.delivery_id, recipients, answer)
            if len(had_left):
                await self._writer.apply(had_left)
            verdicts = dict(zip(recipients, answer.verdicts, strict=True))
            kept = {each: why for each, why in barred if verdicts[each] == pb.RELAY_VERDICT_WITHDRAWN}
        if kept:
            await self._writer.apply(_bounced(claim.delivery_id, kept, self._clock.now_us()))
        return True


def _bounced(delivery_id: int, kept: dict[int, Reason], now_us: int) -> ObservationColumns:
    """It says nothing about the address that was not known, so it counts as ignored."""
    recipients = list(kept)
    columns = ObservationColumns.without_detail(delivery_id, recipients, Outcome.BOUNCED, [now_us] * len(recipients))
    columns.failure_types = [int(FailureType.IGNORED)] * len(recipients)
    columns.reasons = [int(reason) for reason in kept.values()]
    return columns
