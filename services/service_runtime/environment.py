"""Checks on the environment that settings are read from."""

from collections.abc import Iterable, Mapping


def unknown_variables(environment: Mapping[str, str], prefix: str, names: Iterable[str]) -> list[str]:
    """The variables that begin with `prefix` and belong to no setting: most likely misspelt, and so without effect."""
    known = {f"{prefix}{name}".upper() for name in names}
    return sorted(
        variable for variable in environment if variable.upper().startswith(prefix) and variable.upper() not in known
    )
