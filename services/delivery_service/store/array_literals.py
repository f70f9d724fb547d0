"""Columns as Postgres's own text for arrays, for statements that take thousands of values at once.

The driver asks of every element of a list whether it is a list itself, which costs four times as much as this text and
its reading in Postgres together. A statement takes one as `$1::text::integer[]`.
"""

from collections.abc import Sequence
from typing import Final

EMPTY: Final = "{}"


def integers(values: Sequence[int]) -> str:
    """The literal of an integer array of any width."""
    return f"{{{('%d,' * len(values) % tuple(values))[:-1]}}}"


def texts(values: Sequence[str]) -> str:
    """The literal of a text array. Each different text is quoted once: columns of codes have few."""
    quoted = {text: _quoted(text) for text in set(values)}
    return f"{{{','.join([quoted[text] for text in values])}}}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
