"""Signals that end a command with an event loop cleanly."""

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
    """The loop's executor for calls that may hang: a name that does not resolve, a host that drops packets.

    asyncio.run waits for the threads of its own executor, and such a call takes longer than a stop may.
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
    """Makes SIGTERM, Ctrl-C and a closed terminal set `stop`, and a second signal end the process.

    A call that hangs in a thread is not waited for.
    """
    loop = asyncio.get_running_loop()
    loop.set_default_executor(_Unjoined())

    def on_signal(number: signal.Signals) -> None:
        stop.set()
        # Its default would do, except in the first process of a container, from which the kernel withholds it.
        loop.add_signal_handler(number, os._exit, 128 + number)

    numbers = [signal.SIGTERM, signal.SIGINT]
    # The terminal was closed; a process that was started with `nohup` is meant to outlive it.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
