"""A simulated market: hourly candles from one seed, with the known properties of volatility.

Log volatility is a sum of slow and fast autoregressions (so its memory is long), on top of a daily
and a weekly season; returns are Student-t given it, and part of both is common to all symbols.
Every series is drawn in time order from its own generator: the first n candles do not depend on how
many are asked for, nor on which other symbols are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from stream.core.market.candle import HOUR_MS, Candle

Floats = NDArray[np.float64]

#: Standard deviation of the hourly log return of BTC over a long time; other symbols lie above it.
HOURLY_SIGMA = 0.0055
#: Degrees of freedom of the returns given their volatility.
TAIL_DOF = 5.0
#: Half-lives in hours and standard deviations of the parts of log volatility.
MARKET_PARTS = ((12.0, 0.25), (72.0, 0.25), (480.0, 0.22))
OWN_PARTS = ((3.0, 0.22), (120.0, 0.15))
#: Share of a symbol's hourly shock that is the market's.
MARKET_SHARE = 0.7
PEAK_HOUR_UTC = 14
DAILY_AMPLITUDE = 0.3
WEEKEND_FACTOR = 0.65
#: Half-life in hours of the pull of the log price to its base, so that no tape ends at 0 or infinity.
PRICE_HALF_LIFE_HOURS = 8_760.0

_BASES = {"BTCUSDT": (40_000.0, 1.0), "ETHUSDT": (2_500.0, 1.2)}
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0


def simulate(
    symbols: Iterable[str],
    start_ms: int,
    hours: int,
    seed: int,
    *,
    shift_after_hours: int | None = None,
    shift_factor: float = 2.0,
) -> dict[str, list[Candle]]:
    """Returns a tape of `hours` candles per symbol, the first opening at `start_ms`.

    From `shift_after_hours` on volatility is `shift_factor` times what it would have been (the shift
    is placed in hours from the start, not as a share of the length: see the module's rule). Raises
    `ValueError` where an argument is out of range.
    """
    if start_ms % HOUR_MS:
        raise ValueError(f"start_ms {start_ms} is not the start of an hour")
    if hours < 0 or not shift_factor > 0:
        raise ValueError(f"hours {hours} must be at least 0 and shift_factor {shift_factor} above 0")
    log_season = _log_season(start_ms, hours)
    if shift_after_hours is not None:
        log_season[shift_after_hours:] += np.log(shift_factor)
    market_log_sigma = _log_sigma(MARKET_PARTS, hours, seed, "market")
    market_shock = _rng(seed, "market", "shock").standard_normal(hours)
    return {
        symbol: _symbol(symbol, start_ms, hours, seed, log_season + market_log_sigma, market_shock)
        for symbol in symbols
    }


def simulate_symbol(symbol: str, start_ms: int, hours: int, seed: int) -> list[Candle]:
    """Returns one symbol of `simulate`, without a shift."""
    return simulate([symbol], start_ms, hours, seed)[symbol]


def _symbol(
    symbol: str, start_ms: int, hours: int, seed: int, market_log_sigma: Floats, market_shock: Floats
) -> list[Candle]:
    base_price, sigma_factor = _base(symbol)
    log_sigma = market_log_sigma + _log_sigma(OWN_PARTS, hours, seed, symbol)
    # A Student-t is a normal whose variance is itself random: that variance is the hour's true one,
    # and the path inside the hour must have it too, or ranges would contradict returns.
    chi2 = _rng(seed, symbol, "tail").chisquare(TAIL_DOF, hours)
    sigma = HOURLY_SIGMA * sigma_factor * np.exp(log_sigma) * np.sqrt((TAIL_DOF - 2) / chi2)
    own_shock = _rng(seed, symbol, "shock").standard_normal(hours)
    move = sigma * (np.sqrt(MARKET_SHARE) * market_shock + np.sqrt(1 - MARKET_SHARE) * own_shock)

    log_price = np.concatenate([[0.0], _pulled_walk(move)])
    path = np.diff(log_price)
    # The maximum of a Brownian bridge, by inverting its distribution; the minimum by symmetry.
    uniform = 1.0 - _rng(seed, symbol, "range").random((hours, 2))
    reach = np.sqrt(path[:, None] ** 2 - 2 * sigma[:, None] ** 2 * np.log(uniform))
    log_high = log_price[:-1] + (path + reach[:, 0]) / 2
    log_low = log_price[:-1] + (path - reach[:, 1]) / 2

    decimals = 2 if base_price >= 10 else 8
    price = np.round(base_price * np.exp(log_price), decimals)
    open_, close = price[:-1], price[1:]
    high = np.maximum(np.round(base_price * np.exp(log_high), decimals), np.maximum(open_, close))
    low = np.minimum(np.round(base_price * np.exp(log_low), decimals), np.minimum(open_, close))

    noise = _rng(seed, symbol, "volume").standard_normal((hours, 3))
    busy = np.log(sigma / (HOURLY_SIGMA * sigma_factor))
    volume = np.round(6e7 / base_price * np.exp(0.8 * busy + 0.25 * noise[:, 0]), 5)
    quote_volume = np.round(volume * (open_ + high + low + close) / 4, 8)
    trades = np.maximum(1, 60_000 * np.exp(0.7 * busy + 0.2 * noise[:, 1])).astype(np.int64)
    taker_share = 0.5 + 0.1 * np.tanh(path / sigma + 0.5 * noise[:, 2])
    taker_buy_base = np.round(volume * taker_share, 5)
    open_time = range(start_ms, start_ms + hours * HOUR_MS, HOUR_MS)
    columns = (open_, high, low, close, volume, quote_volume, trades, taker_buy_base)
    return [Candle(symbol, t, *row) for t, *row in zip(open_time, *(c.tolist() for c in columns), strict=True)]


def _log_season(start_ms: int, hours: int) -> Floats:
    hour = np.arange(start_ms // HOUR_MS, start_ms // HOUR_MS + hours)
    daily = DAILY_AMPLITUDE * np.cos(2 * np.pi * (hour % 24 - PEAK_HOUR_UTC) / 24)
    weekend = (hour // 24 + _EPOCH_WEEKDAY) % 7 >= 5
    return np.asarray(daily + np.where(weekend, np.log(WEEKEND_FACTOR), 0.0), dtype=np.float64)


def _log_sigma(parts: tuple[tuple[float, float], ...], hours: int, seed: int, name: str) -> Floats:
    """Returns a sum of stationary AR(1) processes, shifted so that the mean of its exponential's square is 1."""
    total = np.zeros(hours)
    for index, (half_life_hours, std) in enumerate(parts):
        keep = 0.5 ** (1 / half_life_hours)
        shocks = (std * _rng(seed, name, f"sigma {index}").standard_normal(hours)).tolist()
        values: list[float] = []
        level = 0.0
        scale = 1.0  # the first draw comes from the stationary law, the others renew a part of it
        for shock in shocks:
            level = keep * level + scale * shock
            values.append(level)
            scale = (1 - keep * keep) ** 0.5
        total += np.array(values) - std * std
    return total


def _pulled_walk(moves: Floats) -> Floats:
    keep = 0.5 ** (1 / PRICE_HALF_LIFE_HOURS)
    level = 0.0
    levels: list[float] = []
    for move in moves.tolist():
        level = keep * level + move
        levels.append(level)
    return np.array(levels)


def _base(symbol: str) -> tuple[float, float]:
    """Returns price level and volatility relative to BTC's; a symbol that is not listed gets its own by its name."""
    if symbol in _BASES:
        return _BASES[symbol]
    share = zlib.crc32(symbol.encode()) / 2**32
    return 10 ** (3 * share - 1), 1.1 + 0.7 * (share * 1_000 % 1)


def _rng(seed: int, *names: str) -> np.random.Generator:
    # crc32, not hash(): the latter differs from process to process.
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])
