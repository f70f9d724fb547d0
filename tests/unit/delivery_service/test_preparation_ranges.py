"""How a step of the preparation is divided among connections."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery_service.domain.identifiers import part_of
from delivery_service.workers.preparation import ranges_of_step


@pytest.mark.parametrize(
    ("done", "recipients", "writers", "ranges"),
    [
        (0, 1, 2, [(0, 1_023)]),
        (0, 1_023, 2, [(0, 1_023)]),
        (0, 10_000, 2, [(0, 10_239)]),  # too few to be worth a second writer
        (0, 15_000, 2, [(0, 10_239), (10_239, 15_359)]),
        (0, 30_000, 2, [(0, 15_359), (15_359, 30_719)]),
        (0, 1_000_000, 2, [(0, 51_199), (51_199, 102_399)]),
        (102_399, 1_000_000, 2, [(102_399, 153_599), (153_599, 204_799)]),
        (102_399, 103_000, 2, [(102_399, 103_423)]),
        (0, 1_000_000, 1, [(0, 51_199)]),
    ],
)
def test_a_step_is_divided_evenly_and_by_whole_parts(
    done: int, recipients: int, writers: int, ranges: list[tuple[int, int]]
) -> None:
    assert ranges_of_step(done, recipients, writers, parts_max=50) == ranges


@given(st.integers(1, 500_000), st.integers(1, 5), st.integers(1, 60))
def test_steps_follow_one_another_through_all_recipients(recipients: int, writers: int, parts_max: int) -> None:
    done = 0
    while done < recipients:
        ranges = ranges_of_step(done, recipients, writers, parts_max)
        assert 1 <= len(ranges) <= writers
        for after, through in ranges:
            assert after == done
            assert (through + 1) % 1_024 == 0
            assert part_of(through) - part_of(after + 1) < parts_max
            done = through
    assert part_of(done) == part_of(recipients)
