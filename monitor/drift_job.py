"""The periodic drift run, in a process of its own: niced, timed, and gone with its memory when it is done.

The daemon never imports what the run needs. A run that fails, hangs or eats memory is a counter and a log line.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from stream.core.candle import HOUR_MS
from stream.core.messages import Drift
from stream.ports import Clock, DriftFailed, Observer

log = logging.getLogger(__name__)

_TIMEOUT_S = 300.0
_POLL_S = 1.0
#: A run that failed (too few candles yet, say) is tried again after this much exchange time.
_RETRY_HOURS = 1.0
#: HTML reports kept per symbol.
KEEP_REPORTS = 30


class Listener(Protocol):
    """What the schedule needs of the daemon."""

    @property
    def symbols(self) -> Sequence[str]: ...

    def exchange_now_ms(self) -> int | None: ...

    def readiness_ok(self) -> bool: ...

    async def publish_drift(self, drift: Drift, expiry_s: int) -> None: ...


class Schedule:
    """Runs drift for each symbol once the node is ready, then every `period_hours` of exchange time.

    `state` is the function's of that name: anything but "on" keeps the schedule from running.
    """

    def __init__(
        self,
        listener: Listener,
        *,
        period_hours: float,
        data_dir: Path,
        model: Path,
        clock: Clock,
        observe: Observer,
        state: str = "on",
        command: Callable[[str, Path, Path, Path], list[str]] | None = None,
    ) -> None:
        self._listener = listener
        self._period_hours = period_hours
        self._data_dir = data_dir
        self._model = model
        self._clock = clock
        self._observe = observe
        self._command = command or drift_command
        self._due_ms: dict[str, float] = {}
        self.state = state

    async def run(self) -> None:
        if self.state != "on":
            log.info("drift is %s", self.state)
            return
        while True:
            await asyncio.sleep(_POLL_S)
            now_ms = self._listener.exchange_now_ms()
            if now_ms is None or not self._listener.readiness_ok():
                continue
            for symbol in self._listener.symbols:
                if now_ms >= self._due_ms.get(symbol, 0.0):
                    hours = self._period_hours if await self._attempt(symbol) else _RETRY_HOURS
                    self._due_ms[symbol] = now_ms + hours * HOUR_MS

    async def _attempt(self, symbol: str) -> bool:
        reports = self._data_dir / "reports"
        html = reports / f"drift-{symbol}-{self._clock.wall_ms()}.html"
        result = html.with_suffix(".json")
        try:
            await self._child(self._command(symbol, self._data_dir, self._model, html))
            drift = await asyncio.to_thread(_read, result)
        except (OSError, TimeoutError, RuntimeError, msgspec.DecodeError) as error:
            reason = str(error) or type(error).__name__
            log.warning("%s: no drift result: %s", symbol, reason)
            self._observe(DriftFailed(symbol, reason))
            return False
        await self._listener.publish_drift(drift, int(3 * self._period_hours * 3_600))
        log.info("%s: drift %s (%.0f %% of features)", symbol, _word(drift), 100 * drift.drifted_share)
        await asyncio.to_thread(_prune, reports, symbol)
        return True

    async def _child(self, command: list[str]) -> None:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                _, errors = await process.communicate()
        except BaseException:
            # Also when the daemon stops: nothing of ours outlives it.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        if process.returncode:
            lines = errors.decode(errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"exit code {process.returncode}")


def drift_command(symbol: str, data_dir: Path, model: Path, html: Path) -> list[str]:
    """`volcast drift` as a child of this interpreter."""
    options = {
        "--symbols": symbol,
        "--data-dir": str(data_dir),
        "--model": str(model),
        "--out": str(html),
        "--json": str(html.with_suffix(".json")),
        "--nice": "10",
    }
    # -P: a folder named stream where the daemon happens to stand must not be imported.
    return [sys.executable, "-P", "-m", "stream", "drift", *(part for pair in options.items() for part in pair)]


def state(period_hours: float) -> str:
    """ "on", or why drift is off. Looks at the disk."""
    if period_hours == 0:
        return "off: --drift-period-hours is 0"
    if importlib.util.find_spec("evidently") is None:
        return "off: evidently is not installed; pip install -c constraints.txt '.[drift]' in the clone"
    return "on"


def _read(path: Path) -> Drift:
    return msgspec.json.decode(path.read_bytes(), type=Drift)


def _word(drift: Drift) -> str:
    return "detected" if drift.detected else "not detected"


def _prune(reports: Path, symbol: str) -> None:
    for suffix in ("html", "json"):
        for old in sorted(reports.glob(f"drift-{symbol}-*.{suffix}"))[:-KEEP_REPORTS]:
            old.unlink(missing_ok=True)
