"""The audience options of a request, checked: a control group, and names of suppression lists."""

import re
from typing import Final

from campaign.delivery.v1 import audience_pb2
from delivery_service.api.validation import require_valid, text_violation
from delivery_service.domain.audience import AudienceOptions, ControlGroup
from delivery_service.settings import Settings
from service_runtime.problems import FieldViolation, InvalidInput

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def list_name_violation(field: str, name: str) -> FieldViolation | None:
    """The name of a suppression list."""
    if _NAME.fullmatch(name):
        return None
    return FieldViolation(
        field, f"{name[:40]!r} is no name: give 1 to 100 letters, digits, dots, dashes or underscores, a letter first"
    )


def audience_options_of(given: audience_pb2.AudienceOptions, limits: Settings, field: str) -> AudienceOptions:
    """InvalidInput names what is wrong."""
    names = tuple(given.suppression_lists)
    lists_field, lists_max = f"{field}.suppression_lists", limits.suppression_lists_per_delivery_max
    if len(names) > lists_max:
        raise InvalidInput.of(lists_field, f"has {len(names)} entries: at most {lists_max} are allowed")
    if len(set(names)) < len(names):
        raise InvalidInput.of(lists_field, "names a list twice: name each once")
    require_valid(list_name_violation(f"{lists_field}[{index}]", name) for index, name in enumerate(names))
    group = None
    if given.HasField("control_group"):
        group = _control_group(given.control_group, limits, f"{field}.control_group")
    return AudienceOptions(group, names)


def _control_group(given: audience_pb2.ControlGroup, limits: Settings, field: str) -> ControlGroup:
    match given.WhichOneof("selection"):
        case "share":
            if not 0 < given.share < 1:  # nor NaN
                raise InvalidInput.of(
                    f"{field}.share", f"is {given.share}: give more than 0 and less than 1, or no control group"
                )
            return ControlGroup(share=given.share)
        case "profiles":
            profile_ids = tuple(given.profiles.profile_ids)
            field = f"{field}.profiles.profile_ids"
            if not profile_ids:
                raise InvalidInput.of(field, "is empty: name the profiles, or give no control group")
            size, size_max = sum(len(each.encode()) for each in profile_ids), limits.control_group_bytes_max
            if size > size_max:
                raise InvalidInput.of(field, f"has {size} bytes: at most {size_max} are allowed; give a share instead")
            require_valid(
                text_violation(f"{field}[{index}]", profile_id, limits.profile_id_characters_max)
                or (None if profile_id else FieldViolation(f"{field}[{index}]", "is empty: leave it out"))
                for index, profile_id in enumerate(profile_ids)
            )
            return ControlGroup(profile_ids=profile_ids)
    raise InvalidInput.of(field, "selects nobody: give a share or profiles, or no control group")
