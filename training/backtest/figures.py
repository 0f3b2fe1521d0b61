"""Figures of a backtest, as bytes of SVG or PNG. Lines over time are drawn once a day, at the last hour of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from stream.core.deciding.policy import REGIMES
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from stream.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, SKY, WIDTH_INCHES, YELLOW, dates, rendered
from training.backtest.benchmarks import BUY_AND_HOLD
from training.backtest.runner import Tested

#: Low, medium, high: light to dark.
_REGIME_COLOURS = ("#e8f1f8", "#9ecae1", "#d55e00")
_KINDS = {"policy": ORANGE, "other forecast": BLUE, "reference": PINK, "benchmark": GREY, "oracle": GREEN}
_LAST_HOUR = 23
_DAYS_A_YEAR = 366


def overview(tested: Tested, form: str = "svg") -> bytes:
    """Draws the main figure: price with exposure, equity, drawdown, and realized against target volatility."""

    def draw(figure: Figure) -> None:
        first, second, third, fourth = figure.subplots(4, 1, sharex=True, height_ratios=(1.35, 1.2, 0.9, 0.9))
        of, name = tested.backtest, _judged(tested)
        first.set_title(f"{of.symbol}, {of.start} to {of.end}: price, and what {name} held", loc="left")
        _exposure_over_price(first, tested)
        for line in _shown(tested):
            style = {"color": _colour(tested, line), "linewidth": 1.6 if line == name else 1.0, "label": line}
            second.plot(_days(tested), _daily(tested, tested.books[line].equity), **style)
            third.plot(_days(tested), 100 * _daily(tested, drawdowns(tested.books[line].equity)), **style)
            if line != BUY_AND_HOLD:
                fourth.plot(_days(tested), 100 * _daily(tested, tested.books[line].volatility_7d), **style)
        _logarithmic(second, "{:g}")
        second.set_ylabel("equity")
        second.legend(loc="upper left", ncols=3)
        third.set_ylabel("drawdown, %")
        fourth.axhline(100 * of.target_volatility_annualized, color=BLACK, linewidth=1, linestyle="--", label="target")
        fourth.set_ylabel("7-day σ, % a year")
        fourth.set_ylim(bottom=0)
        fourth.legend(loc="upper right", ncols=3)
        dates(fourth)

    return rendered(draw, form, (WIDTH_INCHES, 9.6))


def tradeoff(tested: Tested, form: str = "svg") -> bytes:
    """Draws tracking error against turnover, a point per policy and benchmark: down and to the left is better."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        # The names of neighbours are above and below in turn, so that they do not overlap.
        for k, line in enumerate(sorted(tested.backtest.lines, key=lambda one: one.impact.turnover)):
            if line.impact.tracking_rmse is None:
                continue
            at = (line.impact.turnover, 100 * line.impact.tracking_rmse)
            axes.plot(*at, marker="o", markersize=8 if line.kind == "policy" else 6, color=_KINDS[line.kind])
            axes.annotate(line.name, at, xytext=(6, 6) if k % 2 else (6, -14), textcoords="offset points", fontsize=9)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0, right=2.5 * max(line.impact.turnover for line in tested.backtest.lines) + 1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(0, max(axes.get_ylim()[1], 1e-3))
        axes.set_xlabel("turnover, times the equity a year")
        axes.set_ylabel("RMSE of the 7-day σ against the target, points a year")
        axes.set_title("What tracking costs", loc="left")

    return rendered(draw, form, (WIDTH_INCHES, 4.8))


def turnover(tested: Tested) -> bytes:
    """Draws the turnover by month of the first policy, and its fees to date."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        book = tested.books[_judged(tested)]
        month = book.open_time.astype("datetime64[ms]").astype("datetime64[M]")
        months, index = np.unique(month, return_inverse=True)
        axes.bar(months.astype("datetime64[D]"), np.bincount(index, book.traded), width=25, align="edge", color=ORANGE)
        axes.set_ylabel("times the equity")
        paid = axes.twinx()
        paid.plot(_days(tested), 100 * _daily(tested, np.cumsum(book.cost)), color=BLUE, linewidth=1.4)
        paid.set_ylabel("fees to date, % of the equity (line)", color=BLUE)
        paid.grid(visible=False)
        dates(axes)
        axes.set_title("Turnover", loc="left")

    return rendered(draw, "svg", (WIDTH_INCHES, 3.2))


def regimes(tested: Tested) -> bytes:
    """Draws the regime at the end of each day: a row per year, a stripe per day."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        day = _days(tested).astype("datetime64[D]")
        year = day.astype("datetime64[Y]").astype(np.int64) + 1970
        years = np.unique(year)
        grid = np.full((len(years), _DAYS_A_YEAR), np.nan)
        grid[year - years[0], (day - day.astype("datetime64[Y]")).astype(np.int64)] = _daily(
            tested, np.where(tested.decided.regime < 0, np.nan, tested.decided.regime.astype(np.float64))
        )
        axes.imshow(grid, aspect="auto", interpolation="nearest", cmap=ListedColormap(_REGIME_COLOURS), vmin=0, vmax=2)
        axes.set_yticks(range(len(years)), [str(y) for y in years])
        axes.set_xlabel("day of the year")
        axes.grid(visible=False)
        handles = [Patch(facecolor=c, edgecolor=GREY, label=r) for c, r in zip(_REGIME_COLOURS, REGIMES, strict=True)]
        figure.legend(handles=handles, loc="outside upper right", ncols=3)
        axes.set_title("Regimes", loc="left")

    years = len(np.unique(tested.decided.open_time // (8_760 * HOUR_MS)))
    return rendered(draw, "svg", (WIDTH_INCHES, 1.2 + 0.45 * years))


def drawdowns(equity: Array) -> Array:
    """Computes how far each equity lies below the highest so far, as a share of that, [n], at most 0."""
    below: Array = equity / np.maximum(np.maximum.accumulate(equity), 1.0) - 1
    return below


def _exposure_over_price(axes: Axes, tested: Tested) -> None:
    held = 100 * _daily(tested, tested.held[_judged(tested)])
    axes.fill_between(_days(tested), held, step="post", color=ORANGE, alpha=0.25, linewidth=0)
    axes.set_ylabel("exposure, % (area)")
    axes.set_ylim(0, max(100.0, float(held.max())))
    price = axes.twinx()
    price.plot(_days(tested), _daily(tested, tested.decided.closes), color=BLACK, linewidth=1)
    _logarithmic(price, "{:g}")
    price.set_ylabel("price (line)")
    price.grid(visible=False)


def _logarithmic(axes: Axes, text: str) -> None:
    """Makes the axis logarithmic, its numbers written out."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text.format(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _judged(tested: Tested) -> str:
    return tested.backtest.lines[0].name


def _shown(tested: Tested) -> Sequence[str]:
    """Returns the names of the lines to draw: policies, the constant weight of the first one, buy and hold."""
    constants = [line.name for line in tested.backtest.lines if line.kind == "benchmark"]
    return [*constants, *(line.name for line in tested.backtest.lines if line.kind == "policy")][::-1]


def _colour(tested: Tested, name: str) -> str:
    if name == BUY_AND_HOLD:
        return GREY
    kinds = [line.name for line in tested.backtest.lines if line.kind == "policy"]
    return (ORANGE, GREEN, PINK, YELLOW, SKY)[kinds.index(name) % 5] if name in kinds else BLUE


def _ends(tested: Tested) -> NDArray[np.bool_]:
    return np.asarray(tested.decided.open_time // HOUR_MS % 24 == _LAST_HOUR)


def _daily(tested: Tested, values: Array) -> Array:
    return values[_ends(tested)]


def _days(tested: Tested) -> np.ndarray:
    return np.asarray(tested.decided.open_time[_ends(tested)].astype("datetime64[ms]"))
