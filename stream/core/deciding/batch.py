"""The operator over a whole table at once: the same outcomes and forecasts as `replay`, bit for bit, for less work.

Between two anchors everything that the operator carries is an accumulation from the same hour, so what it would carry
hour by hour is computed over the whole stretch: intervals and served days as arrays and lists, the policy as a plain
loop. Who needs numbers only takes the stretches, who needs events and their reasons has them made of these.
tests/stream/core/deciding/test_batch.py holds both against the operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from stream.core.deciding import accumulation
from stream.core.deciding import policy as risk
from stream.core.deciding.accumulation import OWN_REGIME_HOURS, RegimesFrom, Rules, anchor
from stream.core.deciding.operator import Issued, Matured, as_har, as_seen, column
from stream.core.forecasting import intervals, target
from stream.core.forecasting.contract import Regimes
from stream.core.forecasting.features import MIN_RETURNS_24H
from stream.core.forecasting.intervals import DELAY_HOURS
from stream.core.forecasting.predictions import Prediction
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS, Candle


@dataclass(frozen=True, slots=True)
class Stretch:
    """Forecasts whose accumulations begin at the same hour, and what was decided on each: [n] unless said otherwise."""

    #: The model's forecasts, and the same as they are served.
    predictions: list[Prediction]
    served: list[Prediction]
    har_served: list[bool]
    #: Ends of the intervals, hourly σ.
    lows: list[float]
    highs: list[float]
    #: Of the policy, and of each of `Rules.compared`: the memory before the first forecast, and after each, [n + 1].
    memories: list[risk.PolicyMemory]
    compared: list[list[risk.PolicyMemory]]
    #: One for each of `Rules.sources`.
    regimes: tuple[Regimes, ...]
    regimes_from: RegimesFrom


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
    shown = table.first if since is None else since
    issued = {one.prediction.open_time: one for stretch in table.stretches(shown) for one in issued_of(rules, stretch)}
    realized = table.realized.tolist()
    for candle in candles:
        now = candle.open_time
        if now < shown:
            continue
        outcome = realized[(now - table.first) // HOUR_MS]
        if outcome == outcome:
            yield Matured(symbol, now - DELAY_HOURS * HOUR_MS, outcome)
        if now in issued:
            yield issued[now]


def stretches(
    rules: Rules,
    symbol: str,
    candles: Sequence[Candle],
    predictions: Mapping[int, Prediction],
    since: int | None = None,
) -> Iterator[Stretch]:
    """Yields what the forecasts of `events` say, in order, for less work: as columns, and without reasons."""
    if candles:
        table = _Table(rules, symbol, candles, predictions)
        yield from table.stretches(table.first if since is None else since)


def issued_of(rules: Rules, stretch: Stretch) -> Iterator[Issued]:
    """Yields what is issued at the forecasts of a stretch."""
    limits = [accumulation.regimes_for(rules, rules.policy, stretch.regimes, har) for har in (False, True)]
    levels = [calibration.level for calibration in (rules.calibration, rules.har_calibration)]
    for prediction, served, har, low, high, before, after, *compared in zip(
        stretch.predictions,
        stretch.served,
        stretch.har_served,
        stretch.lows,
        stretch.highs,
        stretch.memories[:-1],
        stretch.memories[1:],
        *(of_policy[1:] for of_policy in stretch.compared),
        strict=True,
    ):
        seen = risk.outlook(rules.policy, as_seen(prediction, har_served=har), high)
        yield Issued(
            served,
            intervals.Interval(low, high, levels[har]),
            risk.ruling(rules.policy, limits[har], before, after, seen),
            "har" if har else "model",
            prediction.volatility,
            risk.limits_of(rules.policy, limits[har]),
            stretch.regimes_from,
            tuple(compared),
        )


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
        ready = np.nonzero(exists & (returns_24h >= MIN_RETURNS_24H))[0].tolist()
        asked = ((row, predictions.get(self.first + row * HOUR_MS)) for row in ready)
        self._predictions = {row: prediction for row, prediction in asked if prediction is not None}
        self._sigmas = np.full((len(rules.sources) + 1, hours), np.nan)
        if self._predictions:
            columns = np.array([column(rules, p) for p in self._predictions.values()]).T
            self._sigmas[:, list(self._predictions)] = columns

    def stretches(self, since: int) -> Iterator[Stretch]:
        """What the forecasts from `since` on say; the ones before are only remembered."""
        shown = [row for row in self._predictions if self.first + row * HOUR_MS >= since]
        for start, rows in groupby(shown, lambda row: anchor(self.first + row * HOUR_MS)):
            yield self._stretch(start, list(rows))

    def _stretch(self, start: int, rows: list[int]) -> Stretch:
        rules, begin, end = self._rules, (start - self.first) // HOUR_MS, rows[-1] + 1
        sigmas, realized = self._columns(self._sigmas, begin, end), self._columns(self.realized[None], begin, end)[0]
        before = self._columns(self._sigmas, begin - OWN_REGIME_HOURS, begin)
        regimes, regimes_from = accumulation.regimes_of(rules, self._symbol, start, before)
        _, har_served = accumulation.served_days(start, sigmas, realized)
        volatility, low, high = self._intervals(start, sigmas, realized, har_served)
        memories, *compared = accumulation.policy_memories(
            rules, regimes, start, sigmas, volatility, high, har_served, len(rows)
        )
        lows, highs, har = (of[np.array(rows) - begin].tolist() for of in (low, high, har_served))
        predictions = [self._predictions[row] for row in rows]
        served = [
            as_har(prediction, self._closes[max(row + 1 - DELAY_HOURS, 0) : row + 1]) if by_har else prediction
            for row, prediction, by_har in zip(rows, predictions, har, strict=True)
        ]
        return Stretch(predictions, served, har, lows, highs, memories, compared, regimes, regimes_from)

    def _intervals(
        self, start: int, sigmas: Array, realized: Array, har_served: NDArray[np.bool_]
    ) -> tuple[Array, Array, Array]:
        """The served volatility of each hour of a stretch and the ends of its interval, NaN where there is none."""
        rules = self._rules
        of_model = sigmas[0], *intervals.given_hours(rules.calibration, start, sigmas[0], realized)
        if not har_served.any():
            return of_model
        of_har = sigmas[1], *intervals.given_hours(rules.har_calibration, start, sigmas[1], realized)
        volatility, low, high = (np.where(har_served, har, model) for har, model in zip(of_har, of_model, strict=True))
        return volatility, low, high

    def _columns(self, values: Array, begin: int, end: int) -> Array:
        """Columns of rows [begin, end), NaN before the first row."""
        lead = np.full((len(values), max(0, min(0, end) - begin)), np.nan)
        return np.concatenate([lead, values[:, max(begin, 0) : max(end, 0)]], axis=1)
