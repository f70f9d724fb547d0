"""The one apply path into Postgres: batches of observations, a few pipelined writers, one round trip a batch.

Invariants:
- A slot of a delivery always goes to the same writer of this process, so that its batches don't wait for each other's
  lock; across processes the slot lock in `apply_slot` orders them.
- Every write is one autocommitted statement. A process stopped at any line holds no lock for long, and has either
  committed a batch whole or not at all. `apply` returns only after the commit; a repetition changes nothing.
- A batch that Postgres refuses for its data is bisected: one bad observation costs only itself.
- What outdated rules have read is refused to its sender (RulesOutdated), and to nobody whose rows share the round trip.
- Hand-overs have a statement of their own (`apply_relayed`). What does not win there goes the way of all others.
"""

import asyncio
import logging
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import asyncpg

from delivery_service.domain.identifiers import slot_of
from delivery_service.domain.outcome import layers
from delivery_service.domain.problems import RulesOutdated
from delivery_service.store.database import (
    RETRYABLE_ERRORS,
    UNAVAILABLE_ERRORS,
    DatabaseSettings,
    close_quietly,
    connect_writer,
)
from delivery_service.store.hand_over import HandOver
from delivery_service.store.observations import ObservationColumns
from delivery_service.store.queries import query
from service_runtime.backoff import delays
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

T = TypeVar("T")

_SLOT_COUNTS_CACHED_MAX: Final = 100_000
_REFUSED_FOR_DATA: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)


@dataclass(frozen=True, slots=True)
class ApplySettings:
    """Limits of the apply path."""

    writers: int = 2
    batch_size_max: int = 5_000
    pending_observations_max: int = 100_000
    retry_initial_seconds: float = 0.05
    retry_max_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Refused:
    """Observations that could not be applied, by index into what was given: no such message, or refused for data."""

    unknown: list[int]
    malformed: list[int]

    @property
    def count(self) -> int:
        """How many."""
        return len(self.unknown) + len(self.malformed)


@dataclass(slots=True, eq=False)
class _Piece:
    """The part of one `apply` call that goes to one writer: these rows of its columns, and what became of them."""

    columns: ObservationColumns
    slots: list[int]
    indexes: list[int]
    done: asyncio.Future[Refused]


@dataclass(slots=True, eq=False)
class _HandOverPiece:
    """One `apply_hand_over` call."""

    hand_over: HandOver
    slot: int
    lost: asyncio.Future[list[int]]
    """The recipients whose observation did not win, or that Postgres would not take."""


class ApplyWriter:
    """Applies observations. `committed` is called with the deliveries of every commit, to wake local watchers."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        database: DatabaseSettings,
        settings: ApplySettings,
        clock: Clock,
        committed: Callable[[Iterable[int]], None],
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._slot_counts: OrderedDict[int, int] = OrderedDict()
        self._budget = _Budget(settings.pending_observations_max)
        self._writers = [_Writer(database, settings, clock, committed) for _ in range(settings.writers)]

    def runs(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """The writers' work, to be run as tasks. Cancelled, they drop what is pending: it was not acked."""
        return [(f"apply-writer-{number}", writer.run()) for number, writer in enumerate(self._writers)]

    async def apply(self, columns: ObservationColumns) -> Refused:
        """Applies normalised observations; returns after the commit. Waits while too much is pending, and for as long
        as the database is away. RulesOutdated: not all of them were applied, and the same again never will be."""
        async with self._budget.take(len(columns)):
            return await self._apply(columns)

    async def apply_hand_over(self, hand_over: HandOver) -> tuple[Refused, bool]:
        """As `apply` with the same as columns, at half of the cost. Also whether its claim has ended with it."""
        async with self._budget.take(len(hand_over.recipients)):
            slot_counts = await self._slot_counts_of({hand_over.delivery_id})
            if hand_over.delivery_id not in slot_counts or not hand_over.is_of_one_part:
                return await self._apply(hand_over.columns()), False
            slot = slot_of(hand_over.first, slot_counts[hand_over.delivery_id])
            lost: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
            writer = self._writers[(hand_over.delivery_id + slot) % len(self._writers)]
            piece = _HandOverPiece(hand_over, slot, lost)
            writer.submit(piece)
            try:
                losers = set(await lost)
            except asyncio.CancelledError:
                writer.withdraw(piece)
                raise
            if not losers:
                return Refused([], []), hand_over.claim_count > 0
            indexes = [index for index, recipient in enumerate(hand_over.recipients) if recipient in losers]
            refused = await self._apply(hand_over.columns().take(indexes))
            unknown, malformed = ([indexes[i] for i in column] for column in (refused.unknown, refused.malformed))
            return Refused(unknown, malformed), False

    async def _apply(self, columns: ObservationColumns) -> Refused:
        slot_counts = await self._slot_counts_of(set(columns.delivery_ids))
        proofs = await self._slot_counts_of_proofs(columns) if min(columns.recipients) < 1 else {}
        slots = _slots(columns, slot_counts, proofs)
        writers = len(self._writers)
        chosen = [
            (delivery_id + slot) % writers if slot >= 0 else -1
            for delivery_id, slot in zip(columns.delivery_ids, slots, strict=True)
        ]
        pieces: dict[int, _Piece] = {}
        for writer in set(chosen) - {-1}:
            indexes = [index for index, choice in enumerate(chosen) if choice == writer]
            pieces[writer] = _Piece(columns, slots, indexes, asyncio.get_running_loop().create_future())
            self._writers[writer].submit(pieces[writer])
        try:
            refused = await asyncio.gather(*(piece.done for piece in pieces.values()))
        except asyncio.CancelledError:
            # The writers finish what they have begun; the rest, which has no share of the budget any more, they drop.
            for writer, piece in pieces.items():
                self._writers[writer].withdraw(piece)
            raise
        unknown = [index for index, slot in enumerate(slots) if slot < 0] if -1 in slots else []
        unknown += [index for piece in refused for index in piece.unknown]
        return Refused(sorted(unknown), sorted(index for piece in refused for index in piece.malformed))

    async def _slot_counts_of(self, delivery_ids: set[int]) -> dict[int, int]:
        """The slot counts of those that exist and have been started; cached, for they never change any more."""
        found = {known: self._slot_counts[known] for known in delivery_ids if known in self._slot_counts}
        missing = [delivery_id for delivery_id in delivery_ids if delivery_id not in found]
        if missing:
            rows = await self._pool.fetch(query("slot_counts_started"), missing)
            found |= {row["delivery_id"]: row["slot_count"] for row in rows}
            self._slot_counts |= found
            while len(self._slot_counts) > _SLOT_COUNTS_CACHED_MAX:
                self._slot_counts.popitem(last=False)
        return found

    async def _slot_counts_of_proofs(self, columns: ObservationColumns) -> dict[int, int]:
        """The slot counts of the deliveries that have observations of proofs: those leave before the start."""
        delivery_ids = {d for d, r in zip(columns.delivery_ids, columns.recipients, strict=True) if r < 1}
        rows = await self._pool.fetch(query("slot_counts_prepared"), delivery_ids)
        return {row["delivery_id"]: row["slot_count"] for row in rows}


def _slots(columns: ObservationColumns, slot_counts: dict[int, int], proofs: dict[int, int]) -> list[int]:
    """The slot of each row; -1 if there is no such delivery, or none that such a message can be of by now."""
    delivery_ids, recipients = columns.delivery_ids, columns.recipients
    if len(slot_counts) == 1 and (slot_count := slot_counts.get(delivery_ids[0])) and columns.is_of_one_delivery:
        return [slot_of(recipient, slot_count) for recipient in recipients]
    counts = [
        slot_counts.get(delivery_id) or (proofs.get(delivery_id) if recipient < 1 else None)
        for delivery_id, recipient in zip(delivery_ids, recipients, strict=True)
    ]
    return [slot_of(r, count) if count else -1 for r, count in zip(recipients, counts, strict=True)]


class _Writer:
    """One connection and its queue: takes what is pending, up to a batch, and writes it in one round trip."""

    def __init__(
        self,
        database: DatabaseSettings,
        settings: ApplySettings,
        clock: Clock,
        committed: Callable[[Iterable[int]], None],
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._committed = committed
        self._pending: deque[_Piece | _HandOverPiece] = deque()
        self._wake = asyncio.Event()
        self._connection: asyncpg.Connection | None = None

    def submit(self, piece: _Piece | _HandOverPiece) -> None:
        self._pending.append(piece)
        self._wake.set()

    def withdraw(self, piece: _Piece | _HandOverPiece) -> None:
        """Drops a piece that nobody waits for any more, unless it is being written."""
        with suppress(ValueError):
            self._pending.remove(piece)

    async def run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                while self._pending:
                    piece = self._pending.popleft()
                    if isinstance(piece, _HandOverPiece):
                        await self._write_hand_over(piece)
                    else:
                        await self._write(self._next_batch(piece))
                self._wake.clear()
        finally:
            if self._connection is not None:
                self._connection.terminate()

    def _next_batch(self, piece: _Piece) -> list[_Piece]:
        """The piece and those that came after it, up to a batch; a single piece is never larger than one."""
        batch = [piece]
        size = len(piece.indexes)
        while self._pending and isinstance(following := self._pending[0], _Piece):
            size += len(following.indexes)
            if size > self._settings.batch_size_max:
                break
            self._pending.popleft()
            batch.append(following)
        return batch

    async def _write_hand_over(self, piece: _HandOverPiece) -> None:
        """Writes one hand-over and tells its owner. Never raises but when cancelled."""
        hand_over, now = piece.hand_over, self._clock.now()
        values: tuple[Any, ...] = (hand_over.delivery_id, piece.slot, now, hand_over.first)
        if hand_over.is_of_one_moment:
            statement = query("apply_relayed_at_once")
            values += (len(hand_over.recipients), hand_over.event_times_us[0])
        else:
            statement = query("apply_relayed")
            values += (hand_over.times_by_recipient(),)
        values += (hand_over.claim_count,)
        try:
            lost = await self._until_written(lambda connection: connection.fetchval(statement, *values)) or []
        except _REFUSED_FOR_DATA as error:
            log.warning("postgres refused a hand-over", extra={"action": "hand_over", "sqlstate": error.sqlstate})
            lost = hand_over.recipients
        self._committed((hand_over.delivery_id,))
        if not piece.lost.done():
            piece.lost.set_result(lost)

    async def _write(self, pieces: list[_Piece]) -> None:
        """Writes some pieces and tells their owners. Never raises but when cancelled."""
        piece = pieces[0] if len(pieces) == 1 else _joined(pieces)
        try:
            unknown, malformed = await self._write_rows(piece.columns, piece.slots, piece.indexes)
        except asyncpg.ObjectNotInPrerequisiteStateError:
            await self._refuse_outdated(pieces)
            return
        self._committed({piece.columns.delivery_ids[i] for i in piece.indexes})
        refused = [Refused(unknown, malformed)] if len(pieces) == 1 else _shared_out(pieces, unknown, malformed)
        for owner, its in zip(pieces, refused, strict=True):
            if not owner.done.done():
                owner.done.set_result(its)

    async def _refuse_outdated(self, pieces: list[_Piece]) -> None:
        """Some of these were read by outdated rules: their owners are told so, the others' are written."""
        if len(pieces) > 1:
            for piece in pieces:
                await self._write([piece])
        elif not pieces[0].done.done():
            pieces[0].done.set_exception(RulesOutdated(max(pieces[0].columns.rules_versions)))

    async def _write_rows(
        self, columns: ObservationColumns, slots: list[int], indexes: list[int]
    ) -> tuple[list[int], list[int]]:
        """Writes these rows, and bisects them if Postgres refuses them for their data. Gives (unknown, malformed)."""
        try:
            return await self._until_written(lambda c: self._write_once(c, columns, slots, indexes)), []
        except _REFUSED_FOR_DATA as error:
            if len(indexes) == 1:
                log.warning(
                    "postgres refused an observation",
                    extra={"action": "apply_observations", "sqlstate": error.sqlstate},
                )
                return [], indexes
        half = len(indexes) // 2
        first = await self._write_rows(columns, slots, indexes[:half])
        second = await self._write_rows(columns, slots, indexes[half:])
        return first[0] + second[0], first[1] + second[1]

    async def _until_written(self, write: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Writes, for as long as it takes. A batch that was committed after all may be sent again."""
        waits = delays(self._settings.retry_initial_seconds, self._settings.retry_max_seconds, random.random)
        while True:
            try:
                if self._connection is None or self._connection.is_closed():
                    self._connection = await connect_writer(self._database)
                return await write(self._connection)
            except _REFUSED_FOR_DATA:
                raise
            except RETRYABLE_ERRORS as error:
                log.warning(
                    "will write a batch again", extra={"action": "apply_observations", "error": type(error).__name__}
                )
            except (*UNAVAILABLE_ERRORS, TimeoutError) as error:
                log.warning(
                    "the database is away", extra={"action": "apply_observations", "error": type(error).__name__}
                )
                if self._connection is not None:
                    await close_quietly(self._connection, timeout_seconds=0.1)
                    self._connection = None
            await self._clock.sleep(next(waits))

    async def _write_once(
        self, connection: asyncpg.Connection, columns: ObservationColumns, slots: list[int], indexes: list[int]
    ) -> list[int]:
        """One autocommitted statement for all, and a second one for the few that did not win. Gives the indexes of
        rows whose message does not exist."""
        layout = _Layout.of(columns, slots, indexes)
        now = self._clock.now()
        rows = columns.take(layout.indexes)
        if len(layout.keys) == 1:
            lost = await connection.fetchval(query("apply_slot"), *layout.keys[0], now, *rows.statement_values())
            losers = [(0, recipient) for recipient in lost or ()]
        else:
            values = rows.layer_values(layout.ends)
            found = await connection.fetch(query("apply_slots"), *layout.key_columns(), now, *values)
            losers = [(row["layer"] - 1, row["recipient"]) for row in found]
        if not losers:
            return []
        late = layout.only(columns.recipients, set(losers))
        values = columns.take(late.indexes).statement_values()
        found = await connection.fetch(query("keep_late"), *late.key_columns(), late.ends, now, *values)
        unknown = {(row["delivery_id"], row["recipient"]) for row in found}
        return [i for i in late.indexes if (columns.delivery_ids[i], columns.recipients[i]) in unknown]


def _joined(pieces: list[_Piece]) -> _Piece:
    """All their rows in one. Columns are joined as they are: that is cheaper than taking out what is another's."""
    columns, slots, indexes = ObservationColumns(), list[int](), list[int]()
    for piece in pieces:
        begin = len(slots)
        indexes += [begin + index for index in piece.indexes]
        columns.extend(piece.columns)
        slots += piece.slots
    return _Piece(columns, slots, indexes, pieces[0].done)


def _shared_out(pieces: list[_Piece], unknown: list[int], malformed: list[int]) -> list[Refused]:
    """What was refused of the joined rows, piece by piece: indexes into the columns of each."""
    result = []
    begin = 0
    for piece in pieces:
        end = begin + len(piece.slots)
        own = [[i - begin for i in indexes if begin <= i < end] for indexes in (unknown, malformed)]
        result.append(Refused(*own))
        begin = end
    return result


@dataclass(slots=True)
class _Layout:
    """A batch as a statement takes it: layers, each of one slot, in the order in which slots are locked.

    Layer i has the key (delivery, slot) keys[i], and ends before place ends[i] of `indexes` (into the columns).
    """

    keys: list[tuple[int, int]]
    ends: list[int]
    indexes: list[int]

    @classmethod
    def of(cls, columns: ObservationColumns, slots: list[int], indexes: list[int]) -> "_Layout":
        """Groups rows by slot; of a recipient that occurs more than once in a group, the greatest comes first."""
        delivery_ids, recipients = columns.delivery_ids, columns.recipients
        groups: dict[tuple[int, int], list[int]]
        if columns.is_of_one_delivery:
            by_slot: defaultdict[int, list[int]] = defaultdict(list)
            for index in indexes:
                by_slot[slots[index]].append(index)
            groups = {(delivery_ids[0], slot): members for slot, members in by_slot.items()}
        else:
            groups = defaultdict(list)
            for index in indexes:
                groups[delivery_ids[index], slots[index]].append(index)
        layout = cls([], [], [])
        for key, members in sorted(groups.items()):  # every writer takes slot locks in this order
            for layer in layers(members, recipients, columns.observation):
                layout.append(key, layer)
        return layout

    def append(self, key: tuple[int, int], indexes: list[int]) -> None:
        """Adds a layer."""
        self.keys.append(key)
        self.indexes += indexes
        self.ends.append(len(self.indexes))

    def key_columns(self) -> tuple[list[int], list[int]]:
        """Deliveries and slots of the layers."""
        return [key[0] for key in self.keys], [key[1] for key in self.keys]

    def only(self, recipients: list[int], wanted: set[tuple[int, int]]) -> "_Layout":
        """The part of it that is in `wanted`, a set of (layer, recipient), layers counted from 0."""
        part = _Layout([], [], [])
        begin = 0
        for layer, (key, end) in enumerate(zip(self.keys, self.ends, strict=True)):
            chosen = [i for i in self.indexes[begin:end] if (layer, recipients[i]) in wanted]
            if chosen:
                part.append(key, chosen)
            begin = end
        return part


class _Budget:
    """Bounds what is pending in this process: beyond it, callers wait, and with them the streams that they serve."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._freed = asyncio.Condition()

    def take(self, amount: int) -> "_Share":
        return _Share(self, amount)

    async def acquire(self, amount: int) -> None:
        async with self._freed:
            # Whoever asks for more than there is at all goes alone.
            await self._freed.wait_for(lambda: self._taken == 0 or self._taken + amount <= self._limit)
            self._taken += amount

    async def release(self, amount: int) -> None:
        async with self._freed:
            self._taken -= amount
            self._freed.notify_all()


@dataclass(frozen=True, slots=True)
class _Share:
    budget: _Budget
    amount: int

    async def __aenter__(self) -> None:
        await self.budget.acquire(self.amount)

    async def __aexit__(self, *_: object) -> None:
        await self.budget.release(self.amount)
