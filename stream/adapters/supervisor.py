"""Notifies the supervisor that started this process (systemd's Type=notify): ready, stopping, and still alive.

Does nothing where NOTIFY_SOCKET is not set. Connecting and sending may block on the supervisor, so neither happens on
the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from sdnotify import SystemdNotifier

from stream.telemetry import HEARTBEAT_LIMIT_S

log = logging.getLogger(__name__)


class Supervisor:
    """The connection to the supervisor. Create it outside the event loop: connecting may block."""

    def __init__(self) -> None:
        self._notifier: SystemdNotifier | None = None
        if address := os.environ.get("NOTIFY_SOCKET"):
            if address.startswith("@") or Path(address).exists():
                self._notifier = SystemdNotifier(debug=True)
            else:
                log.warning("NOTIFY_SOCKET %s is not there: whoever started this is not told of it", address)
        #: Seconds within which the supervisor expects a keep-alive; 0 where it expects none.
        self.watchdog_s = int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6 if self._notifier else 0.0

    def close(self) -> None:
        if self._notifier is not None:
            self._notifier.socket.close()

    async def ready(self) -> None:
        await self._notify("READY=1")

    async def stopping(self) -> None:
        await self._notify("STOPPING=1")

    async def keep_alive(self, heartbeat_age_s: Callable[[], float]) -> None:
        """Sends keep-alives until cancelled, as long as the heartbeat is younger than `HEARTBEAT_LIMIT_S`.

        Returns at once where the supervisor expects none.
        """
        while self.watchdog_s:
            if heartbeat_age_s() < HEARTBEAT_LIMIT_S:
                await self._notify("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 3)

    async def _notify(self, state: str) -> None:
        if self._notifier is None:
            return
        try:
            await asyncio.to_thread(self._notifier.notify, state)
        except OSError as error:
            log.warning("the supervisor does not take %s: %s", state, error)
