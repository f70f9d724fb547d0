"""The request that hands a batch of messages over, made from their columns.

It is written in protobuf's wire format here: made one by one through its API, the messages were the largest part of
what relaying costs this process. A test holds the one against the other.
"""

from typing import Final

from campaign.mta.v1 import relay_service_pb2 as pb
from delivery_service.domain.identifiers import message_ids
from delivery_service.store.relay_parts import PartMessages

_VARINT, _LENGTH_DELIMITED = 0, 2
_LENGTHS_KEPT_MAX: Final = 16_384


def relay_batch(delivery_id: int, messages: PartMessages, deadline_us: int) -> bytes:
    """A RelayBatch without its sequence, which it gets when its turn comes."""
    ids = message_ids(delivery_id, messages.recipients)
    size, message_tag, id_tag, address_tag = _LENGTHS, _MESSAGE, _ID, _ADDRESS
    deadline = f"{_DEADLINE}{_varint(deadline_us)}{_ATTRIBUTES}"
    written = [
        f"{message_tag}{size[len(body)]}{body}"
        for one, address, attributes in zip(
            ids, _by_bytes(messages.addresses), _by_bytes(messages.attributes), strict=True
        )
        if (
            body := f"{id_tag}{size[len(one)]}{one}{address_tag}{size[len(address)]}{address}"
            f"{deadline}{size[len(attributes)]}{attributes}"
        )
    ]
    delivery = str(delivery_id)
    return f"{_DELIVERY}{size[len(delivery)]}{delivery}{''.join(written)}".encode("latin-1")


def relay_request(sequence: int, batch: bytes) -> bytes:
    """The RelayRequest with a batch."""
    numbered = f"{_SEQUENCE}{_varint(sequence)}"
    return f"{_BATCH}{_varint(len(numbered) + len(batch))}{numbered}".encode("latin-1") + batch


def _by_bytes(column: list[str]) -> list[str]:
    """Each text as the bytes of its UTF-8, with a character for each: so text is put together, which is faster than
    bytes are, and lengths are those of the wire."""
    if "".join(column).isascii():  # nearly always
        return column
    return [text.encode().decode("latin-1") for text in column]


def _varint(number: int) -> str:
    """The wire's form of a number that is not negative, a character for each byte."""
    digits = []
    while number > 127:
        digits.append(chr(number & 127 | 128))
        number >>= 7
    return "".join((*digits, chr(number)))


def _tag(number: int, wire_type: int) -> str:
    return _varint(number << 3 | wire_type)


class _Lengths(dict[int, str]):
    """The varints of lengths; keeps those of usual ones."""

    def __missing__(self, length: int) -> str:
        varint = _varint(length)
        if length < _LENGTHS_KEPT_MAX:
            self[length] = varint
        return varint


_LENGTHS: Final = _Lengths()
_BATCH: Final = _tag(pb.RelayRequest.BATCH_FIELD_NUMBER, _LENGTH_DELIMITED)
_SEQUENCE: Final = _tag(pb.RelayBatch.SEQUENCE_FIELD_NUMBER, _VARINT)
_DELIVERY: Final = _tag(pb.RelayBatch.DELIVERY_ID_FIELD_NUMBER, _LENGTH_DELIMITED)
_MESSAGE: Final = _tag(pb.RelayBatch.MESSAGES_FIELD_NUMBER, _LENGTH_DELIMITED)
_ID: Final = _tag(pb.RelayMessage.MESSAGE_ID_FIELD_NUMBER, _LENGTH_DELIMITED)
_ADDRESS: Final = _tag(pb.RelayMessage.ADDRESS_FIELD_NUMBER, _LENGTH_DELIMITED)
_DEADLINE: Final = _tag(pb.RelayMessage.DEADLINE_US_FIELD_NUMBER, _VARINT)
_ATTRIBUTES: Final = _tag(pb.RelayMessage.ATTRIBUTES_JSON_FIELD_NUMBER, _LENGTH_DELIMITED)
