"""`volcast evaluate`: which models are scored, on what, and how. The walk fills a panel, `scores` reads it.

Two protocols (training/evaluation/walk.py): bundles as they are, on any period, or a walk forward in which every
forecaster is fitted anew for each year. Measures are on hourly origins, tests on one origin a day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from stream import times
from stream.core.forecasting import features
from stream.core.market.candle import HOUR_MS
from training import forecasters
from training.data.dataset import Dataset, DatasetError, Fold, load, load_others, sha256, trained_hours, unseen
from training.data.holes import holes, jump_notes
from training.data.panel import NEXT_24H, ROLLING_24H_NEXT, Panel
from training.data.sample import of_range
from training.evaluation import walk
from training.evaluation.ledger import Scoring
from training.forecasters import Bundle
from training.models.run import Run, load_run
from training.scoring import scores
from training.scoring.scores import Evaluation, Protocol, ScoredModel

#: What each quantity is, for the reader of the figures.
MEANINGS = {
    NEXT_24H: "headline: standard deviation (ddof 1) of the next 24 hourly log returns, none of them known",
    "horizons": "root of the mean squared hourly log return over the next 1, 6, 12 and 24 hours",
    ROLLING_24H_NEXT: "the reference project's quantity: standard deviation of the 24 returns that end one hour from "
    "now; 23 of them are known, which flatters everybody",
}


@dataclass(frozen=True, slots=True)
class Scored:
    """The figures, and the panel that they were computed from."""

    panel: Panel
    evaluation: Evaluation


def fixed(
    candles: Path,
    models: Sequence[Path],
    *,
    symbol: str = "BTCUSDT",
    pool: Path | None = None,
    start: str | None = None,
    end: str | None = None,
    baselines: Sequence[str] = forecasters.CORE,
    tests: bool = True,
    progress: walk.Progress = lambda _what, _done, _total: None,
) -> Scored:
    """Scores bundles, or one run directory, and `baselines` by name over [start, end) of the candle file: all that lies
    after the first model's training range, where they are not named.

    The baselines are fitted on the first model's training range, from the same file; `pool`: a candle file of other
    symbols that linear and lightgbm are trained on as well.
    Raises `ValueError` with a one-line message where a file, a name or the range cannot be used.
    """
    if start and end:
        _range(start, end)
    others = load_others(pool, symbol) if pool is not None else ()
    chosen = forecasters.named(baselines, pool=others)
    predictors = _models(models)
    data = load(Path(candles), symbol)
    first_model = next(iter(predictors.values())).model.contract.training
    if not (start and end):
        last = int(data.open_time[-1]) + HOUR_MS
        since, until = (times.parse(start), last) if start else unseen(data, first_model.trained_until)
        start, end = start or _named(since), end or _named(until)
    start_ms, end_ms = _range(start, end)
    panel = walk.fixed(predictors, data, start_ms, end_ms, chosen, progress=progress)
    described = [_described(name, bundle) for name, bundle in predictors.items()]
    first = described[0]
    protocol = Protocol(
        "fixed",
        f"The models as they are. Baselines that learn did so from {_day(first.trained_from)} to "
        f"{_day(first.trained_until)}, the training range of {first.name}; har is the bundle's own.",
    )
    return _scored(panel, data, described, protocol, (start, end), tests)


def walk_forward(
    candles: Path,
    years: Sequence[int],
    *,
    symbol: str = "BTCUSDT",
    train_from: str = "2018-03-01",
    pool: Path | None = None,
    baselines: Sequence[str] = forecasters.CORE,
    with_model: bool = True,
    seed: int = 7,
    tests: bool = True,
    progress: walk.Progress = lambda _what, _done, _total: None,
) -> Scored:
    """Scores each of `years` after fitting every forecaster on the hours from `train_from` until that year began.

    `pool`: a candle file of other symbols that the model, its linear base and LightGBM are trained on as well.
    Raises `ValueError` with a one-line message where a file, a name or the range cannot be used.
    """
    if not years:
        raise DatasetError("a walk forward needs years, such as 2021,2022,2023")
    period = (f"{years[0]}-01-01", f"{years[-1] + 1}-01-01")
    _range(train_from, period[0])
    data = load(Path(candles), symbol)
    names = [*([walk.MODEL] if with_model else []), *baselines]
    others = load_others(pool, symbol) if pool is not None else ()
    chosen = forecasters.named(names, seed=seed, pool=others)
    folds = walk.years(years, start_ms=times.parse(train_from))
    panel = walk.walk_forward(data, folds, chosen, progress=progress)
    described = [_trained_anew(folds[-1], (data, *others), seed)] if with_model else []
    protocol = Protocol(
        "walk_forward",
        f"{', '.join(map(str, years))}: each year was forecast by what had learnt from {train_from} until that year "
        "began, everyone anew for each year; 24 hours lie between what was learnt from and what is forecast."
        + (f" The model, its parts, linear and lightgbm also learnt from {len(others)} other pairs." if others else ""),
    )
    return _scored(panel, data, described, protocol, period, tests)


def scorings(scored: Scored) -> list[Scoring]:
    """Returns a line for the ledger per model."""
    of = scored.evaluation
    lines = []
    for k, model in enumerate(of.models):
        figures = of.next_24h[model.name]
        lines.append(
            Scoring(
                model=model.version,
                symbol=of.symbol,
                start=of.start,
                end=of.end,
                protocol=of.protocol.kind,
                rmse=figures["rmse"],
                qlike=figures["qlike"],
                r2=figures["r2"],
                coverage=_coverage(of, model.name, first=k == 0),
                data_sha256=of.data_sha256,
            )
        )
    return lines


def _coverage(of: Evaluation, name: str, *, first: bool) -> float | None:
    """Returns the coverage of the model's headline interval; intervals of further models bear their names
    (training/evaluation/walk.py)."""
    keys = [kind if first else f"{kind} of {name}" for kind in scores.INTERVALS]
    return next((of.intervals[key].coverage for key in keys if key in of.intervals), None)


def _scored(
    panel: Panel,
    data: Dataset,
    models: Sequence[ScoredModel],
    protocol: Protocol,
    period: tuple[str, str],
    tests: bool,
) -> Scored:
    known = data.features.realized_24h[(panel.open_time - data.open_time[0]) // HOUR_MS]
    since, until = _range(*period)
    inside = (data.open_time >= since) & (data.open_time < until)
    jumps = jump_notes(holes(data.open_time[inside], data.ohlcv[inside, 0], data.ohlcv[inside, 3]))
    evaluation = scores.score(
        replace(panel, notes=(*panel.notes, *jumps)),
        known,
        models,
        protocol,
        period=period,
        data_sha256=data.sha256(since, until),
        tests=tests,
    )
    return Scored(panel, evaluation)


def _models(paths: Sequence[Path]) -> dict[str, Bundle]:
    folders = [path for path in paths if path.is_dir()]
    if folders and len(paths) > 1:
        raise DatasetError(f"{folders[0]}: a run is scored alone; export it to score it beside other models")
    return {walk.MODEL: load_run(folders[0])} if folders else dict(walk.bundles(paths))


def _described(name: str, bundle: Bundle) -> ScoredModel:
    training = bundle.model.contract.training
    version = f"run {bundle.model.version}" if isinstance(bundle, Run) else bundle.model.version
    return ScoredModel(
        name,
        version,
        training.trained_from,
        training.trained_until,
        training.data_sha256,
        training.symbols,
        training.seed,
        bundle.model.contract.features_version,
    )


def _trained_anew(fold: Fold, data: Sequence[Dataset], seed: int) -> ScoredModel:
    learnt = of_range(data, fold.start, fold.split)
    used = tuple(one for one in data if one.symbol in learnt.symbols)
    first, last = trained_hours(data[0], fold.start, fold.split)
    return ScoredModel(
        walk.MODEL,
        f"volcast {version('volcast')}, seed {seed}",
        first,
        last,
        sha256(used, fold.start, fold.split),
        learnt.symbols,
        seed,
        features.VERSION,
    )


def _range(start: str, end: str) -> tuple[int, int]:
    start_ms, end_ms = times.parse(start), times.parse(end)
    if start_ms >= end_ms:
        raise DatasetError(f"the range {start} to {end} is empty; swap or widen it")
    return start_ms, end_ms


def _named(time_ms: int) -> str:
    return times.day(time_ms) if time_ms % (24 * HOUR_MS) == 0 else times.iso(time_ms)


def _day(time_ms: int | None) -> str:
    return "" if time_ms is None else times.day(time_ms)
