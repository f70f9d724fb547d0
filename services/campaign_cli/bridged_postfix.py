"""The MTA side as it is in earnest: the bridge, a Postfix of its own, and a scripted sink behind it, on loopback."""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from campaign_cli.connection import write_private
from campaign_cli.credentials import Credentials
from campaign_cli.ports import Ports, free_ports, local
from campaign_cli.postfix import BOUNCE_DOMAIN, Postfix, PostfixOptions, as_argument, check_installed
from campaign_cli.processes import Child, Report

FeedbackWay: TypeAlias = Literal["dsn", "log", "both"]
"""How Postfix's reports come back: by mail to the bounce mailbox, by its log, or both."""
WAYS: Final[tuple[FeedbackWay, ...]] = ("dsn", "log", "both")

GRACE_SECONDS: Final = 30.0
HOSTNAME: Final = "mta.campaign.test"
_NOTIFY: Final[Mapping[FeedbackWay, str]] = {
    "dsn": "success,failure,delay",
    "log": "never",
    "both": "success,failure,delay",
}


class BridgedPostfix:
    """Starts the three, in the order in which each finds the next."""

    def __init__(
        self,
        folder: Path,
        way: FeedbackWay,
        ports: Ports,
        credentials: Credentials,
        start: Callable[..., Awaitable[Child]],
        tell: Callable[[str], None],
    ) -> None:
        check_installed()
        self._folder = folder
        self._start = start
        self._tell = tell
        self.smtp_port, self.bounce_port, self.sink_port = free_ports(3)
        self.postfix = Postfix(
            PostfixOptions(str(folder / "postfix"), self.smtp_port, self.sink_port, self.bounce_port, HOSTNAME)
        )
        self._environment = bridge_environment(
            folder, way, local(ports.mta), local(ports.feedback), credentials, self.postfix
        )

    async def start_all(self, exits: AsyncExitStack, on_sink_report: Callable[[Report], None] | None) -> list[Child]:
        """Starts them; their stops are added to `exits`."""
        self._tell("Postfix")
        sink = await self._start("mail_sink", "campaign_cli.mail_sink", [str(self.sink_port)], on_report=on_sink_report)
        exits.push_async_callback(sink.stop, GRACE_SECONDS)
        postfix = await self._start("postfix", "campaign_cli.postfix", [as_argument(self.postfix.options)])
        exits.push_async_callback(postfix.stop, GRACE_SECONDS)
        bridge = await self._start("mta_bridge", "mta_bridge", environment=self._environment)
        exits.push_async_callback(bridge.stop, GRACE_SECONDS)
        return [sink, postfix, bridge]


def bridge_environment(
    folder: Path,
    way: FeedbackWay,
    listen: str,
    feedback_target: str,
    credentials: Credentials,
    postfix: Postfix,
    **changes: Any,
) -> dict[str, str]:
    """The bridge's settings in front of a Postfix of ours. `changes`: settings by name, in small letters."""
    key = folder / "bridge-token-key"
    if not key.exists():
        write_private(key, secrets.token_urlsafe(32))
    settings: dict[str, Any] = {
        "listen": listen,
        "admin_listen": "127.0.0.1:0",
        "feedback_target": feedback_target,
        "token_file": credentials.token_file("mta"),
        "jwt_public_key_file": credentials.public_key,
        "journal": folder / "bridge-journal.sqlite",
        "token_key_file": key,
        "bounce_domain": BOUNCE_DOMAIN,
        "mta_hostnames": postfix.options.hostname,
        "smtp_port": postfix.options.port,
        "dsn_notify": _NOTIFY[way],
        "expire_command": postfix.expire_command,
        **({"bounce_listen": local(postfix.options.bounce_port)} if way != "log" else {}),
        **({"postfix_log": postfix.log} if way != "dsn" else {}),
        **changes,
    }
    return {f"BRIDGE_{name.upper()}": str(value) for name, value in settings.items()}
