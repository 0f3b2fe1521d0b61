"""Runs the daemon's own operator over history: the forecasts, and what every policy decides, hour by hour.

Rules of this module:
- A term is the time in which one model forecasts. Each begins as a daemon's start does, on the 120 days before it, so
  a walk forward is a daemon whose model is replaced each new year.
- A term's model is trained on what lies before the term; where a bundle was not, `Term.note` says so.
- All policies run in one operator (`Rules.compared`): what each decides is what it decides alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stream import times
from stream.core.deciding import batch
from stream.core.deciding.accumulation import RegimesFrom, Rules, anchor, forecast_hours
from stream.core.deciding.operator import Issued
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import predict_rows
from stream.core.forecasting.baselines import har
from stream.core.forecasting.contract import Calibration, Contract, Regimes
from stream.core.forecasting.predictions import Prediction, quality
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS, Candle
from training.bundling import describe
from training.data.dataset import Dataset, require_rows, walk_forward
from training.data.panel import HORIZONS, NEXT_24H, ROLLING_24H_NEXT
from training.forecasters import Bundle, Forecaster
from training.models import log_har

_CALIBRATION_MS = 90 * 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class Term:
    """The predictions of one model in [since, until), ms, and what goes with them. They are by open time, and begin
    before `since` by the look-back of the first decision."""

    since: int
    until: int
    model: str
    predictions: Mapping[int, Prediction]
    regimes: Regimes
    calibration: Calibration
    har_calibration: Calibration
    #: The symbol that `regimes` is of.
    described: str
    note: str = ""
    #: A note on what a bundle takes from other symbols; empty where it describes this one.
    borrowed: str = ""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The regimes that the first policy's decisions used, from the decision on the candle of `since` (ms) on.

    `source`: `policy` where it has thresholds of its own; else as `RegimesFrom`.
    """

    since: int
    source: RegimesFrom | Literal["policy"]
    #: The symbol that the regimes are of; empty for a policy's.
    described: str
    regimes: Regimes


@dataclass(frozen=True, slots=True)
class Decided:
    """Decisions by hour of [since, until), [n] each. `exposure` by policy name, NaN where nothing was decided."""

    symbol: str
    open_time: NDArray[np.int64]
    opens: Array
    closes: Array
    exposure: Mapping[str, Array]
    #: Of the first policy: index into `REGIMES`, -1 where nothing was decided.
    regime: NDArray[np.int64]
    #: The model's forecast and the upper end of its interval, hourly.
    volatility: Array
    high: Array
    #: The outcome: σ of the next 24 hours, hourly; NaN where they are not complete.
    next_24h: Array
    #: All events of the first policy: what a daemon would have published.
    issued: tuple[Issued, ...]
    #: One for each change of the regimes, the first included.
    calibrated: tuple[Calibrated, ...]


def of_bundle(data: Dataset, bundle: Bundle, since: int, until: int) -> Term:
    """Returns the term of a bundle as it is, wherever its training range lies."""
    contract = bundle.model.contract
    rows = _rows(data, since, until, own=not contract.describes(data.symbol))
    predictions = predict_rows(data.symbol, data.features, rows, bundle.model, bundle)
    trained, note = contract.training, ""
    if trained.trained_until >= since:
        note = (
            f"the model learnt from {_day(trained.trained_from)} to {_day(trained.trained_until)}, which this period "
            "touches: its figures up to then are no test; walk forward for those"
        )
    return Term(
        since,
        until,
        bundle.model.version,
        {p.open_time: p for p in predictions},
        contract.regimes,
        contract.calibration,
        contract.har_calibration,
        trained.symbols[0],
        note,
        _borrowed(contract, data.symbol),
    )


def _borrowed(contract: Contract, symbol: str) -> str:
    if contract.describes(symbol):
        return ""
    others = contract.training.symbols
    learnt = "" if symbol in others else f"the model learnt from {', '.join(others)}, not from {symbol}; "
    return f"{learnt}har's coefficients and what the intervals start from are of {others[0]}"


def of_forecaster(data: Dataset, forecaster: Forecaster, train_from: int, since: int, until: int) -> Term:
    """Returns the term of a forecaster fitted on [train_from, since); regimes, `har` and calibration are from there.

    Its forecasts keep all digits; a daemon, whose model answers in float32, has no others to remember.
    """
    learnt, rows = require_rows(data, train_from, since), _rows(data, since, until, own=False)
    fitted = forecaster.fit(data, train_from, since)
    coefficients, unseen = log_har.fit_unseen(data, learnt, walk_forward(train_from, since), log_har.WITH_CALENDAR)
    forecasts, features = fitted.forecast(data, rows), data.features
    name = f"{forecaster.name}-{_day(since)[:4]}"
    columns = [
        features.open_time[rows],
        *(forecasts[quantity] for quantity in (NEXT_24H, *HORIZONS, ROLLING_24H_NEXT)),
        features.realized_24h[rows],
        features.realized_24h[rows],
        features.ewma[rows],
        har(features.static[rows], coefficients),
        features.gaps[rows],
        features.missing_720h[rows],
    ]
    predictions = {
        line[0]: Prediction(*(data.symbol, line[0], name, *line[1:-1], quality(*line[-2:])))
        for line in zip(*(c.tolist() for c in columns), strict=True)
        if line[1] == line[1]
    }
    calibration = fitted.calibration or _calibration(data, forecaster, train_from, since)
    return Term(
        since,
        until,
        name,
        predictions,
        describe.regimes(data, train_from, since),
        calibration,
        describe.calibration(data, *unseen),
        data.symbol,
    )


def yearly(data: Dataset, forecaster: Forecaster, train_from: int, years: Sequence[int]) -> Iterator[Term]:
    """Yields a term per year, each fitted anew on all that lies before it."""
    for year in years:
        since, until = times.parse(f"{year}-01-01"), times.parse(f"{year + 1}-01-01")
        yield of_forecaster(data, forecaster, train_from, since, until)


def decide(data: Dataset, candles: Sequence[Candle], terms: Sequence[Term], policies: Sequence[Policy]) -> Decided:
    """Runs all policies over the terms, which must follow each other without a hole."""
    since, until = terms[0].since, terms[-1].until
    inside = (data.open_time >= since) & (data.open_time < until)
    grid = data.open_time[inside]
    exposure = {p.name: np.full(len(grid), np.nan) for p in policies}
    regime = np.full(len(grid), -1, np.int64)
    volatility, high = np.full(len(grid), np.nan), np.full(len(grid), np.nan)
    issued: list[Issued] = []
    calibrated: list[Calibrated] = []
    for term in terms:
        rules = Rules(
            policies[0], term.regimes, term.calibration, term.har_calibration, term.described, tuple(policies[1:])
        )
        oldest = term.since - rules.history_hours(data.symbol) * HOUR_MS
        part = [c for c in candles if oldest <= c.open_time < term.until]
        for stretch in batch.stretches(rules, data.symbol, part, term.predictions, term.since):
            for event in batch.issued_of(rules, stretch):
                issued.append(event)
                if not calibrated or event.regimes != calibrated[-1].regimes:
                    calibrated.append(_calibrated(event, rules))
            rows = (np.array([p.open_time for p in stretch.served]) - grid[0]) // HOUR_MS
            regime[rows] = [memory.regime for memory in stretch.memories[1:]]
            volatility[rows], high[rows] = [p.volatility for p in stretch.served], stretch.highs
            for policy, memories in zip(policies, (stretch.memories, *stretch.compared), strict=True):
                exposure[policy.name][rows] = [memory.exposure for memory in memories[1:]]
    opens, closes = data.ohlcv[inside, 0], data.ohlcv[inside, 3]
    return Decided(
        data.symbol,
        grid,
        opens,
        closes,
        exposure,
        regime,
        volatility,
        high,
        data.targets.next_24h[inside],
        tuple(issued),
        tuple(calibrated),
    )


def _calibrated(event: Issued, rules: Rules) -> Calibrated:
    since = event.prediction.open_time
    if rules.policy.thresholds is not None:
        return Calibrated(since, "policy", "", event.regimes)
    described = event.prediction.symbol if event.regimes_from == "own" else rules.described
    return Calibrated(since, event.regimes_from, described, event.regimes)


def _rows(data: Dataset, since: int, until: int, *, own: bool) -> NDArray[np.int64]:
    """Returns the rows that a daemon which starts at `since` forecasts: its accumulation and, where the regimes are the
    symbol's `own`, hours before that, then its term."""
    asked = forecast_hours(data.open_time, anchor(since), own=own)
    return np.nonzero(asked & (data.open_time < until) & data.features.ready)[0]


def _calibration(data: Dataset, forecaster: Forecaster, train_from: int, since: int) -> Calibration:
    """Calibrates on the last 90 days before `since`, or the last quarter of a short range, forecast by a fit on the
    time before them."""
    split = since - min(_CALIBRATION_MS, (since - train_from) // 4 // HOUR_MS * HOUR_MS)
    rows = data.rows(split, since)
    return describe.calibration(data, rows, forecaster.fit(data, train_from, split).forecast(data, rows)[NEXT_24H])


def _day(time: int) -> str:
    return times.day(time)
