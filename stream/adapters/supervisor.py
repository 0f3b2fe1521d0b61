"""The supervisor that started us, where it wants to be told (systemd's Type=notify): ready, stopping, and still alive.

Everything here does nothing where NOTIFY_SOCKET is not set. To connect and to send may wait for the supervisor, so
neither happens on the event loop.
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
    """Make it outside the event loop."""

    def __init__(self) -> None:
        self._notifier: SystemdNotifier | None = None
        if address := os.environ.get("NOTIFY_SOCKET"):
            if address.startswith("@") or Path(address).exists():
                self._notifier = SystemdNotifier(debug=True)
            else:
                log.warning("NOTIFY_SOCKET %s is not there: whoever started this is not told of it", address)
        #: Seconds within which it wants a sign of life; 0: it wants none.
        self.watchdog_s = int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6 if self._notifier else 0.0

    def close(self) -> None:
        if self._notifier is not None:
            self._notifier.socket.close()

    async def ready(self) -> None:
        await self._notify("READY=1")

    async def stopping(self) -> None:
        await self._notify("STOPPING=1")

    async def keep_alive(self, heartbeat_age_s: Callable[[], float]) -> None:
        """Says that we are alive, as often as it wants, while the heartbeat is young; until cancelled."""
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
