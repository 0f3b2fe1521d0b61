"""`volcast run`: a node in the foreground, stopped by SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from stream.adapters.supervisor import Supervisor
from stream.commands import node
from stream.settings import Settings

T = TypeVar("T")


def run(settings: Settings) -> None:
    with contextlib.closing(Supervisor()) as supervisor:
        asyncio.run(_run(settings, supervisor))


async def _run(settings: Settings, supervisor: Supervisor) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    up: list[node.Node] = []

    async def settle(running: node.Node) -> None:
        up.append(running)
        # What is there once the node is up stays. To look through all of it for garbage holds every thread for a third
        # of a second, again and again, for instance in a scrape of many symbols.
        gc.freeze()
        await supervisor.ready()

    if settings.standby:
        # It may be days until it is its turn, and it does what it shall.
        await supervisor.ready()
    alive = asyncio.create_task(supervisor.keep_alive(lambda: up[0].daemon.heartbeat_age_s if up else 0.0))
    stopping = asyncio.create_task(_say_stopping(stop, supervisor))
    try:
        await node.run(settings, stop, alongside=settle)
    finally:
        for task in (alive, stopping):
            task.cancel()
        await asyncio.gather(alive, stopping, return_exceptions=True)


async def _say_stopping(stop: asyncio.Event, supervisor: Supervisor) -> None:
    await stop.wait()
    await supervisor.stopping()


class _Unjoined(ThreadPoolExecutor):
    """The loop's threads for calls that may hang: a name that does not resolve, a host that swallows packets.

    asyncio.run waits for the threads of its executor, and such a call takes longer than a stop may.
    """

    def submit(self, call: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(call(*args, **options))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        return future


def stop_on_signals(stop: asyncio.Event) -> None:
    """SIGTERM and Ctrl-C set `stop`, a second one ends the process. What hangs in a thread is not waited for."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(_Unjoined())

    def on_signal(number: signal.Signals) -> None:
        stop.set()
        # Its default would do, but for the first process of a container, which the kernel spares.
        loop.add_signal_handler(number, os._exit, 128 + number)

    numbers = [signal.SIGTERM, signal.SIGINT]
    # The terminal was closed; whoever started us with `nohup` wants us to outlive it.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
