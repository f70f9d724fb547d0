"""`campaign qualify` on texts and mails."""

import json
from pathlib import Path

from click.testing import CliRunner

from campaign_cli.commands import campaign

BOUNCE = b"""From: MAILER-DAEMON@mx.example
To: b@bounces.example.com
Subject: failure notice

Hi. I could not deliver your message to the following address.

<anna@example.org>:
Remote host said: 550 5.1.1 No such user

"""


def test_a_text_is_qualified() -> None:
    done = CliRunner().invoke(campaign, ["qualify", "--json", "--text", "552 5.2.2 mailbox is full"])
    assert done.exit_code == 0
    (recipient,) = json.loads(done.stdout)["recipients"]
    assert (recipient["type"], recipient["reason"], recipient["smtp_code"]) == ("soft", "Mailbox full", 552)
    assert (recipient["enhanced_code"], recipient["kind"]) == ("5.2.2", "bounce")


def test_mails_are_qualified_one_json_object_a_line(tmp_path: Path) -> None:
    bounce, letter = tmp_path / "a.eml", tmp_path / "b.eml"
    bounce.write_bytes(BOUNCE)
    letter.write_bytes(b"From: anna@example.org\nSubject: Hello\n\nHello\n")

    done = CliRunner().invoke(campaign, ["qualify", "--json", str(bounce), str(letter)])

    first, second = map(json.loads, done.stdout.splitlines())
    assert first == {
        "file": str(bounce),
        "recipients": [
            {
                "address": "anna@example.org",
                "type": "hard",
                "reason": "User unknown",
                "smtp_code": 550,
                "enhanced_code": "5.1.1",
                "kind": "bounce",
            }
        ],
    }
    assert second == {"file": str(letter), "recipients": []}


def test_a_folder_and_standard_input_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(BOUNCE)
    folder = CliRunner().invoke(campaign, ["qualify", "--json", str(tmp_path)])
    piped = CliRunner().invoke(campaign, ["qualify", "--json", "-"], input=BOUNCE)
    assert json.loads(folder.stdout)["recipients"] == json.loads(piped.stdout)["recipients"] != []


def test_files_and_a_text_exclude_each_other() -> None:
    assert CliRunner().invoke(campaign, ["qualify"]).exit_code == 2


def test_for_people_it_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(BOUNCE)
    done = CliRunner().invoke(campaign, ["qualify", str(tmp_path / "a.eml")], env={"COLUMNS": "200"})
    assert "User unknown" in done.output
