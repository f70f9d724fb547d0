"""What an MTA event costs FeedbackService's own Python code, without any network.

    python -m tests.bench.feedback_cost [EVENTS_PER_FRAME] [FAILURES_PERCENT]

Prints, per event and in microseconds of CPU: reading a frame into columns, building the message for DeliveryService,
mapping the acknowledgement back; and the qualification of one failure.
"""

import json
import sys
import time

from campaign.feedback.v1 import feedback_service_pb2 as pb
from feedback_service.domain.qualification import qualify
from feedback_service.observation_batch import ClientBatch, ObservationBatch, Piece

EVENTS = 200_000
BATCH_SIZE = 2_000
START_US = 1_795_415_948_000_000
PHRASINGS = (
    (
        550,
        "5.1.1",
        "550 5.1.1 <user{0}@example.com>: Recipient address rejected: User unknown in virtual mailbox table",
    ),
    (452, "4.2.2", "452-4.2.2 The email account that you tried to reach is over quota. id={0:x} - gsmtp"),
    (421, "4.7.0", "421 4.7.0 [{0}] Messages temporarily deferred due to unexpected volume or user complaints"),
    (554, "5.7.1", "554 5.7.1 Service unavailable; Client host [192.0.2.{0}] blocked using zen.spamhaus.org"),
)


def event(number: int, failures_percent: int) -> pb.MtaEvent:
    """The event of that number."""
    message_id = f"0192f0c4-{number:012x}"
    if number % 100 < failures_percent:
        code, enhanced, text = PHRASINGS[number % len(PHRASINGS)]
        kind = pb.MTA_EVENT_KIND_TRANSIENT_FAILURE if code < 500 else pb.MTA_EVENT_KIND_BOUNCE
        diagnostic = text.format(number)
    else:
        kind, code, enhanced = pb.MTA_EVENT_KIND_DELIVERY, 250, "2.0.0"
        diagnostic = f"250 2.0.0 Ok: queued as {number:X}"
    return pb.MtaEvent(
        message_id=message_id,
        kind=kind,
        event_time_us=START_US + number,
        smtp_code=code,
        enhanced_code=enhanced,
        diagnostic=diagnostic,
        attempt=1,
    )


def main() -> None:
    """Measures and prints."""
    frame_size = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    failures_percent = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    frames = [
        pb.MtaEventBatch(events=[event(at + i, failures_percent) for i in range(frame_size)]).SerializeToString()
        for at in range(0, EVENTS, frame_size)
    ]
    spent = {"parse": 0.0, "read": 0.0, "build": 0.0, "acknowledge": 0.0}
    batch = ObservationBatch()
    for sequence, frame in enumerate(frames, start=1):
        began = time.process_time()
        parsed = pb.MtaEventBatch.FromString(frame)
        spent["parse"] += (t := time.process_time()) - began
        client_batch = ClientBatch("mta", sequence, frame_size, lambda _: None)
        batch.add(client_batch, 0, parsed.events)
        spent["read"] += (u := time.process_time()) - t
        if len(batch) >= BATCH_SIZE:
            Piece.whole(batch).request().SerializeToString()
            spent["build"] += (v := time.process_time()) - u
            batch.committed()
            spent["acknowledge"] += time.process_time() - v
            batch = ObservationBatch()
    result = {name: round(seconds / EVENTS * 1e6, 3) for name, seconds in spent.items()}
    began = time.process_time()
    for number in range(20_000):
        code, enhanced, text = PHRASINGS[number % len(PHRASINGS)]
        qualify(pb.MTA_EVENT_KIND_BOUNCE, code, enhanced, text.format(number), "", "")
    result["qualify_one_failure"] = round((time.process_time() - began) / 20_000 * 1e6, 3)
    print(json.dumps({"events_per_frame": frame_size, "failures_percent": failures_percent, **result}))


if __name__ == "__main__":
    main()
