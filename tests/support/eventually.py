"""Waiting for something to become true, instead of sleeping and hoping."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

_Value = TypeVar("_Value")


@overload
async def eventually(
    look: Callable[[], Awaitable[_Value | None]], *, timeout_seconds: float = ..., interval_seconds: float = ...
) -> _Value: ...


@overload
async def eventually(
    look: Callable[[], _Value | None], *, timeout_seconds: float = ..., interval_seconds: float = ...
) -> _Value: ...


async def eventually(look: Callable[[], Any], *, timeout_seconds: float = 60.0, interval_seconds: float = 0.01) -> Any:
    """Looks again and again until there is something true, and returns it. The last look tells why there never was.

    An AssertionError of the look counts as not yet.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    while True:
        failure: AssertionError | None = None
        found: Any = None
        try:
            seen = look()
            found = await seen if inspect.isawaitable(seen) else seen
        except AssertionError as error:
            failure = error
        if found:
            return found
        if loop.time() > deadline:
            raise failure or AssertionError(f"not true within {timeout_seconds} s; the last look found {found!r}")
        await asyncio.sleep(interval_seconds)
