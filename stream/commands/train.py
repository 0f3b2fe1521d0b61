"""`volcast train`: turns a candle file into a training run.

Libraries with threads are imported once the process is confined, not before.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from stream.cli import confined, confined_options
from stream.cli.outputs import write_json
from stream.cli.parameters import SEED, Time, command, one_symbol, refuse_empty_period
from stream.cli.paths import RUN_FILES, Folder, Output
from stream.cli.settings_flags import FILE
from stream.extras import refuse_missing

_TIME_S = 24 * 3_600


@command
@click.option("--candles", type=FILE, required=True, help="Candle file.")
@click.option("--out", type=Folder(RUN_FILES), required=True, help="Directory for the run.")
@click.option("--symbol", callback=one_symbol, default="BTCUSDT", show_default=True)
@click.option("--pool", type=FILE, help="Candle file whose other pairs are learnt from too.")
@click.option(
    "--from",
    "train_from",
    type=Time(),
    metavar="ISO",
    default="2018-03-01",
    show_default=True,
    help="First label's hour.",
)
@click.option(
    "--to", "train_until", type=Time(), metavar="ISO", default="2024-01-01", show_default=True, help="No label beyond."
)
@click.option("--seed", type=SEED, default=7, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the data.  [default: chosen on 2021-2023]")
@click.option("--json", "json_file", type=Output(stream=True), help="Write the figures here too.")
@confined_options.options
def train(nice: int, memory_mb: int | None, **options: Any) -> None:
    """Train base, trees and LSTM on a candle file (needs the extra `train`).

    Example: volcast train --candles btc.parquet --pool others.parquet --out runs/btc
    """
    os.nice(nice)
    # A training takes minutes; whatever takes a day will not end.
    confined.watched("train", memory_mb, time_s=_TIME_S)
    _train(**options)


def _train(
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
    refuse_missing("it needs", "train", ("tensorflow", "keras"))
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
