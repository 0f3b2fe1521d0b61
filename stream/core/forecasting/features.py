"""The one definition of the features. Training, backtest, batch prediction, the daemon and drift all call `compute`.

Rules of this module:
- Time runs along the hourly grid; an hour without a candle is a row of NaN. Windows average what exists, and a
  return across a missing hour does not exist.
- A row depends on the `LOOKBACK_HOURS` rows that end with it and on nothing else (stream/core/forecasting/windows.py).
- OHLCV only and free of scale, so that one bundle can serve any pair.
- A change in any number that comes out of here needs a new `VERSION`: a bundle made for another is refused.

Volatilities enter as logarithms of hourly σ, floored at `SIGMA_FLOOR`, so flat windows stay finite.
Garman & Klass (1980): ½ ln(H/L)² - (2 ln 2 - 1) ln(C/O)², the variance of an hour from its range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.windows import Array, Trailing, delayed, trailing_max
from stream.core.market.candle import HOUR_MS

VERSION = "3"
#: Candles a row needs, itself included: 720 returns need 721 closes.
LOOKBACK_HOURS = 721
#: Rows of the network's sequence.
SEQUENCE_HOURS = 48
#: Under this many of the last 24 returns there is no forecast.
MIN_RETURNS_24H = 12
SIGMA_FLOOR = 1e-5
EWMA_HALF_LIFE_HOURS = 72
#: The EWMA's window; what lies beyond weighs under 0.1 %.
EWMA_HOURS = 720

EWMA_DECAY = 0.5 ** (1 / EWMA_HALF_LIFE_HOURS)

# What is summed over windows, by its place in one array: the channels.
RETURN, RANGE, VOLUME, SQUARE, _SIZE, _NEGATIVE, LOG_RANGE, PRESENT, RETURNED = range(9)
CHANNELS = 9
#: The first ones: these are made of logarithms, these are summed over windows of any length, and these are no counts.
LOGARITHMIC, LASTING, AMOUNTS = 2, 5, 7
#: The windows of the channels from `LASTING` to `AMOUNTS`.
PASSING_HOURS = (12, 24)
#: The channels that are also summed with weights, for the EWMA.
WEIGHTED = [SQUARE, RETURNED]
_RANGE_HOURS = (1, 3, 6, 12, 24, 72, 168, 720)
#: All windows that are summed.
WINDOWS_HOURS = (*_RANGE_HOURS, 23, SEQUENCE_HOURS)
#: The season of the coming hours is the range of the same hours of the week in this many weeks before.
SEASON_HOURS = (3, 12, 24)
SEASON_WEEKS = 4
WEEK_HOURS = 168
#: The range of the last hours is compared with that of the same hours of the week in the weeks before.
CHANGE_HOURS = 12
#: The windows of earlier weeks that are looked at: hours, and how many of them lie ahead of the row in its own week.
SEASON = (*((hours, hours) for hours in SEASON_HOURS), (CHANGE_HOURS, 0))

#: One absurd print must not multiply a month of forecasts. So a return's size counts for no more than this, the level
#: that squared returns give for no more than `_SQUARES_BOUND` times that of their sizes, and the one that ranges give
#: for no more than `_RANGES_BOUND` times that of the returns: by window in hours, as logarithms. Of a thousand hours of
#: the pairs that the model learns from one comes near (docs/decisions/0011-six-inputs-and-trees.md).
_SIZE_BOUND = 0.3
_SQUARES_BOUND = {72: 1.3, 168: 1.2, 720: 1.1}
_RANGES_BOUND = {24: 1.0, 72: 0.65, 168: 0.5, 720: 0.3}
#: The same for the EWMA's excess over the month's level.
_EWMA_BOUND = 1.0
#: One week's season counts for no more than this, as a logarithm.
_SEASON_BOUND = 2.0
#: The least variance of an hour whose logarithm is averaged: that of a range of 0.003 %.
_LEAST_RANGE = 1e-9

SEQUENCE_NAMES = (
    "return_scaled",
    "log_range",
    "log_realized_24h",
    "log_volume",
    "weekend",
    "hour_sin",
    "hour_cos",
    "missing",
)

STATIC_NAMES = (
    "log_sigma_720h",
    "log_sigma_168h",
    "log_sigma_72h",
    "log_sigma_6h",
    "log_realized_24h",
    "log_ewma",
    *(f"log_range_{h}h" for h in _RANGE_HOURS),
    "return_24h",
    "return_24h_negative",
    "return_168h",
    "negative_share_24h",
    "log_max_24h",
    "log_volume_3h",
    "log_volume_24h",
    "log_volume_168h",
    *(f"log_range_season_{h}h" for h in SEASON_HOURS),
    "log_absolute_720h",
    "log_range_mean_24h",
    f"log_range_change_{CHANGE_HOURS}h",
    "return_48h_absolute",
    "return_168h_negative",
    *(f"next_24h_{day}" for day in ("tue", "wed", "thu", "fri", "sat", "sun")),
    "last_24h_weekend",
    "next_1h_weekend",
    "next_6h_weekend",
    "next_12h_weekend",
    *(f"hour_{f}{k}" for k in (1, 2, 3) for f in ("sin", "cos")),
    "weekend_hour_sin1",
    "weekend_hour_cos1",
)


@dataclass(frozen=True, slots=True)
class Features:
    """Rows along axis -1 (per-row numbers) or -2 (rows × features); leading axes are symbols.

    σ are hourly. `known_*` describe the newest 23 returns. `ready` marks rows that may be forecast: their candle
    exists and so do at least `MIN_RETURNS_24H` of the last 24 returns.
    """

    open_time: NDArray[np.int64]
    sequence_rows: NDArray[np.float32]  # [..., T + 47, F], for `sequences`
    static: NDArray[np.float32]  # [..., T, S]
    realized_24h: Array
    returns_24h: NDArray[np.int64]
    known_sum: Array
    known_squares: Array
    known_count: NDArray[np.int64]
    ewma: Array
    gaps: NDArray[np.int64]
    #: Missing hours among the last 720.
    missing_720h: NDArray[np.int64]
    ready: NDArray[np.bool_]

    def sequences(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the 48 rows that end with each of `rows`: [..., n, 48, F]."""
        windows = np.lib.stride_tricks.sliding_window_view(self.sequence_rows, SEQUENCE_HOURS, axis=-2)
        return np.ascontiguousarray(np.moveaxis(windows[..., rows, :, :], -1, -2))


def compute(open_time: NDArray[np.int64], ohlcv: Array, newest: int | None = None) -> Features:
    """Computes the features of every row of an hourly grid, or of its `newest` rows: the same numbers for less work.

    open_time: [T], ms, one hour apart. ohlcv: [..., T, 5], NaN where an hour has no candle.
    Raises `ValueError` if the shapes do not fit or the grid is empty or not hourly.
    """
    if ohlcv.shape[-2:] != (open_time.shape[0], 5):
        raise ValueError(f"ohlcv {ohlcv.shape} does not fit {open_time.shape[0]} hours × 5")
    if open_time.shape[0] == 0 or np.any(np.diff(open_time) != HOUR_MS):
        raise ValueError("open_time must be a grid of consecutive hours")
    # The sequence of the first row reaches 47 hours before it: they are added as missing hours.
    lead = SEQUENCE_HOURS - 1
    wanted = lead + (open_time.shape[0] if newest is None else min(newest, open_time.shape[0]))
    times = np.concatenate([open_time[0] + HOUR_MS * np.arange(-lead, 0, dtype=np.int64), open_time])
    pad = np.full((*ohlcv.shape[:-2], lead, 5), np.nan)
    summed = channels_of(np.concatenate([pad, ohlcv], axis=-2))
    # One array for all that is summed: windows cost calls, not rows, when a single candle is computed.
    windows = Trailing(summed, newest=wanted)
    weighted = Trailing(summed[..., WEIGHTED, :], EWMA_DECAY, newest=wanted).sum(EWMA_HOURS)
    largest = trailing_max(np.abs(summed[..., RETURN, :]), 24)[..., -wanted:]
    # The same hours of the week in the weeks before.
    season = np.stack(
        [windows.sum(h, week * WEEK_HOURS - ahead) for h, ahead in SEASON for week in range(1, SEASON_WEEKS + 1)]
    ).reshape(len(SEASON), SEASON_WEEKS, *windows.sum(1).shape)
    every = rows(
        times[-wanted:],
        lambda channel, hours: windows.sum(hours)[..., channel, :],
        weighted,
        largest,
        season_level(season[..., PRESENT, :], season[:-1, ..., RANGE, :], season[-1:, ..., LOG_RANGE, :]),
    )
    cut = (..., slice(lead, None))
    return Features(
        open_time=every.open_time[lead:],
        sequence_rows=every.sequence_rows,
        static=every.static[..., lead:, :],
        **{f.name: getattr(every, f.name)[cut] for f in fields(every)[3:]},
    )


def channels_of(ohlcv: Array) -> Array:
    """Returns what is summed over windows, for every row of a grid: [..., T, 5] to [..., channels, T]. The first row
    has no return."""
    r, ranges, present, returned = measured(ohlcv)
    summed = np.empty((*r.shape[:-1], CHANNELS, r.shape[-1]))
    summed[..., RETURN, :], summed[..., RANGE, :] = r, ranges
    summed[..., VOLUME, :] = np.where(present, ohlcv[..., 4], 0.0)
    fill_sizes(summed)
    summed[..., _NEGATIVE, :], summed[..., LOG_RANGE, :] = passing(summed, present)
    summed[..., PRESENT, :], summed[..., RETURNED, :] = present, returned
    return summed


def measured(ohlcv: Array) -> tuple[Array, Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns the return and the range of every row of a grid, 0 where there is none, and whether it has a candle and a
    return: [..., T, 5] to [..., T] each."""
    o, h, low, c = (np.ascontiguousarray(x) for x in np.moveaxis(ohlcv[..., :4], -1, 0))
    present = np.isfinite(c)
    log_close = np.log(np.where(present, c, 1.0))
    returned = present & (delayed(present.astype(np.float64), 1) > 0)
    r = np.where(returned, log_close - delayed(log_close, 1), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ranges = np.where(
            present,
            0.5 * np.log(h / low) ** 2 - (2 * np.log(2) - 1) * np.log(c / o) ** 2,
            0.0,
        )
    return r, np.maximum(ranges, 0.0), present, returned


def fill_sizes(summed: Array) -> None:
    """Fills the channels that follow from the returns alone, of [..., channels, n]."""
    r, sizes = summed[..., RETURN, :], summed[..., _SIZE, :]
    np.multiply(r, r, out=summed[..., SQUARE, :])
    np.minimum(np.abs(r, out=sizes), _SIZE_BOUND, out=sizes)


def passing(summed: Array, present: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Returns the channels from `LASTING` to `AMOUNTS`: [..., n] each."""
    return (
        np.where(summed[..., RETURN, :] < 0, summed[..., SQUARE, :], 0.0),
        log_range(present, summed[..., RANGE, :]),
    )


def log_range(present: NDArray[np.bool_], ranges: Array) -> Array:
    return np.where(present, 0.5 * np.log(np.maximum(ranges, _LEAST_RANGE)), 0.0)


def log_rms(squared: Array, number: Array) -> Array:
    """Returns the log of the root mean square, from the sum of squares and their number."""
    mean: Array = np.log(np.maximum(np.sqrt(squared / np.maximum(number, 1.0)), SIGMA_FLOOR))
    return mean


def season_level(number: Array, ranges: Array, log_ranges: Array) -> Array:
    """Returns the level of the windows `SEASON`: [windows, ...], NaN where under half of the hours exist. It is the log
    of the range of the season's windows, and the mean logarithm of the range of the last one.

    number: how many hours of each window exist, [windows, ...]. ranges: the sums of the season's windows, [windows - 1,
    ...]; log_ranges: that of the last one, [1, ...].
    """
    least = np.reshape([hours / 2 for hours, _ in SEASON], (-1,) + (1,) * (number.ndim - 1))
    level = np.concatenate([log_rms(ranges, number[:-1]), log_ranges / np.maximum(number[-1:], 1.0)])
    known: Array = np.where(number >= least, level, np.nan)
    return known


def rows(
    times: NDArray[np.int64], over: Callable[[int, int], Array], weighted: Array, largest: Array, season: Array
) -> Features:
    """Returns the features of rows from the sums that they rest on; `sequence_rows` has as many rows as the rest.

    times: [n]. over(channel, hours): the sum over the last `hours` rows, [..., n]. weighted: [..., `WEIGHTED`, n].
    largest: the largest |return| of 24 h, [..., n]. season: as `season_level` returns it.
    """
    present, r = over(PRESENT, 1) > 0, over(RETURN, 1)

    def log_rms_over(squared: int, count: int, *windows: int) -> list[Array]:
        """Returns the log of the root mean square over each window; computed in one array, to save calls."""
        return list(log_rms(np.stack([over(squared, w) for w in windows]), np.stack([over(count, w) for w in windows])))

    n_24 = over(RETURNED, 24)
    realized = standard_deviation(over(RETURN, 24), over(SQUARE, 24), n_24)
    log_realized = np.log(realized)
    log_6, log_24, *log_longer = log_rms_over(SQUARE, RETURNED, 6, 24, *_SQUARES_BOUND)
    log_sizes = {
        w: np.log(np.maximum(over(_SIZE, w) / np.maximum(over(RETURNED, w), 1.0), SIGMA_FLOOR)) for w in _SQUARES_BOUND
    }
    log_72, log_168, log_720 = (
        np.minimum(level, log_sizes[w] + bound)
        for (w, bound), level in zip(_SQUARES_BOUND.items(), log_longer, strict=True)
    )
    log_returns = dict(zip(_RANGES_BOUND, (log_24, log_72, log_168, log_720), strict=True))
    log_ranges = [
        np.minimum(level, log_returns[w] + _RANGES_BOUND[w]) if w in _RANGES_BOUND else level
        for w, level in zip(_RANGE_HOURS, log_rms_over(RANGE, PRESENT, *_RANGE_HOURS), strict=True)
    ]
    scale = np.exp(log_168)

    ewma_variance = weighted[..., 0, :] / np.maximum(weighted[..., 1, :], 1e-12)
    ewma = np.maximum(np.sqrt(ewma_variance), SIGMA_FLOOR)

    def mean_volume(hours: int) -> Array:
        return over(VOLUME, hours) / np.maximum(over(PRESENT, hours), 1.0)

    def log_volume(part: Array, whole: Array, usual: Array) -> Array:
        # A thousandth of the usual volume keeps quiet hours finite; a dead market compares as equal.
        quiet = np.maximum(1e-3 * usual, 1e-300)
        return np.log((part + quiet) / (whole + quiet))

    volume_24, volume_168, volume_720 = mean_volume(24), mean_volume(168), mean_volume(720)
    hour_of_week = times // HOUR_MS % 168
    sequence_rows = _columns(
        [
            _within(r / scale, 8.0),
            np.where(present, _within(log_ranges[0] - log_168, 6.0), 0.0),
            np.where(n_24 >= 1, _within(log_realized - log_168, 6.0), 0.0),
            np.where(present, _within(log_volume(over(VOLUME, 1), volume_168, volume_168), 6.0), 0.0),
        ],
        _SEQUENCE_CALENDAR[hour_of_week],
        [~present],
    )

    # A mean over the weeks; a week with under half of those hours is left out.
    def against_weeks(weeks: Array, level: Array, bound: float) -> Array:
        exists = ~np.isnan(weeks)
        apart = np.where(exists, _within(weeks - level, bound), 0.0)
        total = np.add.accumulate(apart, axis=1)[:, -1]
        mean: Array = total / np.maximum(np.add.reduce(exists, axis=1), 1)
        return mean

    log_range_12, log_range_24 = (over(LOG_RANGE, w) / np.maximum(over(PRESENT, w), 1.0) for w in (CHANGE_HOURS, 24))

    def scaled_return(hours: int) -> Array:
        return _within(over(RETURN, hours) / (scale * np.sqrt(float(hours))), 8.0)

    return_24, return_168 = scaled_return(24), scaled_return(168)
    static = _columns(
        [
            log_720,
            log_168 - log_720,
            log_72 - log_720,
            log_6 - log_720,
            log_realized - log_720,
            np.minimum(np.log(ewma) - log_720, _EWMA_BOUND),
            *(_within(log_range - log_720, 6.0) for log_range in log_ranges),
            return_24,
            np.minimum(return_24, 0.0),
            return_168,
            over(_NEGATIVE, 24) / np.maximum(over(SQUARE, 24), SIGMA_FLOOR**2) - 0.5,
            _within(np.log(np.maximum(largest, SIGMA_FLOOR)) - log_realized, 6.0),
            log_volume(mean_volume(3), volume_24, volume_720),
            log_volume(volume_24, volume_168, volume_720),
            log_volume(volume_168, volume_720, volume_720),
            *against_weeks(season[:-1], log_ranges[-1], _SEASON_BOUND),
            log_sizes[720] - log_720,
            _within(log_range_24 - log_720, 6.0),
            -against_weeks(season[-1:], log_range_12, 6.0)[0],
            np.abs(scaled_return(48)),
            np.minimum(return_168, 0.0),
        ],
        _STATIC_CALENDAR[hour_of_week],
        [],
    )
    return Features(
        open_time=times,
        sequence_rows=sequence_rows,
        static=static,
        realized_24h=realized,
        returns_24h=n_24.astype(np.int64),
        known_sum=over(RETURN, 23),
        known_squares=over(SQUARE, 23),
        known_count=over(RETURNED, 23).astype(np.int64),
        ewma=ewma,
        gaps=(SEQUENCE_HOURS - over(PRESENT, SEQUENCE_HOURS)).astype(np.int64),
        missing_720h=(720 - over(PRESENT, 720)).astype(np.int64),
        ready=present & (n_24 >= MIN_RETURNS_24H),
    )


def _columns(first: list[Array], calendar: Array, last: list[NDArray[np.bool_]]) -> NDArray[np.float32]:
    """Returns the columns side by side as float32: [..., n, F]; `calendar` is [n, k], the same for every symbol."""
    out = np.empty((*first[0].shape, len(first) + calendar.shape[-1] + len(last)), np.float32)
    for i, column in enumerate(first):
        out[..., i] = column
    middle = len(first) + calendar.shape[-1]
    out[..., len(first) : middle] = calendar
    for i, flag in enumerate(last, middle):
        out[..., i] = flag
    return out


def _within(x: Array, limit: float) -> Array:
    """Clips at ± limit. np.clip takes longer on the few rows of one candle."""
    bounded: Array = np.minimum(np.maximum(x, -limit), limit)
    return bounded


def standard_deviation(total: Array, squares: Array, count: Array) -> Array:
    """Returns the sample standard deviation (ddof 1) from Σx, Σx² and n; at least `SIGMA_FLOOR`, also for n < 2."""
    variance = (squares - total * total / np.maximum(count, 1.0)) / np.maximum(count - 1.0, 1.0)
    return np.sqrt(np.maximum(variance, SIGMA_FLOOR**2))


_WEEKEND = (5, 6)


def _share(hour: NDArray[np.int64], days: tuple[int, ...], ahead: int, hours: int) -> Array:
    """Returns the share of `days` (0 = Monday) in the `hours` ≤ 24 hours that begin `ahead` after each hour.

    They touch two days at most: the one that holds the first of them, and the next.
    """
    first = hour + ahead
    on_first_day = np.minimum(24 - first % 24, hours) / hours
    weekday = (first // 24 + 3) % 7
    this, following = np.isin(weekday, days), np.isin((weekday + 1) % 7, days)
    return np.where(this, on_first_day, 0.0) + np.where(following, 1.0 - on_first_day, 0.0)


def _calendar() -> tuple[Array, Array]:
    """Returns the calendar features of each hour of the week: ([168, 3] for the sequence, [168, 18] static).

    UTC; hour 0 since the epoch was the first of a Thursday.
    """
    hour = np.arange(168, 336, dtype=np.int64)
    angle = 2 * np.pi * (hour % 24) / 24
    waves = [wave(k * angle) for k in (1, 2, 3) for wave in (np.sin, np.cos)]
    weekend_24 = _share(hour, _WEEKEND, 1, 24)
    static = [
        *(_share(hour, (day,), 1, 24) for day in range(1, 7)),
        _share(hour, _WEEKEND, -23, 24),
        _share(hour, _WEEKEND, 1, 1),
        _share(hour, _WEEKEND, 1, 6),
        _share(hour, _WEEKEND, 1, 12),
        *waves,
        weekend_24 * waves[0],
        weekend_24 * waves[1],
    ]
    sequence = [_share(hour, _WEEKEND, 0, 1), waves[0], waves[1]]
    return np.stack(sequence, axis=-1), np.stack(static, axis=-1)


_SEQUENCE_CALENDAR, _STATIC_CALENDAR = _calendar()
