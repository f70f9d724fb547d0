"""`python -m mta_bridge` serves until SIGTERM. The only place of the bridge that reads the environment.

`python -m mta_bridge parked [NUMBER]` lists what could not be tied to a message, or prints one of them;
`python -m mta_bridge unknown` lists the messages whose connection ended between the final dot and its answer. Both read
the journal (BRIDGE_JOURNAL) of a bridge that does not run, or a copy.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is imported: its core prints disconnects otherwise

import asyncio
import json
import sqlite3
import sys
from pathlib import Path

from pydantic import ValidationError

from mta_bridge.app import App
from mta_bridge.settings import Settings
from mta_bridge.store.journal import Journal, JournalUnusable
from mta_bridge.store.parked import Parked
from service_runtime import logs, process
from service_runtime.environment import unknown_variables

LISTED_MAX = 1_000


def main() -> int:
    """The exit status: 0, or 1 with a sentence on stderr."""
    logs.configure_logs()
    match sys.argv[1:]:
        case []:
            return _serve()
        case ["unknown"] | ["parked"] | ["parked", _]:
            return _show(sys.argv[1], sys.argv[2:])
    return _refuse(f"unknown arguments {sys.argv[1:]}: give none, `unknown`, or `parked [NUMBER]`")


def _serve() -> int:
    if misspelt := unknown_variables(os.environ, "BRIDGE_", Settings.model_fields):
        return _refuse(f"there is no setting {', '.join(misspelt)}: correct or unset it")
    try:
        settings = Settings()
    except ValidationError as error:
        return _refuse(f"the environment is wrong: {error}")
    faults: list[str] = []

    async def serve(stop: asyncio.Event) -> None:
        def fault(task: str) -> None:
            faults.append(task)
            stop.set()

        app = App(settings, fault)
        await app.start()
        sys.stdout.write(json.dumps({"action": "listening", **app.addresses}) + "\n")
        sys.stdout.flush()
        process.relax_garbage_collection()
        await stop.wait()
        await app.stop()

    process.raise_open_files_limit()
    try:
        process.run(serve, use_uvloop=True)
    except (JournalUnusable, ValueError, OSError) as error:
        return _refuse(str(error))
    return 1 if faults else 0


def _show(what: str, arguments: list[str]) -> int:
    path = os.environ.get("BRIDGE_JOURNAL", "")
    if not Path(path).is_file():
        return _refuse("BRIDGE_JOURNAL names no file: set it to the journal")
    try:
        journal = Journal(path)
    except JournalUnusable as error:
        return _refuse(str(error))
    try:
        parked = Parked(journal.database, LISTED_MAX, LISTED_MAX)
        if what == "unknown":
            lines = journal.unknown()
        elif not arguments:
            lines = parked.list(LISTED_MAX)
        else:
            content = parked.content(int(arguments[0])) if arguments[0].isdigit() else None
            if content is None:
                return _refuse(f"nothing is parked under {arguments[0]}")
            sys.stdout.buffer.write(content)
            return 0
        for line in lines:
            sys.stdout.write(json.dumps(line) + "\n")
    except sqlite3.Error as error:
        return _refuse(f"{path} can't be read: {error}")
    finally:
        journal.close()
    return 0


def _refuse(sentence: str) -> int:
    sys.stderr.write(f"mta_bridge: {sentence}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
