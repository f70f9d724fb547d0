"""Rules of the architecture that import-linter cannot see: who reads the environment, and who reads a clock."""

import ast
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

SERVICES = Path(__file__).resolve().parents[2] / "services"
GENERATED = "campaign"
READ_THE_ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}
READ_A_CLOCK = {"now", "utcnow", "today"}


def test_only_main_modules_and_the_command_read_the_environment() -> None:
    modules = [path for path in hand_written() if path.name != "__main__.py" and "campaign_cli" not in path.parts]
    assert offences(modules, reads_the_environment) == []


def test_a_domain_reads_no_clock() -> None:
    modules = [path for path in hand_written() if "domain" in path.parts]
    assert modules
    assert offences(modules, reads_a_clock) == []


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.environ['A']",
        "import os\nos.getenv('A')",
        "from os import environ",
        "from os import getenv as get",
    ],
)
def test_reading_the_environment_is_seen(source: str) -> None:
    assert any(map(reads_the_environment, ast.walk(ast.parse(source))))


@pytest.mark.parametrize(
    "source",
    ["import time", "from time import monotonic", "datetime.now(UTC)", "datetime.datetime.utcnow()", "date.today()"],
)
def test_reading_a_clock_is_seen(source: str) -> None:
    assert any(map(reads_a_clock, ast.walk(ast.parse(source))))


def reads_the_environment(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id="os"), attr=name):
            return name in READ_THE_ENVIRONMENT
        case ast.ImportFrom(module="os", names=names):
            return any(alias.name in READ_THE_ENVIRONMENT for alias in names)
    return False


def reads_a_clock(node: ast.AST) -> bool:
    match node:
        case ast.Import(names=names):
            return any(alias.name == "time" for alias in names)
        case ast.ImportFrom(module="time"):
            return True
        case ast.Attribute(value=ast.Name() | ast.Attribute(), attr=name):
            return name in READ_A_CLOCK
    return False


def hand_written() -> Iterator[Path]:
    return (path for path in SERVICES.rglob("*.py") if path.relative_to(SERVICES).parts[0] != GENERATED)


def offences(modules: Iterable[Path], is_one: Callable[[ast.AST], bool]) -> list[str]:
    return sorted(
        f"{path.relative_to(SERVICES)}:{getattr(node, 'lineno', 0)}"
        for path in modules
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if is_one(node)
    )
