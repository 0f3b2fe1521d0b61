"""`volcast drift`: the last 30 days of one symbol, or with --study how often it would have alarmed, and at what."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import click
import msgspec
from rich.console import Console

from stream.adapters import predictor as predictors
from stream.adapters.candles import files
from stream.adapters.journal.store import SqliteJournal
from stream.commands.exchange import refuse_empty_period
from stream.commands.node import model_path
from stream.commands.offline import utc
from stream.commands.outputs import write_json
from stream.commands.paths import inputs_of, places_of, refuse_clashes
from stream.core.forecasting.contract import Contract, Model
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages.schemas import Drift, DriftFeature
from stream.errors import MisuseError, RefusedError

_PIPE_WIDTH = 140


def drift(
    *,
    symbols: tuple[str, ...],
    candles: Path | None,
    data_dir: Path,
    model: Path | None,
    out: Path | None,
    json_file: Path | None,
    study: str | None,
    seed: int,
) -> None:
    (symbol, *others) = symbols
    if others:
        raise MisuseError("--symbols: drift looks at one symbol at a time; run it once for each")
    if study is not None and (candles is None or out is not None):
        raise click.UsageError("--study goes with --candles, and has no page: without --out")
    chosen = model_path(model, data_dir)
    refuse_clashes(places_of(("--json", json_file), ("--out", out)), inputs_of(data_dir, chosen))
    loaded = predictors.load(chosen).model
    if study is not None and candles is not None:
        _study(symbol, candles, loaded.contract, study, seed, json_file)
    else:
        _run(symbol, candles, data_dir, loaded, out, json_file)


def _run(
    symbol: str, candles: Path | None, data_dir: Path, loaded: Model, out: Path | None, json_file: Path | None
) -> None:
    from monitor.drift import detection

    if candles is not None:
        series = files.read(candles, asked=symbol)[symbol]
    else:
        series = _of_journal(data_dir, symbol, detection.MOST_HOURS)
    result = detection.run(
        symbol,
        series,
        loaded.contract,
        model_version=loaded.version,
        issued_at=time.time_ns() // 1_000_000,
        report=out,
    )
    _print_result(result)
    write_json(json_file, msgspec.to_builtins(result))


def _of_journal(data_dir: Path, symbol: str, hours: int) -> list[Candle]:
    with contextlib.closing(SqliteJournal(data_dir, read_only=True)) as journal:
        newest = journal.last_open_time(symbol)
        if newest is None:
            raise RefusedError(f"the journal in {data_dir} has no candle of {symbol}")
        return journal.candles(symbol, newest - (hours - 1) * HOUR_MS, newest)


_AGAINST = {
    "bundle": "the training range",
    "own": "180 days of its own past",
    "uncalibrated": "another symbol's training range, for want of 180 days of its own",
}


def _print_result(result: Drift) -> None:
    found, default = _word(result.detected), _word(result.default_detected)
    click.echo(
        f"{result.symbol}: drift {found}, {utc(result.from_)} to {utc(result.to)}, {result.rows} hours "
        f"against {_AGAINST[result.reference]}; Evidently's default: {default}"
    )
    _rows(result.features)
    if result.fast is None:
        click.echo(
            "10 days against the 90 before: not judged: 100 days of candles are not there, or have too many gaps"
        )
        return
    click.echo(f"10 days against the 90 before: drift {_word(result.fast.detected)}, since {utc(result.fast.from_)}")
    _rows(result.fast.features)


def _word(detected: bool) -> str:
    return "detected" if detected else "not detected"


def _rows(features: tuple[DriftFeature, ...]) -> None:
    for feature in sorted(features, key=lambda f: -f.score / f.threshold):
        mark = "beyond" if feature.detected else "within"
        click.echo(f"  {feature.feature:<26} {feature.score:7.3f} {mark} {feature.threshold:.3f}")


def _study(symbol: str, candles: Path, contract: Contract, period: str, seed: int, json_file: Path | None) -> None:
    from training.data import dataset
    from training.studies import drift_alarms

    first, dots, last = period.partition("..")
    if not dots:
        raise click.BadParameter(f"{period!r} is no period such as 2019-01-01..2025-01-01", param_hint="--study")
    refuse_empty_period(first, last, "--study")
    start, end = dataset.time_ms(first), dataset.time_ms(last)
    data = dataset.load(candles, symbol)
    found = drift_alarms.study(data, contract, start, end, seed=seed, progress=lambda what: click.echo(what, err=True))
    # A pipe has no width of its own, and a figure cut short is none.
    console = Console() if Console().is_terminal else Console(width=_PIPE_WIDTH)
    for table in drift_alarms.tables(found):
        console.print(table, "")
    write_json(json_file, msgspec.to_builtins(found))
