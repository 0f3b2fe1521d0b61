"""The command line. It parses, imports what one command needs, and turns refusals into one line.

Exit codes: 0 done, 1 could not do it (the reason on stderr), 2 wrong usage, 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

try:
    import click

    from stream.commands import environment, parameters, process, settings_flags
    from stream.commands.paths import PAGE_FILES, RUN_FILES, TABLE_SUFFIXES, DataDir, Folder, Input, Output
    from stream.errors import MisuseError, VolcastError
except KeyboardInterrupt:
    # Before there is anything that could turn it into an exit code.
    sys.exit(130)

F = TypeVar("F", bound=Callable[..., Any])

_IN, _MODEL, _POLICY = settings_flags.FILE, settings_flags.MODEL, settings_flags.POLICY
_DATA_DIR = DataDir()
#: Text that may as well go to /dev/stdout.
_TEXT = Output(stream=True)
_FILE = Output()
_TABLE = Output(suffixes=TABLE_SUFFIXES)
_FETCHED = Output(suffixes=TABLE_SUFFIXES, also=lambda out, _: [out.with_name(f"{out.name}.parts")])
_BUNDLE = Output(also=lambda out, given: [out.with_suffix(".md")] if given.get("evaluation") else [])
_PAGES = Folder(PAGE_FILES)
_TIME = parameters.Time()
_SEED = click.IntRange(min=0)


class _CommandLine(click.Group):
    """Errors that say whose fault they are leave as one line, with exit code 2 for wrong usage and 1 for what could
    not be done; a defect keeps its traceback."""

    command_class = parameters.Command

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        try:
            with parameters.errors_in_one_line():
                return super().make_context(*args, **options)
        except KeyboardInterrupt:
            sys.exit(process.INTERRUPTED)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with parameters.errors_in_one_line():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(process.INTERRUPTED)
        except VolcastError as error:
            from stream import logs

            logs.last_words(f"volcast: {' '.join(str(error).split())}")
            ctx.exit(2 if isinstance(error, MisuseError) else 1)


@click.group(cls=_CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="volcast")
def cli() -> None:
    """Volcast listens to an exchange's hourly candles, forecasts how volatile the next 24 hours will be, turns that
    into a risk decision, publishes both over MQTT, and keeps checking whether it can still be trusted.

    Try it: volcast demo
    """


def _one_symbol(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Any spelling of a pair as the exchange's, for every command alike."""
    if value is None:
        return None
    from stream.core.market.symbols import SymbolError, parse
    from stream.errors import MisuseError

    try:
        return parse(value)
    except SymbolError as error:
        raise MisuseError(f"{option.opts[-1]}: {error}") from None


@cli.command()
@settings_flags.options
def run(**flags: Any) -> None:
    """Run the daemon against a real exchange and broker, until SIGTERM or Ctrl-C.

    Each option is also a variable VOLCAST_<NAME> and a key in volcast.toml; a password belongs there.

    Example: volcast run --symbols BTCUSDT,ETHUSDT --mqtt-url mqtts://broker.example
    """
    process.few_threads()
    settings = settings_flags.load(flags)
    from stream.commands import run

    run.run(settings)


@cli.command()
@settings_flags.options
def check(**flags: Any) -> None:
    """Show the effective settings (secrets masked), the model's contract and who can be reached.

    Exit code 1 only where `run` would refuse to start; an unreachable host is a warning.

    Example: volcast check --symbols BTCUSDT
    """
    settings = settings_flags.load(flags)
    from stream.commands import check as command

    command.check(settings)


@cli.command()
@click.argument("file", type=_FILE)
@settings_flags.config_option
@click.option("--data-dir", type=_DATA_DIR, help="Where the journal is.  [default: var]")
def backup(file: Path, **flags: Any) -> None:
    """Copy the journal into FILE, as it is at one moment, while the daemon goes on. FILE is whole or not there, and one
    that is there already is not replaced.

    To restore: stop the daemon, move journal.sqlite, -wal and -shm aside, put FILE in place of journal.sqlite, start.

    Example: volcast backup --data-dir var journal-2026-11-22.sqlite
    """
    settings = settings_flags.settle(flags, "data_dir")
    from stream.commands import backup as command

    command.backup(settings.data_dir, file)


def _watched(name: str, memory_mb: int | None) -> None:
    """Where memory is bounded, the rest of the command runs in a child. Not within another program, which has threads
    and a life of its own."""
    if process.is_ours:
        from stream.commands import confined

        confined.in_child(name, memory_mb)


def _tape_options(command: F) -> F:
    options = [
        click.option("--candles", type=_IN, help="Play this candle file.  [default: a simulated market]"),
        click.option(
            "--from", "from_", type=_TIME, metavar="ISO", help="First candle to play, UTC; earlier ones are history."
        ),
        click.option("--hours", type=click.IntRange(min=1), help="Candles to play.  [default: until Ctrl-C]"),
        click.option("--speed", metavar="X|max", help="Exchange seconds per second.  [default: 3600]"),
        click.option("--symbols", metavar="A,B", help="Symbols to play.  [default: BTCUSDT]"),
        click.option("--seed", type=_SEED, default=2, show_default=True, help="Seed of the simulated market."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@_tape_options
@click.option("--data-dir", type=_DATA_DIR, help="Keep the journal here.  [default: a temporary directory]")
@click.option("--model", type=_MODEL, help="ONNX bundle.  [default: the packaged one]")
@click.option("--policy", type=_POLICY, help="Policy file (TOML) or packaged name.  [default: target-40]")
@click.option("--mqtt-url", default="embedded", show_default=True, help="Broker to publish to.")
@click.option("--http-port", type=click.IntRange(0, 65_535), default=9_464, show_default=True, help="0 = any free.")
@click.option("--json", "json_file", type=_TEXT, help="Write the summary's figures here too.")
def demo(**options: Any) -> None:
    """The whole thing on this machine: an exchange, a broker and the real monitor on them.

    Shows a live table and where to look. With --hours it ends by itself, with a summary.

    Example: volcast demo --hours 72
    """
    process.few_threads()
    from stream.commands import demo as command

    command.demo(**options)


@cli.command()
@_tape_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option("--ws-port", type=click.IntRange(0, 65_535), default=9_443, show_default=True, help="WebSocket; 0 = any.")
@click.option("--rest-port", type=click.IntRange(0, 65_535), default=9_080, show_default=True, help="REST and control.")
def exchange(**options: Any) -> None:
    """The embedded exchange on its own: Binance's dialect, a tape, faults on order (POST /control/fault).

    Its clock stands still until somebody asks the time or subscribes. REST's port serves the bulk archive too, for
    `volcast fetch`.
    Faults: drop, duplicate_close, withhold_close, mute, unmute, refuse, flap, rest_status; of the archive
    truncated_zip, wrong_checksum, missing_archive, header_row, missing_rows, revised_archive. For instance
    curl -d '{"fault":"drop"}' http://127.0.0.1:9080/control/fault

    Example: volcast exchange --candles btc.parquet --from 2024-03-01 --speed 3600
    """
    process.few_threads()
    from stream.commands import exchange as command

    command.exchange(**options)


@cli.command()
@click.option("--candles", type=_IN, required=True, help="Candle file: parquet, feather, CSV or JSON, also zipped.")
@click.option("--out", type=_TABLE, required=True, help="Result, .parquet or .csv.")
@click.option("--from", "from_", type=_TIME, metavar="ISO", help="First candle to forecast, UTC.  [default: all]")
@click.option(
    "--symbol",
    callback=_one_symbol,
    help="Which symbol of the file, such as BTCUSDT or BTC/USDT.  [default: its only one]",
)
@click.option("--model", type=_MODEL, help="ONNX bundle.  [default: the packaged one]")
@click.option("--policy", type=_POLICY, help="Policy file (TOML) or packaged name.  [default: target-40]")
@settings_flags.config_option
def predict(**options: Any) -> None:
    """Forecasts and decisions for a candle file, one row per closed candle: the same numbers as the daemon's for every
    row with 120 days of candles before it, which is what the daemon fetches.

    Volatilities are hourly; annualized = hourly × √8760.

    Example: volcast predict --candles btc.parquet --from 2024-01-01 --out forecasts.parquet
    """
    settings_flags.settle(options, "model", "policy")
    from stream.commands import predict as command

    command.predict(**options)


@cli.command()
@click.option("--symbols", metavar="A,B", help="Symbols to fetch.  [default: BTCUSDT]")
@click.option("--from", "from_", type=_TIME, metavar="ISO", required=True, help="First candle, UTC.")
@click.option("--to", type=_TIME, metavar="ISO", help="Candles before this, UTC.  [default: now]")
@click.option("--out", type=_FETCHED, required=True, help="Candle file to write or extend, .parquet or .csv.")
@click.option("--rest-url", help="REST.  [default: https://api.binance.com]")
@click.option(
    "--archive-url",
    envvar="VOLCAST_ARCHIVE_URL",
    help="Bulk archive.  [default: https://data.binance.vision; REST_URL if that is on loopback]",
)
@click.option("--allow-plaintext", is_flag=True, default=None, help="Unencrypted URLs beyond loopback.")
@click.option("--json", "json_file", type=_TEXT, help="Write holes, revisions and all other facts here too.")
@settings_flags.config_option
def fetch(**options: Any) -> None:
    """Fetch closed candles into one candle file: from the bulk archive, checksums verified, and from REST what the
    archive lacks. Missing hours are told, not filled.

    Interrupted, the same command resumes; on a file that is there it fetches what is missing, notices archives that
    were revised, and leaves what was not asked for. What it has in hand is in OUT.parts, which may be deleted.

    Example: volcast fetch --symbols BTCUSDT,ETHUSDT --from 2019-01-01 --out candles.parquet
    """
    settings_flags.settle(options, "symbols", "rest_url", "allow_plaintext")
    from stream.commands import fetch as command

    command.fetch(**options)


@cli.command()
@click.option("--candles", type=_IN, required=True, help="Candle file.")
@click.option("--out", type=Folder(RUN_FILES), required=True, help="Directory for the run.")
@click.option("--symbol", callback=_one_symbol, default="BTCUSDT", show_default=True)
@click.option("--pool", type=_IN, help="Candle file whose other pairs are learnt from too.")
@click.option(
    "--from",
    "train_from",
    type=_TIME,
    metavar="ISO",
    default="2019-01-01",
    show_default=True,
    help="First label's hour.",
)
@click.option(
    "--to", "train_until", type=_TIME, metavar="ISO", default="2024-01-01", show_default=True, help="No label beyond."
)
@click.option("--seed", type=_SEED, default=7, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the data.  [default: chosen on 2019-2023]")
@click.option("--json", "json_file", type=_TEXT, help="Write the figures here too.")
def train(**options: Any) -> None:
    """Train the LSTM on a candle file (needs the extra `train`).

    Example: volcast train --candles btc.parquet --pool others.parquet --out runs/btc
    """
    from stream.commands import offline

    offline.train(**options)


@cli.command()
@click.option("--run", "run_dir", type=Input(RUN_FILES), required=True, help="Directory that `volcast train` wrote.")
@click.option("--out", type=_BUNDLE, required=True, help="ONNX bundle to write.")
@click.option(
    "--evaluation",
    type=_IN,
    help="What `volcast evaluate --json` wrote about the run: its scores go into the bundle, a model card beside it.",
)
@click.option("--ledger", type=_IN, help="Scorings of the test year, for the card to count.")
@click.option("--json", "json_file", type=_TEXT, help="Write the figures here too.")
def export(**options: Any) -> None:
    """Turn a training run into one ONNX bundle, or refuse where the two disagree (needs the extra `train`).

    Example: volcast export --run runs/btc --out var/champion.onnx
    """
    from stream.commands import offline

    offline.export(**options)


@cli.command()
@click.option("--candles", type=_IN, required=True, help="Candle file.")
@click.option(
    "--model",
    "models",
    type=Input(RUN_FILES, shipped=("export", "models", "*.onnx")),
    multiple=True,
    help="ONNX bundle, or a directory that `volcast train` wrote; may be given again.  [default: the packaged one]",
)
@click.option("--symbol", callback=_one_symbol, default="BTCUSDT", show_default=True)
@click.option("--from", "start", type=_TIME, metavar="ISO", help="First forecast, UTC.  [default: 2024-01-01]")
@click.option("--to", "end", type=_TIME, metavar="ISO", help="No outcome beyond, UTC.  [default: 2025-01-01]")
@click.option("--walk-forward", "years", metavar="YEARS", help="Train anew before each of these years, e.g. 2022,2023.")
@click.option(
    "--train-from",
    type=_TIME,
    metavar="ISO",
    default="2019-01-01",
    show_default=True,
    help="Walk forward: learn from here on.",
)
@click.option("--pool", type=_IN, help="Walk forward: candle file of other pairs that the model learns from too.")
@click.option(
    "--baselines",
    metavar="LIST",
    default="core",
    show_default=True,
    help="Names, comma-separated, or core, all, none. core needs no training stack.",
)
@click.option("--baselines-only", is_flag=True, help="Walk forward: leave the model out.")
@click.option("--no-tests", is_flag=True, help="Measures only: no tests of forecasts, no extra `research`.")
@click.option("--seed", type=_SEED, default=7, show_default=True, help="Of what is trained in a walk forward.")
@click.option("--json", "json_file", type=_TEXT, help="Write the figures here too, all digits.")
@click.option("--html", type=_TEXT, help="Report with plots, one file.")
@click.option("--figure", type=_FILE, help="Forecast against actual, .svg or .png.")
@click.option("--ledger", type=_FILE, help="JSON lines: a scoring that touches 2024 is written down here.")
@settings_flags.config_option
def evaluate(**options: Any) -> None:
    """Score models beside the baselines, also where they win: measures, tests, groups, intervals, decay (hourly σ).

    Bundles as they are, or with --walk-forward a model trained anew before each year. The tests of forecasts and the
    figures need the extra `research`, a walk forward the extra `train`.

    Example: volcast evaluate --candles btc.parquet --from 2024-01-01 --to 2025-01-01 --html report.html
    """
    loaded = settings_flags.settle(options, "model")
    if loaded.model and not options["models"] and options["years"] is None:
        options["models"] = (loaded.model,)
    from stream.commands import evaluate as command

    command.evaluate(**options)


@cli.command()
@click.option("--candles", type=_IN, required=True, help="Candle file.")
@click.option("--symbol", callback=_one_symbol, default="BTCUSDT", show_default=True)
@click.option("--from", "start", type=_TIME, metavar="ISO", help="First decision, UTC.  [default: 2024-01-01]")
@click.option("--to", "end", type=_TIME, metavar="ISO", help="No decision beyond, UTC.  [default: 2025-01-01]")
@click.option("--model", type=_MODEL, help="ONNX bundle.  [default: the packaged one]")
@click.option("--walk-forward", "years", metavar="YEARS", help="Learn anew before each of these years, e.g. 2021,2022.")
@click.option("--forecaster", default="linear", show_default=True, help="Walk forward: who learns; model: the network.")
@click.option(
    "--train-from", type=_TIME, metavar="ISO", default="2019-01-01", show_default=True, help="Walk forward: learn from."
)
@click.option(
    "--policy",
    "chosen",
    type=_POLICY,
    multiple=True,
    help="Policy file (TOML) or packaged name; may be given again, the first is judged.  [default: target-40]",
)
@click.option("--fee-bp", type=parameters.Finite(min=0), default=10.0, show_default=True, help="Fee a side, 0.01 %.")
@click.option("--slippage-bp", type=parameters.Finite(min=0), default=0.0, show_default=True, help="Slippage a side.")
@click.option("--delay-hours", type=click.IntRange(1, 2), default=1, show_default=True, help="Hours until a fill.")
@click.option("--seed", type=_SEED, default=7, show_default=True, help="Of the bootstrap, and of what is trained.")
@click.option("--json", "json_file", type=_TEXT, help="Write the figures here too, all digits.")
@click.option("--html", type=_TEXT, help="Report with plots, one file.")
@click.option("--figure", type=_FILE, help="The main figure, .svg or .png; of several policies what tracking costs.")
@settings_flags.config_option
def backtest(**options: Any) -> None:
    """What the daemon's decisions would have come to: risk, cost and stability beside benchmarks (needs `research`).

    The very operator and policy of the daemon, filled at the next hour's open. Volatilities are annualized with
    8,760 hours. A bundle is tested only after its training range; earlier years need --walk-forward.

    Example: volcast backtest --candles btc.parquet --walk-forward 2021,2022,2023,2024 --html risk.html
    """
    # What learns anew needs no bundle: only one that was named for it is too much.
    loaded = settings_flags.settle(options, "policy", *(["model"] if options["years"] is None else []))
    if loaded.policy and not options["chosen"]:
        options["chosen"] = (loaded.policy,)
    from stream.commands import backtest as command

    command.backtest(**options)


@cli.command()
@click.option("--symbols", metavar="A", help="The symbol to look at.  [default: BTCUSDT]")
@click.option("--candles", type=_IN, help="Candle file.  [default: the journal in --data-dir]")
@click.option("--data-dir", type=_DATA_DIR, help="Where the journal is.  [default: var]")
@click.option("--model", type=_MODEL, help="ONNX bundle.  [default: DATA_DIR/champion.onnx, else the packaged one]")
@click.option("--out", type=_FILE, help="Evidently's HTML report.")
@click.option("--json", "json_file", type=_TEXT, help="Write the result here too.")
@click.option(
    "--study",
    metavar="FROM..TO",
    help="With --candles: how often both signals would have alarmed, and which changes they find.",
)
@click.option("--seed", type=_SEED, default=7, show_default=True, help="Of the study's shuffled data.")
@click.option("--nice", type=click.IntRange(0, 19), default=0, show_default=True, help="Lower priority by so much.")
@click.option("--memory-mb", type=click.IntRange(1, 2**20), metavar="MB", help="End where more is needed, MiB.")
@settings_flags.config_option
def drift(nice: int, memory_mb: int | None, **options: Any) -> None:
    """Compare the last 30 days with the model's training range, and the last 10 with the 90 before (needs `drift`).

    Scores are Wasserstein distances in standard deviations of what is held against. A symbol that the model was not
    made for is held against 180 days of its own past.

    Example: volcast drift --data-dir var --out drift.html

    Example: volcast drift --candles btc.parquet --study 2019-01-01..2025-01-01
    """
    os.nice(nice)
    _watched("drift", memory_mb)
    settings_flags.settle(options, "symbols", "data_dir", "model")
    from stream.commands import drift as command

    command.drift(**options)


@cli.command()
@click.option("--candles", type=_IN, help="Candle file.  [default: the journal in --data-dir]")
@click.option("--data-dir", type=_DATA_DIR, help="Where the journal is.  [default: var]")
@click.option(
    "--symbol",
    callback=_one_symbol,
    help="The symbol to report on.  [default: that of --symbols in the settings, BTCUSDT]",
)
@click.option("--from", "from_", type=_TIME, metavar="ISO", help="The period's first hour, UTC.")
@click.option("--to", type=_TIME, metavar="ISO", help="The period ends before this, UTC.  [default: the newest candle]")
@click.option("--quarterly", type=click.IntRange(2010, 2098), metavar="YEAR", help="Q1 to Q4 of a year instead.")
@click.option("--model", type=_MODEL, help="ONNX bundle.  [default: DATA_DIR/champion.onnx, else the packaged one]")
@click.option("--out", type=_PAGES, help="Folder for the pages.  [default: DATA_DIR/reports]")
@click.option("--json", "json_file", type=_TEXT, help="Write all figures here too.")
@settings_flags.config_option
def report(**options: Any) -> None:
    """Pages for people, with their figures beside them as JSON: drift and forecast quality of a period (needs `drift`).

    From a candle file the forecasts are the daemon's own, made anew; from the journal they are those that were served.
    σ is in annualized percent on the pages and hourly in the JSON, as the names there say.

    Example: volcast report --candles btc.parquet --quarterly 2024 --out reports
    """
    _watched("report", None)
    loaded = settings_flags.settle(options, "symbols", "data_dir", "model")
    options["symbol"] = options["symbol"] or ",".join(loaded.symbols)
    from stream.commands import report as command

    command.report(**options)


def main() -> None:
    if os.getpid() == 1:
        # The kernel spares the first process of a container signals that it has no handler for: also while it imports.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    environment.forget_others()
    with process.in_order():
        cli(prog_name="volcast")


if __name__ == "__main__":
    main()
