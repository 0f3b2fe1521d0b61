"""The gate: whether a challenger may take the champion's place. Pure: forecasts and contracts in, a verdict out.

Rules of this module:
- Both models are scored on the same days, which the challenger has not seen: it has learnt up to `EMBARGO_HOURS` before
  them, from exactly the candles that it was given, or it is refused whatever its figures are.
- It has to be better on the symbol that it is for, and may not be clearly worse on any other that is followed.
- A champion that has learnt from some of these days is flattered by them, which makes it harder to beat and never
  easier. That is reported, with the figures of the days that it has not seen.
- Whatever is not a number, or cannot be tested, counts against the challenger.
- The constants were fixed before any figure was seen, but for `BOUND`: one example showed that it was needed
  (docs/decisions/0012-retraining.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream import times
from stream.core.forecasting import qlike, serving
from stream.core.forecasting.contract import Contract
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from stream.core.messages.judged import SymbolJudged
from training.data.panel import IntervalSeries
from training.scoring import comparison
from training.scoring.groups import phases
from training.scoring.measures import inside

DAYS = 90
EMBARGO_HOURS = 24
#: A day's difference of QLIKE counts for no more than this in the test, as where `har` stands in for a broken model:
#: one wild day is no evidence about ninety. The mean that must be lower has no bound: one day can ruin it.
BOUND = serving.BOUND
#: One-sided: the challenger is promoted where p is below it, and clearly worse on a symbol where 1 - p is.
P = 0.1
#: The share of outcomes inside the interval of 90 %. Of 89 days it is some 3 points uncertain.
COVERAGE = (0.85, 0.95)
#: Where a symbol cannot be tested, QLIKE higher by this share is clearly worse.
WORSE_SHARE = 0.05
#: Share of the gate's hours that both models must have forecast.
LEAST_SHARE = 0.5
#: How far the refit may be from what the gate scored, in |ln σ| over the gate's hours: half of them, and 99 of 100.
REFIT_MEDIAN, REFIT_MOST = 0.10, 0.50


class Window(msgspec.Struct, frozen=True):
    """The gate's hours, ms: forecasts of candles that open in [from_ms, to_ms), whose outcomes end by `to_ms`."""

    from_ms: int
    to_ms: int

    @classmethod
    def ending(cls, to_ms: int) -> Window:
        return cls(to_ms - DAYS * 24 * HOUR_MS, to_ms)

    @property
    def learnt_until(self) -> int:
        """The end of what a challenger may have learnt from, outcomes included."""
        return self.from_ms - EMBARGO_HOURS * HOUR_MS


@dataclass(frozen=True, slots=True)
class Forecasts:
    """What one model forecasts of one symbol, [n] each: hourly σ of the next 24 h, with its interval; rising times."""

    open_time: NDArray[np.int64]
    sigma: Array
    interval: IntervalSeries
    realized: Array
    #: Hours in which `har` would have been served in its place.
    by_har: int = 0


@dataclass(frozen=True, slots=True)
class Compared:
    """Both models on the hours that both forecast and whose outcome is known."""

    symbol: str
    champion: Forecasts
    challenger: Forecasts
    #: Hours of the gate that could have been forecast.
    possible: int


def compared(symbol: str, champion: Forecasts, challenger: Forecasts) -> Compared:
    """Returns both on their common hours. Raises nothing: hours that a model has no number for are not common."""
    usable = [_usable(champion), _usable(challenger)]
    common = np.intersect1d(champion.open_time[usable[0]], challenger.open_time[usable[1]])
    possible = max(len(champion.open_time), len(challenger.open_time))
    return Compared(symbol, _at(champion, common), _at(challenger, common), possible)


def _usable(of: Forecasts) -> NDArray[np.bool_]:
    return np.isfinite(of.realized) & (of.realized > 0) & np.isfinite(of.sigma) & (of.sigma > 0)


def _at(of: Forecasts, open_time: NDArray[np.int64]) -> Forecasts:
    rows = np.searchsorted(of.open_time, open_time)
    interval = IntervalSeries(of.interval.low[rows], of.interval.high[rows], of.interval.level)
    return Forecasts(open_time, of.sigma[rows], interval, of.realized[rows], of.by_har)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gate found. It passes where there is no refusal."""

    refusals: tuple[str, ...]
    notes: tuple[str, ...]
    symbols: tuple[SymbolJudged, ...]


def judge(
    pairs: Sequence[Compared],
    champion: Contract,
    challenger: Contract,
    window: Window,
    *,
    learnt_sha256: str,
) -> Judgement:
    """Judges the challenger on `pairs`: the symbol that it is for comes first. `learnt_sha256`: of the candles that it
    was given."""
    refusals = _unfair(challenger, window, learnt_sha256)
    seen_until = champion.training.trained_until
    notes = _notes(pairs, seen_until, window)
    judged = tuple(_symbol(pair, seen_until) for pair in pairs)
    for k, (pair, figures) in enumerate(zip(pairs, judged, strict=True)):
        if k and not pair.possible:
            # One that is halted must not keep the others from a better model.
            notes.append(f"{pair.symbol}: it has no candles in the gate's days, so it is not judged")
        elif len(pair.challenger.open_time) < LEAST_SHARE * pair.possible or not figures.forecasts:
            refusals.append(
                f"{pair.symbol}: only {figures.forecasts} of {pair.possible} hours have a usable forecast of both"
            )
        elif k == 0:
            refusals += _not_better(figures)
        elif (reason := _clearly_worse(figures)) is not None:
            refusals.append(reason)
    return Judgement(tuple(refusals), tuple(notes), judged)


def _unfair(challenger: Contract, window: Window, learnt_sha256: str) -> list[str]:
    """Returns why its figures on these days are no test of it."""
    training = challenger.training
    if training.trained_until + HOUR_MS > window.learnt_until:
        return [
            f"it learnt until {times.minute(training.trained_until)}, so it may know the gate's days; "
            f"{times.minute(window.learnt_until - HOUR_MS)} is the last hour that it may have learnt from"
        ]
    if training.data_sha256 != learnt_sha256:
        return ["it learnt from other candles than it was given, so it may know the gate's days"]
    return []


def _symbol(pair: Compared, seen_until: int) -> SymbolJudged:
    champion, challenger = pair.champion, pair.challenger
    realized, at = challenger.realized, challenger.open_time
    if not len(at):
        none = SymbolJudged(
            symbol=pair.symbol,
            forecasts=0,
            qlike_champion=0.0,
            qlike_challenger=0.0,
            coverage_champion=0.0,
            coverage_challenger=0.0,
            level=challenger.interval.level,
            reason="there is no hour that both forecast",
        )
        return none
    losses = [qlike.losses(realized, f.sigma) for f in (champion, challenger)]
    unseen = at > seen_until
    split = 0 < int(unseen.sum()) < len(at)
    tests, reason = comparison.phase_tests(realized, challenger.sigma, champion.sigma, phases(at), bound=BOUND)
    p = np.array([test.p_better for test in tests])
    return SymbolJudged(
        symbol=pair.symbol,
        forecasts=len(at),
        qlike_champion=float(losses[0].mean()),
        qlike_challenger=float(losses[1].mean()),
        p_better=None if reason else float(np.median(p)),
        p_better_min=None if reason else float(p.min()),
        p_better_max=None if reason else float(p.max()),
        phases=len(tests),
        coverage_champion=float(inside(realized, champion.interval).mean()),
        coverage_challenger=float(inside(realized, challenger.interval).mean()),
        level=challenger.interval.level,
        qlike_champion_unseen=float(losses[0][unseen].mean()) if split else None,
        qlike_challenger_unseen=float(losses[1][unseen].mean()) if split else None,
        reason=reason,
    )


def _not_better(of: SymbolJudged) -> list[str]:
    """Returns why the challenger is not better on its own symbol."""
    found = []
    figures = f"QLIKE {of.qlike_challenger:.4f} against the champion's {of.qlike_champion:.4f}"
    if not of.qlike_challenger < of.qlike_champion:
        found.append(f"{of.symbol}: it is not better: {figures}")
    elif of.p_better is None:
        found.append(f"{of.symbol}: it cannot be tested: {of.reason}")
    elif not of.p_better < P:
        found.append(
            f"{of.symbol}: it may only be luckier: {figures}, p {of.p_better:.3f}, and less than {P:g} is asked for"
        )
    least, most = COVERAGE
    if not least <= of.coverage_challenger <= most:
        found.append(
            f"{of.symbol}: its {of.level:.0%} interval holds {of.coverage_challenger:.1%} of outcomes, and "
            f"{least:.0%} to {most:.0%} are asked for"
        )
    return found


def _clearly_worse(of: SymbolJudged) -> str | None:
    worse = of.qlike_challenger > of.qlike_champion
    if of.p_better is None:
        clearly = not of.qlike_challenger <= (1 + WORSE_SHARE) * of.qlike_champion
    else:
        clearly = worse and 1 - of.p_better < P
    if not clearly:
        return None
    p = "" if of.p_better is None else f", p {1 - of.p_better:.3f}"
    return f"{of.symbol}: it is clearly worse: QLIKE {of.qlike_challenger:.4f} against {of.qlike_champion:.4f}{p}"


def _notes(pairs: Sequence[Compared], seen_until: int, window: Window) -> list[str]:
    notes = []
    if seen_until >= window.from_ms:
        seen = (min(seen_until + HOUR_MS, window.to_ms) - window.from_ms) / (24 * HOUR_MS)
        notes.append(
            f"the champion learnt until {times.minute(seen_until)}, from {seen:.0f} of the {DAYS} days: they flatter "
            "it, so that it is harder to beat"
        )
    for pair in pairs:
        for name, of in (("champion", pair.champion), ("challenger", pair.challenger)):
            if of.by_har:
                notes.append(
                    f"{pair.symbol}: har would have been served in the {name}'s place for {of.by_har} hour(s); its "
                    "interval is har's then, its QLIKE its own"
                )
    return notes


def refit_refusals(
    gated: Contract, refit: Contract, pairs: Sequence[tuple[str, Array, Array]], to_ms: int
) -> tuple[str, ...]:
    """Returns why the refit is not the same model as the gated one, only fitted for longer. `pairs`: symbol, and σ of
    both over the gate's hours, gated first."""
    found = [
        f"the refit has other {name.replace('_', ' ')} than what was gated"
        for name in ("contract", "features_version", "sequence_names", "static_names", "sequence_hours", "horizons")
        if getattr(gated, name) != getattr(refit, name)
    ]
    was, now = gated.training, refit.training
    if was.symbols != now.symbols or was.seed != now.seed:
        found.append("the refit learnt from other symbols, or with another seed, than what was gated")
    if not was.trained_until < now.trained_until < to_ms:
        found.append(
            f"the refit learnt until {times.minute(now.trained_until)}, which is not the newest hour asked for"
        )
    for symbol, before, after in pairs:
        if len(before) != len(after) or not len(after):
            found.append(f"{symbol}: the refit forecasts {len(after)} hours of the gate, what was gated {len(before)}")
            continue
        with np.errstate(all="ignore"):
            gap = np.abs(np.log(after / before))
        median, most = float(np.median(gap)), float(np.quantile(gap, 0.99))
        if not (math.isfinite(median) and math.isfinite(most)):
            found.append(f"{symbol}: the refit forecasts what is no volatility")
        elif median > REFIT_MEDIAN or most > REFIT_MOST:
            found.append(
                f"{symbol}: the refit is another model than what was gated: |ln σ| differs by {median:.3f} in the "
                f"median and {most:.3f} in 99 of 100 hours, {REFIT_MEDIAN:g} and {REFIT_MOST:g} are allowed"
            )
    return tuple(found)
