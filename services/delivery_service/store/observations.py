"""The columns in which observations travel through this process: one list per field, never an object per event."""

from dataclasses import dataclass, field, fields
from typing import Any

from delivery_service.domain.outcome import FAILING, Observation
from delivery_service.store import array_literals


@dataclass(slots=True)
class ObservationColumns:
    """Status observations, one entry per column and observation. Equal lengths; no None."""

    delivery_ids: list[int] = field(default_factory=list)
    recipients: list[int] = field(default_factory=list)
    outcomes: list[int] = field(default_factory=list)
    event_times_us: list[int] = field(default_factory=list)
    failure_types: list[int] = field(default_factory=list)
    reasons: list[int] = field(default_factory=list)
    smtp_codes: list[int] = field(default_factory=list)
    enhanced_codes: list[str] = field(default_factory=list)
    diagnostics: list[str] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    rules_versions: list[int] = field(default_factory=list)

    @classmethod
    def without_detail(
        cls, delivery_id: int, recipients: list[int], outcome: int, event_times_us: list[int]
    ) -> "ObservationColumns":
        """The same outcome for messages of one delivery, and nothing more to say about any."""
        columns = cls([delivery_id] * len(recipients), recipients, [outcome] * len(recipients), event_times_us)
        for column, zero in zip(columns._columns()[4:], (0, 0, 0, "", "", 0, 0), strict=True):
            column += [zero] * len(recipients)
        return columns

    def __len__(self) -> int:
        return len(self.recipients)

    @property
    def is_of_one_delivery(self) -> bool:
        """Whether all are of the same delivery. There is at least one."""
        return self.delivery_ids.count(self.delivery_ids[0]) == len(self)

    def normalise(self) -> None:
        """Blanks type, reason and text where nothing failed (domain.outcome.normalise, for columns)."""
        types, reasons, diagnostics = self.failure_types, self.reasons, self.diagnostics
        rows = zip(types, reasons, diagnostics, strict=True)
        told = [i for i, (type_, reason, text) in enumerate(rows) if type_ or reason or text]
        for index in told:
            if self.outcomes[index] not in FAILING:
                types[index] = reasons[index] = 0
                diagnostics[index] = ""

    def observation(self, index: int) -> Observation:
        """One of them, in the form that is compared."""
        return Observation(
            self.outcomes[index],
            self.event_times_us[index],
            self.failure_types[index],
            self.reasons[index],
            self.smtp_codes[index],
            self.enhanced_codes[index],
            self.diagnostics[index],
            self.attempts[index],
        )

    def take(self, indexes: list[int]) -> "ObservationColumns":
        """These of them: new columns, or these themselves if that is all of them."""
        if len(indexes) == len(self) and indexes == list(range(len(self))):
            return self
        return ObservationColumns(*([column[i] for i in indexes] for column in self._columns()))

    def statement_values(self) -> tuple[str, ...]:
        """The columns as the statements of the apply path take them: literals, without the deliveries, empty if all
        are zero."""
        _, *columns = self._columns()
        return tuple(_literal(column) for column in columns)

    def layer_values(self, ends: list[int]) -> tuple[str, ...]:
        """The same for each layer by itself: of a column, the literal of an array with a literal for each layer."""
        _, *columns = self._columns()
        bounds = list(zip([0, *ends], ends, strict=False))
        return tuple(
            array_literals.texts([_literal(column[begin:end]) for begin, end in bounds])
            if any(column)
            else array_literals.EMPTY
            for column in columns
        )

    def extend(self, other: "ObservationColumns") -> None:
        """Appends all of the other's."""
        for column, more in zip(self._columns(), other._columns(), strict=True):
            column.extend(more)

    def _columns(self) -> list[list[Any]]:
        return [getattr(self, name) for name in _NAMES]


def _literal(column: list[Any]) -> str:
    if not any(column):
        return array_literals.EMPTY
    return array_literals.texts(column) if isinstance(column[0], str) else array_literals.integers(column)


_NAMES = [column.name for column in fields(ObservationColumns)]
