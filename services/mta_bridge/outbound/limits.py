"""Limits per recipient domain: so many at the same time, so many a second."""

from collections import OrderedDict, deque
from typing import Final

from mta_bridge.outbound.jobs import Job

DOMAINS_MAX: Final = 10_000
"""Remembered at the same time; the one used longest ago is forgotten, and so starts afresh."""


def domain_of(address: str) -> str:
    """In lower case; empty if there is none."""
    return address.rpartition("@")[2].lower()


class DomainRates:
    """A bucket of one second's messages per domain."""

    def __init__(self, messages_per_second_max: float) -> None:
        self._rate = messages_per_second_max
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, domain: str, now: float) -> float:
        """Takes a place for one message. 0 if there was one, else how many seconds to wait for one."""
        if not self._rate:
            return 0.0
        full_at = max(self._full_at.get(domain, 0.0), now) + 1 / self._rate
        # Never less than one whole message, or a rate below one a second would let nothing through.
        if (wait := full_at - now - max(1.0, 1 / self._rate)) > 1e-9:
            return wait
        self._full_at[domain] = full_at
        self._full_at.move_to_end(domain)
        if len(self._full_at) > DOMAINS_MAX:
            self._full_at.popitem(last=False)
        return 0.0


class JobQueue:
    """Jobs in the order in which they came, those of a domain that has all its places waiting aside."""

    def __init__(self, domain_connections_max: int) -> None:
        self._max = domain_connections_max
        self._ready: deque[Job] = deque()
        self._aside: dict[str, deque[Job]] = {}
        self._busy: dict[str, int] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, job: Job, *, first: bool = False) -> None:
        """Puts it at the end, or at the front again."""
        self._length += 1
        if first:
            self._ready.appendleft(job)
        else:
            self._ready.append(job)

    def take(self) -> Job | None:
        """The next one that may leave. `release` it when its transaction has ended."""
        while self._ready:
            job = self._ready.popleft()
            if not self._max:
                self._length -= 1
                return job
            domain = domain_of(job.address)
            if self._busy.get(domain, 0) < self._max:
                self._busy[domain] = self._busy.get(domain, 0) + 1
                self._length -= 1
                return job
            self._aside.setdefault(domain, deque()).append(job)
        return None

    def release(self, job: Job) -> None:
        """Its transaction has ended: the next one of its domain may leave."""
        if not self._max:
            return
        domain = domain_of(job.address)
        self._busy[domain] -= 1
        if not self._busy[domain]:
            del self._busy[domain]
        if waiting := self._aside.get(domain):
            self._ready.appendleft(waiting.popleft())
            if not waiting:
                del self._aside[domain]

    def take_older_than(self, moment: float) -> list[Job]:
        """Removes and returns those that were queued before that."""
        old: list[Job] = []
        for jobs in (self._ready, *self._aside.values()):
            kept = [job for job in jobs if job.queued_at >= moment]
            if len(kept) < len(jobs):
                old += [job for job in jobs if job.queued_at < moment]
                jobs.clear()
                jobs.extend(kept)
        self._aside = {domain: jobs for domain, jobs in self._aside.items() if jobs}
        self._length -= len(old)
        return old
