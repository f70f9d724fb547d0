"""SQL is code: every query prepares, the schema is reached in one way, hot queries use their indexes."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from delivery_service.domain.identifiers import slot_bits
from delivery_service.store.database import DatabaseSettings, SchemaOutdated, open_pool
from delivery_service.store.migrate import migrate, migrations
from delivery_service.store.observations import ObservationColumns
from delivery_service.store.queries import queries, query
from tests.support.partitions import PARTITION, table_of
from tests.support.postgres import DatabaseFactory, connected

STORE = Path("services/delivery_service/store")
DELIVERY_ID = 1
RECIPIENTS = 200_000


@pytest.fixture(scope="module")
async def large(database_factory: DatabaseFactory) -> AsyncIterator[str]:
    """A database with one large delivery among a thousand small ones, analysed."""
    async with database_factory.fresh() as dsn:
        async with connected(dsn) as connection:
            await connection.execute(
                f"""
                insert into delivery (delivery_id, label, channel, feedback_mode, subject, html, body_text,
                    from_address, from_name, reply_to_address, validity_period, state, creator, create_time,
                    update_time, slot_count)
                select d, '', 1, 1, '', '', '', '', '', '', '84 hours', case when d = 1 then 6 else 9 end, '', now(),
                    now(), 4
                from generate_series(1, 1000) d;
                insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
                select 1, r, 0, 'profile' || r, 'p' || r || '@example.com', '{{}}'::jsonb
                from generate_series(1, {RECIPIENTS}) r
                union all
                select d, r, 0, 'profile' || r, 'p' || r || '@example.com', '{{}}'::jsonb
                from generate_series(2, 1000) d, generate_series(1, 20) r;
                insert into send_log (delivery_id, recipient, outcome, event_time, update_time)
                select delivery_id, recipient, 0, now(), now() from recipient;
                insert into delivery_counter (delivery_id, slot, prepared)
                select d, s, 1 from generate_series(1, 1000) d, generate_series(0, 3) s;
                insert into transition (delivery_id, revision, recipient, slot, before, outcome, failure_type, reason,
                    smtp_code, attempt, rules_version, event_time, commit_time, enhanced_code, diagnostic)
                select 1, r, r, r / 1024 % 4, 0, 2, 0, 0, 0, 0, 0, now(), now(), '', ''
                from generate_series(1, {RECIPIENTS}) r;
                insert into late_observation (delivery_id, recipient, outcome, failure_type, reason, smtp_code, attempt,
                    rules_version, event_time, commit_time, enhanced_code, diagnostic)
                select 1, r, 2, 0, 0, 0, 0, 0, now(), now(), '', '' from generate_series(1, 20000) r;
                insert into tracking_log (delivery_id, recipient, kind, event_time, commit_time, url)
                select 1, r, 3, now(), now(), '' from generate_series(1, 50000) r;
                insert into relay_part (delivery_id, part, prepared_count, done)
                select 1, p, 1024, p % 100 > 0 from generate_series(0, 20000) p;
                analyze
                """
            )
        yield dsn


@pytest.mark.parametrize("name", sorted(queries()))
async def test_every_query_prepares(name: str, database: str) -> None:
    async with connected(database) as connection:
        await connection.prepare(queries()[name])


def test_every_query_is_used() -> None:
    code = "".join(path.read_text() for path in STORE.glob("*.py"))

    assert [name for name in queries() if f'query("{name}")' not in code] == []


def test_every_query_tells_in_a_comment_or_its_name_what_it_does() -> None:
    for file in STORE.glob("sql/*.sql"):
        assert file.read_text().startswith("-- "), f"{file.name} does not begin with what it is about"


async def test_migrating_again_and_at_the_same_time_changes_nothing(database_factory: DatabaseFactory) -> None:
    async with database_factory.fresh() as dsn:
        versions = await asyncio.gather(*(migrate(dsn) for _ in range(4)))

        assert versions == [max(migrations())] * 4


async def test_a_database_that_was_not_migrated_is_refused(database: str) -> None:
    async with connected(database) as connection:
        await connection.execute("delete from schema_version where version = (select max(version) from schema_version)")

    with pytest.raises(SchemaOutdated, match="migrate"):
        _ = await open_pool(DatabaseSettings(database))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes of a plan; a partition is called as its table."""
    if "Relation Name" in plan:
        plan["Relation Name"] = table_of(plan["Relation Name"])
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


async def _plan(dsn: str, sql: str, *arguments: Any) -> list[dict[str, Any]]:
    """The nodes of the generic plan, as it ran, and was rolled back."""
    async with connected(dsn) as connection:
        await connection.execute("set plan_cache_mode = force_generic_plan")
        transaction = connection.transaction()
        await transaction.start()
        explained = await connection.fetchval(f"explain (analyze, format json) {sql}", *arguments)
        await transaction.rollback()
    return list(_nodes(json.loads(explained)[0]["Plan"]))


def _rows_read(nodes: list[dict[str, Any]], table: str) -> float:
    """Rows that the plan read from a table, those filtered away included."""
    return sum(
        float(node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)))
        for node in nodes
        if node.get("Relation Name") == table and "Scan" in node["Node Type"]
    )


def _assert_indexed(nodes: list[dict[str, Any]], *tables: str) -> None:
    for node in nodes:
        # A partition that has no rows, or that the arguments rule out, may be planned in any way.
        if node.get("Relation Name") in tables and _rows_read([node], node["Relation Name"]) > 0:
            assert node["Node Type"] != "Seq Scan", f"{node['Relation Name']} is read from end to end"


async def test_a_page_of_send_logs_reads_a_bounded_number_of_rows_by_the_primary_key(large: str) -> None:
    nothing: list[int] = []
    arguments = (DELIVERY_ID, 150_000, 2_000, [6], nothing, nothing, 101)

    nodes = await _plan(large, query("list_send_logs"), *arguments)

    _assert_indexed(nodes, "send_log", "recipient")
    assert _rows_read(nodes, "send_log") <= 2_000


async def test_an_address_is_found_by_its_index(large: str) -> None:
    nothing: list[int] = []
    arguments = (DELIVERY_ID, "p123456@example.com", 0, list(range(7)), nothing, nothing, 101)

    nodes = await _plan(large, query("list_send_logs_by_address"), *arguments)

    _assert_indexed(nodes, "send_log", "recipient")
    assert _rows_read(nodes, "recipient") <= 2


async def test_a_timeline_reads_only_the_facts_of_its_recipient(large: str) -> None:
    nodes = await _plan(large, query("get_timeline"), DELIVERY_ID, 777, 1_001)

    _assert_indexed(nodes, "transition", "late_observation", "tracking_log")
    assert sum(_rows_read(nodes, table) for table in ("transition", "late_observation", "tracking_log")) <= 6


async def test_a_part_is_read_by_the_primary_keys(large: str) -> None:
    nodes = await _plan(large, query("read_part"), DELIVERY_ID, 102_400, 103_424, 1)

    _assert_indexed(nodes, "send_log", "recipient")
    assert _rows_read(nodes, "send_log") <= 1_024
    assert _rows_read(nodes, "recipient") <= 1_024
    scans = [node for node in nodes if node.get("Relation Name") in ("send_log", "recipient")]
    assert [node["Actual Loops"] for node in scans] == [1, 1], "each recipient is looked up by itself"


async def test_claiming_parts_does_not_read_the_parts_that_are_done(large: str) -> None:
    async with connected(large) as connection:
        now = await connection.fetchval("select now()")
    arguments = (DELIVERY_ID, "holder", "60 seconds", 8, now)

    nodes = await _plan(large, query("claim_parts").replace("$3::interval", "$3::text::interval"), *arguments)

    _assert_indexed(nodes, "delivery")
    free = 20_000 / 100 + 1
    assert _rows_read(nodes, "relay_part") <= 2 * free


async def test_kpis_of_one_delivery_read_its_slots_only(large: str) -> None:
    nodes = await _plan(large, query("get_kpis"), [DELIVERY_ID])

    _assert_indexed(nodes, "delivery", "delivery_counter")
    assert _rows_read(nodes, "delivery_counter") <= 4


async def test_a_recount_is_parallel_and_needs_no_more_memory_than_it_has_groups(large: str) -> None:
    nodes = await _plan(large, query("recount"), DELIVERY_ID, 4, slot_bits(4))

    (grouping,) = [node for node in nodes if node["Node Type"] == "Aggregate" and node.get("Partial Mode") == "Partial"]
    assert grouping["Plan Rows"] < 1_000, "the groups are thought to be as many as the recipients"
    assert any(node["Node Type"].startswith("Gather") for node in nodes)
    assert _rows_read(nodes, "send_log") <= 1.2 * RECIPIENTS  # once


async def test_workers_find_their_deliveries_without_reading_the_finished_ones(large: str) -> None:
    nodes = await _plan(large, query("deliveries_in_state").replace("$1", "6").replace("$2", "100"))

    assert _rows_read(nodes, "delivery") <= 2


async def test_applying_reads_rows_by_the_primary_key_and_updates_them_in_place(large: str) -> None:
    async with connected(large) as connection:
        await connection.execute("set plan_cache_mode = force_generic_plan")
        before = await _send_log_statistics(connection)
        size = 5_000
        for begin in range(1_024, 1_024 + 4 * size, size):
            recipients = [r for r in range(begin, begin + size) if r // 1_024 % 4 == 1]
            n = len(recipients)
            columns = ObservationColumns.without_detail(DELIVERY_ID, recipients, 5, [1_800_000_000_000_000] * n)
            now = await connection.fetchval("select now()")
            assert (
                await connection.fetchval(query("apply_slot"), DELIVERY_ID, 1, now, *columns.statement_values()) is None
            )
        after = await _send_log_statistics(connection)

    updated = after["n_tup_upd"] - before["n_tup_upd"]
    assert updated > 4_000
    assert (after["n_tup_hot_upd"] - before["n_tup_hot_upd"]) / updated > 0.9
    assert after["seq_scan"] == before["seq_scan"]


@pytest.mark.parametrize(("decided", "looks"), [(1_023, True), (1_024, False)])
async def test_a_part_that_left_as_a_whole_is_released_without_a_look_at_its_rows(
    large: str, decided: int, looks: bool
) -> None:
    first = 100 * 1_024
    nodes = await _plan(
        large, query("release_part"), DELIVERY_ID, 100, 0, timedelta(), first, first + 1_024, 0, 1, decided
    )

    assert (_rows_read(nodes, "send_log") > 0) == looks


async def test_a_hand_over_reads_its_range_by_the_primary_key_and_updates_it_in_place(large: str) -> None:
    async with connected(large) as connection:
        await connection.execute("set plan_cache_mode = force_generic_plan")
        before = await _send_log_statistics(connection)
        for part in (80, 84, 88):  # which no other test changes
            times_us = [1_800_000_000_000_000] * 1_024
            now = await connection.fetchval("select now()")
            arguments = (DELIVERY_ID, part % 4, now, part * 1_024, times_us, 0)
            assert await connection.fetchval(query("apply_relayed"), *arguments) is None
        after = await _send_log_statistics(connection)

    updated = after["n_tup_upd"] - before["n_tup_upd"]
    assert updated == 3 * 1_024
    assert (after["n_tup_hot_upd"] - before["n_tup_hot_upd"]) / updated > 0.9
    assert after["seq_scan"] == before["seq_scan"]
    assert after["idx_tup_read"] - before["idx_tup_read"] <= 2 * updated


async def _send_log_statistics(connection: asyncpg.Connection) -> asyncpg.Record:
    await connection.execute("select pg_stat_force_next_flush()")
    await connection.execute("select pg_stat_clear_snapshot()")
    row = await connection.fetchrow(
        "select t.*, i.idx_tup_read from pg_stat_user_tables t join pg_stat_user_indexes i using (relid) "
        "where t.relname = 'send_log_first' and i.indexrelname = 'send_log_pkey_first'"
    )
    assert row is not None
    return row


async def test_a_page_of_the_log_reads_its_own_rows_alone(large: str) -> None:
    # Slot 1 has the recipients 1,024 .. 2,047, 5,120 .. 6,143 and so on, each in a revision of its own.
    for from_revision, after in ((5_200, 0), (5_200, 5_200), (190_000, 0)):
        nodes = await _plan(large, query("log_page"), DELIVERY_ID, 1, from_revision, after, 199_999, 501)

        _assert_indexed(nodes, "transition", "recipient", "delivery")
        assert _rows_read(nodes, "transition") <= 510
        assert _rows_read(nodes, "recipient") <= 510


async def test_a_page_of_what_changed_reads_a_bounded_number_of_rows(large: str) -> None:
    nothing: list[int] = []
    arguments = (DELIVERY_ID, 1, 5_200, 0, 199_999, 501, list(range(7)), nothing, nothing)

    nodes = await _plan(large, query("changed_send_logs"), *arguments)

    _assert_indexed(nodes, "transition", "send_log", "recipient")
    assert _rows_read(nodes, "transition") <= 4 * 510  # bound to the page, whichever plan it gets
    assert _rows_read(nodes, "send_log") <= 510


async def test_the_states_of_logs_read_their_slots_only(large: str) -> None:
    nodes = await _plan(large, query("log_states"), [DELIVERY_ID, 7, 12])

    _assert_indexed(nodes, "delivery")
    assert _rows_read(nodes, "delivery_counter") <= 12


async def test_the_messages_of_a_profile_are_found_by_their_index(large: str) -> None:
    last = (2**63 - 1, 2**31 - 1)

    common_profile = await _plan(large, query("profile_messages"), "profile7", *last, 101, 0)
    rare_profile = await _plan(large, query("profile_messages"), "profile123456", *last, 101, 0)

    for nodes, most in ((common_profile, 101), (rare_profile, 1)):
        _assert_indexed(nodes, "recipient", "send_log")
        assert _rows_read(nodes, "recipient") <= most
        assert _rows_read(nodes, "send_log") <= most


async def test_the_messages_of_an_address_are_found_by_one_probe_per_delivery(large: str) -> None:
    arguments = ("p7@example.com", 2**63 - 1, 2**31 - 1, 50, 0, "p7@example.com")

    nodes = await _plan(large, query("address_messages"), *arguments)

    _assert_indexed(nodes, "recipient", "send_log")
    assert _rows_read(nodes, "delivery") <= 50
    assert _rows_read(nodes, "recipient") <= 50


async def test_a_page_of_tracking_events_reads_a_bounded_number_of_rows_by_its_index(large: str) -> None:
    async with connected(large) as connection:
        first = await connection.fetchval("select timestamptz 'epoch'")
    nothing: list[int] = []

    everyone = await _plan(large, query("tracking_events"), DELIVERY_ID, 30_000, 0, first, "", 2**31 - 1, 101, nothing)
    one = await _plan(large, query("tracking_events"), DELIVERY_ID, 777, 0, first, "", 777, 101, [4])

    for nodes, most in ((everyone, 101), (one, 2)):
        _assert_indexed(nodes, "tracking_log")
        assert _rows_read(nodes, "tracking_log") <= most


async def test_an_explanation_reads_the_open_parts_alone(large: str) -> None:
    nodes = await _plan(large, query("open_parts"), DELIVERY_ID)
    await _plan(large, query("delivery_situation"), DELIVERY_ID)

    assert _rows_read(nodes, "relay_part") <= 20_000 / 100 + 1


async def test_a_break_down_reads_each_row_once(large: str) -> None:
    by_domain = await _plan(large, query("kpi_breakdown"), DELIVERY_ID, 1, [3, 4, 6], 20)
    by_hour = await _plan(large, query("kpi_breakdown"), DELIVERY_ID, 3, [3, 4, 6], 20)

    for nodes in (by_domain, by_hour):
        assert _rows_read(nodes, "send_log") <= 1.2 * RECIPIENTS
        assert _rows_read(nodes, "recipient") <= 1.2 * RECIPIENTS


async def test_a_page_of_exclusions_reads_a_bounded_number_of_rows_by_the_primary_key(large: str) -> None:
    async with connected(large) as connection:
        await connection.execute(
            "insert into exclusion_log select 1, r, 1 + r % 3 from generate_series(1, 100000) r "
            "on conflict do nothing; "
            "analyze exclusion_log"
        )

    nodes = await _plan(large, query("list_exclusions"), DELIVERY_ID, 50_000, 1_000, [3])

    _assert_indexed(nodes, "exclusion_log", "recipient")
    assert _rows_read(nodes, "exclusion_log") <= 1_000
    assert _rows_read(nodes, "recipient") <= 1_000


async def test_a_page_of_suppression_entries_reads_its_own_rows_alone(large: str) -> None:
    async with connected(large) as connection:
        await connection.execute(
            "insert into suppression_entry select l, 1, 'a' || n || '@example.com', now() "
            "from generate_series(1, 4) l, generate_series(1, 50000) n on conflict do nothing; "
            "analyze suppression_entry"
        )

    nodes = await _plan(large, query("list_suppression_entries"), 2, 1, "a2", 101)

    _assert_indexed(nodes, "suppression_entry")
    assert _rows_read(nodes, "suppression_entry") <= 101


async def test_the_failed_recipients_of_a_range_are_found_by_the_primary_key(large: str) -> None:
    """As a step of the copying asks for them; the filter on domains looks at the recipients of those alone."""
    nothing: list[int] = []
    arguments = (DELIVERY_ID, 100_000, 102_000, [4, 6], [1], nothing, ["example.com"])

    nodes = await _plan(large, "select * from failed_recipients($1, $2, $3, $4, $5, $6, $7)", *arguments)

    _assert_indexed(nodes, "send_log", "recipient")
    assert _rows_read(nodes, "send_log") <= 2_000


async def test_the_failed_are_counted_in_one_pass_that_may_be_parallel(large: str) -> None:
    nothing: list[int] = []

    nodes = await _plan(large, query("count_failed"), DELIVERY_ID, RECIPIENTS, [0], nothing, nothing, nothing)

    assert _rows_read(nodes, "send_log") <= RECIPIENTS + 1_000 * 20
    assert not [node for node in nodes if node["Node Type"] == "Function Scan"], "the function is a part of the plan"


def test_no_statement_is_built_from_strings() -> None:
    for path in STORE.glob("*.py"):
        assert not re.search(r"(fetch|execute|fetchrow|fetchval)\(\s*f\"", path.read_text()), path.name


async def test_a_page_of_reports_reads_those_of_its_recipients_alone(large: str) -> None:
    async with connected(large) as connection:
        await connection.execute(FAILURES)
        # Other tests share the table and add to it.
        there = await connection.fetchval("select count(*) from transition where recipient between 10001 and 11000")
    begin, end = datetime(2027, 1, 1, tzinfo=UTC), datetime(2027, 1, 2, tzinfo=UTC)
    nodes = await _plan(large, query("reports_to_requalify"), DELIVERY_ID, 10_000, 1_000, begin, end, 2)
    _assert_indexed(nodes, "send_log", "transition", "late_observation", "observation_detail")
    assert _rows_read(nodes, "send_log") <= 1_000
    # Each recipient's are looked at for the time, and then read.
    assert _rows_read(nodes, "transition") <= 2 * there
    assert _rows_read(nodes, "late_observation") <= 4 * 1_000


async def test_a_correction_reads_the_reports_of_its_recipients_alone(large: str) -> None:
    async with connected(large) as connection:
        await connection.execute(FAILURES)
        await connection.execute("set plan_cache_mode = force_generic_plan")
        before = await _sequential_scans(connection)
        recipients = list(range(1_024, 1_424))
        n = len(recipients)
        columns = (recipients, [3] * n, [FAILURE_TIME_US] * n, [1] * n, [6] * n, [450] * n, [""] * n, ["odd"] * n)
        now = await connection.fetchval("select now()")
        changes = await connection.fetch(query("correct_slot"), DELIVERY_ID, 1, now, False, 2, *columns, [0] * n)
        assert sum(change["reports"] for change in changes) == n
        assert await _sequential_scans(connection) == before


async def test_what_no_rule_reads_is_found_by_its_index(large: str) -> None:
    async with connected(large) as connection:
        await connection.execute(FAILURES)
    begin, end = datetime(2027, 1, 1, tzinfo=UTC), datetime(2027, 1, 2, tzinfo=UTC)
    nodes = await _plan(large, query("undefined_reports"), [DELIVERY_ID, 2, 3], begin, end, 100)
    _assert_indexed(nodes, "transition", "late_observation")
    assert _rows_read(nodes, "transition") <= 3 * 100


FAILURE_TIME_US = 1_798_797_600_000_000
FAILURES = """
    do $$ begin
        if not exists (select from transition where outcome = 3) then
            insert into transition (delivery_id, revision, recipient, slot, before, outcome, failure_type, reason,
                smtp_code, attempt, rules_version, event_time, commit_time, enhanced_code, diagnostic)
            select 1, 5000000 + r, r, r / 1024 % 4, 2, 3, 1, 1, 450, 0, 1, '2027-01-01 10:00+00', now(), '', 'odd'
            from generate_series(1, 50000) r;
            insert into observation_detail (delivery_id, recipient, outcome, event_time, mta_event_kind, vendor_class)
            select 1, r, 3, '2027-01-01 10:00+00', 2, 'Other' from generate_series(1, 50000) r;
            update send_log set outcome = 3, event_time = '2027-01-01 10:00+00', failure_type = 1, reason = 1,
                smtp_code = 450, diagnostic = 'odd'
            where delivery_id = 1 and recipient <= 50000;
        end if;
    end $$;
    analyze transition, observation_detail
    """
"""A deferral of each of 50,000 messages that no rule has read."""


async def _sequential_scans(connection: asyncpg.Connection) -> int:
    await connection.execute("select pg_stat_force_next_flush()")
    await connection.execute("select pg_stat_clear_snapshot()")
    names = ["send_log", "transition", "late_observation", "observation_detail"]
    return int(
        await connection.fetchval(
            "select sum(seq_scan) from pg_stat_user_tables where regexp_replace(relname, $2, '') = any ($1)",
            names,
            PARTITION,
        )
    )
