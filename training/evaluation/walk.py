"""The evaluation protocol: which forecaster is fitted on what, and forecasts what, all of them on the same rows.

Rules of this module:
- Two protocols. `fixed`: bundles as they are, and baselines fitted on the first bundle's own training range.
  `walk_forward`: for each fold every forecaster is fitted anew on all that lies before its split, labels included
  (embargo).
- All forecast the same rows. Where a forecaster has no forecast of a row it has NaN, of a quantity no column.
- Every caveat (a leak, a fit that did not converge, a baseline left out) is in `Panel.notes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream import times
from stream.adapters import predictor
from stream.core.forecasting import serving
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from training.data.dataset import Dataset, DatasetError, Fold, Rows, require_rows
from training.data.panel import HORIZONS, NEXT_24H, QUANTITIES, ROLLING_24H_NEXT, IntervalSeries, Panel, Watch
from training.evaluation.adaptive import adaptive
from training.forecasters import Bundle, Fitted, Forecaster, ForecasterError, of_bundle, of_har, require_installed
from training.scoring import decay

#: The next step, the number of steps done, and the number of all steps.
Progress = Callable[[str, int, int], None]
#: A mask over the scored rows, and the forecasters that were fitted for them, by name.
Step = tuple[NDArray[np.bool_], Mapping[str, Fitted]]
_DAY_MS = 24 * HOUR_MS
#: The name of the model where there is only one.
MODEL = "model"
#: What a daemon publishes for it: `har` in its place while it is broken.
SERVED = "served"


def bundles(paths: Sequence[Path]) -> dict[str, predictor.Predictor]:
    """Loads bundles by name: one alone is `model`, several are called by their files' stems, or where two stems are
    equal by their versions. Raises `ContractError` for a file that is no bundle, `ForecasterError` for a bundle that is
    given twice."""
    loaded = [predictor.load(Path(path)) for path in paths]
    stems = [MODEL] if len(loaded) == 1 else [Path(path).stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else [p.model.version for p in loaded]
    if len({p.model.version for p in loaded}) < len(loaded):
        raise ForecasterError("the same bundle is given twice: " + ", ".join(str(path) for path in paths))
    return dict(zip(names, loaded, strict=True))


def fixed(
    models: Mapping[str, Bundle],
    data: Dataset,
    start_ms: int,
    end_ms: int,
    forecasters: Iterable[Forecaster],
    *,
    progress: Progress = lambda _what, _done, _total: None,
) -> Panel:
    """Forecasts [start, end) by bundles, and by `forecasters` that are fitted on the first bundle's training range.

    `har` is not fitted: it is the first bundle's own, which a daemon serves in its place. A forecaster for which the
    file does not hold enough of the training range is left out, with a note.
    Raises `DatasetError` where the period has too few rows, `ForecasterError` where a name occurs twice, a library is
    missing or there is no model.
    """
    forecasters = tuple(forecasters)
    if not models:
        raise ForecasterError("no model to score: name a bundle, or walk forward instead")
    _refuse_same_names([*models, *(f.name for f in forecasters)])
    require_installed(forecasters)
    rows = require_rows(data, start_ms, end_ms)
    first = next(iter(models.values())).model.contract
    trained = (first.training.trained_from, first.training.trained_until + HOUR_MS)
    notes = _range_notes(models, data, start_ms)
    fitted: dict[str, Fitted] = {name: of_bundle(bundle) for name, bundle in models.items()}
    for done, forecaster in enumerate(forecasters):
        progress(f"fitting {forecaster.name}", done, len(forecasters))
        try:
            carried = forecaster.name == "har"
            fitted[forecaster.name] = of_har(first.har) if carried else forecaster.fit(data, *trained)
        except DatasetError as error:
            notes.append(f"{forecaster.name} is left out: {error}")
    progress("forecasting", len(forecasters), len(forecasters))
    everywhere = np.ones(len(rows), np.bool_)
    forecasts = _forecasts(data, rows, [(everywhere, fitted)])
    intervals: dict[str, IntervalSeries] = {}
    for k, name in enumerate(models):
        for kind, interval in _intervals(data, rows, [(everywhere, fitted)], name, forecasts).items():
            intervals[kind if k == 0 else f"{kind} of {name}"] = interval
    watches = _watches(data, rows, [(everywhere, fitted)])
    return _panel(
        data, rows, _with_served(forecasts, data, rows, watches), intervals, [*notes, *_notes([("", fitted)])], watches
    )


def walk_forward(
    data: Dataset,
    folds: Sequence[Fold],
    forecasters: Iterable[Forecaster],
    *,
    progress: Progress = lambda _what, _done, _total: None,
) -> Panel:
    """Forecasts each fold's [split, end) by what was fitted on its [start, split), and joins them to one panel.

    Where one fold begins at the end of the one before, no row is lost between them: an outcome may reach into the
    next fold, since no forecaster that forecasts it is trained on it.
    Raises `DatasetError` where folds overlap or are not in order, where one has too few rows to be trained on, or a
    stretch of them too few to be scored, and `ForecasterError` where a name occurs twice or a library is missing.
    """
    forecasters = tuple(forecasters)
    _refuse_same_names([f.name for f in forecasters])
    require_installed(forecasters)
    if not folds or any(a.end > b.split for a, b in pairwise(folds)):
        raise DatasetError("the steps of a walk forward must follow each other in time; name each year once, in order")
    rows = _scored(data, folds)
    steps: list[Step] = []
    fitted: dict[str, Fitted] = {}
    for fold in folds:
        require_rows(data, fold.start, fold.split)
        fitted = {}
        for forecaster in forecasters:
            done = len(steps) * len(forecasters) + len(fitted)
            progress(f"fitting {forecaster.name} before {_day(fold.split)}", done, len(folds) * len(forecasters))
            fitted[forecaster.name] = forecaster.fit(data, fold.start, fold.split)
        inside = (data.open_time[rows] >= fold.split) & (data.open_time[rows] < fold.end)
        steps.append((inside, fitted))
    progress("forecasting", len(folds) * len(forecasters), len(folds) * len(forecasters))
    forecasts = _forecasts(data, rows, steps)
    intervals = _intervals(data, rows, steps, MODEL, forecasts) if MODEL in fitted else {}
    notes = _notes([(_day(fold.split), by_name) for fold, (_, by_name) in zip(folds, steps, strict=True)])
    watches = _watches(data, rows, steps)
    return _panel(data, rows, _with_served(forecasts, data, rows, watches), intervals, notes, watches)


def years(names: Sequence[int], *, start_ms: int) -> tuple[Fold, ...]:
    """Returns one fold per calendar year (UTC), trained on [start, the year's first hour)."""
    marks = [(times.parse(f"{year}-01-01"), times.parse(f"{year + 1}-01-01")) for year in names]
    return tuple(Fold(start_ms, split, end) for split, end in marks)


def _scored(data: Dataset, folds: Sequence[Fold]) -> Rows:
    """Returns the rows of all folds; adjacent folds are one stretch, whose last row's label ends within it."""
    stretches: list[tuple[int, int]] = []
    for fold in folds:
        if stretches and stretches[-1][1] == fold.split:
            stretches[-1] = (stretches[-1][0], fold.end)
        else:
            stretches.append((fold.split, fold.end))
    return np.concatenate([require_rows(data, start, end) for start, end in stretches])


def _forecasts(data: Dataset, rows: Rows, steps: Sequence[Step]) -> dict[str, dict[str, Array]]:
    """Returns forecasts [n] by quantity and name; a quantity that no forecaster has is absent."""
    out: dict[str, dict[str, Array]] = {quantity: {} for quantity in QUANTITIES}
    for inside, fitted in steps:
        for name, forecaster in fitted.items():
            made = {name: forecaster.forecast(data, rows[inside])}
            if forecaster.ablations is not None:
                made |= forecaster.ablations(data, rows[inside])
            for whose, forecasts in made.items():
                for quantity, sigma in forecasts.items():
                    out[quantity].setdefault(whose, np.full(len(rows), np.nan))[inside] = sigma
    return {quantity: by_name for quantity, by_name in out.items() if by_name}


def _intervals(
    data: Dataset, rows: Rows, steps: Sequence[Step], name: str, forecasts: Mapping[str, Mapping[str, Array]]
) -> dict[str, IntervalSeries]:
    """Computes intervals of the next 24 h of `name`, from each step's own calibration: `adaptive` as a daemon publishes
    them, updated by the outcomes on the way; `static` are σ · exp(low), σ · exp(high) of the starting calibration."""
    forecast = forecasts[NEXT_24H][name]
    parts: dict[str, list[IntervalSeries]] = {"adaptive": [], "static": []}
    for inside, fitted in steps:
        calibration = fitted[name].calibration
        assert calibration is not None, f"{name} brings no calibration"

        def sigma(asked: Rows, model: Fitted = fitted[name]) -> Array:
            return model.forecast(data, asked)[NEXT_24H]

        parts["adaptive"].append(adaptive(data, rows[inside], sigma, calibration))
        low, high = (forecast[inside] * np.exp(bound) for bound in (calibration.low, calibration.high))
        parts["static"].append(IntervalSeries(low, high, calibration.level))
    return {
        kind: IntervalSeries(np.concatenate([i.low for i in of]), np.concatenate([i.high for i in of]), of[-1].level)
        for kind, of in parts.items()
    }


def _watches(data: Dataset, rows: Rows, steps: Sequence[Step]) -> dict[str, tuple[Watch, ...]]:
    """Returns what decay is studied on, for every forecaster with usual errors, where `har` is there to compare with.

    The days before a step are forecast by what was fitted for that step, as a daemon does that starts there.
    """
    out: dict[str, tuple[Watch, ...]] = {}
    daily = data.features.ready & np.array([serving.is_daily(int(t)) for t in data.open_time], np.bool_)
    for inside, fitted in steps:
        if "har" not in fitted or not inside.any():
            continue
        first, last = (int(t) for t in data.open_time[rows[inside][[0, -1]]])
        asked = np.nonzero(
            daily & (data.open_time >= first - serving.DAYS * _DAY_MS - HOUR_MS) & (data.open_time <= last)
        )[0]
        har = fitted["har"].forecast(data, asked)[NEXT_24H]
        for name, forecaster in fitted.items():
            if forecaster.usual is None:
                continue
            forecast = forecaster.forecast(data, asked)[NEXT_24H]
            watch = Watch(forecaster.usual, data.open_time[asked], data.labels[asked, 0], forecast, har, first, last)
            out[name] = (*out.get(name, ()), watch)
    return out


def _with_served(
    forecasts: dict[str, dict[str, Array]], data: Dataset, rows: Rows, watches: Mapping[str, tuple[Watch, ...]]
) -> dict[str, dict[str, Array]]:
    """Adds what subscribers get of the next 24 h: the model's forecast, or `har`'s while the model is far behind it."""
    model, times_ms = forecasts.get(NEXT_24H, {}).get(MODEL), data.open_time[rows]
    if model is None or MODEL not in watches:
        return forecasts
    served = model.copy()
    for watch in watches[MODEL]:
        inside = (times_ms >= watch.first) & (times_ms <= watch.last)
        by_har = decay.behind(watch, 1.0, times_ms[inside])
        served[inside] = np.where(by_har, forecasts[NEXT_24H]["har"][inside], served[inside])
    return forecasts | {NEXT_24H: {MODEL: model, SERVED: served} | forecasts[NEXT_24H]}


def _panel(
    data: Dataset,
    rows: Rows,
    forecasts: Mapping[str, Mapping[str, Array]],
    intervals: Mapping[str, IntervalSeries],
    notes: Sequence[str],
    watches: Mapping[str, tuple[Watch, ...]],
) -> Panel:
    realized = dict(zip((NEXT_24H, *HORIZONS), data.labels[rows].T, strict=True))
    realized[ROLLING_24H_NEXT] = data.targets.rolling_24h_next[rows]
    return Panel(data.symbol, data.open_time[rows], realized, forecasts, intervals, tuple(notes), watches)


def _notes(fitted: Sequence[tuple[str, Mapping[str, Fitted]]]) -> list[str]:
    """Collects the notes of all fits: a note of every step once, one of only some steps with their dates."""
    by_note: dict[str, list[str]] = {}
    for when, forecasters in fitted:
        for note in (note for f in forecasters.values() for note in f.notes):
            by_note.setdefault(note, []).append(when)
    return [
        note if len(dates) == len(fitted) else f"{note} (fitted before {', '.join(dates)})"
        for note, dates in by_note.items()
    ]


def _range_notes(models: Mapping[str, Bundle], data: Dataset, start_ms: int) -> list[str]:
    """Returns notes on what makes a bundle's scores something else than a test on its own symbol's future."""
    notes = []
    (first, *others) = ((name, bundle.model.contract.training) for name, bundle in models.items())
    begins = int(data.open_time[0])
    if first[1].trained_from < begins <= first[1].trained_until:
        notes.append(
            f"the file begins on {_day(begins)}: the baselines learn from less than {first[0]} did, whose training "
            f"range begins on {_day(first[1].trained_from)}"
        )
    for name, training in (first, *others):
        if training.trained_until >= start_ms:
            notes.append(
                f"{name} learnt from candles up to {_day(training.trained_until)}: no test of the hours before"
            )
        if data.symbol not in training.symbols:
            notes.append(f"{name} learnt from {', '.join(training.symbols)}, not from {data.symbol}")
        if (training.trained_from, training.trained_until) != (first[1].trained_from, first[1].trained_until):
            notes.append(f"{name} learnt from another range than {first[0]}; the baselines learn from {first[0]}'s")
    return notes


def _refuse_same_names(names: Sequence[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ForecasterError(
            f"two forecasters are called {', '.join(sorted(twice))}; rename the file or leave one out"
        )


def _day(time: int) -> str:
    return times.day(time)
