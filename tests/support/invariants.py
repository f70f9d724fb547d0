"""The laws that hold at the end of every integration and acceptance test, checked in the database itself."""

import asyncpg

OUTCOMES = ("prepared", "canceled", "relayed", "deferred", "expired", "delivered", "bounced")


async def assert_laws(dsn: str) -> None:
    """For every delivery that is prepared: conservation, log = rows = counters, contiguous revisions, nothing twice."""
    connection = await asyncpg.connect(dsn)
    try:
        deliveries = await connection.fetch(
            # The plan of a recurring delivery tells what each of its children would have: it has no messages itself.
            "select delivery_id, slot_count, case when recurring then 0 else (plan->>'to_deliver')::bigint end "
            "as to_deliver, state, log_dropped_time from delivery where state not in (1, 2, 3)"
        )
        for delivery in deliveries:
            if delivery["log_dropped_time"] is not None:
                await _assert_counters_stay(connection, delivery)
            else:
                await _assert_laws_of(connection, delivery)
    finally:
        await connection.close()


async def _assert_counters_stay(connection: asyncpg.Connection, delivery: asyncpg.Record) -> None:
    """Of a delivery whose log was dropped, the counters are all that there is to add up."""
    sums = " + ".join(OUTCOMES)
    counted = await connection.fetchval(
        f"select sum({sums}) from delivery_counter where delivery_id = $1", delivery["delivery_id"]
    )
    assert counted == delivery["to_deliver"], "conservation"


async def _assert_laws_of(connection: asyncpg.Connection, delivery: asyncpg.Record) -> None:
    delivery_id, slots, total = delivery["delivery_id"], delivery["slot_count"], delivery["to_deliver"]

    rows = await connection.fetch(
        "select recipient / 1024 % $2 as slot, outcome, failure_type, count(*) as n "
        "from send_log where delivery_id = $1 and recipient > 0 group by 1, 2, 3",
        delivery_id,
        slots,
    )
    counters = await connection.fetch(
        "select * from delivery_counter where delivery_id = $1 order by slot", delivery_id
    )
    assert [counter["slot"] for counter in counters] == list(range(slots))
    assert sum(counter[name] for counter in counters for name in OUTCOMES) == total, "conservation"
    for counter in counters:
        for rank, name in enumerate(OUTCOMES):
            counted = sum(r["n"] for r in rows if r["slot"] == counter["slot"] and r["outcome"] == rank)
            assert counter[name] == counted, f"slot {counter['slot']}: {name} is {counter[name]}, rows say {counted}"
            if name in ("deferred", "expired", "bounced"):
                for kind, suffix in ((2, "hard"), (3, "ignored")):
                    counted = sum(
                        r["n"]
                        for r in rows
                        if (r["slot"], r["outcome"], r["failure_type"]) == (counter["slot"], rank, kind)
                    )
                    assert counter[f"{name}_{suffix}"] == counted
        assert counter["prepared"] >= 0

    # The log: from PREPARED, the transitions lead to exactly the counts; and each row is where its last one led.
    log = await connection.fetch(
        "select before, outcome, count(*) as n from every_transition "
        "where delivery_id = $1 and recipient > 0 group by 1, 2",
        delivery_id,
    )
    for rank, name in enumerate(OUTCOMES):
        from_log = total if rank == 0 else 0
        from_log += sum(entry["n"] for entry in log if entry["outcome"] == rank)
        from_log -= sum(entry["n"] for entry in log if entry["before"] == rank)
        assert from_log == sum(counter[name] for counter in counters), f"the log does not add up for {name}"
    astray = await connection.fetchval(
        """
        select count(*) from send_log s
        left join (
            select distinct on (recipient) *
            from every_transition where delivery_id = $1 order by recipient, revision desc
        ) t using (recipient)
        where s.delivery_id = $1 and case when t.outcome is null then s.outcome <> 0 else
            (s.outcome, s.event_time, s.failure_type, s.reason, s.smtp_code, s.enhanced_code, s.diagnostic, s.attempt)
            is distinct from
            (t.outcome, t.event_time, t.failure_type, t.reason, t.smtp_code, t.enhanced_code, t.diagnostic, t.attempt)
            end
        """,
        delivery_id,
    )
    assert astray == 0, "a row is not where its last transition led"
    broken = await connection.fetchval(
        """
        select count(*) from (
            select before, outcome, revision, slot, recipient, correction,
                coalesce(lag(outcome) over one, 0) as previous, lag(revision) over one as previous_revision
            from every_transition where delivery_id = $1
            window one as (partition by recipient order by revision)
        ) t
        where before <> previous or outcome < before or previous_revision = revision
            or correction and before <> outcome
            or slot <> (floor(recipient / 1024.0)::integer % $2 + $2) % $2
        """,
        delivery_id,
        slots,
    )
    assert broken == 0, "a recipient's transitions don't follow one another"

    # Every fact is known once: transitions and late observations together repeat nothing. A re-qualification says again
    # how a fact counts: in the log if it is where the row stands, else at most once beside the log.
    repeated = await connection.fetchval(
        """
        select count(*) from (
            select recipient, outcome, event_time, failure_type, reason, smtp_code, enhanced_code, diagnostic, attempt
            from (
                select recipient, outcome, event_time, failure_type, reason, smtp_code, enhanced_code, diagnostic,
                    attempt
                from every_transition where delivery_id = $1 and not correction
                union all
                select recipient, outcome, event_time, failure_type, reason, smtp_code, enhanced_code, diagnostic,
                    attempt
                from late_observation where delivery_id = $1 and not correction
                union all
                select recipient, outcome, event_time, -1, -1, smtp_code, enhanced_code, diagnostic, attempt
                from late_observation where delivery_id = $1 and correction
            ) fact
            group by 1, 2, 3, 4, 5, 6, 7, 8, 9 having count(*) > 1
        ) repeated
        """,
        delivery_id,
    )
    assert repeated == 0, "an observation is kept twice"
    by_slot = await connection.fetch(
        "select slot, max(revision) as newest from every_transition where delivery_id = $1 group by slot",
        delivery_id,
    )
    for entry in by_slot:
        assert entry["newest"] <= counters[entry["slot"]]["revision"], "the log is ahead of its slot"
    assert await connection.fetchval("select count(*) from counter_correction where delivery_id = $1", delivery_id) == 0
    if delivery["state"] == 9:
        assert sum(counter["prepared"] for counter in counters) == 0, "FINISHED with messages left"
