"""The commands that need no socket to live on: predict, fetch, train, export, evaluate, drift."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
import polars as pl
from rich.console import Console
from rich.progress import Progress

from stream.adapters import candles as files
from stream.adapters import predictor as predictors
from stream.adapters.journal import SqliteJournal
from stream.commands.exchange import parse_symbols, parse_time
from stream.commands.node import packaged_model
from stream.core.candle import HOUR_MS
from stream.core.keyed import HISTORY_HOURS, Issued, Rules
from stream.core.policy import Policy
from stream.core.publication import close_time
from stream.core.replay import replay
from stream.ports import RefusedError


def _utc(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%d %H:%M}"


def _read(candles: Path, symbol: str | None) -> files.CandleTable:
    """The file; rows without a symbol of their own are taken for the one that was asked for."""
    return files.read(candles, default_symbol=symbol or files.DEFAULT_SYMBOL)


def _write_json(file: Path | None, figures: Any) -> None:
    if file is None:
        return
    try:
        beside = file.with_name(f".{file.name}.part")
        beside.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        beside.replace(file)
    except OSError as error:
        raise RefusedError(f"--json {file}: cannot be written: {error.strerror}") from None


def predict(*, candles: Path, out: Path, from_: str | None, symbol: str | None, model: Path | None) -> None:
    since = parse_time(from_, "--from") if from_ else None
    predictor = predictors.load(model or packaged_model())
    table = _read(candles, symbol)
    if symbol is None and len(table.symbols) > 1:
        raise RefusedError(f"{candles} holds {', '.join(table.symbols)}: choose one with --symbol")
    name = symbol.upper() if symbol else table.symbols[0]
    series = table[name]
    if since is not None:
        # All that a forecast and its decision can depend on; what lies before changes nothing.
        series = [c for c in series if c.open_time >= since - HISTORY_HOURS * HOUR_MS]
        if not series or series[-1].open_time < since:
            raise RefusedError(f"--from: {candles} has no candle of {name} from {from_} on")
    rules = Rules(Policy(), predictor.model.contract.regimes)
    rows = [
        _row(event)
        for _, event in replay(rules, name, series, predictor.model, predictor, since)
        if isinstance(event, Issued)
    ]
    if not rows:
        raise RefusedError(f"{candles}: too few candles of {name} for a forecast; it needs 12 of the last 24 returns")
    files.write_table(pl.DataFrame(rows), out, times=("open_time", "close_time"))
    young = sum(row["open_time"] < series[0].open_time + (HISTORY_HOURS - 1) * HOUR_MS for row in rows)
    if young:
        click.echo(
            f"note: {young} row(s) have fewer than {HISTORY_HOURS:,} hours of candles before them in this file; "
            "a daemon that can fetch more may say something else for them",
            err=True,
        )
    click.echo(f"{len(rows)} forecasts of {name}, {_utc(rows[0]['open_time'])} to {_utc(rows[-1]['open_time'])}: {out}")
    if table.duplicates or table.off_hour:
        click.echo(f"{candles}: {table.duplicates} duplicate and {table.off_hour} off-hour row(s) left out")


def _row(issued: Issued) -> dict[str, Any]:
    p, v = issued.prediction, issued.verdict
    return {
        "id": str(p.id),
        "symbol": p.symbol,
        "open_time": p.open_time,
        "close_time": close_time(p.open_time),
        "volatility_hourly": p.volatility,
        "volatility_low": p.volatility_low,
        "volatility_high": p.volatility_high,
        "horizon_1h": p.horizon_1h,
        "horizon_6h": p.horizon_6h,
        "horizon_12h": p.horizon_12h,
        "horizon_24h": p.horizon_24h,
        "rolling_24h_next": p.rolling_24h_next,
        "realized_24h": p.realized_24h,
        "baseline_persistence": p.baseline_persistence,
        "baseline_ewma": p.baseline_ewma,
        "baseline_har": p.baseline_har,
        "regime": v.regime,
        "exposure": v.exposure,
        "action": v.action,
        "quality": p.quality,
    }


def fetch(*, symbols: str, from_: str, to: str | None, out: Path, rest_url: str) -> None:
    from training import fetch as room

    names = parse_symbols(symbols, ())
    start = parse_time(from_, "--from")
    end = parse_time(to, "--to") if to else None
    with Progress(console=Console(stderr=True)) as bar:
        tasks = {name: bar.add_task(name, total=None) for name in names}
        fetched = room.fetch(
            names,
            start,
            end,
            out,
            rest_url=rest_url,
            progress=lambda name, done, total: bar.update(tasks[name], completed=done, total=total),
        )
    click.echo(f"{fetched.rows} candles: {out}")
    for name, first, last in fetched.holes:
        hours = (last - first) // HOUR_MS + 1
        click.echo(f"{name}: the exchange has no candle for {hours} hour(s) from {_utc(first)} to {_utc(last)}")


def _need(extra: str, *modules: str) -> None:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise RefusedError(
            f"the extra {extra!r} is missing ({', '.join(missing)}): "
            f"pip install -c constraints.txt '.[{extra}]' in the clone"
        )


def train(
    *,
    candles: Path,
    out: Path,
    symbol: str,
    train_from: str,
    train_until: str,
    seed: int,
    epochs: int | None,
    json_file: Path | None,
) -> None:
    _need("train", "tensorflow", "keras")
    from training import fit

    chosen = {} if epochs is None else {"epochs": epochs}
    figures = fit.train(
        candles, out, symbol=symbol.upper(), train_from=train_from, train_until=train_until, seed=seed, **chosen
    )
    _write_json(json_file, figures)


def export(*, run_dir: Path, out: Path, json_file: Path | None) -> None:
    _need("train", "tensorflow", "keras", "tf2onnx", "onnx")
    from export import bundle

    made = bundle.export(run_dir, out)
    click.echo(
        f"{made['bundle']}: version {made['version']}, {made['bytes']} bytes; "
        f"max |Δ log σ| {made['parity']:.1e} against Keras over {made['windows']} windows"
    )
    _write_json(json_file, made)


def evaluate(*, candles: Path, model: Path | None, symbol: str, start: str, end: str, json_file: Path | None) -> None:
    from training import evaluate as room

    figures = room.evaluate(candles, model or packaged_model(), symbol=symbol.upper(), start=start, end=end)
    Console().print(room.render(figures))
    _write_json(json_file, figures)


def drift(
    *,
    symbols: str,
    candles: Path | None,
    data_dir: Path,
    model: Path | None,
    out: Path | None,
    json_file: Path | None,
    nice: int,
) -> None:
    from monitor import drift as room

    os.nice(nice)
    (symbol, *others) = parse_symbols(symbols, ())
    if others:
        raise RefusedError("--symbols: drift looks at one symbol at a time")
    champion = data_dir / "champion.onnx"
    loaded = predictors.load(model or (champion if champion.exists() else packaged_model())).model
    if candles is not None:
        series = _read(candles, symbol)[symbol]
    else:
        with contextlib.closing(SqliteJournal(data_dir, read_only=True)) as journal:
            newest = journal.last_open_time(symbol)
            if newest is None:
                raise RefusedError(f"the journal in {data_dir} has no candle of {symbol}")
            series = journal.candles(symbol, newest - (HISTORY_HOURS - 1) * HOUR_MS, newest)
    result = room.run(
        symbol,
        series,
        loaded.contract,
        model_version=loaded.version,
        issued_at=time.time_ns() // 1_000_000,
        report=out,
    )
    found = "detected" if result.detected else "not detected"
    click.echo(f"{symbol}: drift {found}, {_utc(result.from_)} to {_utc(result.to)}, {result.rows} hours")
    for feature in sorted(result.features, key=lambda f: -f.score / f.threshold):
        mark = "beyond" if feature.detected else "within"
        click.echo(f"  {feature.feature:<24} {feature.score:7.3f} {mark} {feature.threshold:.3f}")
    _write_json(json_file, msgspec.to_builtins(result))
