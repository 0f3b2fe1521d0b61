"""The matured forecasts of one symbol over the longest window of a score, hour by hour.

Rules of this module:
- What was published is what counts, and nearly always it is to the last bit what the operator remembers: σ of the model
  and of har, and what became of them. So those are read from the operator's past, which grows without changing
  (stream/core/forecasting/tail.py), and only what it does not have is kept here, with a mark for each hour.
- Persistence is the realized σ of the hour itself, computed in another order: only its distance from that is kept, in
  units of the last place.
- An hour for which the two differ otherwise, as after a start on another machine, is kept here as it was published.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from stream.core.deciding.operator import State
from stream.core.deciding.past import Past, sigma
from stream.core.forecasting.intervals import DELAY_HOURS
from stream.core.forecasting.tail import Tail
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from stream.core.messages.scoring import Outcome

#: The longest window.
HOURS = 90 * 24
_KNOWN, _COVERED, _HAR_SERVED, _APART = 1, 2, 4, 8
#: Hours that differ are kept by the day.
_DAY = 24
_MOST_PLACES = 2**7 - 1


class _Remembered(NamedTuple):
    """What the operator remembers: its past, and what became known hour by hour up to the candle of `until`."""

    past: Past
    realized: Tail
    until: int

    def of_hour(self, open_time: int) -> tuple[float, float, float]:
        """Returns what became of the forecast of this hour, and σ of the model and of har."""
        return (self.realized_at(open_time + DELAY_HOURS * HOUR_MS), *self.past.at(open_time))

    def realized_at(self, open_time: int) -> float:
        """Returns σ of the 24 hours that end with this hour's candle, NaN where it is not remembered."""
        back = (self.until - open_time) // HOUR_MS
        return float(self.realized.rows[-1 - back]) if 0 <= back < len(self.realized) else math.nan


class MaturedHours:
    """Mutable. Each outcome comes with the operator's state after the candle that made it known, or with a later one;
    one that descends from the state that came before."""

    def __init__(self) -> None:
        #: Open time of the newest forecast that matured.
        self.newest: int | None = None
        # By hour, modulo their number: EWMA, the distance of persistence, and marks.
        self._ewma = np.zeros(HOURS)
        self._places = np.zeros(HOURS, np.int8)
        self._marks = np.zeros(HOURS, np.uint8)
        self._remembered: _Remembered | None = None
        #: By day, [_DAY, 5]: realized, served, model, har and persistence of the hours that differ from what is
        #: remembered.
        self._apart: dict[int, Array] = {}

    def place(self, outcome: Outcome, state: State | None) -> None:
        """Takes an outcome. One that is older than the window is left out."""
        hour = outcome.open_time // HOUR_MS
        newest = hour if self.newest is None else self.newest // HOUR_MS
        if hour <= newest - HOURS:
            return
        for passed in range(max(newest + 1, hour - HOURS + 1), hour + 1):
            self._marks[passed % HOURS] = 0
        if hour >= newest:
            self.newest = outcome.open_time
            for gone in [day for day in self._apart if (day + 1) * _DAY <= hour - HOURS + 1]:
                del self._apart[gone]
            if state is not None and state.past is not None and state.last_open_time is not None:
                self._remembered = _Remembered(state.past, state.realized, state.last_open_time)
        marks = _KNOWN | (_COVERED if outcome.low <= outcome.realized <= outcome.high else 0)
        places = self._distance(outcome)
        if places is None:
            marks |= _APART
            values = self._apart.setdefault(hour // _DAY, np.full((_DAY, 5), np.nan))
            values[hour % _DAY] = (
                outcome.realized, outcome.volatility, outcome.model_volatility, outcome.har, outcome.persistence
            )  # fmt: skip
        elif outcome.volatility != outcome.model_volatility:
            marks |= _HAR_SERVED
        at = hour % HOURS
        self._ewma[at], self._places[at], self._marks[at] = outcome.ewma, places or 0, marks

    def _distance(self, outcome: Outcome) -> int | None:
        """Returns how many units of the last place persistence is above what is remembered as realized; None if the
        outcome is not what is remembered."""
        if self._remembered is None or outcome.volatility not in (outcome.model_volatility, outcome.har):
            return None
        if self._remembered.of_hour(outcome.open_time) != (outcome.realized, outcome.model_volatility, outcome.har):
            return None
        realized = self._remembered.realized_at(outcome.open_time)
        ours, theirs = np.array([outcome.persistence, realized]).view(np.int64).tolist()
        return ours - theirs if realized == realized and abs(ours - theirs) <= _MOST_PLACES else None

    def columns(self) -> tuple[Array, Array, Array]:
        """Returns by hour, the newest last: realized σ [HOURS], NaN where nothing matured; the forecasts
        [5, HOURS] that were served, of the model, of har, EWMA and persistence; and whether the interval held [HOURS].
        """
        assert self.newest is not None
        newest = self.newest // HOUR_MS
        cut = (newest + 1) % HOURS
        ewma, places, marks = (np.concatenate([x[cut:], x[:cut]]) for x in (self._ewma, self._places, self._marks))
        realized, model, har, persistence = np.full((4, HOURS), np.nan)
        if self._remembered is not None:
            past, outcomes, until = self._remembered
            _align(realized, outcomes.rows, until // HOUR_MS - DELAY_HOURS - newest)
            _align(persistence, outcomes.rows, until // HOUR_MS - newest)
            persistence = (persistence.view(np.int64) + places).view(np.float64)
            _align(model, sigma(past.each.rows, "model"), past.until // HOUR_MS - newest)
            _align(har, past.each.rows["har"], past.until // HOUR_MS - newest)
        realized[marks & _KNOWN == 0] = np.nan
        served = np.where(marks & _HAR_SERVED, har, model)
        first = newest - HOURS + 1
        for at in np.flatnonzero(marks & _APART).tolist():
            hour = first + at
            values = self._apart[hour // _DAY][hour % _DAY].tolist()
            realized[at], served[at], model[at], har[at], persistence[at] = values
        forecasts = np.stack([served, model, har, ewma, persistence])
        return realized, forecasts, (marks & _COVERED != 0).astype(np.float64)


def _align(out: Array, values: Array, later: int) -> None:
    """Fills `out`, by hour with the newest last, from values of which the newest is `later` hours later."""
    end = min(len(values) - later, len(values))
    first = max(len(values) - later - len(out), 0)
    if first < end:
        at = len(out) - (len(values) - later)
        out[first + at : end + at] = values[first:end]
