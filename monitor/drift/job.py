"""The periodic drift run, in a process of its own: niced, with bounded time and memory, and gone when it is done.

Rules of this module:
- The daemon never imports what the run needs. A run that fails, hangs, eats memory or writes no result is counted and
  logged; a clean-up that fails is logged.
- The child leads a process group, which is killed as one: on time-out, and when the daemon stops.
- What is read from the child is bounded too: the end of its stderr, and a result no larger than a message may be.
- A failed run leaves no file, of the others the newest reports stay; what is left of a run that the daemon's own end
  cut short is removed with the next one. Files of other names are not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from stream.clock import Clock
from stream.core.market.candle import HOUR_MS
from stream.core.messages.schemas import Drift, DriftFeature
from stream.extras import installing, missing
from stream.telemetry import DriftFailed, Observer

log = logging.getLogger(__name__)

_TIMEOUT_S = 300.0
_POLL_S = 1.0
#: A run that failed (too few candles yet, say) is tried again after this much exchange time.
_RETRY_HOURS = 1.0
#: The least time by the machine's clock between two runs for a symbol: on a simulated exchange whose hours pass in
#: seconds they would never stop.
_LEAST_BETWEEN_S = 60.0
#: HTML reports kept per symbol, each with its .json.
KEEP_REPORTS = 30
#: The memory limit of the child. It needs some 500 MB with one thread, which is what the environment below gives it,
#: and with this limit it fits next to the daemon into a unit or container of 2 GB.
MEMORY_MB = 1_024
#: A run is in no hurry: whatever else the machine does comes first.
_NICE = 10
_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    # Each thread of these libraries reserves its own memory, and one is fast enough.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
}
_STDERR_BYTES = 8 * 1024
_LAST_WORDS_S = 2.0
#: A result has some 4 KiB.
_RESULT_BYTES = 256 * 1024


class Listener(Protocol):
    """What the schedule uses of the daemon."""

    @property
    def symbols(self) -> Sequence[str]: ...

    def exchange_now_ms(self) -> int | None: ...

    def readiness_ok(self) -> bool: ...

    async def publish_drift(self, drift: Drift, expiry_s: int) -> None: ...


class Schedule:
    """Runs drift for each symbol once the node is ready, then every `period_hours` of exchange time.

    `state` is what the function of that name returns: anything but "on" keeps the schedule from running. `model()` is
    the bundle in use, which may become another one.
    """

    def __init__(
        self,
        listener: Listener,
        *,
        period_hours: float,
        data_dir: Path,
        model: Callable[[], Path],
        clock: Clock,
        observe: Observer,
        state: str = "on",
        command: Callable[[str, Path, Path, Path], list[str]] | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._listener = listener
        self._period_hours = period_hours
        self._data_dir = data_dir
        self._model = model
        self._clock = clock
        self._observe = observe
        self._command = command or drift_command
        self._timeout_s = timeout_s
        self._due_ms: dict[str, float] = {}
        self._not_before_s: dict[str, float] = {}
        self.state = state

    async def run(self) -> None:
        if self.state != "on":
            log.info("drift is %s", self.state)
            return
        while True:
            await self._clock.sleep(_POLL_S)
            now_ms = self._listener.exchange_now_ms()
            if now_ms is None or not self._listener.readiness_ok():
                continue
            for symbol in self._listener.symbols:
                rested = self._clock.monotonic_s() >= self._not_before_s.get(symbol, 0.0)
                if rested and now_ms >= self._due_ms.get(symbol, 0.0):
                    self._not_before_s[symbol] = self._clock.monotonic_s() + _LEAST_BETWEEN_S
                    hours = self._period_hours if await self._attempt(symbol) else _RETRY_HOURS
                    self._due_ms[symbol] = now_ms + hours * HOUR_MS

    async def _attempt(self, symbol: str) -> bool:
        reports = self._data_dir / "reports"
        html = reports / f"drift-{symbol}-{self._clock.wall_ms()}.html"
        try:
            await asyncio.to_thread(reports.mkdir, parents=True, exist_ok=True)
            model = await asyncio.to_thread(self._model)
            await self._child(self._command(symbol, self._data_dir, model, html))
            drift = await asyncio.to_thread(_read, html.with_suffix(".json"), symbol)
            await self._listener.publish_drift(drift, int(3 * self._period_hours * 3_600))
        # Whatever the child has written, it must not end the daemon.
        except Exception as error:
            reason = _reason(error, self._timeout_s)
            await asyncio.to_thread(_clean, reports, symbol, html)
            log.warning("%s: no drift result: %s", symbol, reason, extra={"symbol": symbol, "reason": reason})
            self._observe(DriftFailed(symbol, reason))
            return False
        log.info("%s: %s", symbol, verdicts(drift), extra={"symbol": symbol})
        await asyncio.to_thread(_clean, reports, symbol, None)
        return True

    async def _child(self, command: list[str]) -> None:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | _ENVIRONMENT,
            start_new_session=True,
        )
        assert process.stderr is not None
        reading: asyncio.Task[bytes] | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                reading = asyncio.create_task(_end_of(process.stderr))
                await process.wait()
                # Another process that holds the pipe open is not waited for.
                await asyncio.wait([reading], timeout=_LAST_WORDS_S)
        finally:
            if reading is not None:
                reading.cancel()
            # Also when the daemon stops, and where the child has ended but left children: no process of a run remains.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode:
            errors = reading.result() if reading.done() and not reading.cancelled() else b""
            lines = errors.decode(errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else _how_it_ended(process.returncode))


def drift_command(symbol: str, data_dir: Path, model: Path, html: Path, *, nice: int = _NICE) -> list[str]:
    """Returns the command line of `volcast drift` by this interpreter."""
    options = {
        "--symbols": symbol,
        "--data-dir": str(data_dir),
        "--model": str(model),
        "--out": str(html),
        "--json": str(html.with_suffix(".json")),
        "--nice": str(nice),
        "--memory-mb": str(MEMORY_MB),
    }
    # -P: a folder named stream in the daemon's working directory must not be imported.
    return [sys.executable, "-P", "-m", "stream", "drift", *(part for pair in options.items() for part in pair)]


def state(period_hours: float) -> str:
    """Returns "on", or why drift is off. Reads the disk."""
    if period_hours == 0:
        return "off: --drift-period-hours is 0"
    if missing(["evidently"]):
        return f"off: evidently is not installed; {installing('drift')}"
    return "on"


def verdicts(drift: Drift) -> str:
    """Describes in one line what a run found: both signals, and Evidently's default for comparison."""
    fast = "not judged" if drift.fast is None else _verdict(drift.fast.detected, drift.fast.features)
    return (
        f"drift of 30 days {_verdict(drift.detected, drift.features)} (reference: {drift.reference}), "
        f"of 10 days against 90 {fast}; Evidently's default {_verdict(drift.default_detected, ())}"
    )


def _verdict(detected: bool, features: Sequence[DriftFeature]) -> str:
    beyond = ", ".join(f"{f.feature} {f.score:.2f} of {f.threshold:.2f}" for f in features if f.detected)
    return f"{'detected' if detected else 'not detected'}{f' ({beyond})' if beyond else ''}"


def _reason(error: BaseException, timeout_s: float) -> str:
    # Python's own time-outs have no message; the system's (ETIMEDOUT) do.
    if isinstance(error, TimeoutError) and not str(error):
        return f"no end after {timeout_s:g} s; killed"
    return str(error) or type(error).__name__


def _how_it_ended(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


async def _end_of(stream: asyncio.StreamReader) -> bytes:
    """Reads the stream to its end, and returns the last `_STDERR_BYTES`."""
    tail = b""
    while chunk := await stream.read(64 * 1024):
        tail = (tail + chunk)[-_STDERR_BYTES:]
    return tail


def _read(path: Path, symbol: str) -> Drift:
    with path.open("rb") as file:
        body = file.read(_RESULT_BYTES + 1)
    if len(body) > _RESULT_BYTES:
        raise RuntimeError(f"{path.name} has more than {_RESULT_BYTES} bytes: no drift result")
    drift = msgspec.json.decode(body, type=Drift)
    if drift.symbol != symbol:
        raise RuntimeError(f"{path.name} is of {drift.symbol}")
    return drift


def _clean(reports: Path, symbol: str, failed: Path | None) -> None:
    """Removes what a failed run left, what any run left half written, and all but the newest reports of the symbol.

    A file that cannot be removed is a log line: the next run tries again.
    """
    try:
        for file in _superfluous(reports, symbol, failed):
            file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: old drift reports cannot be removed: %s", symbol, error, extra={"symbol": symbol})


def _superfluous(reports: Path, symbol: str, failed: Path | None) -> list[Path]:
    made = re.compile(rf"(\.?)drift-{re.escape(symbol)}-(\d+)\.(html|json)(\.part)?")
    found: dict[int, list[Path]] = {}
    out: list[Path] = []
    for file in reports.iterdir():
        match = made.fullmatch(file.name)
        if match is None:
            continue
        if match[4] or (failed is not None and file.stem == failed.stem):
            out.append(file)
        elif not match[1]:
            found.setdefault(int(match[2]), []).append(file)
    for at in sorted(found)[:-KEEP_REPORTS]:
        out += found[at]
    return out
