"""Texts that no rule reads, grouped by what they say."""

from datetime import UTC, datetime, timedelta

import pytest

from delivery_service.domain.undefined_failures import UndefinedFailures, UndefinedReport, masked

START = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("550 5.7.1  Try  <jo@example.com>\tlater", "# # try # later"),
        ("Queue id: 4Xb9; goodbye", "queue id: # goodbye"),
        ("", ""),
        ("Größe ÜBERSCHRITTEN", "größe überschritten"),
    ],
)
def test_addresses_ids_and_codes_are_masked(text: str, mask: str) -> None:
    assert masked(text) == mask


def test_a_report_counts_once_and_the_newest_is_the_example() -> None:
    failures = UndefinedFailures()
    reports = [UndefinedReport(7, i % 2, 6, START + timedelta(hours=i), 550, "", f"Odd {i}") for i in range(3)]
    failures.add(reports)
    failures.add(reports)
    failures.add([UndefinedReport(7, 1, 6, START, 550, "", "rare"), UndefinedReport(7, 1, 6, START, 554, "", "Odd 9")])
    first, *others = failures.most_frequent(2)
    assert (first.text, first.count, len(first.messages)) == ("odd #", 3, 2)
    assert (first.first_time, first.example) == (START, reports[2])
    assert len(others) == 1
    assert failures.reports == 5
