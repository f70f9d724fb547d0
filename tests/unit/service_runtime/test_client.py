import json
import os
from pathlib import Path

import pytest

from service_runtime.client import StaticToken, TokenFile, client_options, service_config


def test_a_token_file_is_read_again_only_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    os.utime(path, ns=(1, 1))
    source = TokenFile(path)
    assert source.token() == "first"
    path.write_text("other\n")  # as long as before, in the same file: only the time tells
    os.utime(path, ns=(1, 1))
    assert source.token() == "first"
    os.utime(path, ns=(2, 2))
    assert source.token() == "other"


def test_a_token_file_replaced_in_one_step_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    source = TokenFile(path)
    assert source.token() == "first"
    renewed = tmp_path / "renewed"
    renewed.write_text("again")
    status = path.stat()
    os.utime(renewed, ns=(status.st_atime_ns, status.st_mtime_ns))
    renewed.replace(path)
    assert source.token() == "again"


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\x00"])
def test_a_token_file_without_a_token_says_so_as_one_that_can_not_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(OSError, match="is empty, or no text"):
        TokenFile(tmp_path / "token").token()


def test_a_static_token_never_changes() -> None:
    assert StaticToken("t").token() == "t"


def test_only_the_methods_named_are_retried() -> None:
    assert "methodConfig" not in json.loads(service_config({}))
    (entry,) = json.loads(service_config({"a.v1.A": ["Get", "List"]}))["methodConfig"]
    assert entry["name"] == [{"service": "a.v1.A", "method": "Get"}, {"service": "a.v1.A", "method": "List"}]


def test_clients_notice_a_dead_peer_within_half_a_minute() -> None:
    options = dict(client_options({}))
    assert options["grpc.keepalive_time_ms"] + options["grpc.http2.ping_timeout_ms"] <= 30_000
