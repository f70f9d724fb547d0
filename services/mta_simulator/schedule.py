"""What is to happen when, held compactly: lists by the hundredth of a second instead of a timer per event."""

import heapq
from typing import Final, Generic, TypeVar

_Item = TypeVar("_Item")

BUCKET_US: Final = 10_000


class Schedule(Generic[_Item]):
    """Items by due time, to the bucket. Within a bucket they keep the order in which they came."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[_Item]] = {}
        self._order: list[int] = []

    def add(self, due_us: int, item: _Item) -> None:
        """Holds `item` until the end of the bucket that `due_us` falls into."""
        number = due_us // BUCKET_US + 1
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = []
            heapq.heappush(self._order, number)
        bucket.append(item)

    @property
    def next_us(self) -> int | None:
        """When the next items are due; None if there are none."""
        return self._order[0] * BUCKET_US if self._order else None

    def take_due(self, now_us: int) -> list[_Item]:
        """Removes and returns all that is due by now."""
        due: list[_Item] = []
        while self._order and self._order[0] * BUCKET_US <= now_us:
            due += self._buckets.pop(heapq.heappop(self._order))
        return due
