"""`volcast export`: turns a training run into one ONNX bundle.

Libraries with threads are imported once the process is confined, not before.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from stream.cli import confined, confined_options
from stream.cli.outputs import write_json
from stream.cli.parameters import command
from stream.cli.paths import RUN_FILES, Input, Output
from stream.cli.settings_flags import FILE
from stream.extras import refuse_missing

_TIME_S = 3_600


@command
@click.option("--run", "run_dir", type=Input(RUN_FILES), required=True, help="Directory that `volcast train` wrote.")
@click.option(
    "--out",
    type=Output(also=lambda out, given: [out.with_suffix(".md")] if given.get("evaluation") else []),
    required=True,
    help="ONNX bundle to write.",
)
@click.option(
    "--evaluation",
    type=FILE,
    help="What `volcast evaluate --json` wrote about the run: its scores go into the bundle, a model card beside it.",
)
@click.option("--ledger", type=FILE, help="Scorings of the test year, for the card to count.")
@click.option("--json", "json_file", type=Output(stream=True), help="Write the figures here too.")
@confined_options.options
def export(nice: int, memory_mb: int | None, **options: Any) -> None:
    """Turn a training run into one ONNX bundle, or refuse where the two disagree (needs the extra `train`).

    Example: volcast export --run runs/btc --out var/champion.onnx
    """
    os.nice(nice)
    confined.watched("export", memory_mb, time_s=_TIME_S)
    _export(**options)


def _export(*, run_dir: Path, out: Path, evaluation: Path | None, ledger: Path | None, json_file: Path | None) -> None:
    refuse_missing("it needs", "train", ("tensorflow", "keras", "tf2onnx", "onnx"))
    from export import bundle

    made = bundle.export(run_dir, out, evaluation=evaluation, ledger=ledger)
    click.echo(
        f"{made['bundle']}: version {made['version']}, {made['bytes']} bytes; "
        f"max |Δ log σ| {made['parity']:.1e} against the run over {made['windows']} windows"
        + (f"; card: {made['card']}" if made["card"] else "")
    )
    write_json(json_file, made)
