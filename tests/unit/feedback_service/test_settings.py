"""The settings: their defaults, and combinations that could not work."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from feedback_service.settings import Settings

FILES: dict[str, Any] = {"token_file": Path("token"), "jwt_public_key_file": Path("key.pem")}


def test_the_defaults_are_those_of_the_documentation() -> None:
    settings = Settings(**FILES)
    assert settings.listen == "127.0.0.1:50052"
    assert settings.admin_listen == "127.0.0.1:9052"
    assert settings.delivery_target == "127.0.0.1:50051"
    assert settings.streams_max == 1_000
    assert settings.batch_size_max == 5_000
    assert settings.outstanding_batches_max == 64
    assert settings.unacked_events_max == 50_000
    assert settings.apply_batch_size_preferred == 4_000
    assert settings.flush_interval_ms == 3


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEEDBACK_STREAMS_MAX", "7")
    assert Settings(**FILES).streams_max == 7


@pytest.mark.parametrize(
    "wrong",
    [
        {"unacked_events_max": 100, "batch_size_max": 101},
        {"reconnect_seconds_min": 2.0, "reconnect_seconds_max": 1.0},
        {"drain_seconds": 11.0, "shutdown_grace_seconds": 10.0},
        {"shutdown_notice_seconds": 6.0, "drain_seconds": 5.0, "shutdown_grace_seconds": 10.0},
        {"streams_max": 0},
        {"streams_max": 1_001},
        {"batch_size_max": 5_001},
        {"outstanding_batches_max": 0},
        {"apply_batch_size_preferred": 5_001},
        {"apply_batch_bytes_max": 1},
        {"flush_interval_ms": 0},
        {"unknown": 1},
    ],
)
def test_what_could_not_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**FILES, **wrong)
