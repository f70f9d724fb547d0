"""The command line: what is refused before anything is called, and how."""

from pathlib import Path

import jwt
import pytest
from click.testing import CliRunner, Result

from campaign_cli.commands import campaign
from campaign_cli.credentials import issue_credentials
from campaign_cli.suppression import suppression


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Run":
    monkeypatch.chdir(tmp_path)
    return Run()


class Run:
    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(campaign, arguments)


def test_every_command_explains_itself(run: Run) -> None:
    for name in campaign.commands:
        result = run(name, "--help")
        assert result.exit_code == 0
        assert "Usage: " in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["kpis", "1"],
        ["watch", "1", "2"],
        ["logs", "1"],
        ["log", "1", "1"],
        ["statistics", "1"],
        ["explain", "1"],
        ["export", "1", "--output", "logs.csv"],
        ["exclusions", "1"],
        ["retry-failed", "1"],
        ["suppression", "list"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_a_running_system_a_command_says_how_to_start_one(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: nothing is running on the folder .campaign")
    assert "campaign up" in result.stderr


def test_every_command_on_suppression_lists_explains_itself(run: Run) -> None:
    for name in suppression.commands:
        result = run("suppression", name, "--help")
        assert result.exit_code == 0
        assert "Usage: " in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["suppression", "add", "list"], "Give entries"),
        (["suppression", "remove", "list", "--domains"], "Give entries"),
        (["retry-failed", "1", "--json"], "--json is for --dry-run alone"),
        (["retry-failed", "1", "--outcome", "deferred"], "--outcome"),
        (["exclusions", "1", "--cause", "weather"], "--cause"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Run, arguments: list[str], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_control_group_is_a_share(run: Run, tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("email\n")
    for share in ("0", "1", "10%"):
        result = run("send", "--recipients", "people.csv", "--subject", "s", "--text", "t", "--control-group", share)
        assert result.exit_code == 2
        assert "--control-group" in result.stderr


def test_a_folder_whose_system_was_killed_is_not_running(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / ".campaign"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "connection.json").write_text("{}")
    assert "nothing is running" in run("list").stderr


def test_a_message_without_a_body_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("email\n")
    result = run("send", "--recipients", "people.csv", "--subject", "Hello")
    assert result.exit_code == 2
    assert "--html or --text" in result.stderr


def test_a_body_file_that_is_not_there_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("email\n")
    result = run("send", "--recipients", "people.csv", "--subject", "Hello", "--html", "@missing.html")
    assert result.exit_code == 2
    assert "missing.html can't be read" in result.stderr


@pytest.mark.parametrize(
    ("option", "value"), [("--status", "lost"), ("--reason", "weather"), ("--mode", "efs"), ("--limit", "0")]
)
def test_a_filter_that_does_not_exist_is_refused(run: Run, option: str, value: str) -> None:
    result = run("logs", "1", option, value)
    assert result.exit_code == 2
    assert option in result.stderr


def test_a_token_carries_subject_and_roles(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".campaign").mkdir()
    issue_credentials(tmp_path / ".campaign")
    result = run("token", "--role", "read", "--role", "mta", "--subject", "anna")
    claims = jwt.decode(result.stdout.strip(), options={"verify_signature": False})
    assert (claims["sub"], claims["roles"]) == ("anna", ["mta", "read"])


def test_a_token_needs_the_key_of_a_folder(run: Run) -> None:
    result = run("token", "--role", "read")
    assert result.exit_code == 1
    assert "no development key" in result.stderr


def test_keys_and_tokens_are_for_their_owner_only(tmp_path: Path) -> None:
    credentials = issue_credentials(tmp_path)
    for path in (credentials.token_file("user"), credentials.public_key.with_name("development-private-key.pem")):
        assert path.stat().st_mode & 0o777 == 0o600
    key = credentials.public_key.read_bytes()
    assert issue_credentials(tmp_path).public_key.read_bytes() == key
