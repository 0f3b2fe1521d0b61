"""What `volcast exchange` and `volcast demo` play: a candle file, or a simulated market."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from stream import times
from stream.cli.parameters import SEED, Time, time_of
from stream.cli.settings_flags import FILE
from stream.core.deciding.accumulation import HISTORY_HOURS, OWN_HISTORY_HOURS
from stream.core.market.candle import HOUR_MS, Candle, grid_floor
from stream.core.market.symbols import SymbolError, parse_list
from stream.errors import MisuseError, RefusedError
from stream.testing.exchange import Exchange
from stream.testing.market import simulate

F = TypeVar("F", bound=Callable[..., Any])

#: A simulated market begins here, whatever the day is: a demo shows the same thing every time.
SIMULATED_FROM_MS = 1_735_689_600_000  # 2025-01-01
#: Hours of a simulated market that a demo without --hours can play: a year.
SIMULATED_HOURS = 8_760
#: Where in a demo the simulated market's volatility shifts.
_SHIFT_AFTER_HOURS = 36
DEFAULT_SPEED = 3_600.0
#: The symbols that the packaged bundle describes.
DEFAULT_SYMBOLS = ("BTCUSDT",)


@dataclass(frozen=True, slots=True)
class Playback:
    """What is played: `hours` candles from `from_ms` on; earlier ones are history. A `speed` of None is the maximum."""

    candles: dict[str, list[Candle]]
    from_ms: int
    hours: int
    speed: float | None


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
    """Returns what the options describe. Raises `RefusedError` or `CandleFileError` where there is nothing to play."""
    pace = parse_speed(speed)
    if candles is None:
        names = parse_symbols(symbols, DEFAULT_SYMBOLS)
        first = time_of(from_, "--from") if from_ else SIMULATED_FROM_MS
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
    first = time_of(from_, "--from") if from_ else min(series[0].open_time for series in played.values())
    first = grid_floor(first)
    if first > last:
        raise RefusedError(f"--from: {candles} ends at {times.minute(last)}")
    available = (last - first) // HOUR_MS + 1
    return Playback(played, first, min(hours or available, available), pace)


def options(command: F) -> F:
    options = [
        click.option("--candles", type=FILE, help="Play this candle file.  [default: a simulated market]"),
        click.option(
            "--from", "from_", type=Time(), metavar="ISO", help="First candle to play, UTC; earlier ones are history."
        ),
        click.option("--hours", type=click.IntRange(min=1), help="Candles to play.  [default: until Ctrl-C]"),
        click.option("--speed", metavar="X|max", help="Exchange seconds per second.  [default: 3600]"),
        click.option("--symbols", metavar="A,B", help="Symbols to play.  [default: BTCUSDT]"),
        click.option("--seed", type=SEED, default=2, show_default=True, help="Seed of the simulated market."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


async def close_market(exchange: Exchange) -> None:
    """Waits until the tape has ended, and has the exchange report its symbols as halted.

    So a monitor does not wait for candles that the tape does not have, nor report itself degraded without them.
    """
    await exchange.finished.wait()
    for symbol in exchange.tape.symbols:
        exchange.fault("status", symbol=symbol, status="BREAK")
