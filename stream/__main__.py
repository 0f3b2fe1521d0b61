"""The door: the command line. It parses, imports what one command needs, and turns refusals into one line.

Exit codes: 0 done, 1 could not do it (the reason on stderr), 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(dir_okay=False, path_type=Path)
_DIR = click.Path(file_okay=False, path_type=Path)


class _Door(click.Group):
    """Errors that say whose fault they are leave as one line and exit code 1; a defect keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except _known_errors() as error:
            click.echo(f"volcast: {' '.join(str(error).split())}", err=True)
            ctx.exit(1)


def _known_errors() -> tuple[type[BaseException], ...]:
    from stream.core.contract import ContractError
    from stream.core.forecast import PredictorError
    from stream.ports import JournalError, RefusedError, UnreachableError

    known: list[type[BaseException]] = [ContractError, PredictorError, JournalError, RefusedError, UnreachableError]
    # Only what the command has already imported can have been raised.
    for module, name in (
        ("stream.adapters.candles", "CandleFileError"),
        ("stream.core.binance", "UnknownSymbolError"),
        ("stream.testing.broker", "BrokerError"),
        ("stream.web", "PortInUseError"),
        ("monitor.drift", "DriftError"),
        ("training.dataset", "DatasetError"),
        ("training.fetch", "FetchError"),
        ("export.convert", "ExportError"),
    ):
        if module in sys.modules:
            known.append(getattr(sys.modules[module], name))
    return tuple(known)


@click.group(cls=_Door, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="volcast")
def cli() -> None:
    """Volcast listens to an exchange's hourly candles, forecasts how volatile the next 24 hours will be, turns that
    into a risk decision, publishes both over MQTT, and keeps checking whether it can still be trusted.

    Try it: volcast demo
    """


def _settings_options(command: F) -> F:
    """The flags of `stream.settings.Settings`; each is also VOLCAST_<NAME> and a key of volcast.toml."""
    options = [
        click.option("--config", type=_FILE, help="TOML file of settings.  [default: volcast.toml, if present]"),
        click.option("--symbols", metavar="A,B", help="Symbols, comma-separated.  [default: BTCUSDT]"),
        click.option("--model", type=_FILE, help="ONNX bundle.  [default: DATA_DIR/champion.onnx, else the packaged]"),
        click.option("--ws-url", help="Market stream.  [default: wss://stream.binance.com:9443]"),
        click.option("--rest-url", help="REST.  [default: https://api.binance.com]"),
        click.option(
            "--mqtt-url", help="mqtt[s]://[user:password@]host or 'embedded'.  [default: mqtt://127.0.0.1:1883]"
        ),
        click.option("--http-host", help="Address to serve HTTP on.  [default: 127.0.0.1]"),
        click.option("--http-port", metavar="PORT", help="0 = any free, printed.  [default: 9464]"),
        click.option("--data-dir", type=_DIR, help="Journal and reports.  [default: var]"),
        click.option("--instance", help="Name of this node in its MQTT topics.  [default: volcast]"),
        click.option("--log-format", type=click.Choice(["text", "json"]), help="Log lines on stderr.  [default: text]"),
        click.option("--allow-plaintext", is_flag=True, default=None, help="Unencrypted URLs beyond loopback."),
        click.option("--time-scale", metavar="X", help="Speed of the exchange's clock against ours.  [default: 1]"),
        click.option("--stall-after-s", metavar="S", help="Seconds without data before a reconnect.  [default: 60]"),
        click.option("--drift-period-hours", metavar="H", help="Exchange hours per drift run; 0 = off.  [default: 24]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _load(flags: dict[str, Any]) -> Any:
    from stream import logs, settings

    loaded = settings.load(flags, os.environ, flags.pop("config", None))
    logs.configure(loaded.log_format)
    return loaded


@cli.command()
@_settings_options
def run(**flags: Any) -> None:
    """Run the daemon against a real exchange and broker, until SIGTERM or Ctrl-C.

    Each option is also a variable VOLCAST_<NAME> and a key in volcast.toml; a password belongs there.

    Example: volcast run --symbols BTCUSDT,ETHUSDT --mqtt-url mqtts://broker.example
    """
    settings = _load(flags)
    from stream.commands import daemon

    daemon.run(settings)


@cli.command()
@_settings_options
def check(**flags: Any) -> None:
    """Show the effective settings (secrets masked), the model's contract and who can be reached.

    Exit code 1 only where `run` would refuse to start; an unreachable host is a warning.

    Example: volcast check --symbols BTCUSDT
    """
    settings = _load(flags)
    from stream.commands import check as command

    command.check(settings)


def _tape_options(command: F) -> F:
    options = [
        click.option("--candles", type=_FILE, help="Play this candle file.  [default: a simulated market]"),
        click.option("--from", "from_", metavar="ISO", help="First candle to play, UTC; earlier ones are history."),
        click.option("--hours", type=click.IntRange(min=1), help="Candles to play.  [default: until Ctrl-C]"),
        click.option("--speed", metavar="X|max", help="Exchange seconds per second.  [default: 3600]"),
        click.option("--symbols", metavar="A,B", help="Symbols to play.  [default: BTCUSDT]"),
        click.option("--seed", type=int, default=7, show_default=True, help="Seed of the simulated market."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@_tape_options
@click.option("--data-dir", type=_DIR, help="Keep the journal here.  [default: a temporary directory]")
@click.option("--model", type=_FILE, help="ONNX bundle.  [default: the packaged one]")
@click.option("--mqtt-url", default="embedded", show_default=True, help="Broker to publish to.")
@click.option("--http-port", type=click.IntRange(0, 65_535), default=9_464, show_default=True, help="0 = any free.")
@click.option("--json", "json_file", type=_FILE, help="Write the summary's figures here too.")
def demo(**options: Any) -> None:
    """The whole thing on this machine: an exchange, a broker and the real monitor on them.

    Shows a live table and where to look. With --hours it ends by itself, with a summary.

    Example: volcast demo --hours 72
    """
    from stream.commands import demo as command

    command.demo(**options)


@cli.command()
@_tape_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option("--ws-port", type=click.IntRange(0, 65_535), default=9_443, show_default=True, help="WebSocket; 0 = any.")
@click.option("--rest-port", type=click.IntRange(0, 65_535), default=9_080, show_default=True, help="REST and control.")
def exchange(**options: Any) -> None:
    """The embedded exchange on its own: Binance's dialect, a tape, faults on order (POST /control/fault).

    Its clock stands still until the first subscription. Faults: drop, duplicate_close, withhold_close, mute, unmute,
    refuse, flap, rest_status; for instance curl -d '{"fault":"drop"}' http://127.0.0.1:9080/control/fault

    Example: volcast exchange --candles btc.parquet --from 2024-03-01 --speed 3600
    """
    from stream.commands import exchange as command

    command.exchange(**options)


@cli.command()
@click.option("--candles", type=_FILE, required=True, help="Candle file, parquet or CSV.")
@click.option("--out", type=_FILE, required=True, help="Result, .parquet or .csv.")
@click.option("--from", "from_", metavar="ISO", help="First candle to forecast, UTC.  [default: all]")
@click.option("--symbol", help="Which symbol of the file.  [default: its only one]")
@click.option("--model", type=_FILE, help="ONNX bundle.  [default: the packaged one]")
def predict(**options: Any) -> None:
    """Forecasts and decisions for a candle file, one row per closed candle: the same numbers as the daemon's for every
    row with 120 days of candles before it, which is what the daemon fetches.

    Volatilities are hourly; annualized = hourly × √8760.

    Example: volcast predict --candles btc.parquet --from 2024-01-01 --out forecasts.parquet
    """
    from stream.commands import offline

    offline.predict(**options)


@cli.command()
@click.option("--symbols", default="BTCUSDT", show_default=True, metavar="A,B", help="Symbols to fetch.")
@click.option("--from", "from_", metavar="ISO", required=True, help="First candle, UTC.")
@click.option("--to", metavar="ISO", help="Candles before this, UTC.  [default: now]")
@click.option("--out", type=_FILE, required=True, help="Candle file to write, .parquet or .csv.")
@click.option("--rest-url", default="https://api.binance.com", show_default=True, help="REST.")
def fetch(**options: Any) -> None:
    """Fetch closed candles from the exchange's REST into one candle file. Missing hours are told, not filled.

    Example: volcast fetch --symbols BTCUSDT --from 2019-01-01 --out btc.parquet
    """
    from stream.commands import offline

    offline.fetch(**options)


@cli.command()
@click.option("--candles", type=_FILE, required=True, help="Candle file.")
@click.option("--out", type=_DIR, required=True, help="Directory for the run.")
@click.option("--symbol", default="BTCUSDT", show_default=True)
@click.option(
    "--from", "train_from", metavar="ISO", default="2019-01-01", show_default=True, help="First label's hour."
)
@click.option("--to", "train_until", metavar="ISO", default="2024-01-01", show_default=True, help="No label beyond.")
@click.option("--seed", type=int, default=7, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the data.  [default: chosen on 2019-2023]")
@click.option("--json", "json_file", type=_FILE, help="Write the figures here too.")
def train(**options: Any) -> None:
    """Train the LSTM on a candle file (needs the extra `train`).

    Example: volcast train --candles btc.parquet --out runs/btc && volcast export --run runs/btc --out btc.onnx
    """
    from stream.commands import offline

    offline.train(**options)


@cli.command()
@click.option("--run", "run_dir", type=_DIR, required=True, help="Directory that `volcast train` wrote.")
@click.option("--out", type=_FILE, required=True, help="ONNX bundle to write.")
@click.option("--json", "json_file", type=_FILE, help="Write the figures here too.")
def export(**options: Any) -> None:
    """Turn a training run into one ONNX bundle, or refuse where the two disagree (needs the extra `train`).

    Example: volcast export --run runs/btc --out var/champion.onnx
    """
    from stream.commands import offline

    offline.export(**options)


@cli.command()
@click.option("--candles", type=_FILE, required=True, help="Candle file.")
@click.option("--model", type=_FILE, help="ONNX bundle.  [default: the packaged one]")
@click.option("--symbol", default="BTCUSDT", show_default=True)
@click.option("--from", "start", metavar="ISO", default="2024-01-01", show_default=True, help="First forecast, UTC.")
@click.option("--to", "end", metavar="ISO", default="2025-01-01", show_default=True, help="No outcome beyond, UTC.")
@click.option("--json", "json_file", type=_FILE, help="Write the figures here too.")
def evaluate(**options: Any) -> None:
    """Score a bundle beside the baselines, also where they win.

    Example: volcast evaluate --candles btc.parquet --from 2024-01-01 --to 2025-01-01
    """
    from stream.commands import offline

    offline.evaluate(**options)


@cli.command()
@click.option("--symbols", default="BTCUSDT", show_default=True, metavar="A", help="The symbol to look at.")
@click.option("--candles", type=_FILE, help="Candle file.  [default: the journal in --data-dir]")
@click.option("--data-dir", type=_DIR, default=Path("var"), show_default=True, help="Where the journal is.")
@click.option("--model", type=_FILE, help="ONNX bundle.  [default: DATA_DIR/champion.onnx, else the packaged one]")
@click.option("--out", type=_FILE, help="Evidently's HTML report.")
@click.option("--json", "json_file", type=_FILE, help="Write the result here too.")
@click.option("--nice", type=click.IntRange(0, 19), default=0, hidden=True)
def drift(**options: Any) -> None:
    """Compare the last 30 days of features with the model's training range (needs the extra `drift`).

    Example: volcast drift --data-dir var --out drift.html
    """
    from stream.commands import offline

    offline.drift(**options)


def main() -> None:
    cli(prog_name="volcast")


if __name__ == "__main__":
    main()
