"""Postgres as one more process of the stack: `python -m campaign_cli.postgres FOLDER` runs it until SIGTERM.

A process of its own, so that it starts and stops like the others, and does not stay behind when the command is killed.
"""

import json
import signal
import sys
from pathlib import Path

from service_runtime.embedded_postgres import DURABLE, EmbeddedPostgres, PostgresUnavailable


def main(folder: Path) -> None:
    signals = {signal.SIGTERM, signal.SIGINT}
    # Blocked before the start, so that none interrupts it half-way: a signal waits until we wait for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        with EmbeddedPostgres(folder, DURABLE) as postgres:
            print(json.dumps({"action": "listening", "address": postgres.dsn}), flush=True)
            signal.sigwait(signals)
    except PostgresUnavailable as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
