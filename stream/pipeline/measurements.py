"""Measurements of the node itself: how late its event loop is, how far its clock is off, how much disk its journal
takes and has left."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from stream.clock import Clock
from stream.core.market.exchange_time import ExchangeTime
from stream.pipeline.worker import Worker
from stream.ports import Journal
from stream.telemetry import ClockCompared, LoopLagged, Observer, StorageMeasured
from stream.times import utc

log = logging.getLogger(__name__)

_LAG_PROBE_S = 0.1


class Measurements:
    """Takes measurements on request and passes them to the observer."""

    def __init__(
        self,
        data_dir: Path,
        *,
        journal: Journal,
        worker: Worker,
        exchange_time: ExchangeTime,
        clock: Clock,
        observe: Observer,
    ) -> None:
        self._data_dir = data_dir
        self._journal = journal
        self._worker = worker
        self._time = exchange_time
        self._clock = clock
        self._observe = observe
        #: Whether the exchange's time is in doubt; logged once.
        self._doubting = False

    async def lag(self) -> None:
        """Measures how late the event loop wakes a sleeping task, repeatedly until cancelled."""
        while True:
            asked_s = self._clock.monotonic_s()
            await self._clock.sleep(_LAG_PROBE_S)
            self._observe(LoopLagged(max(0.0, self._clock.monotonic_s() - asked_s - _LAG_PROBE_S)))

    async def storage(self) -> None:
        """Measures the journal's size and the free disk space of its directory, both in bytes."""
        try:
            size = await self._worker.call(self._journal.size_bytes)
            free = await self._worker.call(shutil.disk_usage, self._data_dir)
        except OSError as error:
            log.warning("the data directory cannot be measured: %s", error)
            return
        self._observe(StorageMeasured(size, free.free))

    def exchange_time(self) -> int | None:
        """Returns the exchange's time in ms and compares it with the wall clock; None before it is known. Logs a jump
        once, and once more when it is settled."""
        if not self._time.known:
            return None
        now_ms = self._time.now_ms(self._clock.monotonic_s())
        self._observe(ClockCompared((now_ms - self._clock.wall_ms()) / 1_000))
        doubt_ms = self._time.doubt_ms
        if doubt_ms is not None and not self._doubting:
            log.warning(
                "the exchange's clock jumped by %+.0f s; not believed until it says so again",
                doubt_ms / 1_000,
            )
        elif doubt_ms is None and self._doubting:
            log.info("the exchange's clock is settled: it is %s", utc(now_ms))
        self._doubting = doubt_ms is not None
        return now_ms
