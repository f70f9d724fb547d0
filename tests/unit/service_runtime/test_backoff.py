from itertools import islice

import pytest

from service_runtime.backoff import delays


def test_ceilings_double_up_to_the_greatest() -> None:
    assert list(islice(delays(1.0, 5.0, lambda: 1.0), 5)) == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_the_jitter_is_full() -> None:
    draws = iter((0.0, 0.5, 0.25))
    assert list(islice(delays(1.0, 100.0, lambda: next(draws)), 3)) == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(("initial", "greatest", "factor"), [(0.0, 1.0, 2.0), (2.0, 1.0, 2.0), (1.0, 2.0, 0.5)])
def test_impossible_settings_are_refused_before_the_first_wait(initial: float, greatest: float, factor: float) -> None:
    with pytest.raises(ValueError, match="back-off"):
        delays(initial, greatest, lambda: 1.0, factor=factor)
