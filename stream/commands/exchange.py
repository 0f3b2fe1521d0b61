"""`volcast exchange`, and the tape that it and `volcast demo` play."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from stream import logs
from stream.commands.run import stop_on_signals
from stream.core.deciding.accumulation import HISTORY_HOURS, OWN_HISTORY_HOURS
from stream.core.market.candle import HOUR_MS, Candle, grid_floor
from stream.core.market.symbols import SymbolError, parse_list
from stream.errors import MisuseError, RefusedError
from stream.testing.exchange import Exchange
from stream.testing.market import simulate

#: A simulated market begins here, whatever the day is: a demo shows the same thing every time.
SIMULATED_FROM_MS = 1_735_689_600_000  # 2025-01-01
#: Hours of a simulated market that a demo without --hours can play: a year.
SIMULATED_HOURS = 8_760
#: Where in a demo the simulated market's volatility shifts.
_SHIFT_AFTER_HOURS = 36
DEFAULT_SPEED = 3_600.0
#: What the packaged bundle describes.
DEFAULT_SYMBOLS = ("BTCUSDT",)


@dataclass(frozen=True, slots=True)
class Playback:
    """What will be played: `hours` candles from `from_ms` on; those before are history. `speed` None is max."""

    candles: dict[str, list[Candle]]
    from_ms: int
    hours: int
    speed: float | None


def parse_time(text: str, option: str) -> int:
    """An ISO time as ms; naive ones are UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise MisuseError(f"{option}: {text!r} is no ISO time such as 2024-03-01 or 2024-03-01T06:00") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return int(moment.timestamp()) * 1_000


def refuse_empty_period(from_: str, to: str, options: str = "--from, --to") -> None:
    """`MisuseError` where the period ends before it begins."""
    if parse_time(from_, options) >= parse_time(to, options):
        raise MisuseError(f"{options}: the period {from_} to {to} is empty; swap or widen it")


def parse_symbols(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return default
    try:
        found = parse_list(text)
    except SymbolError as error:
        raise MisuseError(f"--symbols: {error}") from None
    if not found:
        raise MisuseError("--symbols: at least one symbol is needed, such as BTCUSDT")
    return found


def parse_speed(text: str | None) -> float | None:
    if text is None:
        return DEFAULT_SPEED
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise MisuseError(f"--speed: {text!r} is neither a positive number nor max")
    return speed


def make_tape(
    candles: Path | None, from_: str | None, hours: int | None, speed: str | None, symbols: str | None, seed: int
) -> Playback:
    """The tape that the options describe; `RefusedError` or `CandleFileError` where they describe none."""
    pace = parse_speed(speed)
    if candles is None:
        names = parse_symbols(symbols, DEFAULT_SYMBOLS)
        first = parse_time(from_, "--from") if from_ else SIMULATED_FROM_MS
        first, length = grid_floor(first), hours or SIMULATED_HOURS
        # As much history as a daemon asks for.
        history = HISTORY_HOURS if names == DEFAULT_SYMBOLS else OWN_HISTORY_HOURS
        start = first - history * HOUR_MS
        simulated = simulate(names, start, history + length, seed, shift_after_hours=history + _SHIFT_AFTER_HOURS)
        return Playback(simulated, first, length, pace)
    from stream.adapters.candles import files

    asked = parse_symbols(symbols, ()) if symbols is not None else ()
    table = files.read(candles, asked=asked[0] if len(asked) == 1 else None)
    names = asked or table.symbols
    played = {symbol: table[symbol] for symbol in names}
    last = max(series[-1].open_time for series in played.values())
    first = parse_time(from_, "--from") if from_ else min(series[0].open_time for series in played.values())
    first = grid_floor(first)
    if first > last:
        raise RefusedError(f"--from: {candles} ends at {datetime.fromtimestamp(last / 1_000, UTC):%Y-%m-%d %H:%M}")
    available = (last - first) // HOUR_MS + 1
    return Playback(played, first, min(hours or available, available), pace)


def exchange(
    *,
    candles: Path | None,
    from_: str | None,
    hours: int | None,
    speed: str | None,
    symbols: str | None,
    seed: int,
    host: str,
    ws_port: int,
    rest_port: int,
) -> None:
    logs.configure("text")
    tape = make_tape(candles, from_, hours, speed, symbols, seed)
    asyncio.run(_exchange(tape, seed, host, ws_port, rest_port))


async def close_market(exchange: Exchange) -> None:
    """When the tape has ended trading has too, and the exchange says so: a monitor need not wait for candles that no
    tape holds, and need not call itself degraded for want of them."""
    await exchange.finished.wait()
    for symbol in exchange.tape.symbols:
        exchange.fault("status", symbol=symbol, status="BREAK")


async def _exchange(tape: Playback, seed: int, host: str, ws_port: int, rest_port: int) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    server = Exchange.replaying(
        tape.candles, tape.from_ms, tape.hours, tape.speed, seed=seed, host=host, ws_port=ws_port, rest_port=rest_port
    )
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(server)
        except socket.gaierror as error:
            raise RefusedError(f"--host {host}: cannot listen there: {error.strerror}") from None
        closing = asyncio.create_task(close_market(server))
        scale = tape.speed or 0
        symbols = "" if tuple(tape.candles) == DEFAULT_SYMBOLS else f"--symbols {','.join(tape.candles)} "
        click.echo(f"volcast run {symbols}--ws-url {server.ws_url} --rest-url {server.rest_url} --time-scale {scale:g}")
        click.echo(f"archive:  volcast fetch --rest-url {server.rest_url} --from ISO --out FILE")
        click.echo(f"control:  {server.rest_url}/control/state (Ctrl-C ends)")
        await stop.wait()
        closing.cancel()
