"""What an attempt leaves for people and for `dvc plots`: a page with figures, the figures' numbers, one line a day.

Importing this module loads matplotlib.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stream import times
from stream.core.forecasting import qlike
from stream.core.forecasting.contract import Training
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from stream.core.messages.judged import SymbolJudged, Verdict
from stream.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, SKY, dates, rendered
from stream.html import render
from training.pages.numbers import number, p_value, share
from training.retraining import gate
from training.retraining.gate import Compared, Forecasts
from training.scoring import comparison
from training.scoring.groups import PHASES, phases

_DAY_MS = 24 * HOUR_MS
_COLOURS = (ORANGE, BLUE, GREEN, PINK, SKY, GREY)
_PERCENT_A_YEAR = 100 * 8_760**0.5
_COLUMNS = ("symbol", "day", "forecasts", "qlike_champion", "qlike_challenger", "difference_so_far")


def files_of(judged: Verdict, pairs: Sequence[Compared], trainings: tuple[Training, Training]) -> dict[str, bytes]:
    """Returns the files of an attempt by name. `trainings`: of the champion and of what was gated."""
    return {
        "days.csv": _days(pairs),
        "metrics.json": (json.dumps(_metrics(judged), indent=1) + "\n").encode(),
        "verdict.html": _page(judged, pairs, trainings).encode(),
    }


def _days(pairs: Sequence[Compared]) -> bytes:
    """One line a symbol and day, of the forecasts made in it: their mean losses, and the sum of differences so far."""
    lines = [",".join(_COLUMNS)]
    for pair in pairs:
        so_far = 0.0
        for day, rows, losses in _by_day(pair):
            so_far += losses[1] - losses[0]
            lines.append(f"{pair.symbol},{times.day(day)},{rows},{losses[0]:.8g},{losses[1]:.8g},{so_far:.8g}")
    return ("\n".join(lines) + "\n").encode()


def _by_day(pair: Compared) -> list[tuple[int, int, tuple[float, float]]]:
    of, other = pair.champion, pair.challenger
    day = (of.open_time + HOUR_MS) // _DAY_MS
    losses = [qlike.losses(of.realized, f.sigma) for f in (of, other)]
    return [
        (
            int(d) * _DAY_MS,
            int((day == d).sum()),
            (float(losses[0][day == d].mean()), float(losses[1][day == d].mean())),
        )
        for d in np.unique(day)
    ]


def _metrics(judged: Verdict) -> dict[str, Any]:
    return {
        "promoted": int(judged.outcome == "promoted"),
        "passed": int(not judged.refusals),
        **{
            of.symbol: {
                "qlike_champion": of.qlike_champion,
                "qlike_challenger": of.qlike_challenger,
                "p_better": of.p_better,
                "coverage_challenger": of.coverage_challenger,
            }
            for of in judged.symbols
        },
    }


def _page(judged: Verdict, pairs: Sequence[Compared], trainings: tuple[Training, Training]) -> str:
    scored = [pair for pair in pairs if len(pair.champion.open_time)]
    pictures = []
    if scored:
        own = scored[0]
        pictures = [
            (
                _cumulative(scored),
                "Sum of QLIKE, challenger less champion, by day: a line that falls is a challenger that gains.",
            ),
            (
                _phases(own),
                f"{own.symbol}: the test of each hour of the day at which forecasts are made; the median decides.",
            ),
            (_forecast(own), f"{own.symbol}: what was forecast at 00:00 UTC, and what came, in annualized percent."),
        ]
    champion, challenger = trainings
    return render(
        "training.retraining/verdict.html.j2",
        title=f"{judged.symbols[0].symbol}: retraining of {times.day(judged.judged_at)}",
        verdict=_VERDICTS[judged.outcome],
        judged=judged,
        facts=[
            ("begun", f"{times.utc(judged.judged_at)}, by {judged.because}"),
            ("gate", f"{times.minute(judged.gate_from)} to {times.utc(judged.gate_to)}"),
            ("champion", f"{judged.champion}, learnt until {times.utc(champion.trained_until)}"),
            ("challenger", f"{judged.challenger}, learnt until {times.utc(challenger.trained_until)}"),
            ("refit", judged.refit or "none: the gate did not pass"),
        ],
        columns=[
            "",
            "forecasts",
            "QLIKE champion",
            "challenger",
            "p better (by phase)",
            "interval holds, champion",
            "challenger",
        ],
        rows=[_row(of) for of in judged.symbols],
        unseen=[
            (of.symbol, number(of.qlike_champion_unseen, 4), number(of.qlike_challenger_unseen, 4))
            for of in judged.symbols
            if of.qlike_champion_unseen is not None
        ],
        rule=_RULE,
        pictures=pictures,
    )


_VERDICTS = {
    "promoted": "The challenger passes and becomes the champion.",
    "shadow": "The challenger passes and runs in the champion's shadow first.",
    "refused": "The challenger is refused; the champion stays.",
}
_RULE = (
    f"It passes where its mean QLIKE over {gate.DAYS} days is lower, with a one-sided p below {gate.P:g} "
    f"(Diebold-Mariano, one forecast a day, a day's difference bounded at {gate.BOUND:g}, Newey-West over "
    f"{comparison.HAC_LAG_DAYS} days, median over the {PHASES} hours of the day), where its interval holds "
    f"{gate.COVERAGE[0]:.0%} to {gate.COVERAGE[1]:.0%} of outcomes, and where on no other followed symbol the same "
    "test says that it is worse."
)


def _row(of: SymbolJudged) -> tuple[str, ...]:
    spread = "" if of.p_better is None else f" ({p_value(of.p_better_min)} to {p_value(of.p_better_max)})"
    return (
        of.symbol,
        f"{of.forecasts:,}",
        number(of.qlike_champion, 4),
        number(of.qlike_challenger, 4),
        p_value(of.p_better) + spread,
        share(of.coverage_champion),
        share(of.coverage_challenger),
    )


def _cumulative(pairs: Sequence[Compared]) -> bytes:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for colour, pair in zip(cycle(_COLOURS), pairs, strict=False):
            days = _by_day(pair)
            gained = np.cumsum([losses[1] - losses[0] for *_, losses in days])
            axes.plot(_times([day for day, *_ in days]), gained, color=colour, linewidth=1.4, label=pair.symbol)
        axes.axhline(0, color=BLACK, linewidth=1)
        axes.set_ylabel("sum of daily QLIKE differences")
        axes.legend(loc="best", ncols=3)
        dates(axes)

    return rendered(draw, "svg")


def _phases(pair: Compared) -> bytes:
    tests, _ = comparison.phase_tests(
        pair.champion.realized,
        pair.challenger.sigma,
        pair.champion.sigma,
        phases(pair.champion.open_time),
        bound=gate.BOUND,
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        p = [test.p_better for test in tests]
        axes.plot([test.phase for test in tests], p, color=BLUE, marker="o", linestyle="none", label="p of one hour")
        if p:
            axes.axhline(float(np.median(p)), color=BLUE, linewidth=1.4, label="median")
        axes.axhline(gate.P, color=BLACK, linewidth=1, linestyle="--", label=f"asked for: below {gate.P:g}")
        axes.set_ylim(0, 1)
        axes.set_xlabel("hour of day at which it was forecast, UTC")
        axes.set_ylabel("one-sided p that it is better")
        axes.legend(loc="upper right", ncols=3)

    return rendered(draw, "svg")


def _forecast(pair: Compared) -> bytes:
    daily = phases(pair.champion.open_time) == 0

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        at = _times(pair.champion.open_time[daily] + HOUR_MS)
        of = pair.challenger.interval
        axes.fill_between(at, _annual(of.low[daily]), _annual(of.high[daily]), color=ORANGE, alpha=0.18, linewidth=0)
        axes.plot(at, _annual(pair.champion.realized[daily]), color=BLACK, linewidth=1, label="what came")
        for name, colour, style, forecast in _lines(pair):
            axes.plot(at, _annual(forecast.sigma[daily]), color=colour, linestyle=style, linewidth=1.3, label=name)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("σ of the next 24 h, % a year")
        axes.legend(loc="upper right", ncols=3)
        dates(axes)

    return rendered(draw, "svg")


def _lines(pair: Compared) -> tuple[tuple[str, str, str, Forecasts], ...]:
    return (("champion", BLUE, "--", pair.champion), ("challenger", ORANGE, "-", pair.challenger))


def _times(ms: Any) -> np.ndarray:
    return np.array(ms, "datetime64[ms]")


def _annual(sigma: Array) -> Array:
    annual: Array = _PERCENT_A_YEAR * sigma
    return annual
