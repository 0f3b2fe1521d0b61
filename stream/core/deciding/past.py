"""What the operator remembers of a symbol's forecasts, hour by hour: σ by source, and the missing hours of the last 48.

Rules of this module:
- What is remembered is as long as an accumulation and the wait for an outcome. A symbol with regimes of its own needs
  half a year before that, too: of those hours only the ones are kept that regimes are taken from.
- The model answers in float32 (`stream.core.forecasting.predictions.assemble`), so its σ is kept as that; all other
  numbers are kept as they are.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.core.deciding import policy as risk
from stream.core.deciding.accumulation import ACCUMULATION_HOURS, OWN_REGIME_HOURS, OWN_STEP_HOURS, Rules
from stream.core.forecasting.features import SIGMA_FLOOR
from stream.core.forecasting.intervals import DELAY_HOURS
from stream.core.forecasting.predictions import Prediction
from stream.core.forecasting.tail import SPARE_ROWS, Tail
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS

#: Hours of which each one is kept. A score reaches back as far from the newest forecast that has its outcome.
EACH_HOURS = ACCUMULATION_HOURS + DELAY_HOURS
_OWN_ROWS = OWN_REGIME_HOURS // OWN_STEP_HOURS


class Past(msgspec.Struct, frozen=True):
    """The forecasts of one symbol up to that of the candle that opened at `until`."""

    until: int
    #: Records by hour, the newest last: a field for each of `Rules.sources`, and `gaps`. NaN where there is none.
    each: Tail
    #: The same of each `OWN_STEP_HOURS`th hour before those; None for a symbol that needs none.
    own: Tail | None

    @classmethod
    def of(cls, rules: Rules, symbol: str, until: int, hourly: Array, spare: int = SPARE_ROWS) -> Past:
        """Remembers columns [sources + 1, n] of σ by source and missing hours, the newest last and n at most
        `Rules.sigma_hours`."""
        each = _blank(rules, EACH_HOURS)
        columns = min(hourly.shape[1], EACH_HOURS)
        for name, column in zip(each.dtype.names or (), hourly[:, hourly.shape[1] - columns :], strict=True):
            each[name][EACH_HOURS - columns :] = _kept(name, column)
        own = None
        if symbol != rules.described:
            older = hourly[:, : hourly.shape[1] - columns]
            hour = until // HOUR_MS - EACH_HOURS - np.arange(older.shape[1])[::-1]
            older = older[:, hour % OWN_STEP_HOURS == 0][:, -_OWN_ROWS:]
            rows = _blank(rules, _OWN_ROWS)
            for name, column in zip(rows.dtype.names or (), older, strict=True):
                rows[name][_OWN_ROWS - older.shape[1] :] = _kept(name, column)
            own = Tail.of(rows, spare)
        return cls(until, Tail.of(each, spare), own)

    def later(self, rules: Rules, prediction: Prediction) -> Past:
        """Returns the past with a later forecast."""
        blank, now = _blank_row(rules), prediction.open_time // HOUR_MS
        before = self.until // HOUR_MS
        own = self.own
        if own is not None:
            # The hours that leave `each`; after a long silence all of them are blank but the first.
            first = before - EACH_HOURS + 1
            for hour in range(first + -first % OWN_STEP_HOURS, now - EACH_HOURS + 1, OWN_STEP_HOURS):
                at = hour - first
                own = own.later(self.each.rows[at].item() if at < EACH_HOURS else blank, 1, blank)
        row = (*(getattr(prediction, risk.SOURCES[name]) for name in rules.sources), prediction.gaps)
        return Past(prediction.open_time, self.each.later(row, now - before, blank), own)

    def at(self, open_time: int) -> tuple[float, float]:
        """Returns σ of the model and of har at one of the last `ACCUMULATION_HOURS`, NaN where there was none."""
        back = (self.until - open_time) // HOUR_MS
        if not 0 <= back < ACCUMULATION_HOURS:
            return math.nan, math.nan
        row = self.each.rows[-1 - back]
        model = float(row["model"])
        # Not max(): that would turn NaN into the floor.
        return SIGMA_FLOOR if model < SIGMA_FLOOR else model, float(row["har"])

    def hourly(self, rules: Rules, symbol: str, now: int) -> Array:
        """Returns [sources + 1, `Rules.sigma_hours`], σ by source and missing hours, up to the hour of `now`; NaN where
        there is none, or where nothing depends on it."""
        hours = rules.sigma_hours(symbol)
        out = np.full((len(rules.sources) + 1, hours), np.nan)
        later = (now - self.until) // HOUR_MS
        if self.own is not None:
            newest = self.until // HOUR_MS - EACH_HOURS
            newest -= newest % OWN_STEP_HOURS
            back = now // HOUR_MS - newest + OWN_STEP_HOURS * np.arange(_OWN_ROWS)[::-1]
            _place(out, self.own.rows, hours - 1 - back)
        _place(out, self.each.rows, hours - 1 - later - np.arange(EACH_HOURS)[::-1])
        return out


def sigma(rows: NDArray[np.void], name: str) -> Array:
    """Returns what a field of `Past.each` stands for: [n]."""
    values = rows[name].astype(np.float64)
    return np.maximum(values, SIGMA_FLOOR) if name == "model" else values


def _place(out: Array, rows: NDArray[np.void], columns: NDArray[np.int64]) -> None:
    within = (columns >= 0) & (columns < out.shape[1])
    known = np.isfinite(rows["model"]) & within
    for line, name in zip(out, rows.dtype.names or (), strict=True):
        line[columns[known]] = sigma(rows, name)[known]


def _blank_row(rules: Rules) -> tuple[float, ...]:
    return (*(math.nan for _ in rules.sources), 0)


def _blank(rules: Rules, rows: int) -> NDArray[np.void]:
    kinds = [(name, np.float32 if name == "model" else np.float64) for name in rules.sources]
    return np.full(rows, np.array(_blank_row(rules), np.dtype([*kinds, ("gaps", np.uint8)])))


def _kept(name: str, column: Array) -> Array:
    return np.nan_to_num(column) if name == "gaps" else column
