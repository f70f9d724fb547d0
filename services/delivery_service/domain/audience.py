"""Who of an audience gets no message by choice: the options of a delivery, and what its suppression lists must be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from delivery_service.domain.lifecycle import Channel


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """Recipients who get no message: a share of them, or, without one, these profiles."""

    share: float | None = None
    profile_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AudienceOptions:
    """The control group and the names of suppression lists."""

    control_group: ControlGroup | None = None
    suppression_lists: tuple[str, ...] = ()

    def canonical(self) -> tuple[str, ...]:
        """What a plan's digest covers: the same for options that exclude the same, nothing for none."""
        parts = []
        if (group := self.control_group) is not None:
            if group.share is not None:
                parts += ["control group share", repr(group.share)]
            else:
                profile_ids = sorted(set(group.profile_ids))
                parts += ["control group profiles", str(len(profile_ids)), *profile_ids]
        if self.suppression_lists:
            parts += ["suppression lists", *sorted(self.suppression_lists)]
        return tuple(parts)


EVERYBODY: Final = AudienceOptions()
"""Nobody is left out by choice."""


def unusable_lists(options: AudienceOptions, channel: Channel, known: Mapping[str, Channel]) -> list[tuple[str, str]]:
    """The names of suppression lists that a preparation can't go by, each with what is wrong and what to do."""
    found = []
    for name in options.suppression_lists:
        if name not in known:
            found.append((name, "does not exist: create it, or take it out of the delivery"))
        elif known[name] is not channel:
            found.append((name, f"is of channel {known[name].name}: take it out of the delivery"))
    return found
