"""`volcast drift`: drift in the last 30 days of one symbol, or with --study how often it would have alarmed, and why.

Libraries with threads are imported once the process is confined, not before.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from stream.adapters.bundles import model_path
from stream.cli import confined, confined_options, scoring_ledger, settings_flags
from stream.cli.outputs import write_json
from stream.cli.parameters import SEED, Time, command, refuse_empty_period
from stream.cli.paths import DataDir, Output, inputs_of, places_of, refuse_clashes
from stream.cli.settings_flags import FILE, MODEL
from stream.core.market.candle import HOUR_MS, Candle
from stream.errors import MisuseError, RefusedError
from stream.times import minute, parse

if TYPE_CHECKING:
    from stream.core.forecasting.contract import Model
    from stream.core.messages.schemas import Drift, DriftFeature

_PIPE_WIDTH = 140


@command
@click.option("--symbols", metavar="A", help="The symbol to look at.  [default: BTCUSDT]")
@click.option("--candles", type=FILE, help="Candle file.  [default: the journal in --data-dir]")
@click.option("--data-dir", type=DataDir(), help="Where the journal is.  [default: var]")
@click.option("--model", type=MODEL, help="ONNX bundle.  [default: DATA_DIR/champion.onnx, else the packaged one]")
@click.option("--out", type=Output(), help="Evidently's HTML report.")
@click.option("--json", "json_file", type=Output(stream=True), help="Write the result here too.")
@click.option(
    "--study",
    metavar="FROM..TO",
    help="With --candles: how often both signals would have alarmed, and which changes they find.",
)
@click.option(
    "--unseen-from",
    type=Time(),
    metavar="ISO",
    help="Study: calibrate anew, by the rule of `train`, on the training range before this; what follows is unseen.",
)
@click.option("--seed", type=SEED, default=7, show_default=True, help="Of the study's shuffled data.")
@confined_options.options
@settings_flags.config_option
def drift(nice: int, memory_mb: int | None, **options: Any) -> None:
    """Compare the last 30 days with the model's training range, and the last 10 with the 90 before (needs `drift`).

    Scores are Wasserstein distances in standard deviations of what is held against. A symbol that the model was not
    made for is held against 180 days of its own past.

    Example: volcast drift --data-dir var --out drift.html

    Example: volcast drift --candles btc.parquet --study 2019-01-01..2025-01-01 --unseen-from 2024-01-01
    """
    os.nice(nice)
    confined.watched("drift", memory_mb)
    settings_flags.settle(options, "symbols", "data_dir", "model")
    _drift(**options)


def _drift(
    *,
    symbols: tuple[str, ...],
    candles: Path | None,
    data_dir: Path,
    model: Path | None,
    out: Path | None,
    json_file: Path | None,
    study: str | None,
    unseen_from: str | None,
    seed: int,
) -> None:
    (symbol, *others) = symbols
    if others:
        raise MisuseError("--symbols: drift looks at one symbol at a time; run it once for each")
    if study is not None and (candles is None or out is not None):
        raise click.UsageError("--study goes with --candles, and has no page: without --out")
    if unseen_from is not None and study is None:
        raise click.UsageError("--unseen-from goes with --study")
    chosen = model_path(model, data_dir)
    refuse_clashes(places_of(("--json", json_file), ("--out", out)), inputs_of(data_dir, chosen))
    from stream.adapters import predictor as predictors

    loaded = predictors.load(chosen).model
    if study is not None and candles is not None:
        _study(symbol, candles, loaded, study, unseen_from, seed, json_file)
    else:
        _run(symbol, candles, data_dir, loaded, out, json_file)


def _run(
    symbol: str, candles: Path | None, data_dir: Path, loaded: Model, out: Path | None, json_file: Path | None
) -> None:
    from monitor.drift import detection
    from stream.adapters.candles import files

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
    from stream.adapters.journal.store import SqliteJournal

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
        f"{result.symbol}: drift {found}, {minute(result.from_)} to {minute(result.to)}, {result.rows} hours "
        f"against {_AGAINST[result.reference]}; Evidently's default: {default}"
    )
    _rows(result.features)
    if result.fast is None:
        click.echo(
            "10 days against the 90 before: not judged: 100 days of candles are not there, or have too many gaps"
        )
        return
    click.echo(f"10 days against the 90 before: drift {_word(result.fast.detected)}, since {minute(result.fast.from_)}")
    _rows(result.fast.features)


def _word(detected: bool) -> str:
    return "detected" if detected else "not detected"


def _rows(features: tuple[DriftFeature, ...]) -> None:
    for feature in sorted(features, key=lambda f: -f.score / f.threshold):
        mark = "beyond" if feature.detected else "within"
        click.echo(f"  {feature.feature:<26} {feature.score:7.3f} {mark} {feature.threshold:.3f}")


def _study(
    symbol: str,
    candles: Path,
    model: Model,
    period: str,
    unseen_from: str | None,
    seed: int,
    json_file: Path | None,
) -> None:
    from rich.console import Console

    from training.data import dataset
    from training.evaluation.ledger import Scoring
    from training.studies import drift_alarms

    first, dots, last = period.partition("..")
    if not dots:
        raise click.BadParameter(f"{period!r} is no period such as 2019-01-01..2025-01-01", param_hint="--study")
    refuse_empty_period(first, last, "--study")
    start, end = parse(first), parse(last)
    data = dataset.load(candles, symbol)
    ledger = scoring_ledger.used(None)
    contract = model.contract
    if unseen_from is not None:
        contract = drift_alarms.calibrated_before(data, contract, parse(unseen_from))
    found = drift_alarms.study(data, contract, start, end, seed=seed, progress=lambda what: click.echo(what, err=True))
    look = Scoring(model.version, symbol, first, last, "drift --study", data_sha256=data.sha256(start, end))
    scoring_ledger.record(ledger, start, end, [look])
    # A pipe has no width of its own, and no figure may be cut short.
    console = Console() if Console().is_terminal else Console(width=_PIPE_WIDTH)
    for table in drift_alarms.tables(found):
        console.print(table, "")
    write_json(json_file, msgspec.to_builtins(found))
