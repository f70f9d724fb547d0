"""The journal: the first answer stands, whoever asks again, and after a restart."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mta_simulator.journal import IN_MEMORY, Answer, Entry, Journal, JournalUnusable
from mta_simulator.truth import Truth


def entry(message_id: str, time_us: int = 1, *, address: str = "", refusal: bytes | None = None) -> Entry:
    return Entry(message_id, "42", address or f"{message_id}@mail.test", time_us, refusal, 6, True, False)


@asynccontextmanager
async def journal_at(path: Path | str, script: str = "script", keep_since_us: int = 0) -> AsyncIterator[Journal]:
    journal = Journal(str(path), script, keep_since_us)
    try:
        yield journal
    finally:
        journal.close()


async def test_the_first_answer_stands() -> None:
    async with journal_at(IN_MEMORY) as journal:
        first = journal.record([entry("a", 1), entry("b", 2, refusal=b"no")])
        assert [fresh.message_id for fresh in first.fresh] == ["a", "b"]
        second = journal.record([entry("b", 9), entry("c", 9), entry("a", 9, refusal=b"other")])
        assert [fresh.message_id for fresh in second.fresh] == ["c"]
        expected = {"a": Answer(1, None), "b": Answer(2, b"no")}
        assert second.first_answers == expected | {"c": Answer(9, None)}
        assert journal.known(["a", "b", "d"]) == expected


async def test_answers_unsettled_ranges_and_counts_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with journal_at(path) as journal:
        settled = journal.record([entry("a")])
        kept = journal.record([entry("b", 2), entry("c", 3, refusal=b"no")])
        journal.settle(settled.range_id)
    async with journal_at(path) as journal:
        assert journal.known(["a", "c"]) == {"a": Answer(1, None), "c": Answer(3, b"no")}
        assert journal.playing() == [kept.range_id]
        assert journal.entries_of(kept.range_id) == [entry("b", 2), entry("c", 3, refusal=b"no")]
        truth = Truth()
        journal.restore(truth)
        assert (truth.total.accepted, truth.total.refused, truth.total.outcomes[6]) == (2, 1, 3)
        later = journal.record([entry("d")])
        assert later.range_id > kept.range_id


async def test_an_address_accepted_under_two_message_ids_is_a_duplicate() -> None:
    async with journal_at(IN_MEMORY) as journal:
        journal.record([entry("a", address="x"), entry("b", address="y"), entry("c", address="z", refusal=b"no")])
        assert journal.duplicates_sent() == 0
        journal.record([entry("a", address="x"), entry("d", address="z")])
        assert journal.duplicates_sent() == 0
        journal.record([entry("e", address="x"), entry("f", address="x")])
        assert journal.duplicates_sent() == 1


async def test_a_journal_of_another_script_is_refused(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "journal.db", "seed 1"):
        pass
    with pytest.raises(JournalUnusable, match="seed 1"):
        Journal(str(tmp_path / "journal.db"), "seed 2")


async def test_a_journal_has_one_user_and_is_nothing_else(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "journal.db"):
        with pytest.raises(JournalUnusable, match="locked"):
            Journal(str(tmp_path / "journal.db"), "script")
    (tmp_path / "letter.txt").write_text("Dear Anna, " * 100)
    with pytest.raises(JournalUnusable, match="not a database"):
        Journal(str(tmp_path / "letter.txt"), "script")


async def test_what_is_too_old_is_forgotten_at_the_start(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "journal.db") as journal:
        journal.record([entry("old", 10)])
        journal.record([entry("new", 20)])
    async with journal_at(tmp_path / "journal.db", keep_since_us=15) as journal:
        assert set(journal.known(["old", "new"])) == {"new"}
        assert len(journal.playing()) == 1
