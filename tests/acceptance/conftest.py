"""What the acceptance tests run: processes that can be killed, and folders that no process may outlive."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.campaign_process import processes_of
from tests.support.invariants import assert_laws
from tests.support.postgres import folder_place
from tests.support.process_stack import MISBEHAVIOUR, ProcessStack, process_stack
from tests.support.terminal import Terminal


@pytest.fixture
async def stack(database: str, tmp_path: Path) -> AsyncIterator[ProcessStack]:
    async with process_stack(tmp_path, database, *MISBEHAVIOUR, "--delay-acks-ms", "200") as running:
        yield running
    await assert_laws(database)


@pytest.fixture
async def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """For commands beside those that a test is about."""
    return Terminal(monkeypatch)


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not below pytest's own folder: each new run of pytest closes that one to other users, and Postgres is another user
    # when root runs the tests.
    with tempfile.TemporaryDirectory(prefix="campaign-tests-", dir=folder_place()) as parent:
        yield Path(parent) / "data"
        assert processes_of(Path(parent)) == []
