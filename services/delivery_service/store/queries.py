"""The SQL of the store: every query is named, commented, and lives in a file under `sql/`.

A file is a sequence of `-- name: query_name` lines, each followed by its query and ended by the next name.
"""

import re
from functools import cache
from importlib.resources import files
from typing import Final, LiteralString, cast

_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def queries() -> dict[str, LiteralString]:
    """All queries by name. Two of the same name are a defect."""
    found: dict[str, LiteralString] = {}
    for file in sorted(files("delivery_service.store").joinpath("sql").iterdir(), key=lambda entry: entry.name):
        _, *parts = _NAME.split(file.read_text(encoding="utf-8"))
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            if name in found:
                raise ValueError(f"query {name!r} in {file.name} exists already")
            found[name] = cast(LiteralString, body.strip().rstrip(";"))
    return found


def query(name: str) -> LiteralString:
    """One query by its name."""
    return queries()[name]
