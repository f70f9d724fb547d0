"""Resume tokens: a place in the transition log of one delivery, as opaque text. A KPI snapshot's token is one."""

import base64
import binascii
import struct
from typing import Final

from delivery_service.convert import resume_token
from delivery_service.domain.log_position import LogPosition, Place
from delivery_service.domain.problems import LogOutOfRange
from service_runtime.problems import InvalidInput

_WHOLE: Final = b"v1"
"""Revisions told as a whole: the form that KPI snapshots have."""
_IN_PART: Final = b"v2"
_DELIVERY_ID: Final = struct.Struct(">q")
_REVISION: Final = struct.Struct(">q")
_PLACE: Final = struct.Struct(">qi")


def token_of(delivery_id: int, position: LogPosition) -> str:
    """The token of a position."""
    if not any(place.recipient for place in position.places):
        return resume_token(delivery_id, tuple(place.revision for place in position.places))
    places = b"".join(_PLACE.pack(*place) for place in position.places)
    raw = _IN_PART + _DELIVERY_ID.pack(delivery_id) + places
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def position_of(delivery_id: int, token: str, field: str = "resume_token") -> LogPosition:
    """The position that a token names; an empty one: the beginning. LogOutOfRange if it is of another delivery: in this
    one's log it would name some place or other, and what lies before that would never be told."""
    if not token:
        return LogPosition()
    of_delivery = 0
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        form, named, rest = raw[:2], raw[2:10], raw[10:]
        if form in (_WHOLE, _IN_PART):
            (of_delivery,) = _DELIVERY_ID.unpack(named)
        if form == _WHOLE:
            places = [Place(revision) for (revision,) in _REVISION.iter_unpack(rest)]
        elif form == _IN_PART:
            places = [Place(*place) for place in _PLACE.iter_unpack(rest)]
        else:
            places = []
    except (binascii.Error, ValueError, struct.error):
        places = []
    if not places or any(place.revision < 0 or place.recipient < 0 for place in places):
        raise InvalidInput.of(field, "is not a resume token: pass one on unchanged, or nothing")
    if of_delivery != delivery_id:
        raise LogOutOfRange(delivery_id, None)
    return LogPosition(tuple(places))
