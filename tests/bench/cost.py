"""What work costs: the CPU time that processes spend, which a busy machine stretches far less than the clock."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PARENT, _TIMES = 1, slice(11, 15)
"""Places in /proc/PID/stat after the name. Times: user, system, and the same of children that ended."""


class Cost:
    """The CPU seconds of each process, known at the end of a `measuring`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def per_unit(self, units: int, unit: str) -> str:
        """In microseconds, for people."""
        each = {name: 1e6 * seconds / units for name, seconds in self.seconds.items()}
        parts = ", ".join(f"{name} {microseconds:.1f}" for name, microseconds in each.items())
        return f"{sum(each.values()):.1f} µs of CPU a {unit}: {parts}"


@contextmanager
def measuring(processes: Mapping[str, int]) -> Iterator[Cost]:
    """The cost, while the block runs, of these processes and of all that they have started."""
    cost = Cost()
    before = _seconds_by_tree(processes)
    yield cost
    after = _seconds_by_tree(processes)
    cost.seconds = {name: after[name] - before[name] for name in processes}


def _seconds_by_tree(processes: Mapping[str, int]) -> dict[str, float]:
    """Of each process and its children. Of those that have ended too: a server's connections come and go."""
    seconds: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended since
            continue
        process_id = int(entry.name)
        seconds[process_id] = sum(map(int, fields[_TIMES])) / _TICKS_PER_SECOND
        children.setdefault(int(fields[_PARENT]), []).append(process_id)

    def tree(process_id: int) -> float:
        return seconds.get(process_id, 0.0) + sum(map(tree, children.get(process_id, ())))

    return {name: tree(process_id) for name, process_id in processes.items()}
