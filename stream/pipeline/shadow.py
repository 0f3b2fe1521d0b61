"""Shadow: another model forecasts beside the one that is served; what it says is kept and scored, and never published.

Each hour its forecasts are replayed from the journal's candles, like those of `volcast predict`, from 48 hours before
the newest on. So a restart loses none, a revised candle corrects them, and no candle waits for them. It takes a quarter
of a CPU second for each symbol and hour.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from stream.clock import Clock
from stream.core.deciding.replay import events
from stream.core.forecasting.contract import ContractError
from stream.core.market.candle import HOUR_MS
from stream.core.messages import scoreboard, shadows
from stream.core.messages.shadows import ShadowScore
from stream.errors import JournalError
from stream.pipeline.processing import Processor
from stream.pipeline.revision import REVISED_HOURS
from stream.pipeline.succession import Change, Successor
from stream.pipeline.worker import Worker
from stream.ports import Journal

log = logging.getLogger(__name__)

_LOOK_S = 2.0


class Shadow:
    """Follows the symbols of a node that have their history."""

    def __init__(
        self,
        *,
        look: Callable[[], Change | None],
        processor: Processor,
        journal: Journal,
        worker: Worker,
        clock: Clock,
        scored: Callable[[ShadowScore], None],
        ended: Callable[[], None],
    ) -> None:
        """`look()` returns what the shadow's file holds now if that has changed since the call before, else None. It
        raises `ContractError` if what is there cannot be used. `scored` receives each new score; `ended` is called when
        there is no shadow any more."""
        self._look = look
        self._ended = ended
        self._shadow: Successor | None = None
        self._processor = processor
        self._journal = journal
        self._worker = worker
        self._clock = clock
        self._scored = scored
        #: By symbol: the newest hour that it has forecast.
        self._done: dict[str, int] = {}

    async def run(self) -> None:
        while True:
            await self._clock.sleep(_LOOK_S)
            try:
                change = await asyncio.to_thread(self._look)
            except ContractError as error:
                log.error("no model runs as a shadow: %s", error)
                change = Change(None)
            if change is not None:
                self._change(change.model)
            # Once it has been promoted there is nothing to compare.
            if self._shadow is None or self._shadow.predictor.model.version == self._processor.model.version:
                continue
            for symbol, newest in self._processor.newest().items():
                if newest > self._done.get(symbol, 0):
                    await self._follow(self._shadow, symbol, newest)

    def _change(self, shadow: Successor | None) -> None:
        if self._shadow is not None:
            log.info("model %s is no shadow any more", self._shadow.predictor.model.version)
            self._ended()
        self._shadow, self._done = shadow, {}
        if shadow is not None:
            version = shadow.predictor.model.version
            log.info("model %s runs as a shadow of the one that is served", version, extra={"model": version})

    async def _follow(self, shadow: Successor, symbol: str, newest: int) -> None:
        try:
            score = await self._score(shadow, symbol, newest)
        except JournalError as error:
            # The next look has all of it.
            log.warning("%s: no forecast of the shadow: %s", symbol, error, extra={"symbol": symbol})
            return
        self._done[symbol] = newest
        if score is not None:
            self._scored(score)

    async def _score(self, shadow: Successor, symbol: str, newest: int) -> ShadowScore | None:
        """Brings the symbol's forecasts up to date and returns the score; None while the model has given no usable
        answer."""
        call = self._worker.call
        version = shadow.predictor.model.version
        oldest = newest - scoreboard.REACH_HOURS * HOUR_MS
        kept = {f.open_time: f for f in await call(self._journal.shadows, symbol, version, oldest, newest)}
        # The first hour of a shadow is the newest one; it does not know what it would have said before.
        first, last = min(kept, default=newest), max(kept, default=newest)
        since = max(first, last - (REVISED_HOURS - 1) * HOUR_MS)
        hours = shadow.rules.history_hours(symbol) + (newest - since) // HOUR_MS
        candles = await call(self._journal.candles, symbol, newest - hours * HOUR_MS, newest)
        found = await asyncio.to_thread(
            lambda: list(events(shadow.rules, symbol, candles, shadow.predictor.model, shadow.predictor, since))
        )
        forecasts = shadows.taken(kept, found, symbol, version)
        changed = [f for t, f in sorted(forecasts.items()) if kept.get(t) != f]
        await call(self._journal.store_shadows, changed)
        outcomes = await call(self._journal.outcomes, symbol, oldest, newest)
        return shadows.score([forecasts[t] for t in sorted(forecasts)], outcomes) if forecasts else None
