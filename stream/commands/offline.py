"""The commands that make a model: train, export. And how those that need no socket show times."""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime
from pathlib import Path

import click

from stream.commands.exchange import refuse_empty_period
from stream.commands.outputs import write_json
from stream.errors import RefusedError
from stream.extras import installing


def utc(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%d %H:%M}"


def _need(extra: str, *modules: str) -> None:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise RefusedError(f"the extra {extra!r} is missing ({', '.join(missing)}): {installing(extra)}")


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
    refuse_empty_period(train_from, train_until)
    _need("train", "tensorflow", "keras")
    from training.bundling import train as bundling

    figures = bundling.train(
        candles,
        out,
        symbol=symbol,
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
