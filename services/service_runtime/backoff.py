"""How long to wait before the next try: exponential, with full jitter, so that a crowd does not come back as one."""

from collections.abc import Callable, Iterator


def delays(
    initial_seconds: float, max_seconds: float, random: Callable[[], float], *, factor: float = 2.0
) -> Iterator[float]:
    """Endless waits in seconds, each drawn evenly from zero to a ceiling that grows by `factor` up to `max_seconds`.

    `random` gives numbers from 0 to 1, like `random.random`. Take a new iterator after each success.
    """
    if not 0 < initial_seconds <= max_seconds or factor < 1:
        raise ValueError("a back-off needs 0 < initial_seconds <= max_seconds and a factor of at least 1")
    return _delays(initial_seconds, max_seconds, random, factor)


def _delays(ceiling: float, max_seconds: float, random: Callable[[], float], factor: float) -> Iterator[float]:
    while True:
        yield ceiling * random()
        ceiling = min(ceiling * factor, max_seconds)
