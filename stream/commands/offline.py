"""The commands that need no socket to live on: predict, train, export, drift."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from stream.adapters import candles as files
from stream.adapters import predictor as predictors
from stream.adapters.journal import SqliteJournal
from stream.commands.exchange import parse_symbols
from stream.commands.node import packaged_model
from stream.commands.outputs import write_json
from stream.core.candle import HOUR_MS
from stream.core.keyed import HISTORY_HOURS
from stream.ports import RefusedError


def utc(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%d %H:%M}"


def read_candles(candles: Path, symbol: str | None) -> files.CandleTable:
    """The file; rows without a symbol of their own are taken for the one that was asked for."""
    return files.read(candles, default_symbol=symbol or files.DEFAULT_SYMBOL)


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
    pool: Path | None,
    train_from: str,
    train_until: str,
    seed: int,
    epochs: int | None,
    json_file: Path | None,
) -> None:
    _need("train", "tensorflow", "keras")
    from training import train as room

    figures = room.train(
        candles,
        out,
        symbol=symbol.upper(),
        pool=pool,
        train_from=train_from,
        train_until=train_until,
        seed=seed,
        epochs=epochs,
    )
    write_json(json_file, figures)


def export(*, run_dir: Path, out: Path, evaluation: Path | None, ledger: Path | None, json_file: Path | None) -> None:
    _need("train", "tensorflow", "keras", "tf2onnx", "onnx")
    from export import bundle

    made = bundle.export(run_dir, out, evaluation=evaluation, ledger=ledger)
    click.echo(
        f"{made['bundle']}: version {made['version']}, {made['bytes']} bytes; "
        f"max |Δ log σ| {made['parity']:.1e} against Keras over {made['windows']} windows"
        + (f"; card: {made['card']}" if made["card"] else "")
    )
    write_json(json_file, made)


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
        series = read_candles(candles, symbol)[symbol]
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
    click.echo(f"{symbol}: drift {found}, {utc(result.from_)} to {utc(result.to)}, {result.rows} hours")
    for feature in sorted(result.features, key=lambda f: -f.score / f.threshold):
        mark = "beyond" if feature.detected else "within"
        click.echo(f"  {feature.feature:<24} {feature.score:7.3f} {mark} {feature.threshold:.3f}")
    write_json(json_file, msgspec.to_builtins(result))
