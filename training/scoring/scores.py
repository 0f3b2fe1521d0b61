"""Scores a panel: every measure, test and group of an evaluation, as one struct that is written as JSON.

Rules of this module:
- Forecasters of a quantity are scored on the same rows: those whose outcome is known and that all of them forecast.
- The tests are of the next 24 h, the only quantity whose outcomes share no hour with what is known.
- What is undefined is null, and a `reason` next to it says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import msgspec
import numpy as np

from stream.core.forecasting import qlike
from stream.core.forecasting.windows import Array
from training.data.panel import HORIZONS, NEXT_24H, ROLLING_24H_NEXT, IntervalSeries, Panel
from training.scoring import comparison, decay
from training.scoring.comparison import Comparison, ConfidenceSet, Regression
from training.scoring.decay import DecayStudy
from training.scoring.groups import PHASES, groups, phases
from training.scoring.measures import (
    COVERAGE_WINDOW_HOURS,
    Mask,
    Scores,
    inside,
    interval_measures,
    measures,
    rolling_coverage,
    squared_errors,
)

ByName = dict[str, Scores]
#: The headline interval is the first of these that there is: the daemon publishes adaptive ones.
INTERVALS = ("adaptive", "static")
_SPREAD = ("rmse", "qlike", "r2")


class ScoredModel(msgspec.Struct, frozen=True):
    """A model that was scored, `name` as in the tables. Times are ms, of the first and last candle trained on; of one
    that was trained anew for each year, those of the last fit."""

    name: str
    version: str
    trained_from: int | None = None
    trained_until: int | None = None
    #: sha256 of what it learnt from (training/data/dataset.py), and the symbols, the one that it is for first.
    data_sha256: str | None = None
    symbols: tuple[str, ...] = ()
    seed: int | None = None
    features_version: str | None = None


class Protocol(msgspec.Struct, frozen=True):
    """How the forecasts were made and tested."""

    kind: str
    text: str
    embargo_hours: int = 24
    hac_lag_days: int = comparison.HAC_LAG_DAYS
    confidence_set_level: float = comparison.SET_LEVEL
    confidence_set_block_days: int = comparison.SET_BLOCK_DAYS
    confidence_set_repetitions: int = comparison.SET_REPETITIONS


class IntervalScores(msgspec.Struct, frozen=True):
    """Scores of one kind of interval for the next 24 h. width: mean ln high - ln low; width_hourly: mean high - low."""

    level: float
    coverage: float
    width: float
    width_hourly: float
    winkler: float
    #: Lowest and highest coverage of 30 days in a row.
    coverage_30d_min: float | None
    coverage_30d_max: float | None
    #: By kind and label of group.
    groups: dict[str, dict[str, Scores]]
    reason: str | None = None


class Evaluation(msgspec.Struct, frozen=True):
    """Measures by quantity and forecaster, on hourly origins; tests and spread on daily ones."""

    symbol: str
    start: str
    end: str
    #: Of the first model.
    model_version: str
    rows: int
    #: Number of 24-hour stretches without overlap: about the effective number of observations.
    days: int
    #: sha256 of the candles that the rows can touch.
    data_sha256: str
    protocol: Protocol
    models: list[ScoredModel]
    next_24h: ByName
    rolling_24h_next: ByName
    #: "1h", "6h", … to forecaster.
    horizons: dict[str, ByName]
    #: Of the headline interval; null where no forecaster gives one.
    interval: IntervalScores | None
    intervals: dict[str, IntervalScores]
    #: Quantity, forecaster, measure to min, median, max over the 24 phases.
    phases: dict[str, dict[str, dict[str, Scores]]]
    #: Quantity, kind of group, label, forecaster.
    groups: dict[str, dict[str, dict[str, ByName]]]
    mincer_zarnowitz: dict[str, Regression]
    #: Model, other forecaster.
    diebold_mariano: dict[str, dict[str, Comparison]]
    #: Year first; empty where the period lies in one.
    diebold_mariano_by_year: dict[str, dict[str, dict[str, Comparison]]]
    #: "qlike" and "squared_error", of the forecasts made at 00:00 UTC.
    confidence_sets: dict[str, ConfidenceSet]
    #: By forecaster with usual errors (training/scoring/decay.py): false alarms, changes found, share of `har` served.
    decay: dict[str, DecayStudy]
    #: Rows scored by quantity, and the forecasters that made no forecast of it at all.
    scored_rows: dict[str, int]
    silent: dict[str, list[str]]
    #: Caveats for the reader: a leak, a fit that did not converge, a baseline left out.
    notes: list[str]


class CommonSample(msgspec.Struct, frozen=True):
    """One quantity on the rows that are scored: [n] each."""

    rows: Mask
    realized: Array
    forecasts: dict[str, Array]


def common_sample(panel: Panel, quantity: str) -> CommonSample:
    """Returns the rows, as a mask over the panel's, whose outcome is known and that every forecaster of the quantity
    forecast, with their outcomes and forecasts."""
    speaking = {n: f for n, f in panel.forecasts.get(quantity, {}).items() if np.isfinite(f).any()}
    rows = np.isfinite(panel.realized[quantity]) if speaking else np.zeros(len(panel.open_time), np.bool_)
    for forecast in speaking.values():
        rows = rows & np.isfinite(forecast)
    return CommonSample(rows, panel.realized[quantity][rows], {n: f[rows] for n, f in speaking.items()})


def score(
    panel: Panel,
    known: Array,
    models: Sequence[ScoredModel],
    protocol: Protocol,
    *,
    period: tuple[str, str],
    data_sha256: str,
    tests: bool = True,
) -> Evaluation:
    """Scores every forecaster of the panel; `models` are tested against all others.

    known: [n], realized volatility of the 24 hours before each origin. Without `tests` neither statsmodels nor arch is
    needed, and their results are empty.
    """
    quantities = {q: common_sample(panel, q) for q in (NEXT_24H, *HORIZONS, ROLLING_24H_NEXT)}
    masks = groups(panel.open_time, known)
    phase = phases(panel.open_time)
    by_quantity = {q: _by_name(s.realized, s.forecasts) for q, s in quantities.items()}
    head = quantities[NEXT_24H]
    names = [m.name for m in models if m.name in head.forecasts]
    years = masks["year"] if len(masks["year"]) > 1 else {}
    intervals = {
        name: scored
        for name, interval in panel.intervals.items()
        if (scored := _interval(panel, interval, masks)) is not None
    }
    first = next(chain((n for n in INTERVALS if n in intervals), intervals), None)
    return Evaluation(
        symbol=panel.symbol,
        start=period[0],
        end=period[1],
        model_version=models[0].version if models else "",
        rows=len(panel.open_time),
        days=len(panel.open_time) // PHASES,
        data_sha256=data_sha256,
        protocol=protocol,
        models=list(models),
        next_24h=by_quantity[NEXT_24H],
        rolling_24h_next=by_quantity[ROLLING_24H_NEXT],
        horizons={q.removeprefix("horizon_"): by_quantity[q] for q in HORIZONS},
        interval=intervals[first] if first is not None else None,
        intervals=intervals,
        phases={q: _phase_spread(s, phase[s.rows]) for q, s in quantities.items()},
        groups={q: _grouped(s, masks) for q, s in quantities.items()},
        mincer_zarnowitz=_regressions(head, phase[head.rows]) if tests else {},
        diebold_mariano=_comparisons(head, phase[head.rows], names) if tests else {},
        diebold_mariano_by_year={
            year: _comparisons(_part(head, mask), phase[head.rows & mask], names) for year, mask in years.items()
        }
        if tests
        else {},
        confidence_sets=_confidence_sets(head, phase[head.rows]) if tests else {},
        decay=decay.study(panel),
        scored_rows={q: int(s.rows.sum()) for q, s in quantities.items()},
        silent={
            q: mute
            for q, s in quantities.items()
            if (mute := [n for n in panel.forecasts.get(q, {}) if n not in s.forecasts])
        },
        notes=list(panel.notes),
    )


def _part(of: CommonSample, mask: Mask) -> CommonSample:
    """Restricts a sample to the rows of a mask over the panel's."""
    inner = mask[of.rows]
    return CommonSample(of.rows & mask, of.realized[inner], {n: f[inner] for n, f in of.forecasts.items()})


def _by_name(realized: Array, forecasts: Mapping[str, Array]) -> ByName:
    return {name: measures(realized, f) for name, f in forecasts.items()} if len(realized) else {}


def _grouped(of: CommonSample, masks: Mapping[str, Mapping[str, Mask]]) -> dict[str, dict[str, ByName]]:
    return {
        kind: {
            label: _by_name(part.realized, part.forecasts)
            for label, mask in by_label.items()
            if len((part := _part(of, mask)).realized)
        }
        for kind, by_label in masks.items()
    }


def _phase_spread(of: CommonSample, phase: np.ndarray) -> dict[str, dict[str, Scores]]:
    """Returns min, median and max of each measure over the phases that define it, which for r2 takes two rows."""
    out = {}
    for name, forecast in of.forecasts.items():
        each = [measures(of.realized[at], forecast[at]) for k in range(PHASES) if (at := phase == k).any()]
        spread: dict[str, Scores] = {}
        for measure in _SPREAD:
            values = [v for scores in each if (v := scores[measure]) is not None]
            low, mid, high = (f(values) if values else None for f in (min, np.median, max))
            spread[measure] = {"min": low, "median": None if mid is None else float(mid), "max": high}
        out[name] = spread
    return out


def _regressions(of: CommonSample, phase: np.ndarray) -> dict[str, Regression]:
    return {name: comparison.mincer_zarnowitz(of.realized, f, phase) for name, f in of.forecasts.items()}


def _comparisons(of: CommonSample, phase: np.ndarray, models: Sequence[str]) -> dict[str, dict[str, Comparison]]:
    return {
        model: {
            other: comparison.diebold_mariano(of.realized, of.forecasts[model], forecast, phase)
            for other, forecast in of.forecasts.items()
            if other != model
        }
        for model in models
    }


def _confidence_sets(of: CommonSample, phase: np.ndarray) -> dict[str, ConfidenceSet]:
    midnight = phase == 0
    losses: dict[str, Callable[[Array, Array], Array]] = {"qlike": qlike.losses, "squared_error": squared_errors}
    return {
        name: comparison.confidence_set({n: loss(of.realized[midnight], f[midnight]) for n, f in of.forecasts.items()})
        for name, loss in losses.items()
    }


def _interval(panel: Panel, interval: IntervalSeries, masks: Mapping[str, Mapping[str, Mask]]) -> IntervalScores | None:
    realized = panel.realized[NEXT_24H]
    known = np.isfinite(realized) & np.isfinite(interval.low) & np.isfinite(interval.high)
    if not known.any():
        return None

    def of(rows: Mask) -> dict[str, float]:
        part = IntervalSeries(interval.low[rows], interval.high[rows], interval.level)
        return interval_measures(realized[rows], part)

    rolling = rolling_coverage(panel.open_time[known], inside(realized, interval)[known])
    full = bool(np.isfinite(rolling).any())
    return IntervalScores(
        level=interval.level,
        **of(known),
        coverage_30d_min=float(np.nanmin(rolling)) if full else None,
        coverage_30d_max=float(np.nanmax(rolling)) if full else None,
        groups={
            kind: {label: {**of(known & mask)} for label, mask in by_label.items() if (known & mask).any()}
            for kind, by_label in masks.items()
        },
        reason=None if full else f"the period is shorter than {COVERAGE_WINDOW_HOURS // 24} days",
    )
