"""Follows the KPIs of deliveries until they are over: the stream loop. What it looks like is `display`'s part."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, Self

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.kpis_pb2 import Kpis
from campaign_cli.client import DeliveryClient, Patience
from campaign_cli.display import is_over, plain_line, render_kpis

LIVE_INTERVAL_SECONDS = 0.1
PLAIN_INTERVAL_SECONDS = 1.0


class Screen(Protocol):
    """Where the newest state of each delivery is shown."""

    interval_seconds: float

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def show(self, kpis: Kpis) -> None:
        """Shows one delivery's newest state."""
        ...

    def note(self, text: str) -> None:
        """Says something about the watch itself; empty: nothing to say any more."""
        ...


class LiveScreen:
    """Redraws in place, on a terminal."""

    interval_seconds = LIVE_INTERVAL_SECONDS

    def __init__(self, console: Console, titles: Mapping[str, str]) -> None:
        self._titles = titles
        self._newest: dict[str, Kpis] = {}
        self._note = ""
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()  # leaves the last picture on the screen

    def show(self, kpis: Kpis) -> None:
        self._newest[kpis.delivery_id] = kpis

    def note(self, text: str) -> None:
        self._note = text

    def _render(self) -> RenderableType:
        pictures = [render_kpis(kpis, self._titles.get(name, "")) for name, kpis in self._newest.items()]
        return Group(*pictures, Text(self._note, style="yellow"))


class PlainScreen:
    """Prints a line for each change, where nothing can be redrawn."""

    interval_seconds = PLAIN_INTERVAL_SECONDS

    def __init__(self, console: Console) -> None:
        self._console = console
        self._note = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def show(self, kpis: Kpis) -> None:
        self._print(plain_line(kpis))

    def note(self, text: str) -> None:
        if text and text != self._note:
            self._print(text)
        self._note = text

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def open_screen(console: Console, titles: Mapping[str, str]) -> Screen:
    """The screen that suits the console."""
    return LiveScreen(console, titles) if console.is_terminal else PlainScreen(console)


async def follow(
    client: DeliveryClient,
    delivery_ids: Sequence[str],
    screen: Screen,
    until: Callable[[Kpis], bool] = is_over,
) -> dict[str, Kpis]:
    """Shows every change until `until` is true of each delivery; returns their last states.

    A cut stream is opened again: its snapshot makes up for what was missed.
    """
    newest: dict[str, Kpis] = {}
    interval = Duration()
    interval.FromMilliseconds(round(screen.interval_seconds * 1_000))
    request = pb.WatchKpisRequest(delivery_ids=delivery_ids, min_interval=interval)
    patience = Patience(client.patience_seconds)
    while True:
        call = client.stub.WatchKpis(request)
        try:
            async for response in call:
                patience.reset()
                screen.note("")
                if response.WhichOneof("response") != "kpis":
                    continue
                kpis = response.kpis
                known = newest.get(kpis.delivery_id)
                if known is None or kpis.revision > known.revision:
                    newest[kpis.delivery_id] = kpis
                    screen.show(kpis)
                if len(newest) == len(delivery_ids) and all(until(each) for each in newest.values()):
                    return newest
            return newest  # ended with OK: every delivery is settled
        except grpc.aio.AioRpcError as error:
            screen.note("DeliveryService is away: reconnecting …")
            await patience.wait_after(error)
        finally:
            call.cancel()


async def watch_until_over(
    client: DeliveryClient, titles: Mapping[str, str], console: Console, target_options: str
) -> None:
    """Follows the deliveries of `titles` on the screen; leaving it leaves them as they are."""
    try:
        with open_screen(console, titles) as screen:
            await follow(client, list(titles), screen)
    except asyncio.CancelledError:
        again = f"campaign watch {' '.join(titles)}{target_options}"
        console.print(f"\nYou have left the watch, and the sending goes on. Watch again: {again}", highlight=False)
        raise
