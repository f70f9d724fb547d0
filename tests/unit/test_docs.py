"""The documents keep up with the code: whatever can be set, counted or answered is documented, and links lead on."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from campaign.delivery.v1.address_health_service_pb2 import DESCRIPTOR as ADDRESS_HEALTH_FILE
from campaign.delivery.v1.delivery_service_pb2 import DESCRIPTOR as DELIVERY_FILE
from campaign.delivery.v1.error_reason_pb2 import ErrorReason
from campaign.delivery.v1.observation_service_pb2 import DESCRIPTOR as OBSERVATION_FILE
from campaign.delivery.v1.requalification_service_pb2 import DESCRIPTOR as REQUALIFICATION_FILE
from campaign.feedback.v1.feedback_service_pb2 import DESCRIPTOR as FEEDBACK_FILE
from campaign.feedback.v1.qualification_service_pb2 import DESCRIPTOR as QUALIFICATION_FILE
from campaign.mta.v1.relay_service_pb2 import DESCRIPTOR as RELAY_FILE
from delivery_service.metrics import Metrics
from delivery_service.settings import Settings as DeliverySettings
from feedback_service.metrics import FeedbackMetrics
from feedback_service.settings import Settings as FeedbackSettings
from mta_bridge.metrics import BridgeMetrics
from mta_bridge.settings import Settings as BridgeSettings
from mta_simulator.__main__ import main as simulator
from mta_simulator.script import TAGS
from service_runtime.calls import CallMetrics

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINE_CHARACTERS_MAX = 120

_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_TEST_ID = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_FILE = re.compile(r"`((?:services|tests|protos|scripts|docs)/[\w/.-]+\.\w+)(?:::\w+)?`")
_REASON_PREFIX = "ERROR_REASON_"


@pytest.mark.parametrize(
    ("settings", "page"),
    [(DeliverySettings, "operations.md"), (FeedbackSettings, "operations.md"), (BridgeSettings, "mta-bridge.md")],
    ids=["delivery", "feedback", "bridge"],
)
def test_every_setting_is_documented_with_its_default(settings: type[BaseSettings], page: str) -> None:
    rows = table_rows(page)
    prefix = settings.model_config["env_prefix"]
    for name, field in settings.model_fields.items():
        variable = f"{prefix}{name.upper()}"
        assert variable in rows, f"{variable} has no row in docs/{page}"
        default = rows[variable][0].strip("`")
        if field.is_required():
            assert default == "*required*", variable
        elif field.default is None:
            assert default == "*none*", variable
        elif isinstance(field.default, bool):
            assert default == ("on" if field.default else "off"), variable
        elif isinstance(field.default, SecretStr):
            assert default == "*empty*", variable
        elif isinstance(field.default, str):
            assert default == (field.default or "*empty*"), variable
        else:
            assert float(default.replace(",", "")) == float(field.default), variable


def test_no_setting_is_documented_that_does_not_exist() -> None:
    known = {
        f"{settings.model_config['env_prefix']}{name.upper()}"
        for settings in (DeliverySettings, FeedbackSettings, BridgeSettings)
        for name in settings.model_fields
    }
    told = {
        word
        for page in PAGES
        for word in re.findall(r"\b(?:DELIVERY|FEEDBACK|BRIDGE)_[A-Z_]+\b", page.read_text("utf-8"))
    }
    enum_values = {value for value in told if value.startswith(("DELIVERY_STATE", "FEEDBACK_MODE", "FEEDBACK_SILENT"))}
    reasons = set(reason_names())
    assert told - known - enum_values - reasons == set()


def test_every_option_of_the_simulator_is_documented() -> None:
    page = read("operations.md")
    for option in simulator.params:
        assert f"`{option.opts[0]}`" in page, option.opts[0]


def test_every_tag_of_the_simulator_is_documented() -> None:
    page = read("mta-side.md")
    assert [tag for tag in TAGS if f"+{tag}@" not in page] == []


def test_every_metric_is_documented() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    FeedbackMetrics(registry)
    BridgeMetrics(registry)
    CallMetrics(registry)
    names = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in registry.collect()
        if not family.name.endswith("_created")
    }
    assert names
    rows = table_rows("operations.md") | table_rows("mta-bridge.md")
    assert sorted(names - rows.keys()) == []
    told = {name for name in rows if re.match(r"(bridge|delivery|feedback|grpc_server)_[a-z_]+$", name)}
    assert sorted(told - names) == []


def test_every_error_reason_is_documented() -> None:
    rows = table_rows("errors.md")
    assert [name for name in reason_names() if name not in rows] == []


def test_every_rpc_has_a_row_among_the_errors() -> None:
    rows = table_rows("errors.md")
    rpcs = [
        method.name
        for file in (
            DELIVERY_FILE,
            ADDRESS_HEALTH_FILE,
            OBSERVATION_FILE,
            REQUALIFICATION_FILE,
            FEEDBACK_FILE,
            QUALIFICATION_FILE,
            RELAY_FILE,
        )
        for service in file.services_by_name.values()
        for method in service.methods
    ]
    assert [name for name in rpcs if name not in rows] == []


def test_every_guarantee_names_tests_that_exist() -> None:
    ids = _TEST_ID.findall(read("guarantees.md"))
    assert len(ids) > 30
    assert [f"{file}::{name}" for file, name in ids if name not in names_of_tests_in(ROOT / file)] == []


def test_every_row_of_the_guarantees_names_a_test() -> None:
    rows = [line for line in read("guarantees.md").splitlines() if line.startswith("| ")]
    promises = [line for line in rows if not line.startswith(("| promise", "| ---"))]
    assert [line for line in promises if not _TEST_ID.search(line)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_and_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    assert [file for file in _FILE.findall(text) if not (ROOT / file).is_file()] == []
    for target, anchor in _LINK.findall(text):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(path), f"{target} has no section {anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_lines_of_a_page_are_wrapped(page: Path) -> None:
    long = [line for line in prose(page.read_text("utf-8")) if len(line) > LINE_CHARACTERS_MAX]
    assert long == []


@cache
def read(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def table_rows(name: str) -> dict[str, list[str]]:
    """The rows of all tables whose first cell is code: that code, to the other cells."""
    rows: dict[str, list[str]] = {}
    for line in read(name).splitlines():
        if match := re.match(r"\| `([\w.]+)` \| (.*) \|$", line):
            rows.setdefault(match[1], [cell.strip() for cell in match[2].split(" | ")])
    return rows


def reason_names() -> list[str]:
    """The reasons that callers can meet, as they are spelled in ErrorInfo."""
    return [name.removeprefix(_REASON_PREFIX) for name, number in ErrorReason.items() if number]


@cache
def names_of_tests_in(path: Path) -> frozenset[str]:
    """The test functions of a file; none if there is no such file."""
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text("utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def anchors(path: Path) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def prose(text: str) -> list[str]:
    """The lines that can be wrapped: neither code nor tables."""
    lines, in_code = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code and not line.startswith(("|", "    ")):
            lines.append(line)
    return lines
