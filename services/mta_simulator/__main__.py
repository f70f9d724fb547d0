"""`python -m mta_simulator`: the command, and the only place that reads the environment.

Every option can also be given as MTA_SIMULATOR_<OPTION>, e.g. MTA_SIMULATOR_SEED=7.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is imported: its core writes to stderr by itself

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from mta_side.status_stream import BACKOFF_SECONDS
from mta_simulator.app import Settings, read_public_key, running
from mta_simulator.journal import IN_MEMORY, JournalUnusable
from mta_simulator.misbehaviour import MisbehaviourOptions
from mta_simulator.playback import PENDING_EVENTS_MAX
from mta_simulator.script import ScriptOptions
from service_runtime import process
from service_runtime.client import TokenFile
from service_runtime.logs import configure_logs

SHARE = click.FloatRange(0, 1)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
SCRIPT, MISBEHAVIOUR = ScriptOptions(), MisbehaviourOptions()


@click.command(context_settings={"auto_envvar_prefix": "MTA_SIMULATOR", "show_default": True})
@click.option("--listen", default="127.0.0.1:50053", help="Where RelayService listens; port 0: any free one.")
@click.option("--feedback-target", default="127.0.0.1:50052", help="Where FeedbackService is.")
@click.option("--token-file", type=FILE, required=True, help="The bearer token for StreamStatus; needs the role mta.")
@click.option("--jwt-public-key-file", type=FILE, required=True, help="Verifies who relays; they need the role relay.")
@click.option("--streams", type=click.IntRange(1, 100), default=3, help="Feedback streams at the same time.")
@click.option("--source-id", default="mta-simulator", help="Names the MTA; each stream adds its number.")
@click.option("--journal", default=IN_MEMORY, help="The SQLite file that answers repetitions across restarts.")
@click.option(
    "--pending-events-max",
    type=click.IntRange(1),
    default=PENDING_EVENTS_MAX,
    help="Events not acknowledged yet; beyond it the relay takes nothing more.",
)
@click.option(
    "--reconnect-seconds-max",
    type=click.FloatRange(0, min_open=True),
    default=BACKOFF_SECONDS[1],
    help="The largest ceiling of the jittered wait before a feedback stream is opened again.",
)
@click.option("--seed", default=SCRIPT.seed, help="Same seed, same address: same fate.")
@click.option("--time-scale", type=click.FloatRange(0), default=SCRIPT.time_scale, help="Multiplies all delays.")
@click.option("--deferred", type=SHARE, default=SCRIPT.deferred, help="Share deferred, then delivered.")
@click.option("--expired", type=SHARE, default=SCRIPT.expired, help="Share deferred, then given up.")
@click.option("--hard", type=SHARE, default=SCRIPT.hard, help="Share with no such user: half refused, half bounced.")
@click.option("--full", type=SHARE, default=SCRIPT.full, help="Share bounced for a full mailbox.")
@click.option("--out-of-band", type=SHARE, default=SCRIPT.out_of_band, help="Share delivered, then bounced after all.")
@click.option("--silent", type=SHARE, default=SCRIPT.silent, help="Share accepted and never heard of again.")
@click.option("--opened", type=SHARE, default=SCRIPT.opened, help="Share of the delivered that open.")
@click.option("--clicked", type=SHARE, default=SCRIPT.clicked, help="Share of the delivered that click, and so open.")
@click.option("--try-later", type=SHARE, default=SCRIPT.try_later, help="Share put off by the relay 1 to 3 times.")
@click.option("--duplicates", type=SHARE, default=MISBEHAVIOUR.duplicates, help="Share of events sent twice.")
@click.option("--reorder", is_flag=True, help="Shuffle reports, and let feedback overtake the relay's answers.")
@click.option(
    "--unknown-messages", type=SHARE, default=MISBEHAVIOUR.unknown_messages, help="Rate of events about no message."
)
@click.option("--malformed", type=SHARE, default=MISBEHAVIOUR.malformed, help="Rate of spoilt copies of events.")
@click.option(
    "--cut-streams",
    type=click.IntRange(0),
    default=MISBEHAVIOUR.cut_streams,
    help="Cut each feedback stream after about so many batches; 0: never.",
)
@click.option(
    "--delay-acks-ms",
    "delay_answers_ms",
    type=click.IntRange(0),
    default=MISBEHAVIOUR.delay_answers_ms,
    help="Hold each of the relay's answers back for up to so long.",
)
@click.option("--log-level", default="WARNING", help="Logs go to stderr.")
def main(
    listen: str, feedback_target: str, token_file: Path, jwt_public_key_file: Path, log_level: str, **options: Any
) -> None:
    """A scriptable MTA that sends nothing: it takes messages over and reports a seeded fate for each.

    Prints JSON lines: {"action": "listening", "address": …} once it is ready, and {"action": "truth", …} with the
    exact result to expect whenever all that it reported has been acknowledged, and at its end.

    A tag in an address forces its fate: anna+hard@mail.test. Tags: ok, deferred, expired, hard, refused, full, oob,
    silent, later.
    """
    configure_logs(level=log_level)
    host, _, port = listen.rpartition(":")
    try:
        settings = Settings(
            feedback_target=feedback_target,
            public_key_pem=read_public_key(jwt_public_key_file),
            host=host,
            port=int(port),
            script=ScriptOptions(**_taken(options, ScriptOptions)),
            misbehaviour=MisbehaviourOptions(**_taken(options, MisbehaviourOptions)),
            **options,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error

    async def serve(stop: asyncio.Event) -> None:
        async with running(settings, TokenFile(token_file), _print_line) as simulator:
            process.relax_garbage_collection()
            ended = asyncio.create_task(simulator.stopped.wait())
            signalled = asyncio.create_task(stop.wait())
            await asyncio.wait([ended, signalled], return_when=asyncio.FIRST_COMPLETED)
            if simulator.stopped.is_set():
                raise click.ClickException("a background task failed: see the log")

    try:
        process.run(serve, use_uvloop=True)
    except JournalUnusable as error:
        raise click.ClickException(str(error)) from error


def _taken(options: dict[str, Any], kind: type[ScriptOptions] | type[MisbehaviourOptions]) -> dict[str, Any]:
    """Moves the options that are fields of `kind` out of `options`."""
    return {name: options.pop(name) for name in kind.__dataclass_fields__ if name in options}


def _print_line(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(prog_name="python -m mta_simulator")
