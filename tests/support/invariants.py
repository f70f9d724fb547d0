"""The laws that hold at the end of every integration and acceptance test, checked in the database itself.

Of all deliveries at once: a statement for each would be most of the time of a test that has many.
"""

from collections import Counter, defaultdict

import asyncpg

OUTCOMES = ("prepared", "canceled", "relayed", "deferred", "expired", "delivered", "bounced")
FAILURES = ((2, "hard"), (3, "ignored"))


async def assert_laws(dsn: str) -> None:
    """For every delivery that is prepared: conservation, log = rows = counters, a revision of its own for each
    hand-over, nothing twice, no message left behind."""
    connection = await asyncpg.connect(dsn)
    try:
        await assert_laws_over(connection)
    finally:
        await connection.close()


async def assert_laws_over(connection: asyncpg.Connection) -> None:
    """The same, over a connection that was there already."""
    deliveries = await connection.fetch(
        # The plan of a recurring delivery tells what each of its children would have: it has no messages itself.
        "select delivery_id, slot_count, case when recurring then 0 else (plan->>'to_deliver')::bigint end "
        "as to_deliver, state, log_dropped_time from delivery where state not in (1, 2, 3)"
    )
    if not deliveries:
        return
    found = await connection.fetch(
        "select * from delivery_counter where delivery_id = any ($1::bigint[]) order by delivery_id, slot",
        [delivery["delivery_id"] for delivery in deliveries],
    )
    counters = defaultdict(list)
    for counter in found:
        counters[counter["delivery_id"]].append(counter)
    # Of a delivery whose log was dropped, the counters are all that there is to add up.
    for delivery in deliveries:
        counted = sum(counter[name] for counter in counters[delivery["delivery_id"]] for name in OUTCOMES)
        assert counted == delivery["to_deliver"], f"conservation: {delivery}"
    logged = [delivery for delivery in deliveries if delivery["log_dropped_time"] is None]
    if not logged:
        return
    ids = [delivery["delivery_id"] for delivery in logged]
    # Nothing was analysed here: without an idea of how many rows there are, they might be compared each with each.
    await connection.execute("set enable_nestloop = off")
    await _assert_counters_are_those_of_rows(connection, logged, counters)
    await _assert_log_adds_up(connection, logged, counters)
    await _assert_hand_overs_are_sound(connection, ids)
    await _assert_rows_are_where_the_log_led(connection, ids)
    await _assert_nothing_is_kept_twice(connection, ids)
    await _assert_nothing_is_left_behind(connection, ids)


async def _assert_counters_are_those_of_rows(
    connection: asyncpg.Connection,
    deliveries: list[asyncpg.Record],
    counters: dict[int, list[asyncpg.Record]],
) -> None:
    found = await connection.fetch(
        "select delivery_id, recipient / 1024 % slot_count as slot, outcome, failure_type, count(*) as n "
        "from send_log join delivery using (delivery_id) "
        "where delivery_id = any ($1::bigint[]) and recipient > 0 group by 1, 2, 3, 4",
        [delivery["delivery_id"] for delivery in deliveries],
    )
    rows, failed = Counter[tuple[int, int, int]](), Counter[tuple[int, int, int, int]]()
    for row in found:
        place = row["delivery_id"], row["slot"], row["outcome"]
        rows[place] += row["n"]
        failed[*place, row["failure_type"]] += row["n"]
    for delivery in deliveries:
        delivery_id = delivery["delivery_id"]
        slots = [counter["slot"] for counter in counters[delivery_id]]
        assert slots == list(range(delivery["slot_count"])), f"slots of {delivery_id}"
        for counter in counters[delivery_id]:
            for rank, name in enumerate(OUTCOMES):
                place = delivery_id, counter["slot"], rank
                assert counter[name] == rows[place], f"slot {place}: {name} is {counter[name]}, rows say {rows[place]}"
                if name in ("deferred", "expired", "bounced"):
                    for kind, suffix in FAILURES:
                        assert counter[f"{name}_{suffix}"] == failed[*place, kind], f"slot {place}: {suffix}"
            assert counter["prepared"] >= 0
        if delivery["state"] == 9:
            left = sum(counter["prepared"] for counter in counters[delivery_id])
            assert left == 0, f"{delivery_id} is FINISHED with messages left"


async def _assert_log_adds_up(
    connection: asyncpg.Connection,
    deliveries: list[asyncpg.Record],
    counters: dict[int, list[asyncpg.Record]],
) -> None:
    """From PREPARED, the transitions lead to exactly the counts, and no slot's are ahead of its revision."""
    ids = [delivery["delivery_id"] for delivery in deliveries]
    log = await connection.fetch(
        "select delivery_id, before, outcome, count(*) as n from every_transition "
        "where delivery_id = any ($1::bigint[]) and recipient > 0 group by 1, 2, 3",
        ids,
    )
    from_log = Counter({(delivery["delivery_id"], 0): delivery["to_deliver"] for delivery in deliveries})
    for entry in log:
        from_log[entry["delivery_id"], entry["outcome"]] += entry["n"]
        from_log[entry["delivery_id"], entry["before"]] -= entry["n"]
    for delivery_id in ids:
        for rank, name in enumerate(OUTCOMES):
            counted = sum(counter[name] for counter in counters[delivery_id])
            assert from_log[delivery_id, rank] == counted, f"the log of {delivery_id} does not add up for {name}"
    by_slot = await connection.fetch(
        "select delivery_id, slot, max(revision) as newest from every_transition "
        "where delivery_id = any ($1::bigint[]) group by 1, 2",
        ids,
    )
    for entry in by_slot:
        revision = counters[entry["delivery_id"]][entry["slot"]]["revision"]
        assert entry["newest"] <= revision, f"the log is ahead of its slot: {entry}"
    corrections = "select count(*) from counter_correction where delivery_id = any ($1::bigint[])"
    assert await connection.fetchval(corrections, ids) == 0


async def _assert_hand_overs_are_sound(connection: asyncpg.Connection, ids: list[int]) -> None:
    """Each has a revision that nothing else of its slot has, and as many messages as it says, all of its part."""
    shared = await connection.fetch(
        """
        select delivery_id, slot, revision from (
            select delivery_id, slot, revision from hand_over_log
            union all
            select distinct delivery_id, slot, revision from transition
        ) one
        where delivery_id = any ($1::bigint[]) group by 1, 2, 3 having count(*) > 1 limit 10
        """,
        ids,
    )
    assert shared == [], "a hand-over shares its revision"
    miscounted = await connection.fetch(
        """
        select h.delivery_id, h.revision from hand_over_log h
        cross join lateral (
            select count(*) as n, min(h.first_recipient + place - 1) as first,
                max(h.first_recipient + place - 1) as last
            from unnest(hand_over_times(h.event_times_us, h.recipient_count)) with ordinality as o (time_us, place)
            where time_us > 0
        ) found
        where h.delivery_id = any ($1::bigint[])
            and (n, first / 1024, last / 1024) is distinct from (h.recipient_count, h.part, h.part)
        limit 10
        """,
        ids,
    )
    assert miscounted == [], "a hand-over has other messages than it says"


async def _assert_rows_are_where_the_log_led(connection: asyncpg.Connection, ids: list[int]) -> None:
    astray = await connection.fetch(
        """
        select s.delivery_id, s.recipient from send_log s
        left join (
            select distinct on (delivery_id, recipient) *
            from every_transition where delivery_id = any ($1::bigint[]) order by delivery_id, recipient, revision desc
        ) t using (delivery_id, recipient)
        where s.delivery_id = any ($1::bigint[]) and case when t.outcome is null then s.outcome <> 0 else
            (s.outcome, s.event_time, s.failure_type, s.reason, s.smtp_code, s.enhanced_code, s.diagnostic, s.attempt)
            is distinct from
            (t.outcome, t.event_time, t.failure_type, t.reason, t.smtp_code, t.enhanced_code, t.diagnostic, t.attempt)
            end
        limit 10
        """,
        ids,
    )
    assert astray == [], "rows are not where their last transition led"
    broken = await connection.fetch(
        """
        select delivery_id, recipient from (
            select delivery_id, before, outcome, revision, slot, recipient, correction,
                coalesce(lag(outcome) over one, 0) as previous, lag(revision) over one as previous_revision
            from every_transition where delivery_id = any ($1::bigint[])
            window one as (partition by delivery_id, recipient order by revision)
        ) t
        join delivery using (delivery_id)
        where before <> previous or outcome < before or previous_revision = revision
            or correction and before <> outcome
            or slot <> (floor(recipient / 1024.0)::integer % slot_count + slot_count) % slot_count
        limit 10
        """,
        ids,
    )
    assert broken == [], "a recipient's transitions don't follow one another"


async def _assert_nothing_is_kept_twice(connection: asyncpg.Connection, ids: list[int]) -> None:
    """Every fact is known once: transitions and late observations together repeat nothing.

    A re-qualification says again how a fact counts: in the log if it is where the row stands, else at most once beside
    the log.
    """
    fact = "delivery_id, recipient, outcome, event_time, failure_type, reason, smtp_code, enhanced_code, diagnostic"
    repeated = await connection.fetch(
        f"""
        select {fact} from (
            select {fact}, attempt
            from every_transition where delivery_id = any ($1::bigint[]) and not correction
            union all
            select {fact}, attempt
            from late_observation where delivery_id = any ($1::bigint[]) and not correction
            union all
            select delivery_id, recipient, outcome, event_time, -1, -1, smtp_code, enhanced_code, diagnostic, attempt
            from late_observation where delivery_id = any ($1::bigint[]) and correction
        ) fact
        group by {fact}, attempt having count(*) > 1
        limit 10
        """,
        ids,
    )
    assert repeated == [], "an observation is kept twice"


async def _assert_nothing_is_left_behind(connection: asyncpg.Connection, ids: list[int]) -> None:
    """A part that is done will not be looked at again."""
    left = await connection.fetch(
        """
        select p.delivery_id, p.part, min(s.recipient) as recipient from relay_part p
        join send_log s on s.delivery_id = p.delivery_id and s.recipient / 1024 = p.part
        where p.delivery_id = any ($1::bigint[]) and p.done and s.outcome = 0 and s.recipient > 0
        group by 1, 2 limit 10
        """,
        ids,
    )
    assert left == [], "a part is done with messages left"
