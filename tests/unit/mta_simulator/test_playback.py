"""Playing: the very events that come out add up to the truth, whatever goes wrong on the way."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from campaign.delivery.v1 import send_log_pb2 as send_log_pb
from mta_simulator.dialects import Kind
from mta_simulator.journal import IN_MEMORY, Entry, Journal
from mta_simulator.misbehaviour import Misbehaviour, MisbehaviourOptions, PlayedEvent
from mta_simulator.playback import Playback
from mta_simulator.schedule import Schedule
from mta_simulator.script import ScriptOptions, ScriptWriter
from mta_simulator.truth import Tally, Truth
from tests.support.clock import ManualClock

EVERYTHING = MisbehaviourOptions(duplicates=0.3, reorder=True, unknown_messages=0.2, malformed=0.2)
OPTIONS = ScriptOptions(seed=3, deferred=0.2, expired=0.1, hard=0.1, full=0.1, out_of_band=0.1, silent=0.1)
ADDRESSES = [f"person{number}@mail.test" for number in range(500)]


@asynccontextmanager
async def playing(
    misbehaviour: MisbehaviourOptions, pending_max: int = 1_000_000
) -> AsyncIterator[tuple[Playback, Truth, Journal, ManualClock]]:
    clock, writer, truth = ManualClock(), ScriptWriter(OPTIONS), Truth()
    journal = Journal(IN_MEMORY, "script")
    playback = Playback(journal, Misbehaviour(misbehaviour, 3), clock, pending_max)
    entries = []
    for number, address in enumerate(ADDRESSES):
        script = writer.script_for(address)
        refusal = b"" if script.refusal else None
        told = (script.outcome, script.opened, script.clicked)
        entries.append(Entry(f"message-{number}", "1", address, clock.now_us() + number, refusal, *told))
    recorded = journal.record(entries)
    for entry in recorded.fresh:
        accepted = entry.refusal is None
        truth.add("1", entry.outcome, accepted=accepted, opened=entry.opened, clicked=entry.clicked)
    accepted_ones = [entry for entry in recorded.fresh if entry.refusal is None]
    playback.play(
        recorded.range_id,
        [(entry.message_id, entry.answer_time_us, writer.script_for(entry.address)) for entry in accepted_ones],
    )
    pump = asyncio.create_task(playback.run())
    try:
        yield playback, truth, journal, clock
    finally:
        pump.cancel()
        await asyncio.wait([pump])
        journal.close()


async def played(playback: Playback, clock: ManualClock) -> list[PlayedEvent]:
    await clock.advance(20)
    return playback.take(1_000_000)


def fold(events: list[PlayedEvent]) -> Tally:
    """The lattice, naively: per message the greatest (rank, event time); then counts. Refusals are no events."""
    ranks = {
        Kind.MTA_EVENT_KIND_TRANSIENT_FAILURE: send_log_pb.OUTCOME_DEFERRED,
        Kind.MTA_EVENT_KIND_EXPIRATION: send_log_pb.OUTCOME_EXPIRED,
        Kind.MTA_EVENT_KIND_DELIVERY: send_log_pb.OUTCOME_DELIVERED,
        Kind.MTA_EVENT_KIND_BOUNCE: send_log_pb.OUTCOME_BOUNCED,
        Kind.MTA_EVENT_KIND_OUT_OF_BAND_BOUNCE: send_log_pb.OUTCOME_BOUNCED,
    }
    known = {f"message-{number}" for number in range(len(ADDRESSES))}
    greatest: dict[str, tuple[int, int]] = defaultdict(lambda: (int(send_log_pb.OUTCOME_RELAYED), 0))
    opened, clicked = set(), set()
    for message_id, event_time_us, report, _, _ in events:
        if message_id not in known or not 0 < event_time_us < 4 * 10**15 or not 0 <= report.smtp_code < 600:
            continue
        if report.kind in ranks:
            greatest[message_id] = max(greatest[message_id], (int(ranks[report.kind]), event_time_us))
        if report.kind == Kind.MTA_EVENT_KIND_OPEN:
            opened.add(message_id)
        if report.kind == Kind.MTA_EVENT_KIND_CLICK:
            clicked.add(message_id)
    tally = Tally()
    tally.opened, tally.clicked = len(opened), len(clicked)
    tally.outcomes = Counter(outcome for outcome, _ in greatest.values())
    return tally


@pytest.mark.parametrize("misbehaviour", [MisbehaviourOptions(), EVERYTHING], ids=["well behaved", "everything wrong"])
async def test_the_truth_is_what_the_lattice_makes_of_the_very_events_played(misbehaviour: MisbehaviourOptions) -> None:
    async with playing(misbehaviour) as (playback, truth, _, clock):
        tally = fold(await played(playback, clock))
        tally.outcomes[send_log_pb.OUTCOME_BOUNCED] += truth.total.refused
        tally.outcomes[send_log_pb.OUTCOME_RELAYED] += len(ADDRESSES) - tally.outcomes.total()
        tally.accepted, tally.refused = truth.total.accepted, truth.total.refused
        assert tally.as_json() == truth.total.as_json()
        assert truth.total.accepted + truth.total.refused == len(ADDRESSES)


async def test_misbehaviour_only_adds_to_the_events_and_never_changes_the_truth() -> None:
    async with playing(MisbehaviourOptions()) as (playback, truth, _, clock):
        proper, proper_truth = await played(playback, clock), truth.as_json(idle=True, duplicates_sent=0)
    async with playing(EVERYTHING) as (playback, truth, _, clock):
        wrong = await played(playback, clock)
        assert truth.as_json(idle=True, duplicates_sent=0) == proper_truth
    facts = {event[:4] for event in proper}
    assert facts <= {event[:4] for event in wrong}
    assert len(wrong) > 1.3 * len(proper)
    assert [event[:4] for event in wrong if event[:4] in facts] != [event[:4] for event in proper]


async def test_no_event_is_reported_before_it_has_happened() -> None:
    async with playing(EVERYTHING) as (playback, _, _, clock):
        for _ in range(100):
            await clock.advance(0.05)
            now_us = clock.now_us()
            sane = [event for event in playback.take(1_000_000) if event.event_time_us < 4 * 10**15]
            assert all(event.event_time_us <= now_us for event in sane)


async def test_a_range_is_settled_when_its_last_event_is_acknowledged() -> None:
    async with playing(EVERYTHING) as (playback, _, journal, clock):
        events = await played(playback, clock)
        ranges = Counter(event.range_id for event in events)
        last = next(event.range_id for event in events if event.range_id)
        playback.acknowledge(ranges - Counter([last]))
        journal.record([])
        assert journal.playing() == [last]
        assert playback.pending == 1
        playback.acknowledge(Counter([last]))
        journal.record([])
        assert journal.playing() == []
        assert playback.pending == 0


async def test_there_is_no_room_while_too_much_is_pending() -> None:
    async with playing(MisbehaviourOptions(), pending_max=100) as (playback, _, _, clock):
        events = await played(playback, clock)
        waiting = asyncio.create_task(playback.reserve(1))
        playback.acknowledge(Counter(event.range_id for event in events[:-100]))
        await clock.advance(1)
        assert not waiting.done()
        playback.acknowledge(Counter(event.range_id for event in events[-100:]))
        await waiting


async def test_places_reserved_are_taken_until_released() -> None:
    async with playing(MisbehaviourOptions()) as (playback, _, _, clock):
        await playback.reserve(1_000_000)
        waiting = asyncio.create_task(playback.reserve(1))
        await clock.advance(1)
        assert not waiting.done()
        playback.release(1_000_000)
        await waiting


def test_a_schedule_gives_back_what_is_due_in_order_of_time() -> None:
    schedule: Schedule[str] = Schedule()
    assert schedule.next_us is None
    for due_us, item in ((50_000, "late"), (0, "first"), (9_999, "second"), (30_000, "third")):
        schedule.add(due_us, item)
    assert schedule.take_due(9_999) == []
    assert schedule.next_us == 10_000
    assert schedule.take_due(40_000) == ["first", "second", "third"]
    assert schedule.take_due(60_000) == ["late"]
    assert schedule.next_us is None
