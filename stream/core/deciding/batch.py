"""The operator over a whole table at once: the same outcomes and forecasts as `replay`, bit for bit, for less work.

Between two anchors everything that the operator carries is an accumulation from the same hour, so what it would carry
hour by hour is computed over the whole stretch: intervals and served days as arrays and lists, the policy as a plain
loop. tests/stream/core/deciding/test_batch.py holds it against the operator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.deciding import accumulation
from stream.core.deciding import policy as risk
from stream.core.deciding.accumulation import OWN_REGIME_HOURS, Rules, anchor
from stream.core.deciding.operator import Issued, Matured, column, conclude
from stream.core.forecasting import intervals, target
from stream.core.forecasting.contract import Regimes
from stream.core.forecasting.features import MIN_RETURNS_24H
from stream.core.forecasting.intervals import DELAY_HOURS
from stream.core.forecasting.predictions import Prediction
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS, Candle


def events(
    rules: Rules,
    symbol: str,
    candles: Sequence[Candle],
    predictions: Mapping[int, Prediction],
    since: int | None = None,
) -> Iterator[Matured | Issued]:
    """Yields what matured and what is issued, in the order in which the operator would.

    predictions: by open time, as for `stream.core.deciding.replay.drive`; `since` as there. An hour without one has no
    forecast.
    """
    if not candles:
        return
    table = _Table(rules, symbol, candles, predictions)
    start = table.first if since is None else anchor(since)
    issued = table.issued([k for k in table.forecast_rows if table.first + k * HOUR_MS >= start])
    shown = table.first if since is None else since
    for candle in candles:
        if candle.open_time < shown:
            continue
        row = (candle.open_time - table.first) // HOUR_MS
        realized = float(table.realized[row])
        if realized == realized:
            yield Matured(symbol, candle.open_time - DELAY_HOURS * HOUR_MS, realized)
        if row in issued:
            yield issued[row]


@dataclass(slots=True)
class _Stretch:
    """Rows from an anchor to the last forecast before the next one, and what holds for all of them."""

    rows: list[int]
    #: Row of the anchor; before the table's first row where it is negative.
    begin: int
    #: Open time of the anchor.
    start: int


class _Table:
    """Candles and predictions of one symbol as arrays along the hourly grid; rows are hours from `first` on."""

    def __init__(
        self, rules: Rules, symbol: str, candles: Sequence[Candle], predictions: Mapping[int, Prediction]
    ) -> None:
        self._rules = rules
        self._symbol = symbol
        self.first = candles[0].open_time
        hours = (candles[-1].open_time - self.first) // HOUR_MS + 1
        self._closes = np.full(hours, np.nan)
        at = [(c.open_time - self.first) // HOUR_MS for c in candles]
        self._closes[at] = [c.close for c in candles]
        self.realized = target.realized_hours(self._closes)
        exists = np.isfinite(self._closes)
        returned = np.concatenate([[0], np.cumsum(exists[1:] & exists[:-1])])
        returns_24h = returned - np.concatenate([np.zeros(min(DELAY_HOURS, hours), np.int64), returned[:-DELAY_HOURS]])
        ready = exists & (returns_24h >= MIN_RETURNS_24H)
        self._predictions: dict[int, Prediction] = {}
        self._sigmas = np.full((len(rules.sources) + 1, hours), np.nan)
        for open_time, prediction in predictions.items():
            row = (open_time - self.first) // HOUR_MS
            if 0 <= row < hours and ready[row]:
                self._predictions[row] = prediction
                self._sigmas[:, row] = column(rules, prediction)
        self.forecast_rows = sorted(self._predictions)

    def issued(self, rows: Sequence[int]) -> dict[int, Issued]:
        """What is issued at these rows, in order; forecasts of other rows are only remembered."""
        stretches: list[_Stretch] = []
        for row in rows:
            start = anchor(self.first + row * HOUR_MS)
            if not stretches or stretches[-1].start != start:
                stretches.append(_Stretch([], (start - self.first) // HOUR_MS, start))
            stretches[-1].rows.append(row)
        found: dict[int, Issued] = {}
        for stretch in stretches:
            found |= zip(stretch.rows, self._of_stretch(stretch), strict=True)
        return found

    def _of_stretch(self, stretch: _Stretch) -> Iterator[Issued]:
        rules, begin, start = self._rules, stretch.begin, stretch.start
        end = stretch.rows[-1] + 1
        sigmas, realized = self._columns(self._sigmas, begin, end), self._columns(self.realized[None], begin, end)[0]
        before = self._columns(self._sigmas, begin - OWN_REGIME_HOURS, begin)
        regimes, regimes_from = accumulation.regimes_of(rules, self._symbol, start, before)
        _, har_served = accumulation.served_days(start, sigmas, realized)
        of_model = intervals.given_hours(rules.calibration, start, sigmas[0], realized)
        of_har = of_model
        if har_served.any():
            of_har = intervals.given_hours(rules.har_calibration, start, sigmas[1], realized)
        given = [har if served else model for model, har, served in zip(of_model, of_har, har_served, strict=True)]
        memories = self._memories(stretch.rows[0] - begin, regimes, start, sigmas, given, har_served)
        for row in stretch.rows:
            interval = given[row - begin]
            assert interval is not None
            issued, memory = conclude(
                rules,
                self._predictions[row],
                interval,
                self._closes[max(row + 1 - DELAY_HOURS, 0) : row + 1],
                memories,
                regimes,
                regimes_from,
                har_served=bool(har_served[row - begin]),
            )
            memories = (memory, *issued.compared)
            yield issued

    def _memories(
        self,
        hours: int,
        regimes: tuple[Regimes, ...],
        start: int,
        sigmas: Array,
        given: Sequence[intervals.Interval | None],
        har_served: NDArray[np.bool_],
    ) -> tuple[risk.PolicyMemory, ...]:
        """Where the policies stand after the first `hours` hours of a stretch."""
        part = slice(0, hours)
        highs = np.array([math.nan if one is None else one.high for one in given[part]])
        volatility = np.where(har_served[part], sigmas[1, part], sigmas[0, part])
        return accumulation.policy_memories(
            self._rules, regimes, start, sigmas[:, part], volatility, highs, har_served[part]
        )

    def _columns(self, values: Array, begin: int, end: int) -> Array:
        """Columns of rows [begin, end), NaN before the first row."""
        lead = np.full((len(values), max(0, min(0, end) - begin)), np.nan)
        return np.concatenate([lead, values[:, max(begin, 0) : max(end, 0)]], axis=1)
