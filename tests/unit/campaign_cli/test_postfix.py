"""What `campaign up --mta postfix` says where Postfix can't be run."""

import os
import shutil

import pytest

from campaign_cli import postfix
from campaign_cli.errors import CommandFailed


def test_a_missing_postfix_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postfix, "SYSTEM_PATH", os.devnull)
    with pytest.raises(CommandFailed, match="Postfix is not installed") as raised:
        postfix.check_installed()
    assert "apt-get install postfix" in raised.value.details[0]


def test_a_postfix_that_somebody_else_must_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_options: "/usr/sbin/postfix")
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    with pytest.raises(CommandFailed, match="must be started by root"):
        postfix.check_installed()
