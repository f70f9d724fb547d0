"""Where the parts of the system listen on this machine."""

import random
import socket
from dataclasses import asdict, dataclass
from typing import Self

from campaign_cli.errors import CommandFailed

FREE_PORTS = range(20_000, 32_000)
"""Below the ports that systems give to outgoing connections: one found free here stays so until it is used."""
TRIES_MAX = 100


@dataclass(frozen=True, slots=True)
class Ports:
    """One port of the loopback interface for each server; 0 is any free one."""

    delivery: int = 0
    delivery_admin: int = 0
    feedback: int = 0
    feedback_admin: int = 0
    mta: int = 0

    def chosen(self) -> Self:
        """The same with a free port for each 0; `CommandFailed` if a wanted one is taken.

        Chosen before the servers start: they form a ring, and each must know where the next one will be.
        """
        taken: set[int] = set()
        found: dict[str, int] = {}
        for name, wanted in asdict(self).items():
            if wanted and (wanted in taken or not _is_free(wanted)):
                hint = f"choose another with --port-{name.replace('_', '-')}, or 0 for any free one"
                raise CommandFailed(f"port {wanted} is in use", [hint])
            found[name] = wanted or _find_free(taken)
            taken.add(found[name])
        return type(self)(**found)


def local(port: int) -> str:
    """The address of a port of the loopback interface."""
    return f"127.0.0.1:{port}"


def free_ports(count: int) -> list[int]:
    """So many free ports."""
    taken: set[int] = set()
    for _ in range(count):
        taken.add(_find_free(taken))
    return sorted(taken)


def _find_free(taken: set[int]) -> int:
    for port in random.sample(FREE_PORTS, TRIES_MAX):
        if port not in taken and _is_free(port):
            return port
    raise CommandFailed("no free port was found", [f"tried {TRIES_MAX} between {FREE_PORTS[0]} and {FREE_PORTS[-1]}"])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: what a server that has just ended left behind does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
