"""Figures of an evaluation, as bytes of SVG or PNG: the same input gives the same bytes.

Rules of this module:
- Lines over time are drawn of the forecasts made at 00:00 UTC, one a day: hourly ones overlap and cannot be read.
Importing this module loads matplotlib.
"""

from __future__ import annotations

from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stream.core.forecasting import qlike
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from stream.drawing import SIZE_INCHES, dates, rendered
from training.data.panel import NEXT_24H, IntervalSeries, Panel
from training.scoring.groups import PHASES, phases, years
from training.scoring.measures import inside, rolling_coverage
from training.scoring.scores import INTERVALS, CommonSample, common_sample

_ACTUAL, _FORECAST, _OTHER = "#000000", "#d55e00", "#0072b2"
_LINES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a05d00", "#5d4fa0", "#4f7f4f")
_YEAR_HOURS = 8_760
_DECILES = 10
#: Cumulative losses are drawn against this forecaster.
REFERENCE = "har"
_YEAR_HEIGHT_INCHES = 2.4


def forecast_against_actual(panel: Panel, name: str, form: str = "svg") -> bytes:
    """The next 24 h's σ, annualised, as it was and as `name` said at 00:00 UTC, with its interval if it has one.

    A row of axes per year: more days than that in one row cannot be told apart.
    """
    head, daily = _daily(panel)
    year = years(panel.open_time)
    shown = np.unique(year[daily])

    def draw(figure: Figure) -> None:
        rows = figure.subplots(max(len(shown), 1), sharey=True, squeeze=False)[:, 0]
        for axes, each in zip(rows, shown, strict=False):
            _actual_and_forecast(axes, panel, head, daily & (year == each), name)
        rows[0].set_ylim(bottom=0, top=1.1 * rows[0].get_ylim()[1])  # room for the legend
        rows[0].legend(loc="upper right", ncols=3)
        rows[0].set_title(f"{panel.symbol}: volatility of the coming 24 h, forecast each day at 00:00 UTC", loc="left")
        figure.supylabel("σ of the next 24 h, % a year", fontsize="medium")

    width, height = SIZE_INCHES
    return rendered(draw, form, (width, max(height, _YEAR_HEIGHT_INCHES * len(shown))))


def _actual_and_forecast(axes: Axes, panel: Panel, head: CommonSample, rows: np.ndarray, name: str) -> None:
    days, at = _days(panel)[rows], rows[head.rows]
    interval = _interval(panel)
    if interval is not None:
        axes.fill_between(
            days,
            _annual(interval.low[rows]),
            _annual(interval.high[rows]),
            color=_FORECAST,
            alpha=0.18,
            linewidth=0,
            label=f"{interval.level:.0%} interval",
        )
    axes.plot(days, _annual(head.realized[at]), color=_ACTUAL, linewidth=1.0, label="actual")
    axes.plot(days, _annual(head.forecasts[name][at]), color=_FORECAST, linewidth=1.2, label=f"forecast: {name}")
    dates(axes)


def calibration(panel: Panel, names: list[str]) -> bytes:
    """Mean realized by decile of the forecast: on the diagonal a forecast means what it says."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        head = common_sample(panel, NEXT_24H)
        top = 0.0
        for colour, name in zip(cycle(_LINES), names, strict=False):
            forecast = head.forecasts[name]
            parts = np.array_split(np.argsort(forecast, kind="stable"), _DECILES)
            points = _annual(np.array([(forecast[p].mean(), head.realized[p].mean()) for p in parts if len(p)]))
            top = max(top, float(points.max()))
            axes.plot(*points.T, marker="o", markersize=4, linewidth=1, color=colour, label=name)
        axes.plot([0, top], [0, top], color="#999999", linewidth=1, linestyle="--", label="as forecast")
        axes.set_xlabel("mean forecast of the decile, % a year")
        axes.set_ylabel("mean realized, % a year")
        axes.legend(loc="upper left")
        axes.set_title("Calibration: what came, by what was said", loc="left")

    return rendered(draw, "svg", (6.0, 4.6))


def coverage(panel: Panel) -> bytes:
    """Share of outcomes inside the interval over the 30 days that end with each day."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        realized = panel.realized[NEXT_24H]
        for colour, (name, interval) in zip(cycle(_LINES), sorted(panel.intervals.items()), strict=False):
            rows = np.isfinite(realized) & np.isfinite(interval.low)
            share = rolling_coverage(panel.open_time[rows], inside(realized, interval)[rows])
            daily = phases(panel.open_time[rows]) == 0
            axes.plot(_days(panel)[rows][daily], 100 * share[daily], color=colour, linewidth=1.2, label=name)
            axes.axhline(100 * interval.level, color="#999999", linewidth=1, linestyle="--")
        axes.set_ylabel("outcomes inside, 30 days, %")
        axes.set_ylim(top=101)
        dates(axes)
        axes.legend(loc="lower right")
        axes.set_title("Coverage of the interval; dashed: what it promises", loc="left")

    return rendered(draw, "svg")


def residuals(panel: Panel, name: str) -> bytes:
    """ln(realized / forecast) of `name`: how it is spread, and its quartiles by the hour at which it was said."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
        head = common_sample(panel, NEXT_24H)
        residual = np.log(head.realized / head.forecasts[name])
        left.hist(residual, bins=60, color=_OTHER)
        left.axvline(0, color=_ACTUAL, linewidth=1)
        left.set_xlabel("ln(realized / forecast)")
        left.set_ylabel("hours")
        left.set_title("Residuals", loc="left")
        phase = phases(panel.open_time)[head.rows]
        hours = np.array([k for k in range(PHASES) if (phase == k).any()])
        low, mid, high = np.array([np.quantile(residual[phase == k], (0.25, 0.5, 0.75)) for k in hours]).T
        right.fill_between(hours, low, high, color=_OTHER, alpha=0.25, linewidth=0, label="middle half")
        right.plot(hours, mid, color=_OTHER, marker="o", markersize=3, linewidth=1.2, label="median")
        right.axhline(0, color=_ACTUAL, linewidth=1)
        right.set_xlabel("hour of day at which it was said, UTC")
        right.set_xticks(range(0, PHASES, 3))
        right.legend(loc="upper right")
        right.set_title("Residuals by hour", loc="left")

    return rendered(draw, "svg")


def cumulative_losses(panel: Panel, names: list[str]) -> bytes:
    """QLIKE summed over days, less that of `REFERENCE`: a line that falls is a forecaster that gains on it."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        head, daily = _daily(panel)
        at = daily[head.rows]
        own = qlike.losses(head.realized[at], head.forecasts[REFERENCE][at])
        for colour, name in zip(cycle(_LINES), names, strict=False):
            gained = np.cumsum(qlike.losses(head.realized[at], head.forecasts[name][at]) - own)
            axes.plot(_days(panel)[daily], gained, color=colour, linewidth=1.2, label=name)
        axes.axhline(0, color=_ACTUAL, linewidth=1)
        axes.set_ylabel(f"sum of QLIKE - QLIKE of {REFERENCE}")
        dates(axes)
        axes.legend(loc="best", ncols=2)
        axes.set_title(f"Losses over time against {REFERENCE}: lower is better", loc="left")

    return rendered(draw, "svg")


def _daily(panel: Panel) -> tuple[CommonSample, np.ndarray]:
    """What was said of the next 24 h, and which of the panel's rows were scored and said at 00:00 UTC."""
    head = common_sample(panel, NEXT_24H)
    return head, head.rows & (phases(panel.open_time) == 0)


def _interval(panel: Panel) -> IntervalSeries | None:
    return next((panel.intervals[name] for name in INTERVALS if name in panel.intervals), None)


def _days(panel: Panel) -> np.ndarray:
    return np.asarray((panel.open_time + HOUR_MS).astype("datetime64[ms]"))


def _annual(sigma: Array) -> Array:
    """Hourly σ in percent a year."""
    annual: Array = 100 * _YEAR_HOURS**0.5 * sigma
    return annual
