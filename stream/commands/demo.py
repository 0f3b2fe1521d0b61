"""`volcast demo`: exchange, broker and the real monitor in one process, with a live table."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from stream import logs, node, times
from stream.cli import playback
from stream.cli.demo_table import Tally, summary, tables
from stream.cli.outputs import write_json
from stream.cli.parameters import command
from stream.cli.paths import DataDir, Output
from stream.cli.playback import Playback, close_market, make_tape
from stream.cli.settings_flags import MODEL, POLICY
from stream.cli.signals import stop_on_signals
from stream.core.market.candle import HOUR_MS
from stream.errors import RefusedError
from stream.settings import Settings, plain_url
from stream.testing.exchange import Exchange

#: How long the end waits for a broker that has not acknowledged everything yet.
_BROKER_WAIT_S = 15.0
#: How long it then waits for each drift result: child processes compute them, one after the other.
_DRIFT_WAIT_S = 180.0
_REFRESH_S = 0.25


class _Console(Console):
    """Raises on a broken pipe as any other output does: rich's own console would exit in the middle of the loop."""

    def on_broken_pipe(self) -> None:
        raise


@command
@playback.options
@click.option("--data-dir", type=DataDir(), help="Keep the journal here.  [default: a temporary directory]")
@click.option("--model", type=MODEL, help="ONNX bundle.  [default: the packaged one]")
@click.option("--policy", type=POLICY, help="Policy file (TOML) or packaged name.  [default: target-40]")
@click.option("--mqtt-url", default="embedded", show_default=True, help="Broker to publish to.")
@click.option("--http-port", type=click.IntRange(0, 65_535), default=9_464, show_default=True, help="0 = any free.")
@click.option("--json", "json_file", type=Output(stream=True), help="Write the summary's figures here too.")
def demo(**options: Any) -> None:
    """The whole thing on this machine: an exchange, a broker and the real monitor on them.

    Shows a live table and where to look. With --hours it ends by itself, with a summary.

    Example: volcast demo --hours 72
    """
    _demo(**options)


def _demo(
    *,
    candles: Path | None,
    from_: str | None,
    hours: int | None,
    speed: str | None,
    symbols: str | None,
    seed: int,
    data_dir: Path | None,
    model: Path | None,
    policy: Path | None,
    mqtt_url: str,
    http_port: int,
    json_file: Path | None,
) -> None:
    console = _Console()
    # On a terminal the table replaces the log; warnings and worse still appear, above it.
    logs.configure("text", level=logging.WARNING if console.is_terminal else logging.INFO)
    # Simulated data must not go where the settings of a real node would put it: the demo reads nothing but its flags.
    mqtt_url = plain_url("mqtt_url", mqtt_url, "--mqtt-url")
    tape = make_tape(candles, from_, hours, speed, symbols, seed)
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="volcast-demo-")))
        tally = asyncio.run(_play(tape, hours, seed, data_dir, model, policy, mqtt_url, http_port, console))
    _summarize(tally, tuple(tape.candles), console, json_file, paced=tape.speed is not None)


async def _play(
    tape: Playback,
    hours: int | None,
    seed: int,
    data_dir: Path,
    model: Path | None,
    policy: Path | None,
    mqtt_url: str,
    http_port: int,
    console: Console,
) -> Tally:
    stop = asyncio.Event()
    stop_on_signals(stop)
    tally = Tally(started_s=time.monotonic())
    unwritten: OSError | None = None
    exchange = Exchange.replaying(tape.candles, tape.from_ms, tape.hours, tape.speed, seed=seed)
    async with exchange:
        closing = asyncio.create_task(close_market(exchange))
        settings = Settings(
            symbols=tuple(tape.candles),
            model=model,
            policy=policy,
            ws_url=exchange.ws_url,
            rest_url=exchange.rest_url,
            mqtt_url=mqtt_url,
            http_port=http_port,
            data_dir=data_dir,
            instance="demo",
            # At max speed the exchange's clock moves only with its messages.
            time_scale=tape.speed or 0.0,
        )

        async def alongside(running: node.Node) -> None:
            nonlocal unwritten
            tally.drift = running.drift
            try:
                await _show(running, exchange, tape, hours is not None, tally, console, stop)
            except OSError as error:
                # The node shuts down cleanly first.
                unwritten = error
                stop.set()

        await node.run(settings, stop, watch=tally, alongside=alongside)
        closing.cancel()
    if unwritten is not None:
        raise unwritten
    return tally


async def _show(
    running: node.Node,
    exchange: Exchange,
    tape: Playback,
    ends: bool,
    tally: Tally,
    console: Console,
    stop: asyncio.Event,
) -> None:
    for line in _addresses(running, exchange):
        console.print(line, highlight=False, soft_wrap=True)
    ending = asyncio.create_task(_await_end(running, exchange, tape, tally, stop)) if ends else None
    if not console.is_terminal:
        if ending is not None:
            await ending
        return
    with (
        Live(console=console, auto_refresh=False, transient=True, redirect_stderr=False) as live,
        _logging_above(console),
    ):
        while ending is None or not ending.done():
            live.update(_picture(running, exchange, tally, console.width), refresh=True)
            await asyncio.sleep(_REFRESH_S)
    ending.result()


async def _await_end(running: node.Node, exchange: Exchange, tape: Playback, tally: Tally, stop: asyncio.Event) -> None:
    """Sets `stop` once every candle of the tape is processed and published, and drift has run for every symbol.

    The waits for the broker and for drift are limited.
    """
    await exchange.finished.wait()
    ends_ms = tape.from_ms + tape.hours * HOUR_MS
    played = {
        symbol: [c.open_time for c in series if tape.from_ms <= c.open_time < ends_ms]
        for symbol, series in tape.candles.items()
    }
    last = {symbol: times[-1] for symbol, times in played.items() if times}
    while any(tally.processed.get(symbol, 0) < open_time for symbol, open_time in last.items()):
        tally.changed.clear()
        await tally.changed.wait()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_BROKER_WAIT_S):
            while tally.outbox:
                tally.changed.clear()
                await tally.changed.wait()
    # Where the broker does not take the messages, a drift result could not be published either.
    while not tally.outbox and running.drift == "on" and (waiting := _without_drift(running, tally)):
        try:
            async with asyncio.timeout(_DRIFT_WAIT_S):
                while _without_drift(running, tally) == waiting:
                    tally.changed.clear()
                    await tally.changed.wait()
        except TimeoutError:
            break
    stop.set()


def _without_drift(running: node.Node, tally: Tally) -> list[str]:
    return [s for s in running.daemon.symbols if s not in tally.drifts and s not in tally.drift_failures]


def _addresses(running: node.Node, exchange: Exchange) -> list[str]:
    broker = urlsplit(running.mqtt_url)
    options = f"-h {broker.hostname} -p {broker.port or (8883 if broker.scheme == 'mqtts' else 1883)}"
    if broker.username:
        options += f" -u {broker.username} -P PASSWORD"
    if broker.scheme == "mqtts":
        options += " --tls-use-os-certs"
    return [
        "Volcast demo: a simulated exchange, a broker and the real monitor. Ctrl-C ends.",
        f"  page      {running.http_url}/",
        f"  metrics   {running.http_url}/metrics",
        f"  forecasts mosquitto_sub -V 5 {options} -t 'volcast/v1/#' -v",
        f"  exchange  {exchange.rest_url}/control/state",
    ]


def _picture(running: node.Node, exchange: Exchange, tally: Tally, width: int) -> Group:
    clock, state = times.utc(exchange.now_ms()), running.daemon.publisher.state
    line = f"exchange time {clock} · {tally.issued} forecasts · node {state}"
    drift = tally.drift_line(running.daemon.symbols)
    return Group(*tables(tally, running.daemon.symbols, width), Text(f"{line} · drift: {drift}", style="dim"))


class _AboveTable(logging.Handler):
    """Prints log lines above the live table: written directly to stderr, its next refresh would erase them."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(Text(self.format(record)), soft_wrap=True)


@contextlib.contextmanager
def _logging_above(console: Console) -> Iterator[None]:
    """Has log lines that would go to the same terminal printed by `console`, for the length of the block."""
    if not sys.stderr.isatty():
        yield
        return
    root = logging.getLogger()
    before = root.handlers[:]
    above = _AboveTable(console)
    above.setFormatter(before[0].formatter if before else None)
    root.handlers[:] = [above]
    try:
        yield
    finally:
        root.handlers[:] = before


def _summarize(tally: Tally, symbols: Sequence[str], console: Console, json_file: Path | None, *, paced: bool) -> None:
    if not tally.issued:
        raise RefusedError(
            "the demo ended without a forecast: everything was in the journal already, or it was stopped too early"
        )
    for table in tables(tally, symbols, console.width):
        console.print(table)
    lines, figures = summary(tally, symbols, paced=paced)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    write_json(json_file, figures)
