"""Signals that end a command with an event loop in order."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


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
