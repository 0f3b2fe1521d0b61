"""`volcast demo`: exchange, broker and the real monitor in one process, with a table that shows that it lives."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stream import logs
from stream.commands import node
from stream.commands.daemon import stop_on_signals
from stream.commands.exchange import Tape, make_tape
from stream.core.candle import HOUR_MS
from stream.core.messages import Decision, Drift, Forecast
from stream.core.policy import ANNUAL
from stream.ports import (
    CandleProcessed,
    DriftFailed,
    DriftFinished,
    Fact,
    ForecastAcknowledged,
    ForecastCommitted,
    GapDeclared,
    OutboxCounted,
    RefusedError,
    Resumed,
)
from stream.settings import Settings, plain_url
from stream.testing.exchange import Exchange

#: And so long for a broker that has not acknowledged everything yet.
_BROKER_WAIT_S = 15.0
#: A demo that ends waits so long for its first drift result, which an own process computes.
_DRIFT_WAIT_S = 60.0
_REFRESH_S = 0.25


@dataclass(slots=True)
class _Tally:
    """What the demo saw: the observer behind the table and the summary."""

    started_s: float
    first_forecast_s: float | None = None
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)
    drifts: dict[str, Drift] = field(default_factory=dict)
    drift_failure: str | None = None
    #: "on", or why there is none.
    drift: str = "on"
    processed: dict[str, int] = field(default_factory=dict)
    issued: int = 0
    actions: dict[str, int] = field(default_factory=dict)
    matured: dict[tuple[str, int], float] = field(default_factory=dict)
    squared_errors: dict[str, list[float]] = field(default_factory=dict)
    gaps: int = 0
    outbox: int = 0
    delays_s: list[float] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, fact: Fact) -> None:
        if isinstance(fact, ForecastCommitted):
            self._forecast(fact.forecast, fact.decision)
        elif isinstance(fact, CandleProcessed | Resumed):
            self.processed[fact.symbol] = fact.open_time
        elif isinstance(fact, ForecastAcknowledged):
            self.delays_s.append(fact.delay_s)
        elif isinstance(fact, DriftFinished):
            self.drifts[fact.drift.symbol] = fact.drift
        elif isinstance(fact, DriftFailed):
            self.drift_failure = fact.reason
        elif isinstance(fact, GapDeclared):
            self.gaps += fact.hours
        elif isinstance(fact, OutboxCounted):
            self.outbox = fact.messages
        else:
            return
        self.changed.set()

    def _forecast(self, forecast: Forecast, decision: Decision) -> None:
        if self.first_forecast_s is None:
            self.first_forecast_s = time.monotonic() - self.started_s
        symbol = forecast.symbol
        self.forecasts[symbol], self.decisions[symbol] = forecast, decision
        self.issued += 1
        self.actions[decision.action] = self.actions.get(decision.action, 0) + 1
        # The simulated day later is minutes away: forecasts of the next 24 h can be compared with what came.
        spoken = self.matured.pop((symbol, forecast.open_time), None)
        if spoken is not None and forecast.input.gaps == 0:
            self.squared_errors.setdefault(symbol, []).append((spoken - forecast.realized_24h) ** 2)
        self.matured[symbol, forecast.open_time + 24 * HOUR_MS] = forecast.volatility.hourly


def demo(
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
    console = Console(stderr=False)
    # On a terminal the table speaks; warnings and worse still appear, above it.
    logs.configure("text", level=logging.WARNING if console.is_terminal else logging.INFO)
    # What it simulates must not come to where the settings of a real node would put it: it reads none but its flags.
    mqtt_url = plain_url("mqtt_url", mqtt_url, "--mqtt-url")
    tape = make_tape(candles, from_, hours, speed, symbols, seed)
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="volcast-demo-")))
        tally = asyncio.run(_demo(tape, hours, seed, data_dir, model, policy, mqtt_url, http_port, console))
    _summarize(tally, console, json_file, paced=tape.speed is not None)


async def _demo(
    tape: Tape,
    hours: int | None,
    seed: int,
    data_dir: Path,
    model: Path | None,
    policy: Path | None,
    mqtt_url: str,
    http_port: int,
    console: Console,
) -> _Tally:
    stop = asyncio.Event()
    stop_on_signals(stop)
    tally = _Tally(started_s=time.monotonic())
    exchange = Exchange.replaying(tape.candles, tape.from_ms, tape.hours, tape.speed, seed=seed)
    async with exchange:
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
            # At max speed the exchange's clock moves with its messages only.
            time_scale=tape.speed or 0.0,
        )

        async def beside(running: node.Node) -> None:
            tally.drift = running.drift
            await _show(running, exchange, tape, hours is not None, tally, console, stop)

        await node.run(settings, stop, watch=tally, beside=beside)
    return tally


async def _show(
    running: node.Node, exchange: Exchange, tape: Tape, ends: bool, tally: _Tally, console: Console, stop: asyncio.Event
) -> None:
    for line in _addresses(running, exchange):
        console.print(line, highlight=False, soft_wrap=True)
    ending = asyncio.create_task(_await_end(running, exchange, tape, tally, stop)) if ends else None
    if not console.is_terminal:
        if ending is not None:
            await ending
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while ending is None or not ending.done():
            live.update(_table(running, exchange, tally), refresh=True)
            await asyncio.sleep(_REFRESH_S)
    ending.result()


async def _await_end(running: node.Node, exchange: Exchange, tape: Tape, tally: _Tally, stop: asyncio.Event) -> None:
    """Sets `stop` once every candle of the tape is processed and spoken of, and drift has run once."""
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
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRIFT_WAIT_S):
            while running.drift == "on" and not tally.drifts and tally.drift_failure is None:
                tally.changed.clear()
                await tally.changed.wait()
    stop.set()


def _addresses(running: node.Node, exchange: Exchange) -> list[str]:
    host, _, port = running.mqtt_url.rpartition("@")[2].removeprefix("mqtt://").partition(":")
    return [
        "Volcast demo: a simulated exchange, a broker and the real monitor. Ctrl-C ends.",
        f"  page      {running.http_url}/",
        f"  metrics   {running.http_url}/metrics",
        f"  forecasts mosquitto_sub -V 5 -h {host} -p {port or 1883} -t 'volcast/v1/#' -v",
        f"  exchange  {exchange.rest_url}/control/state",
    ]


def _table(running: node.Node, exchange: Exchange, tally: _Tally) -> Group:
    clock = time.strftime("%Y-%m-%d %H:%M", time.gmtime(exchange.now_ms() / 1_000))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("symbol", "closed", "24 h σ", "90 %", "realized", "HAR", "served", "exposure", "action", "regime"):
        table.add_column(name, justify="left" if name in ("symbol", "served", "action", "regime") else "right")
    for symbol in running.daemon.symbols:
        forecast, decision = tally.forecasts.get(symbol), tally.decisions.get(symbol)
        if forecast is None or decision is None:
            table.add_row(symbol, "warming up")
            continue
        v = forecast.volatility
        table.add_row(
            symbol,
            time.strftime("%m-%d %H:%M", time.gmtime((forecast.close_time + 1) / 1_000)),
            f"{v.annualized:.1%}",
            f"{v.low * ANNUAL:.0%}-{v.high * ANNUAL:.0%}",
            f"{forecast.realized_24h * ANNUAL:.1%}",
            f"{forecast.baselines.har * ANNUAL:.1%}",
            forecast.serving,
            f"{decision.exposure:.0%}",
            decision.action,
            decision.regime,
        )
    drift = ", ".join(f"{s} {'detected' if d.detected else 'not detected'}" for s, d in tally.drifts.items())
    line = f"exchange time {clock} UTC · {tally.issued} forecasts · node {running.daemon.speaker.state}"
    return Group(table, Text(f"{line} · drift: {drift or tally.drift_failure or running.drift}", style="dim"))


def _summarize(tally: _Tally, console: Console, json_file: Path | None, *, paced: bool) -> None:
    if not tally.issued:
        raise RefusedError(
            "the demo ended without a forecast: everything was in the journal already, or it was stopped too early"
        )
    if tally.outbox:
        console.print(f"{tally.outbox} message(s) did not reach the broker", highlight=False)
    # At max speed frames queue, and their wait says nothing about the node.
    delays = sorted(tally.delays_s) if paced else []
    errors = {s: (sum(e) / len(e)) ** 0.5 for s, e in sorted(tally.squared_errors.items())}
    figures = {
        "forecasts": tally.issued,
        "decisions": sum(tally.actions.values()),
        "actions": dict(sorted(tally.actions.items())),
        "gap_hours": tally.gaps,
        "first_forecast_s": round(tally.first_forecast_s or 0.0, 3),
        "forecast_delay_ms_p50": round(1e3 * delays[len(delays) // 2], 2) if delays else None,
        "rmse_next_24h_hourly": errors,
        "drift": {symbol: drift.detected for symbol, drift in tally.drifts.items()},
    }
    actions = ", ".join(f"{count} {action}" for action, count in sorted(tally.actions.items()))
    console.print(f"{tally.issued} forecasts and as many decisions ({actions})", highlight=False)
    console.print(f"first forecast {figures['first_forecast_s']} s after the start", highlight=False)
    if delays:
        console.print(
            f"closing frame to the broker's acknowledgement: median {figures['forecast_delay_ms_p50']} ms",
            highlight=False,
        )
    for symbol, drift in tally.drifts.items():
        found = f"{'detected' if drift.detected else 'not detected'}: {drift.drifted_share:.0%} of the features"
        console.print(f"{symbol}: drift {found}", highlight=False)
    if not tally.drifts:
        why = tally.drift if tally.drift != "on" else tally.drift_failure or "no result"
        console.print(f"drift: {why}", highlight=False)
    for symbol, error in errors.items():
        console.print(f"{symbol}: RMSE of the matured next-24 h forecasts {error:.6f} (hourly σ)", highlight=False)
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise RefusedError(f"--json {json_file}: cannot be written: {error.strerror}") from None
