"""Live scores: losses and coverage of the matured forecasts of one symbol and one model, and whether the model decays.

Rules of this module:
- Only what was published is scored. Losses and coverage are over all matured hours of a window; the detectors and the
  choice of what is served use one forecast a day (stream/core/forecasting/serving.py).
- A board is a function of the outcomes in the journal: built anew from them, or carried on outcome by outcome.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from stream.core.deciding.operator import State
from stream.core.forecasting import decay, qlike, serving
from stream.core.forecasting.contract import Usual
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from stream.core.messages.matured_hours import HOURS, MaturedHours
from stream.core.messages.schemas import Decay, DecayState, Forecaster, Score, ScoreWindow, ServingRule
from stream.core.messages.scoring import Outcome

WINDOW_DAYS = (7, 30, HOURS // 24)
FORECASTERS: tuple[Forecaster, ...] = ("served", "model", "har", "ewma", "persistence")
_FIELDS = ("volatility", "model_volatility", "har", "ewma", "persistence")
#: An hourly σ outside these limits is not plausible.
_SIGMA_RANGE = (1e-9, 1e3)
#: Hours before the newest candle whose forecasts the longest window can hold.
REACH_HOURS = HOURS + 48
#: A revised hour changes outcomes of the last days only: an alarm this near to an earlier one is that one, moved.
_SAME_ALARM_MS = 96 * HOUR_MS


def day_of(outcome: Outcome) -> decay.Day | None:
    """Returns what the detectors use of an outcome; None if its forecast does not close a UTC day, or if it is not
    plausible."""
    if not (serving.is_daily(outcome.open_time) and plausible(outcome)):
        return None
    model, har = outcome.model_volatility, outcome.har
    excess = serving.excess(outcome.realized, model, har)
    return decay.Day(outcome.open_time, excess, math.log(outcome.realized / model))


def plausible(outcome: Outcome) -> bool:
    """Returns whether every σ of an outcome is plausible. A row that a disk has corrupted must not keep a node from
    starting."""
    return all(_SIGMA_RANGE[0] < sigma < _SIGMA_RANGE[1] for sigma in (outcome.realized, *_forecasts(outcome)))


def _forecasts(outcome: Outcome) -> list[float]:
    return [getattr(outcome, field) for field in _FIELDS]


def alarms(usual: Usual, outcomes: Iterable[Outcome]) -> tuple[decay.DecayMemory, tuple[decay.Alarm, ...]]:
    """Returns the detectors' memory after the daily ones among these outcomes, in time order, and the alarms that they
    raised on the way."""
    memory, raised = decay.DecayMemory(), []
    for day in filter(None, map(day_of, outcomes)):
        memory, alarm = decay.step(usual, memory, day)
        if alarm is not None:
            raised.append(alarm)
    return memory, tuple(raised)


def unpublished(published: Sequence[int], raised: Sequence[decay.Alarm]) -> list[decay.Alarm]:
    """Returns the alarms that are new: not one of those published at these open times, moved by a revised outcome."""
    return [a for a in raised if not any(abs(open_time - a.open_time) <= _SAME_ALARM_MS for open_time in published)]


def decay_message(symbol: str, usual: Usual, alarm: decay.Alarm, model_version: str, issued_at: int) -> Decay:
    """Returns the event that publishes an alarm."""
    of_excess = alarm.kind == "excess_qlike"
    return Decay(
        id=f"binance:spot:{symbol}:1h:{alarm.open_time}:{model_version}:decay:{alarm.kind}",
        symbol=symbol,
        open_time=alarm.open_time,
        since=alarm.since,
        issued_at=issued_at,
        kind=alarm.kind,
        statistic=alarm.statistic,
        threshold=alarm.threshold,
        mean=alarm.mean,
        usual_mean=alarm.usual_mean,
        usual_deviation=usual.excess_deviation if of_excess else usual.ratio_deviation,
        days=alarm.days,
        model_version=model_version,
    )


class Scoreboard:
    """The scores of one symbol and one model version; outcomes of other versions are left out. Mutable, without I/O."""

    def __init__(self, usual: Usual, model_version: str) -> None:
        self._usual = usual
        self._version = model_version
        self._matured = MaturedHours()
        self.memory = decay.DecayMemory()

    @classmethod
    def of(
        cls,
        usual: Usual,
        model_version: str,
        hourly: Iterable[Outcome],
        daily: Iterable[Outcome],
        state: State | None = None,
    ) -> Scoreboard:
        """Builds a board of outcomes in time order: `hourly` are those of the longest window at least, `daily` all that
        close a UTC day. `state` is the operator's, as in `add`."""
        board = cls(usual, model_version)
        for outcome in hourly:
            board._place(outcome, state)
        board.memory, _ = alarms(usual, (o for o in daily if o.model_version == model_version))
        return board

    def alarm(self, outcome: Outcome) -> decay.Alarm | None:
        """Returns the alarm that this outcome, the next in time, raises, or None; the board does not change."""
        return self._step(outcome)[1]

    def add(self, outcome: Outcome, state: State | None = None) -> None:
        """Takes the next outcome. `state` is the operator's after the candle that made it known: what that remembers
        is not kept here a second time (stream/core/messages/matured_hours.py)."""
        self._place(outcome, state)
        self.memory, _ = self._step(outcome)

    def _step(self, outcome: Outcome) -> tuple[decay.DecayMemory, decay.Alarm | None]:
        day = day_of(outcome) if outcome.model_version == self._version else None
        return (self.memory, None) if day is None else decay.step(self._usual, self.memory, day)

    def _place(self, outcome: Outcome, state: State | None) -> None:
        if outcome.model_version == self._version and plausible(outcome):
            self._matured.place(outcome, state)

    def score(self, state: State, issued_at: int) -> Score:
        """Returns the score to publish; before anything has matured it only has what is served and why."""
        known = [d for d in state.days if d == d]
        alarm, newest = self.memory.alarm, self._matured.newest
        return Score(
            symbol=state.symbol,
            open_time=newest,
            issued_at=issued_at,
            model_version=self._version,
            windows=() if newest is None else _windows(*self._matured.columns()),
            rule=ServingRule(state.serving, len(known), serving.mean_excess(state.days), serving.LIMIT),
            decay=DecayState(alarm is not None, alarm.kind if alarm else None, alarm.since if alarm else None),
        )


def _windows(realized: Array, forecasts: Array, covered: Array) -> tuple[ScoreWindow, ...]:
    """Returns the windows of a score; the arrays are those of `MaturedHours.columns`."""
    return tuple(w for days in WINDOW_DAYS for w in _window(days, realized, forecasts, covered))


def _window(days: int, by_hour: Array, every: Array, inside: Array) -> list[ScoreWindow]:
    """Returns one window for each forecaster. No window is empty: it ends with the newest forecast that matured."""
    known = np.nonzero(np.isfinite(by_hour[-days * 24 :]))[0] + HOURS - days * 24
    realized, covered = by_hour[known], float(inside[known].mean())
    # All forecasters at once, each a row of its own in memory: the same sums as one by one.
    forecasts = np.ascontiguousarray(every[:, known])
    off = forecasts - realized
    bias = off.mean(axis=1)
    columns = (
        qlike.losses(realized, forecasts).mean(axis=1),
        np.sqrt((off * off).mean(axis=1)),
        bias,
        bias / realized.mean(),
    )
    return [
        ScoreWindow(
            model=name,
            days=days,
            matured=len(known),
            qlike=qlike_mean,
            rmse=rmse,
            bias=mean_bias,
            bias_ratio=bias_ratio,
            coverage=covered if name == "served" else None,
        )
        for name, qlike_mean, rmse, mean_bias, bias_ratio in zip(
            FORECASTERS, *(column.tolist() for column in columns), strict=True
        )
    ]
