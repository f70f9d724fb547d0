"""The request that hands a batch over: the same as one that protobuf's own API makes."""

from hypothesis import given
from hypothesis import strategies as st

from campaign.mta.v1 import relay_service_pb2 as pb
from delivery_service.domain.identifiers import RECIPIENT_MAX, message_id
from delivery_service.store.relay_parts import PartMessages
from delivery_service.workers.relay_request import relay_batch, relay_request

_texts = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="aé\U0001f600", min_size=120, max_size=130),  # where a length takes a second byte
    st.integers(16_380, 16_390).map("a".__mul__),  # and a third one
)
_messages = st.lists(
    st.tuples(st.one_of(st.integers(1, RECIPIENT_MAX), st.integers(-9, 0)), _texts, _texts), min_size=1, max_size=5
)


@given(
    delivery_id=st.integers(1, 2**63 - 1),
    messages=_messages,
    deadline_us=st.integers(0, 2**62),
    sequence=st.integers(1, 2**62),
)
def test_a_request_is_what_the_api_makes_of_the_same_messages(
    delivery_id: int, messages: list[tuple[int, str, str]], deadline_us: int, sequence: int
) -> None:
    recipients, addresses, attributes = map(list, zip(*messages, strict=True))

    batch = relay_batch(delivery_id, PartMessages(recipients, addresses, attributes), deadline_us)

    assert pb.RelayRequest.FromString(relay_request(sequence, batch)) == pb.RelayRequest(
        batch=pb.RelayBatch(
            sequence=sequence,
            delivery_id=str(delivery_id),
            messages=[
                pb.RelayMessage(
                    message_id=message_id(delivery_id, recipient),
                    address=address,
                    attributes_json=text,
                    deadline_us=deadline_us,
                )
                for recipient, address, text in messages
            ],
        )
    )
