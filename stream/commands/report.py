"""`volcast report`: writes pages on drift and forecast quality for any period, from a candle file or the journal.

Libraries with threads are imported once the process is confined, not before.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from stream import times
from stream.adapters.bundles import model_path
from stream.cli import confined, process, scoring_ledger, settings_flags
from stream.cli.output_folder import filled
from stream.cli.outputs import write_json
from stream.cli.parameters import Time, command, one_symbol, time_of
from stream.cli.paths import PAGE_FILES, DataDir, Folder, Output, Place, inputs_of, places_of, refuse_clashes
from stream.cli.settings_flags import FILE, MODEL
from stream.core.market.candle import HOUR_MS
from stream.errors import MisuseError

if TYPE_CHECKING:
    from monitor.reports.drift import Period
    from monitor.reports.report import Written

#: (name, from, to) in ms, the end exclusive.
Asked = tuple[str, int, int]


@command
@click.option("--candles", type=FILE, help="Candle file.  [default: the journal in --data-dir]")
@click.option("--data-dir", type=DataDir(), help="Where the journal is.  [default: var]")
@click.option(
    "--symbol",
    callback=one_symbol,
    help="The symbol to report on.  [default: that of --symbols in the settings, BTCUSDT]",
)
@click.option("--from", "from_", type=Time(), metavar="ISO", help="The period's first hour, UTC.")
@click.option(
    "--to", type=Time(), metavar="ISO", help="The period ends before this, UTC.  [default: the newest candle]"
)
@click.option("--quarterly", type=click.IntRange(2010, 2098), metavar="YEAR", help="Q1 to Q4 of a year instead.")
@click.option("--model", type=MODEL, help="ONNX bundle.  [default: DATA_DIR/champion.onnx, else the packaged one]")
@click.option("--out", type=Folder(PAGE_FILES), help="Folder for the pages.  [default: DATA_DIR/reports]")
@click.option("--json", "json_file", type=Output(stream=True), help="Write all figures here too.")
@settings_flags.config_option
def report(**options: Any) -> None:
    """Pages for people, with their figures beside them as JSON: drift and forecast quality of a period (needs `drift`).

    From a candle file the forecasts are the daemon's own, made anew; from the journal they are those that were served.
    σ is in annualized percent on the pages and hourly in the JSON, as the names there say.

    Example: volcast report --candles btc.parquet --quarterly 2024 --out reports
    """
    confined.watched("report", None)
    loaded = settings_flags.settle(options, "symbols", "data_dir", "model")
    options["symbol"] = options["symbol"] or ",".join(loaded.symbols)
    _report(**options)


def _report(
    *,
    candles: Path | None,
    data_dir: Path,
    symbol: str,
    from_: str | None,
    to: str | None,
    quarterly: int | None,
    model: Path | None,
    out: Path | None,
    json_file: Path | None,
) -> None:
    if (quarterly is None) == (from_ is None) or (to is not None and from_ is None):
        raise click.UsageError("name a period: --from ISO, with or without --to ISO, or --quarterly YEAR")
    asked = [_asked(from_, to)] if from_ is not None else _quarters(quarterly or 0)
    if not (symbol.isascii() and symbol.isalnum()):
        # The symbol becomes part of file names.
        raise MisuseError(f"--symbol {symbol!r} is no symbol such as BTCUSDT: a report is of one")
    folder = out if out is not None else data_dir / "reports"
    chosen = model_path(model, data_dir)
    pages = Place("--out", folder, PAGE_FILES)
    refuse_clashes([pages, *places_of(("--json", json_file))], inputs_of(data_dir, chosen))
    from monitor.reports import report as reports
    from stream.adapters import predictor as predictors
    from stream.cli import report_source
    from training.evaluation.ledger import Scoring

    reports.refuse_without_extra()
    ledger = scoring_ledger.used(None)
    predictor = predictors.load(chosen)
    whole_name = str(quarterly) if quarterly is not None else asked[0][0]

    def cut(newest: int) -> Period:
        return _cut((whole_name, asked[0][1], asked[-1][2]), newest)

    # A daemon on this machine has priority.
    os.nice(10)
    with process.ended_in_order(), filled("--out", folder, f"{symbol}-{whole_name}-index.html") as within:
        _progress(f"forecasts of {symbol}")
        if candles is not None:
            source, whole = report_source.of_file(candles, symbol, predictor, cut)
        else:
            source, whole = report_source.of_journal(data_dir, symbol, predictor, cut)
        periods = [p for p in (_cut(a, whole.to_ms - HOUR_MS) for a in asked) if p.to_ms > p.from_ms]
        written = reports.write(source, periods, whole, predictor.model, within, _progress)
    looks = [Scoring(predictor.model.version, symbol, times.day(whole.from_ms), times.day(whole.to_ms), "report")]
    scoring_ledger.record(ledger, whole.from_ms, whole.to_ms, looks)
    _print_summary(written, folder)
    write_json(
        json_file,
        {
            "symbol": symbol,
            "period": whole_name,
            "model_version": predictor.model.version,
            "drift": msgspec.to_builtins(written.drifts),
            "regression": msgspec.to_builtins(written.regression),
            "files": list(written.files),
            "notes": list(written.notes),
        },
    )


def _asked(from_: str, to: str | None) -> Asked:
    since = time_of(from_, "--from")
    until = time_of(to, "--to") if to is not None else None
    for option, ms in (("--from", since), ("--to", until)):
        if ms is not None and ms % HOUR_MS:
            raise MisuseError(f"{option}: candles are hourly; name a full hour, such as 2024-03-01T06:00")
    if until is None:
        return f"{_short(since)}-on", since, sys.maxsize
    if until <= since:
        raise MisuseError(f"--from, --to: the period {from_} to {to} is empty; swap or widen it")
    return f"{_short(since)}-to-{_short(until)}", since, until


def _quarters(year: int) -> list[Asked]:
    marks = [datetime(year, month, 1, tzinfo=UTC) for month in (1, 4, 7, 10)]
    times = [int(mark.timestamp()) * 1_000 for mark in (*marks, datetime(year + 1, 1, 1, tzinfo=UTC))]
    return [(f"{year}-Q{k + 1}", times[k], times[k + 1]) for k in range(4)]


def _short(ms: int) -> str:
    """Returns a time as part of a file's name."""
    moment = times.moment(ms)
    return times.day(ms) if moment.hour == 0 else f"{moment:%Y-%m-%dT%H}"


def _cut(asked: Asked, newest: int) -> Period:
    """Returns the period as far as there are candles."""
    from monitor.reports.drift import Period

    name, from_ms, asked_to_ms = asked
    end = newest + HOUR_MS
    # A period with an open end lacks nothing: it ends with the newest candle.
    return Period(name, from_ms, min(asked_to_ms, end), end if asked_to_ms == sys.maxsize else asked_to_ms)


def _progress(text: str) -> None:
    # The mail of a cron job should hold facts, not progress.
    if sys.stderr.isatty():
        click.echo(f"{text} …", err=True)


def _print_summary(written: Written, folder: Path) -> None:
    from monitor.reports.page import share

    for name, of in written.drifts.items():
        click.echo(
            f"{name}: weeks with drift {share(of.weeks_detected, len(of.weeks))}; by the 10-day signal "
            f"{share(of.weeks_fast_detected, of.weeks_fast_judged)}; by Evidently's default "
            f"{share(of.weeks_default_detected, len(of.weeks))}"
        )
    for name, quality in written.regression.by_forecaster.items():
        click.echo(
            f"{name}: QLIKE {quality.qlike:.3f}, MAPE {quality.mape:.1%}; hourly σ: RMSE {quality.rmse_hourly:.6f}, "
            f"MAE {quality.mae_hourly:.6f}, bias {quality.bias_hourly:+.6f}"
        )
    of_interval = f"{written.regression.coverage:.1%} of outcomes, promised {written.regression.coverage_promised:.0%}"
    click.echo(f"interval: held {of_interval}; {written.regression.forecasts} forecasts")
    for note in written.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{len(written.files)} files: {folder / written.files[-1]}")
