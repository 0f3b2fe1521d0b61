"""`volcast run`: runs a node in the foreground until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

from stream import node
from stream.adapters.supervisor import Supervisor
from stream.cli import process, settings_flags
from stream.cli.parameters import command
from stream.cli.signals import stop_on_signals
from stream.settings import Settings


@command
@settings_flags.options
def run(**flags: Any) -> None:
    """Run the daemon against a real exchange and broker, until SIGTERM or Ctrl-C.

    Each option is also a variable VOLCAST_<NAME> and a key in volcast.toml; a password belongs there.

    Example: volcast run --symbols BTCUSDT,ETHUSDT --mqtt-url mqtts://broker.example
    """
    process.share_memory_between_threads()
    settings = settings_flags.load(flags)
    with contextlib.closing(Supervisor()) as supervisor:
        asyncio.run(_run(settings, supervisor))


async def _run(settings: Settings, supervisor: Supervisor) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    up: list[node.Node] = []

    async def settle(running: node.Node) -> None:
        up.append(running)
        # The objects that exist once the node is up stay. Searching all of them for garbage stops every thread for a
        # third of a second, again and again, for instance during a scrape of many symbols.
        gc.freeze()
        await supervisor.ready()

    if settings.standby:
        # A standby may wait for days, and is healthy while it does.
        await supervisor.ready()
    alive = asyncio.create_task(supervisor.keep_alive(lambda: up[0].daemon.heartbeat_age_s if up else 0.0))
    stopping = asyncio.create_task(_notify_stopping(stop, supervisor))
    try:
        await node.run(settings, stop, alongside=settle)
    finally:
        for task in (alive, stopping):
            task.cancel()
        await asyncio.gather(alive, stopping, return_exceptions=True)


async def _notify_stopping(stop: asyncio.Event, supervisor: Supervisor) -> None:
    await stop.wait()
    await supervisor.stopping()
