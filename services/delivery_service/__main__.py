"""`python -m delivery_service` serves; `python -m delivery_service migrate` brings the database up to date.

The only place of this service that reads the environment.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is imported: its core prints disconnects otherwise

import asyncio
import json
import sys

from pydantic import ValidationError

from delivery_service.settings import Settings
from delivery_service.store.database import SchemaOutdated
from delivery_service.store.migrate import migrate
from service_runtime import logs, process
from service_runtime.environment import unknown_variables


def main() -> int:
    """The exit status: 0, or 1 with a sentence on stderr."""
    logs.configure_logs()
    if sys.argv[1:] == ["migrate"]:
        url = os.environ.get("DELIVERY_DATABASE_URL", "")
        if not url:
            return _refuse("DELIVERY_DATABASE_URL is not set: give the database to migrate")
        version = asyncio.run(migrate(url))
        _tell({"action": "migrated", "version": version})
        return 0
    if sys.argv[1:]:
        return _refuse(f"unknown arguments {sys.argv[1:]}: give none to serve, or migrate")
    if misspelt := unknown_variables(os.environ, "DELIVERY_", Settings.model_fields):
        return _refuse(f"there is no setting {', '.join(misspelt)}: correct or unset it")
    try:
        settings = Settings()
    except ValidationError as error:
        return _refuse(f"the environment is wrong: {error}")
    faults: list[str] = []

    # Here, since it brings gRPC and half the world along: `migrate` needs none of it.
    from delivery_service.app import App

    async def serve(stop: asyncio.Event) -> None:
        def fault(task: str) -> None:
            faults.append(task)
            stop.set()

        app = App(settings, fault)
        await app.start()
        assert app.server is not None
        assert app.admin is not None
        _tell(
            {
                "action": "listening",
                "address": f"{settings.listen.rpartition(':')[0]}:{app.server.port}",
                "admin_address": f"{settings.admin_listen.rpartition(':')[0]}:{app.admin.port}",
            }
        )
        process.relax_garbage_collection()
        await stop.wait()
        await app.stop()

    process.raise_open_files_limit()
    try:
        process.run(serve)
    except SchemaOutdated as error:
        return _refuse(str(error))
    return 1 if faults else 0


def _tell(fact: dict[str, object]) -> None:
    """One JSON line on stdout, for whoever started this process."""
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


def _refuse(sentence: str) -> int:
    sys.stderr.write(f"delivery_service: {sentence}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
