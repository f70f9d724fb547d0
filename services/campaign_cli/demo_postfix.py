"""`campaign demo-postfix`: real mails with six fates through a real Postfix, and the proof of the figures."""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

from campaign.delivery.v1.delivery_pb2 import FEEDBACK_MODE_WITH_EFS
from campaign_cli.bridged_postfix import FeedbackWay
from campaign_cli.demo import CONTENT, ENVIRONMENT, Scene, play
from campaign_cli.demo_recipients import write_tagged_recipients
from campaign_cli.demo_result import DemoResult, render_result
from campaign_cli.postfix import check_installed
from campaign_cli.send import Draft
from campaign_cli.stack import StackSettings
from campaign_cli.up import run_stack_shown
from campaign_cli.words import plural
from service_runtime.clock import SystemClock

SHARES: Final = {"hard": 0.04, "full": 0.02, "spam": 0.02, "deferred": 0.05, "expired": 0.02}
"""The others are delivered at once."""
PLACES: Final = ("/dev/shm", "/tmp")
_TOLD: Final = {"dsn": "bounce mails alone", "log": "its log alone", "both": "bounce mails and its log"}


def make_enterable_folder() -> Path:
    """A temporary folder that Postfix's own user may enter, too; in memory if that is possible.

    Postfix waits for the disk several times per mail: on a common one that makes 60 mails a second, in memory 500.
    """
    place = next((path for path in PLACES if os.access(path, os.W_OK)), tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="campaign-postfix-", dir=place))
    folder.chmod(0o755)
    return folder


async def run_demo_postfix(recipients: int, seed: int, way: FeedbackWay, console: Console) -> DemoResult:
    """Runs it from nothing to the report."""
    check_installed()
    clock = SystemClock()
    started = clock.monotonic()
    scene = Scene()
    folder = make_enterable_folder()
    try:
        people = folder / "recipients.csv"
        write_tagged_recipients(people, recipients, seed, SHARES)
        draft = Draft(people, CONTENT, "Autumn fair", FEEDBACK_MODE_WITH_EFS)
        settings = StackSettings(
            folder / "data", environment=ENVIRONMENT, on_simulator_report=scene.take_report, postfix=way
        )
        async with run_stack_shown(settings, console) as stack:
            console.print(f"Everything runs. {plural(recipients, 'mail')}; Postfix reports by {_TOLD[way]}.")
            result = await stack.while_alive(play(stack.folder, draft, scene, console))
            result = replace(result, seconds=clock.monotonic() - started)
            console.print(render_result(result))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result
