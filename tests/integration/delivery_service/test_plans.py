"""Every query that runs often, or beside a send, on two million send logs: it reads a bounded number of rows, so by an
index. Counted by Postgres itself, inside functions too, under generic plans and under plans made for the arguments."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from delivery_service.domain.identifiers import RECIPIENTS_PER_PART as PART
from delivery_service.store.database import RELAY_PLANS, WRITER_PLANS
from delivery_service.store.observations import ObservationColumns
from delivery_service.store.queries import queries, query
from tests.support.large_world import (
    DOMAINS,
    LARGE,
    LEFT,
    OTHERS,
    PARTS,
    PARTS_BY_ROW,
    PARTS_DONE,
    PARTS_HELD,
    RECIPIENTS,
    SMALL_AUDIENCE,
    seed_large_world,
)
from tests.support.postgres import DatabaseFactory, connected
from tests.support.rows_read import rows_read

NOW = datetime.now(UTC) + timedelta(minutes=30)
HOUR, DAY, LEASE = timedelta(hours=1), timedelta(days=1), timedelta(seconds=60)
LAST_ID, LAST_RECIPIENT = 2**63 - 1, 2**31 - 1
SLOTS: Final = 4
OPEN_PARTS: Final = PARTS - PARTS_DONE
CLAIMED: Final = (PARTS_DONE + PARTS_HELD) * PART
IN_PROGRESS: Final = 2 * OTHERS // 500 + 1
PENDING, READY = 101, 4  # deliveries in these states
HARD: Final = LEFT // 30
COMPLAINTS: Final = LEFT // 2_000
LOG_PLACE: Final = PARTS_BY_ROW * PART - 1
HAND_OVERS: Final = (PARTS_DONE - PARTS_BY_ROW) // SLOTS
"""In the hand-over log, of one slot."""
FREE_PART: Final = (PARTS_DONE + PARTS_HELD, PARTS_DONE + PARTS_HELD + 8)
FIRST, END = FREE_PART[0] * PART, FREE_PART[0] * PART + PART
DIRTY: Final = 2_000  # two hundred, and those that other tests here have made and rolled back
COUNTERS: Final = (2 * OTHERS + 1) * SLOTS
IDS: Final = [LARGE, *range(3, 12)]
NOTHING: Final[list[int]] = []
ALL: Final = list(range(7))
_SLOT_1: Final = [r for r in range(1, 16 * PART) if r // PART % SLOTS == 1]
SLOT_1, SLOT_1_NEXT, SLOT_1_LAST = _SLOT_1[:1_000], _SLOT_1[1_000:2_000], _SLOT_1[2_000:3_000]
"""Recipients of slot 1 that have left: others for each query that writes, for what it wrote stays in the indexes."""


@dataclass(frozen=True)
class Hot:
    """A query, and how many rows it may read at most, by table: of any other, none."""

    arguments: tuple[Any, ...]
    most: dict[str, int] = field(default_factory=dict)


def by_key(*arguments: Any, **more: int) -> Hot:
    """A statement on one delivery, which may look at it twice, and at slot 0."""
    return Hot(arguments, {"delivery": 2, "delivery_counter": SLOTS, **more})


def columns(recipients: list[int], outcome: int) -> tuple[Any, ...]:
    """Of observations that say so, an hour from now, and nothing more."""
    return observations(recipients, outcome).statement_values()


def observations(recipients: list[int], outcome: int) -> ObservationColumns:
    """The same, not yet as a statement takes them."""
    times = [int((NOW + HOUR).timestamp() * 1e6)] * len(recipients)
    return ObservationColumns.without_detail(LARGE, recipients, outcome, times)


HOT: Final[dict[str, Hot]] = {
    # Relaying.
    "deliveries_in_state": Hot((6, 1_000), {"delivery": IN_PROGRESS}),
    "claim_parts": Hot((LARGE, "me", LEASE, 8, NOW), {"delivery": 1, "relay_part": PARTS}),  # of its own alone
    "relayable": Hot((IDS, NOW), {"delivery": len(IDS)}),
    "renew_parts": Hot(
        (LARGE, "holder", LEASE, list(range(PARTS_DONE, PARTS_DONE + PARTS_HELD))), {"relay_part": 2 * PARTS_HELD}
    ),
    # Few recipients are denied or quarantined: their entries are looked for, and not found.
    "read_part": Hot((LARGE, FIRST, END, 1), {"send_log": PART, "recipient": PART}),
    "read_part_apart": Hot((LARGE, FIRST, END, 1, ["domain1.example"]), {"send_log": PART, "recipient": PART}),
    "release_part": Hot(
        (LARGE, PARTS_DONE, 1, timedelta(), PARTS_DONE * PART, PARTS_DONE * PART + PART, 0, 1, 0),
        {"relay_part": 1, "send_log": PART},
    ),
    "finish_delivery": by_key(LARGE, NOW, relay_part=1, hand_over_log=1, transition=1),
    "get_delivery": Hot((LARGE,), {"delivery": 1, "confirmation": 1}),
    "paced_deliveries": Hot((), {"delivery": IN_PROGRESS, "delivery_counter": IN_PROGRESS * SLOTS}),
    "grant_messages": Hot((LARGE, None, NOW, 1_000), {"delivery": 1, "send_log": LEFT + 1_000}),
    # The apply path.
    "slot_counts_started": Hot((IDS,), {"delivery": len(IDS)}),
    "slot_counts_prepared": Hot((IDS,), {"delivery": len(IDS)}),
    "apply_slot": Hot((LARGE, 1, NOW, *columns(SLOT_1, 5)), {"delivery_counter": 2, "send_log": len(SLOT_1)}),
    "apply_slots": Hot(
        ([LARGE, 3], [1, 0], NOW, *observations([*SLOT_1_NEXT[:990], *range(1, 11)], 6).layer_values([990, 1_000])),
        {"delivery_counter": 4, "send_log": 1_000},
    ),
    "apply_relayed": Hot(
        (LARGE, FIRST // PART % SLOTS, NOW, FIRST, [int((NOW + HOUR).timestamp() * 1e6)] * PART, 1),
        {"delivery_counter": 2, "send_log": PART, "relay_part": 1},
    ),
    "apply_relayed_at_once": Hot(
        (LARGE, FIRST // PART % SLOTS, NOW, FIRST, PART, int((NOW + HOUR).timestamp() * 1e6), 1),
        {"delivery_counter": 2, "send_log": PART, "relay_part": 1},
    ),
    "keep_late": Hot(
        ([LARGE], [1], [1_000], NOW, *columns(SLOT_1_LAST, 1)),
        {"delivery_counter": 1, "send_log": 3_000, "transition": 2_000, "late_observation": 1_000},
    ),
    "apply_tracking": Hot(
        ([LARGE] * 1_000, SLOT_1, [3] * 1_000, [1_800_000_000_000_000] * 1_000, [""] * 1_000, NOW),
        # A row for each delivery is few enough to be read as a whole.
        {"engagement": 2 * (2 * OTHERS + 1), "tracking_log": 1_000, "send_log": 2_000, "delivery": 2_000},
    ),
    "add_dead_letters": Hot((["m"], ["s"], [2], [0], [0], NOW, [0], [""], [""], 100_000), {"dead_letter": 2}),
    "report_sources": Hot(("replica", ["mta"], NOW, LEASE), {}),
    "sources_connected": Hot((NOW, LEASE), {}),
    # Starting, closing, settling.
    "deliveries_to_start": Hot((NOW, 100), {"delivery": 2 * OTHERS // 1_000}),
    "start_delivery": by_key(PENDING, NOW, confirmation=1),
    "deliveries_to_close": Hot((NOW, HOUR, 100), {"delivery": IN_PROGRESS}),
    "claim_closing": Hot((LARGE, "0" * 32, LEASE), {"delivery": 1}),
    "claim_parts_to_close": Hot((LARGE, "me", LEASE, 8), {"relay_part": PARTS}),
    "prepared_of_part": Hot((LARGE, FIRST, END), {"send_log": PART}),
    "has_open_parts": Hot((LARGE,), {"relay_part": 1}),
    "last_recipient": Hot((LARGE,), {"send_log": 1}),
    "deferred_rows": Hot((LARGE, 1, 5_000), {"send_log": 5_000}),
    "finish_stop": by_key(LARGE, NOW, relay_part=1),
    "close_validity": by_key(LARGE, NOW, relay_part=1, hand_over_log=1, transition=1),
    "settle_deliveries": Hot((NOW, 7 * DAY, 100), {"delivery": 1}),
    # Pauses and the circuit breaker.
    "pause_delivery": by_key(LARGE, NOW, "me", 1, ""),
    "stop_delivery": by_key(LARGE, NOW, "me"),
    "in_flight": Hot((LARGE,), {"relay_part": OPEN_PARTS, "send_log": PARTS_HELD * PART}),
    "in_flight_to_domain": Hot(
        (LARGE, "domain1.example"),
        {"relay_part": OPEN_PARTS, "send_log": PARTS_HELD * PART, "recipient": PARTS_HELD * PART},
    ),
    "set_domain_pauses": by_key(LARGE, 1, NOW, "[]", "{}", True, relay_part=OPEN_PARTS),
    "breaker_samples": Hot(
        (1_000,), {"delivery": IN_PROGRESS, "delivery_counter": IN_PROGRESS * SLOTS, "tracking_log": COMPLAINTS}
    ),
    "domain_failures": Hot(
        (LARGE, 50, 1, 100),
        {"transition": HARD, "send_log": HARD, "recipient": HARD + COMPLAINTS, "tracking_log": COMPLAINTS},
    ),
    # The recipients of the parts that were claimed, once; of the messages, those to the two domains alone.
    "handed_over_by_domain": Hot(
        (LARGE, ["domain1.example", "domain2.example"]),
        {"relay_part": PARTS, "recipient": CLAIMED, "send_log": 2 * CLAIMED // DOMAINS},
    ),
    # The quarantine: all counters, every half a minute; else what is new.
    "slots_to_collect": Hot((20,), {"delivery_counter": COUNTERS, "address_scan": COUNTERS}),
    "collect_address_facts": Hot(
        (LARGE, 1, 5_000, 1_000, HOUR, NOW - 7 * DAY, NOW),
        {
            "transition": 2 * 5_001 + 5_000 // 30,
            "recipient": 2 * 5_000 // 30,
            "late_observation": 5_000 // 30,
            "delivery_counter": COUNTERS,
            "delivery": 300,
            "address_health": 6 * 5_000 // 30,
            "address_event": 2 * 5_000 // 30,
            "address_scan": 2,
            "domain_result": 2 * DOMAINS,
        },
    ),
    "take_address_news": Hot(
        (1_000, 1_000, NOW),
        {
            "address_news": 2 * 1_000,
            "hand_over_log": 1_000,
            "transition": 1_000 + 1_000 // 30,
            "late_observation": 1_000 + 1_000 // 30,
            "recipient": 3 * 1_000,
            "delivery_counter": COUNTERS,
            "delivery": 1_100,
            "tracking_log": 1_000,
            "address_health": 6 * 1_000 // 30,
            "address_event": 2 * 1_000 // 30,
            "denylist": 10,
        },
    ),
    "addresses_to_judge": Hot(
        (100,), {"address_health": DIRTY, "address_event": 100, "allowlist": 0, "outage_guard": 100}
    ),
    "set_verdicts": Hot(
        ([1], ["q1@domain1.example"], [1], [3], [1], [2], [2], [NOW], [LARGE], [30], [6], [NOW], NOW, NOW),
        {"address_health": 1, "address_event": 2, "transition": 1, "late_observation": 1},
    ),
    "forget_addresses": Hot((NOW, 100), {}),
    "forget_scans": Hot((), {"delivery_counter": COUNTERS, "address_scan": COUNTERS}),
    "quarantine_counts": Hot((), {"address_health": DIRTY}),
    "recent_domain_results": Hot(([NOW - hour * HOUR for hour in range(3)], 100), {"domain_result": 3 * 200}),
    "usual_domain_results": Hot(
        ([NOW - hour * HOUR for hour in range(168)], ["domain1.example"]), {"domain_result": 168}
    ),
    "guard_domains": Hot((["domain1.example"], NOW - HOUR, NOW), {"outage_guard": 2, "address_health": 2 * 90}),
    "end_guards": Hot((NOW, NOW), {"outage_guard": 1}),
    "raise_domain_alerts": Hot((8, ["domain1.example"], [""], NOW), {"alert": 1}),
    "get_address_health": Hot((1, "q1@domain1.example"), {"address_health": 1}),
    "get_address_events": Hot((1, "q1@domain1.example", 100), {"address_event": 1}),
    "list_address_health": Hot(
        (1, "q5", 1_000, 0, NOTHING, NOTHING, "", "text", None, None), {"address_health": 1_000}
    ),
    "addresses_with_error": Hot(
        (NOW - 20 * DAY, 0, "", 1_000, NOW, 0, NOTHING, NOTHING, "", "text"), {"address_health": 1_000}
    ),
    "get_allowlist_entry": Hot((1, "a1@domain1.example"), {"allowlist": 1}),
    "list_allowlist": Hot((1, "a5", 101), {"allowlist": 101}),
    "get_denial": Hot((1, 1, "d1@domain1.example"), {"denylist": 1}),
    "list_denylist": Hot((1, 1, "d5", 101), {"denylist": 101}),
    # Recurring deliveries, and what else workers look for.
    "recurring_due": Hot((NOW, 100), {"delivery": IN_PROGRESS}),
    "occurrences_due": Hot((100,), {"occurrence": IN_PROGRESS, "delivery": IN_PROGRESS}),
    "children_to_confirm": Hot((NOW, 100), {"delivery": 2 * OTHERS // 100}),
    "children_out_of_time": Hot((NOW, 100), {"delivery": 2 * OTHERS // 100}),
    "finish_recurring": Hot((NOW,), {"delivery": IN_PROGRESS}),
    "audiences_to_copy": Hot((10,), {}),
    "deleted_deliveries": Hot((10,), {}),
    "stale_engagement": Hot((NOW, 100), {"engagement": 1}),
    # All counters, once a minute.
    "mark_outdated_engagement": Hot(
        (NOW,),
        {"delivery_counter": (2 * OTHERS + 1) * SLOTS, "engagement": 2 * OTHERS + 1, "delivery": 2 * OTHERS + 1},
    ),
    "report_mta_contact": Hot(("me", None, NOW, LEASE), {}),
    # Watching.
    "get_kpis": Hot((IDS,), {"delivery": len(IDS), "delivery_counter": len(IDS) * SLOTS, "engagement": len(IDS)}),
    "revisions": Hot((IDS,), {"delivery_counter": len(IDS) * SLOTS}),
    "log_states": Hot((IDS,), {"delivery": len(IDS), "delivery_counter": len(IDS) * SLOTS}),
    # From where the transitions are few, and the hand-overs of later parts follow.
    "log_page": Hot(
        (LARGE, 1, LOG_PLACE, 0, RECIPIENTS, 501),
        {"delivery": 1, "transition": 502, "hand_over_log": HAND_OVERS, "recipient": 501},
    ),
    "changed_send_logs": Hot(
        (LARGE, 1, LOG_PLACE, 0, RECIPIENTS, 501, ALL, NOTHING, NOTHING),
        {"delivery": 1, "transition": 2 * 502, "hand_over_log": HAND_OVERS, "send_log": 501, "recipient": 501},
    ),
    # Re-qualification, and what no rule reads.
    "keep_details": Hot(([LARGE], [1], [2], [0], [1], [""]), {}),
    # Once for an operator's whole request; of deliveries and their counters alone.
    "deliveries_active_between": Hot(
        (LAST_ID, NOW - DAY, NOW, 100), {"delivery": 2 * OTHERS + 1, "delivery_counter": (2 * OTHERS + 1) * SLOTS}
    ),
    # Look-ups.
    "list_send_logs": Hot(
        (LARGE, 1_234_567, 2_000, [4], NOTHING, NOTHING, 101), {"send_log": 2_000, "recipient": 2_000}
    ),
    "scanned_through": Hot((LARGE, 1_234_567, 2_000), {"send_log": 2_000}),
    "list_send_logs_by_address": Hot(
        (LARGE, "p1234567@domain17.example", 0, ALL, NOTHING, NOTHING, 101), {"recipient": 1, "send_log": 1}
    ),
    "get_send_log": Hot((LARGE, 1_234_567), {"recipient": 1, "send_log": 1}),
    "get_timeline": Hot(
        (LARGE, LEFT - 1, 1_001), {"transition": 1, "hand_over_log": 1, "late_observation": 1, "tracking_log": 1}
    ),
    "recipient_message": Hot((LARGE, 1_234_567), {"recipient": 1, "send_log": 1}),
    "recipient_exclusion": Hot((LARGE, 1_234_567), {"recipient": 1, "exclusion_log": 1}),
    "profile_messages": Hot(
        ("profile7", LAST_ID, LAST_RECIPIENT, 101, 0), {"recipient": 101, "send_log": 101, "delivery": 101}
    ),
    "address_messages": Hot(
        ("p7@domain7.example", LAST_ID, LAST_RECIPIENT, 101, 0, "p7@domain7.example"),
        {"recipient": 101, "send_log": 101, "delivery": 101},
    ),
    "tracking_events": Hot(
        (LARGE, 1_000_000, 0, datetime(1970, 1, 1, tzinfo=UTC), "", LAST_RECIPIENT, 101, NOTHING), {"tracking_log": 101}
    ),
    "list_deliveries": Hot((LAST_ID, NOTHING, 101, None), {"delivery": 110, "confirmation": 110}),
    "delivery_situation": Hot((LARGE,), {"delivery": 1, "confirmation": 1, "delivery_counter": SLOTS}),
    "open_parts": Hot((LARGE,), {"relay_part": OPEN_PARTS, "delivery": 1}),
    "mta_contacts_lost": Hot((NOW, LEASE), {}),
    "sources_heard": Hot((NOW, LEASE), {}),
    "list_occurrences": Hot((506, NOW.replace(tzinfo=None), NOTHING, 101), {"occurrence": 101}),
    "list_dead_letters": Hot((LAST_ID, 101), {"dead_letter": 101}),
    "log_dropped_time": Hot((LARGE,), {"delivery": 1}),
    "recipients_of_profile": Hot(
        ("profile7", 0, -(2**31), 500), {"recipient": 500, "delivery": 2 * OTHERS, "send_log": 500}
    ),
    # Who gets no message, and who gets another one.
    "list_exclusions": Hot((LARGE, 0, 101, NOTHING), {"exclusion_log": 101, "recipient": 101}),
    "suppression_list_channels": Hot((["no such list"],), {"suppression_list": 1}),
    "get_suppression_list": Hot(("no such list",), {"suppression_list": 1}),
    "list_suppression_lists": Hot(("", 101), {"suppression_list": 101}),
    "list_suppression_entries": Hot((1, 0, "", 101), {"suppression_entry": 101}),
    "deleted_suppression_lists": Hot((10,), {}),
    "get_retry": Hot((LARGE, "request"), {"retry": 1}),
    "retries_of": Hot((LARGE, 1, 20), {"delivery": 20}),
    # Alerts.
    "alert_samples": Hot((0, 500, NOW - DAY), {"delivery": 500, "delivery_counter": 500 * SLOTS, "confirmation": 500}),
    "raise_alerts": Hot(([LARGE], [4], [""], [""], NOW), {"alert": 1}),
    "drop_old_alerts": Hot((NOW - 30 * DAY,), {"alert": 1}),
    "list_alerts": Hot((LAST_ID, None, 101), {"alert": 101}),
    "alerts_after": Hot((19_990, 100), {"alert": 10}),
    "newest_alert": Hot((), {"alert": 1}),
    "claim_alert": Hot((NOW, NOW + HOUR, NOW - 3 * DAY), {"alert": 10}),
    "alert_taken": Hot((7, NOW), {"alert": 1}),
    "alert_not_taken": Hot((7, NOW), {"alert": 1}),
    # Commands that many wait for.
    "confirm_send": by_key(READY, 1, "another request", "digest", NOW, "me", NOW),
    "get_confirmation": Hot((LARGE, "request"), {"confirmation": 1}),
    "get_upload": Hot((LARGE, "upload"), {}),
    "add_chunk": by_key(READY, "upload", 1, 5_000, b"", 1, NOW, True),
    "lock_draft": Hot((READY,), {"delivery": 1}),
    "get_channel": Hot((READY,), {"delivery": 1}),
    "slot_count": Hot((LARGE,), {"delivery": 1}),
    "claim_preparation": Hot((READY, "0" * 32, LEASE), {"delivery": 1}),
    "renew_preparation": Hot((READY, "0" * 32, LEASE), {"delivery": 1}),
}
ONE_ROW_BY_ITS_KEY = "a command or a step on one delivery or list, by its key"
ALL_ROWS_BY_DESIGN = "reads all rows of one delivery, on purpose; test_sql.py looks at how"
A_STEP = "a bounded step over a range of one delivery, or of entries of one list, by its keys"
AN_OPERATORS_PAGE = "a bounded page, read on request; test_sql.py looks at its plan"
BY_THE_RANGE = "looks at the deliveries of one range, once an hour, on a connection of its own"
ALL_DELIVERIES_ON_REQUEST = "looks at each delivery once for an erasure, of which there are few"
A_SMALL_TABLE = "reads a table that has a few rows for each recipient domain that bounces"
NO_TABLE = "reads no table"
NOT_HOT: Final = {
    **dict.fromkeys(
        (
            "create_delivery",
            "update_delivery",
            "begin_preparation",
            "unconfirm",
            "cancel_preparation",
            "decline_child",
            "approve_delivery",
            "resume_delivery",
            "note_stop_in_flight",
            "add_proof",
            "duplicate_delivery",
            "delete_draft",
            "fail_preparation",
            "end_step",
            "finish_preparation",
            "record_occurrences",
            "spawn_child",
            "fence_rules",
            "retry_failed",
            "create_suppression_list",
            "delete_suppression_list",
            "begin_erasure",
            "complete_erasure",
        ),
        ONE_ROW_BY_ITS_KEY,
    ),
    **dict.fromkeys(
        (
            "recount",
            "correct_counters",
            "refresh_engagement",
            "kpi_breakdown",
            "recurrence_totals",
            "exclusion_volumes",
            "prepared_count",
            "prepare_exclusions",
            "count_failed",
        ),
        ALL_ROWS_BY_DESIGN,
    ),
    **dict.fromkeys(
        (
            "copy_audience",
            "purge_deleted",
            "clear_range",
            "write_range",
            "purge_suppression_list",
            "add_suppression_entries",
            "remove_suppression_entries",
            "erase_recipients",
            "erase_from_dead_letters",
            "erase_from_address_health",
            "quarantine_by_hand",
            "release_addresses",
            "add_to_allowlist",
            "remove_from_allowlist",
            "deny",
            "undeny",
        ),
        A_STEP,
    ),
    **dict.fromkeys(("reports_to_requalify", "correct_slot", "undefined_reports"), AN_OPERATORS_PAGE),
    **dict.fromkeys(
        (
            "open_ranges",
            "ranges_before",
            "range_to_drop",
            "add_range",
            "announce_log_drop",
            "announce_delivery_drop",
            "next_drop_step",
            "forget_range",
            "partition_tables",
        ),
        BY_THE_RANGE,
    ),
    **dict.fromkeys(("erase_from_control_groups", "wait_for_copies"), ALL_DELIVERIES_ON_REQUEST),
    **dict.fromkeys(("lock_retention", "long_transaction", "lock_recount", "lock_breakdown", "lock_retry"), NO_TABLE),
    **dict.fromkeys(("forget_domain_results", "forget_guards"), A_SMALL_TABLE),
}
"""Why a query needs no bound here."""

BY_WRITERS: Final = ("apply_slot", "apply_slots", "apply_relayed", "apply_relayed_at_once", "keep_late")
BY_RELAY: Final = (
    "claim_parts",
    "claim_parts_to_close",
    "renew_parts",
    "read_part",
    "read_part_apart",
    "release_part",
    "prepared_of_part",
)
"""The connections of both use generic plans alone."""
MODES: Final = ("force_generic_plan", "force_custom_plan")
CASES: Final = [(name, mode) for name in HOT for mode in MODES if name not in BY_WRITERS + BY_RELAY or mode == MODES[0]]
_SLACK: Final = 25
"""The planner itself looks at the ends of indexes; and other tests' rolled back rows are still there."""


@pytest.fixture(scope="module")
async def large_world(database_factory: DatabaseFactory) -> AsyncIterator[str]:
    async with database_factory.fresh() as dsn:
        await seed_large_world(dsn)
        yield dsn


def test_every_query_is_looked_at_or_said_why_not() -> None:
    assert HOT.keys() & NOT_HOT.keys() == set()
    assert HOT.keys() | NOT_HOT.keys() == queries().keys(), "put new queries into HOT with a bound, or into NOT_HOT"


@pytest.mark.parametrize(("name", "mode"), CASES)
async def test_a_hot_query_reads_a_bounded_number_of_rows(large_world: str, name: str, mode: str) -> None:
    hot = HOT[name]
    async with connected(large_world) as connection:
        # As the service's writers, or one of its pools.
        pool = {"max_parallel_workers_per_gather": "0", "jit": "off", **(RELAY_PLANS if name in BY_RELAY else {})}
        session = WRITER_PLANS if name in BY_WRITERS else pool
        for setting, value in {**session, "plan_cache_mode": mode}.items():
            await connection.execute("select set_config($1, $2, false)", setting, value)
        transaction = connection.transaction()
        await transaction.start()
        try:
            before = await rows_read(connection)
            await connection.fetch(query(name), *hot.arguments)
            after = await rows_read(connection)
        finally:
            await transaction.rollback()
        if name == "mark_outdated_engagement":  # it has left thousands of entries in an index
            await connection.execute("vacuum engagement")

    read = {table: after[table] - before[table] for table in after if after[table] > before[table]}
    too_many = {table: rows for table, rows in read.items() if rows > 1.1 * hot.most.get(table, 0) + _SLACK}
    assert not too_many, f"allowed: {hot.most}"


def test_the_world_is_as_large_as_it_says() -> None:
    assert RECIPIENTS == 2_000_000
    assert LEFT < RECIPIENTS < PARTS * PART
    assert SMALL_AUDIENCE * 2 * OTHERS >= 200_000
    assert DOMAINS > 1
