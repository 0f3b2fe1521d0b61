"""`volcast fetch`: writes the candles that the exchange has of some symbols to one file, and prints what it lacks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import Progress

from stream.cli import archive_url as archives
from stream.cli import settings_flags
from stream.cli.outputs import write_json
from stream.cli.parameters import Time, command, refuse_empty_period, time_of
from stream.cli.paths import TABLE_SUFFIXES, Output
from stream.errors import RefusedError
from stream.times import minute
from training.data import fetch as fetching

#: Most lines of one kind that are printed for one symbol; --json has them all.
_LINES = 20


@command
@click.option("--symbols", metavar="A,B", help="Symbols to fetch.  [default: BTCUSDT]")
@click.option("--from", "from_", type=Time(), metavar="ISO", required=True, help="First candle, UTC.")
@click.option("--to", type=Time(), metavar="ISO", help="Candles before this, UTC.  [default: now]")
@click.option(
    "--out",
    type=Output(suffixes=TABLE_SUFFIXES, also=lambda out, _: [out.with_name(f"{out.name}.parts")]),
    required=True,
    help="Candle file to write or extend, .parquet or .csv.",
)
@click.option("--rest-url", help="REST.  [default: https://api.binance.com]")
@click.option(
    "--archive-url",
    envvar="VOLCAST_ARCHIVE_URL",
    help="Bulk archive.  [default: https://data.binance.vision; REST_URL if that is on loopback]",
)
@click.option("--allow-plaintext", is_flag=True, default=None, help="Unencrypted URLs beyond loopback.")
@click.option(
    "--json", "json_file", type=Output(stream=True), help="Write holes, revisions and all other facts here too."
)
@settings_flags.config_option
def fetch(**options: Any) -> None:
    """Fetch closed candles into one candle file: from the bulk archive, checksums verified, and from REST what the
    archive lacks. Missing hours are told, not filled.

    Interrupted, the same command resumes; on a file that is there it fetches what is missing, notices archives that
    were revised, and leaves what was not asked for. What it has in hand is in OUT.parts, which may be deleted.

    Example: volcast fetch --symbols BTCUSDT,ETHUSDT --from 2019-01-01 --out candles.parquet
    """
    settings_flags.settle(options, "symbols", "rest_url", "allow_plaintext")
    _fetch(**options)


def _fetch(
    *,
    symbols: tuple[str, ...],
    from_: str,
    to: str | None,
    out: Path,
    rest_url: str,
    archive_url: str | None,
    allow_plaintext: bool,
    json_file: Path | None,
) -> None:
    start = time_of(from_, "--from")
    end = time_of(to, "--to") if to else None
    if to:
        refuse_empty_period(from_, to)
    archive_url = archives.of(archive_url, rest_url, allow_plaintext=allow_plaintext)
    console = Console(stderr=True)
    try:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            tasks = {name: bar.add_task(name, total=None) for name in symbols}
            fetched = fetching.fetch(
                symbols,
                start,
                end,
                out,
                rest_url=rest_url,
                archive_url=archive_url,
                progress=lambda name, done, total: bar.update(tasks[name], completed=done, total=total),
                waiting=lambda seconds: bar.console.print(
                    f"waiting {math.ceil(seconds)} s: the exchange limits requests"
                ),
            )
    except KeyboardInterrupt:
        raise RefusedError(f"interrupted; {fetching.parts_of(out)} keeps what came: the same command resumes") from None
    click.echo(f"{fetched.rows} candles: {out}" + (f", {fetched.kept} of them kept from before" * bool(fetched.kept)))
    for series in fetched.series:
        for line in _lines(series):
            click.echo(f"{series.symbol}: {line}")
    write_json(json_file, {"out": str(out), **msgspec.to_builtins(fetched)})


def _lines(series: fetching.Series) -> list[str]:
    facts = series.facts
    lines = [
        f"{minute(series.first_open_time)} to {minute(series.last_open_time)}, "
        f"{series.archive_hours} from the archive, {series.rest_hours} from REST"
    ]
    lines += _some([f"the archive has revised {part}: fetched anew" for part in facts.revised])
    lines += _some([f"REST replaces the archive's {part.part}: {part.reason}" for part in facts.replaced])
    lines += _some([f"{part.part} is used as fetched before: {part.reason}" for part in facts.unchecked])
    lines += _some(
        [
            f"archive, which counts, and REST differ at {minute(d.open_time)}: {_values(d.archive)} / {_values(d.rest)}"
            for d in facts.disagreements
        ]
    )
    lines += [f"{count} row(s) of the archive set aside: {reason}" for reason, count in facts.set_aside.items()]
    lines += _some(
        [
            f"the exchange has no candle for {hole.hours} hour(s) from {minute(hole.from_ms)} to {minute(hole.to_ms)}"
            for hole in series.holes
        ]
    )
    if series.withdrawn:
        lines.append(f"{series.withdrawn} candle(s) that the file held are not at the exchange: left out")
    return lines


def _some(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _LINES else [*lines[:_LINES], f"... and {len(lines) - _LINES} more; --json has all"]


def _values(ohlcv: tuple[Any, ...]) -> str:
    return " ".join(f"{value:.10g}" for value in ohlcv)
