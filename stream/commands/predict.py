"""`volcast predict`: computes the daemon's numbers for a file of candles, in one batched pass.

The operator is the daemon's own, driven over the whole table: features and model run once, in blocks, and the
decisions follow candle by candle. A scheduled batch job calls this command (docs/batch.md).
"""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from stream.adapters import policies
from stream.adapters import predictor as predictors
from stream.adapters.bundles import model_path
from stream.adapters.candles import files
from stream.cli import settings_flags
from stream.cli.parameters import Time, command, one_symbol, time_of
from stream.cli.paths import TABLE_SUFFIXES, DataDir, Output, inputs_of, places_of, refuse_clashes
from stream.cli.settings_flags import FILE, MODEL, POLICY
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.batch import Stretch
from stream.core.deciding.policy import REGIMES, action
from stream.core.deciding.replay import stretches
from stream.core.market.candle import HOUR_MS
from stream.core.messages.builders import close_time
from stream.errors import RefusedError
from stream.times import minute


@command
@click.option("--candles", type=FILE, required=True, help="Candle file: parquet, feather, CSV or JSON, also zipped.")
@click.option("--out", type=Output(suffixes=TABLE_SUFFIXES), required=True, help="Result, .parquet or .csv.")
@click.option("--from", "from_", type=Time(), metavar="ISO", help="First candle to forecast, UTC.  [default: all]")
@click.option(
    "--symbol",
    callback=one_symbol,
    help="Which symbol of the file, such as BTCUSDT or BTC/USDT.  [default: its only one]",
)
@click.option("--model", type=MODEL, help="ONNX bundle.  [default: DATA_DIR/champion.onnx, else the packaged one]")
@click.option("--data-dir", type=DataDir(), help="Where the champion is.  [default: var]")
@click.option("--policy", type=POLICY, help="Policy file (TOML) or packaged name.  [default: target-40]")
@settings_flags.config_option
def predict(**options: Any) -> None:
    """Forecasts and decisions for a candle file, one row per closed candle: the same numbers as the daemon's for every
    row with 120 days of candles before it, which is what the daemon fetches.

    Volatilities are hourly; annualized = hourly × √8760.

    Example: volcast predict --candles btc.parquet --from 2024-01-01 --out forecasts.parquet
    """
    settings_flags.settle(options, "model", "policy", "data_dir")
    _predict(**options)


def _predict(
    *,
    candles: Path,
    out: Path,
    from_: str | None,
    symbol: str | None,
    model: Path | None,
    policy: Path | None,
    data_dir: Path,
) -> None:
    since = time_of(from_, "--from") if from_ else None
    files.refuse_place(out)
    chosen = policies.load(policy)
    bundle = model_path(model, data_dir)
    refuse_clashes(places_of(("--out", out)), inputs_of(data_dir, bundle))
    predictor = predictors.load(bundle)
    table = files.read(candles, asked=symbol)
    if symbol is None and len(table.symbols) > 1:
        raise RefusedError(f"{candles} holds {', '.join(table.symbols)}: choose one with --symbol")
    name = symbol or table.symbols[0]
    series = table[name]
    rules = Rules.of(chosen, predictor.model.contract)
    needed = rules.history_hours(name)
    if since is not None:
        # All that a forecast and its decision can depend on; earlier candles change nothing.
        series = [c for c in series if c.open_time >= since - needed * HOUR_MS]
        if not series or series[-1].open_time < since:
            raise RefusedError(f"--from: {candles} has no candle of {name} from {from_} on")
    columns: dict[str, list[Any]] = {}
    uncalibrated = 0
    with _progress() as bar:
        modelled, decided = bar.add_task("model", total=len(series)), bar.add_task("decisions", total=len(series))

        def counted(sequence: NDArray[np.float32], static: NDArray[np.float32]) -> NDArray[np.float32]:
            answer = predictor(sequence, static)
            bar.advance(modelled, len(static))
            return answer

        for stretch in stretches(rules, name, series, predictor.model, counted, since):
            for title, values in _columns(stretch).items():
                columns.setdefault(title, []).extend(values)
            uncalibrated += len(stretch.served) * (stretch.regimes_from == "uncalibrated")
            bar.update(decided, completed=len(columns["id"]))
        for task in (modelled, decided):
            bar.update(task, completed=len(series))
    if not columns:
        raise RefusedError(
            f"{candles}: {len(series)} candle(s) of {name} are too few for a forecast; it needs 12 of the last 24 "
            "returns: fetch more"
        )
    files.write_table(pl.DataFrame(columns), out, times=("open_time", "close_time"))
    times = columns["open_time"]
    young = sum(open_time < series[0].open_time + (needed - 1) * HOUR_MS for open_time in times)
    if young:
        click.echo(
            f"note: {young} row(s) have fewer than {needed:,} hours of candles before them in this file; "
            "a daemon that can fetch more may say something else for them",
            err=True,
        )
    if uncalibrated:
        click.echo(
            f"note: the regimes of {uncalibrated} row(s) are by the thresholds of {rules.described}: {name} has no 180 "
            "days of forecasts of its own before them",
            err=True,
        )
    click.echo(f"{len(times)} forecasts of {name}, {minute(times[0])} to {minute(times[-1])}: {out}")


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        # The mail of a cron job should hold facts, not a progress bar.
        disable=not console.is_terminal,
    )


def _columns(stretch: Stretch) -> dict[str, list[Any]]:
    """Returns the columns of the file for the forecasts of a stretch."""
    served, before, after = stretch.served, stretch.memories[:-1], stretch.memories[1:]

    def of_each(name: str) -> list[Any]:
        return list(map(attrgetter(name), served))

    open_times = of_each("open_time")
    return {
        "id": of_each("id"),
        "symbol": of_each("symbol"),
        "open_time": open_times,
        "close_time": [close_time(open_time) for open_time in open_times],
        "volatility_hourly": of_each("volatility"),
        "volatility_low": stretch.lows,
        "volatility_high": stretch.highs,
        **{
            name: of_each(name)
            for name in (
                *("horizon_1h", "horizon_6h", "horizon_12h", "horizon_24h", "rolling_24h_next", "realized_24h"),
                *("baseline_persistence", "baseline_ewma", "baseline_har"),
            )
        },
        "regime": [REGIMES[memory.regime] for memory in after],
        "exposure": [memory.exposure for memory in after],
        "action": [action(*memories) for memories in zip(before, after, strict=True)],
        "quality": of_each("quality"),
        "serving": ["har" if har else "model" for har in stretch.har_served],
        "model_volatility": [prediction.volatility for prediction in stretch.predictions],
    }
