"""The embedded Postgres, as the command and the tests use it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from service_runtime.embedded_postgres import DURABLE, THROWAWAY, EmbeddedPostgres, PostgresUnavailable
from tests.support.postgres import folder_place

STARTS_AND_WAITS = """
import signal, sys, time
from pathlib import Path
from service_runtime.embedded_postgres import THROWAWAY, EmbeddedPostgres

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started by had set
with EmbeddedPostgres(Path(sys.argv[1]), THROWAWAY) as postgres:
    try:
        print(postgres.dsn, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="campaign-", dir=folder_place()) as parent:
        yield Path(parent) / "postgres"


async def value(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_restart_on_the_same_folder_keeps_the_data(folder: Path) -> None:
    with EmbeddedPostgres(folder, DURABLE) as postgres:
        await value(postgres.dsn, "CREATE TABLE kept AS SELECT 42 AS number")
    with pytest.raises(FileNotFoundError):
        await value(postgres.dsn, "SELECT 1")
    with EmbeddedPostgres(folder, THROWAWAY) as postgres:
        assert await value(postgres.dsn, "SELECT number FROM kept") == 42
        assert await value(postgres.dsn, "SHOW fsync") == "off"


@pytest.mark.parametrize("profile", [DURABLE, THROWAWAY], ids=["durable", "throwaway"])
async def test_settings_of_a_profile_are_in_force(folder: Path, profile: dict[str, str]) -> None:
    with EmbeddedPostgres(folder, profile) as postgres:
        for name, wanted in profile.items():
            assert await value(postgres.dsn, f"SHOW {name}") == wanted
        assert str(await value(postgres.dsn, "SELECT version()")).startswith("PostgreSQL 18.")
        assert await value(postgres.dsn, "SHOW listen_addresses") == ""
        assert await value(postgres.dsn, "SELECT 'B' < 'a'"), "strings compare by their bytes"


async def test_folder_with_a_long_and_odd_name_works(folder: Path) -> None:
    with EmbeddedPostgres(folder / ("long " * 30) / "it's, here", THROWAWAY) as postgres:
        assert await value(postgres.dsn, "SELECT 1") == 1


def test_second_server_on_a_folder_in_use_is_refused(folder: Path) -> None:
    with (
        EmbeddedPostgres(folder, THROWAWAY),
        pytest.raises(PostgresUnavailable, match="in use by another process"),
        EmbeddedPostgres(folder, THROWAWAY),
    ):
        pass


def test_setting_that_postgres_refuses_is_said_in_its_words(folder: Path) -> None:
    with (
        pytest.raises(PostgresUnavailable, match='parameter "fsync" requires a Boolean'),
        EmbeddedPostgres(folder, {"fsync": "perhaps"}),
    ):
        pass
    with EmbeddedPostgres(folder, THROWAWAY):
        pass  # the folder is still good


async def test_interrupt_of_the_terminal_does_not_reach_the_server(folder: Path) -> None:
    with process(folder) as child:
        dsn = line(child)
        os.killpg(child.pid, signal.SIGINT)
        assert line(child) == "interrupted"
        assert await value(dsn, "SELECT 1") == 1
        child.communicate(b"\n", timeout=90)
        assert child.returncode == 0
    with pytest.raises(FileNotFoundError):
        await value(dsn, "SELECT 1")


async def test_server_left_by_a_killed_process_is_taken_over(folder: Path) -> None:
    with process(folder) as child:
        dsn = line(child)
        child.kill()
        child.communicate(timeout=90)
    started = await value(dsn, "SELECT pg_postmaster_start_time()")
    with EmbeddedPostgres(folder, THROWAWAY) as postgres:
        assert await value(postgres.dsn, "SELECT pg_postmaster_start_time()") != started


def process(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", STARTS_AND_WAITS, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


def line(child: subprocess.Popen[bytes]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().decode().strip()
