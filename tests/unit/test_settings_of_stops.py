"""The notice of a stop is part of its grace: no service takes one that would leave nothing of it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from delivery_service.settings import Settings as DeliverySettings
from mta_bridge.settings import Settings as BridgeSettings

KEYS: dict[str, Any] = {"token_file": Path("token"), "jwt_public_key_file": Path("key.pem")}
DELIVERY = {**KEYS, "database_url": "postgresql://"}
BRIDGE = {**KEYS, "journal": Path("journal"), "bounce_domain": "bounces.example", "token_key_file": Path("key")}


@pytest.mark.parametrize(("settings", "required"), [(DeliverySettings, DELIVERY), (BridgeSettings, BRIDGE)])
def test_a_notice_as_long_as_the_grace_is_refused(settings: type[BaseSettings], required: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="shutdown_grace_seconds is not above shutdown_notice_seconds"):
        settings(**required, shutdown_notice_seconds=5.0, shutdown_grace_seconds=5.0)
