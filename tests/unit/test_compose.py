"""The compose file and the Dockerfile, as far as they can be checked without an engine."""

import ast
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from delivery_service.settings import Settings as DeliverySettings
from feedback_service.settings import Settings as FeedbackSettings
from mta_simulator.__main__ import main as simulator

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
LONG_RUNNING = ["postgres", "delivery", "feedback", "simulator"]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")

POSTGRES_VARIABLES = {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"}


def known_variables() -> set[str]:
    """What any of our processes reads."""
    known = {
        f"{settings.model_config['env_prefix']}{name.upper()}"
        for settings in (DeliverySettings, FeedbackSettings)
        for name in settings.model_fields
    }
    return known | {f"MTA_SIMULATOR_{(option.name or '').upper()}" for option in simulator.params}


def required_variables(prefix: str) -> set[str]:
    """What a process does not start without."""
    if prefix == "MTA_SIMULATOR_":
        return {f"{prefix}{(option.name or '').upper()}" for option in simulator.params if option.required}
    settings = DeliverySettings if prefix == "DELIVERY_" else FeedbackSettings
    return {f"{prefix}{name.upper()}" for name, field in settings.model_fields.items() if field.is_required()}


def modules_of(words: list[str]) -> Iterator[str]:
    """The modules that a command runs, or imports with `-c`."""
    if words[:2] == ["python", "-m"]:
        yield words[2]
    elif words[:2] == ["python", "-c"]:
        for node in ast.walk(ast.parse(words[2])):
            if isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
            elif isinstance(node, ast.Import):
                yield from (name.name for name in node.names)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_variable_is_one_that_is_read(name: str) -> None:
    variables = set(SERVICES[name].get("environment", {}))
    known = POSTGRES_VARIABLES if name == "postgres" else known_variables()
    assert variables - known == set()


@pytest.mark.parametrize(
    ("name", "prefix"), [("delivery", "DELIVERY_"), ("feedback", "FEEDBACK_"), ("simulator", "MTA_SIMULATOR_")]
)
def test_every_variable_that_is_required_is_set(name: str, prefix: str) -> None:
    assert required_variables(prefix) - set(SERVICES[name]["environment"]) == set()


@pytest.mark.parametrize("settings", [("delivery", DeliverySettings), ("feedback", FeedbackSettings)])
def test_the_values_are_ones_that_the_settings_take(
    settings: tuple[str, type[DeliverySettings] | type[FeedbackSettings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, kind = settings
    for variable, value in SERVICES[name]["environment"].items():
        assert isinstance(value, str), f"{variable}: quote it"
        monkeypatch.setenv(variable, value)
    kind()


@pytest.mark.parametrize("name", OURS)
def test_every_command_runs_modules_that_exist(name: str) -> None:
    modules = list(modules_of(SERVICES[name]["command"]))
    assert modules
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


def test_the_keys_are_made_by_a_function_that_exists_where_the_services_look_for_them() -> None:
    from campaign_cli.credentials import SERVICE_ROLES, issue_credentials
    from service_runtime.development_keys import PUBLIC_KEY_FILE

    assert issue_credentials.__name__ in SERVICES["keys"]["command"][2]
    for name, holder in (("delivery", "delivery"), ("feedback", "feedback"), ("simulator", "mta")):
        assert holder in SERVICE_ROLES
        values = set(SERVICES[name]["environment"].values())
        assert {f"/credentials/tokens/{holder}.jwt", f"/credentials/keys/{PUBLIC_KEY_FILE}"} <= values
        assert "credentials:/credentials:ro" in SERVICES[name]["volumes"]


def test_every_image_is_pinned() -> None:
    images = [service["image"] for service in SERVICES.values()]
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(set(bases)) == 1
    for image in [*images, *bases]:
        name, _, tag = image.partition(":")
        assert name
        assert re.match(r"\d", tag), f"{image}: give a version"
        assert "latest" not in tag


def test_the_python_of_the_image_is_one_that_the_project_supports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    minimum = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    found = re.search(r"^FROM python:(\d+)\.(\d+)", DOCKERFILE, re.MULTILINE)
    assert found is not None
    assert (int(found[1]), int(found[2])) >= minimum
    assert all(service["image"].endswith(f":{project['version']}") for service in map(SERVICES.get, OURS) if service)


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_what_runs_on_has_a_health_check_a_grace_and_is_started_again(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert service["stop_grace_period"]


@pytest.mark.parametrize("name", ["delivery", "feedback"])
def test_readiness_is_asked_where_it_is_served(name: str) -> None:
    service = SERVICES[name]
    (address,) = (value for key, value in service["environment"].items() if key.endswith("_ADMIN_LISTEN"))
    check = service["healthcheck"]["test"][-1]
    assert f"http://127.0.0.1:{address.rpartition(':')[2]}/readyz" in check
    ast.parse(check)


def test_a_stop_leaves_the_services_more_than_their_own_grace() -> None:
    for name, settings in (("delivery", DeliverySettings), ("feedback", FeedbackSettings)):
        grace_seconds = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
        assert grace_seconds > settings.model_fields["shutdown_grace_seconds"].default + 10


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_dependencies_and_addresses_name_services_that_exist(name: str) -> None:
    service = SERVICES[name]
    assert set(service.get("depends_on", {})) <= SERVICES.keys()
    for key, value in service.get("environment", {}).items():
        if key.endswith("_TARGET"):
            host, _, port = value.rpartition("/")[2].partition(":")
            listens = [v for k, v in SERVICES[host]["environment"].items() if k.endswith("_LISTEN")]
            assert f"0.0.0.0:{port}" in listens, f"{key} leads nowhere"


def test_the_migration_ends_before_anything_serves_and_ports_stay_on_this_machine() -> None:
    assert SERVICES["delivery"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:50051:50051"]


def test_the_image_runs_as_nobody_special_without_development_tools() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER (?!root|0)\w+$", final, re.MULTILINE)
    assert "apt-get" not in DOCKERFILE
    assert all("--no-dev" in line for line in DOCKERFILE.splitlines() if "uv sync" in line)
    assert all("--frozen" in line for line in DOCKERFILE.splitlines() if "uv sync" in line)


def test_what_the_image_is_built_from_is_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()}
    assert copied <= allowed
