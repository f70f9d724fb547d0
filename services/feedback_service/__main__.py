"""`python -m feedback_service` serves until SIGTERM. The only place of this service that reads the environment."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is imported: its core prints disconnects otherwise

import asyncio
import json
import sys

from pydantic import ValidationError

from feedback_service.app import App
from feedback_service.settings import Settings
from service_runtime import logs, process
from service_runtime.environment import unknown_variables


def main() -> int:
    """The exit status: 0, or 1 with a sentence on stderr."""
    logs.configure_logs()
    if sys.argv[1:]:
        return _refuse(f"unknown arguments {sys.argv[1:]}: give none")
    if misspelt := unknown_variables(os.environ, "FEEDBACK_", Settings.model_fields):
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
        line = {"action": "listening", "address": app.address, "admin_address": app.admin_address}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        process.relax_garbage_collection()
        await stop.wait()
        await app.stop()

    process.raise_open_files_limit()
    process.run(serve)
    return 1 if faults else 0


def _refuse(sentence: str) -> int:
    sys.stderr.write(f"feedback_service: {sentence}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
