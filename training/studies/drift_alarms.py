"""Studies what the two drift signals of a bundle are worth: how often they alarm, and which changes they find.

Rules of this module:
- The verdicts are the monitor's own (stream/core/forecasting/drift.py), with the bundle's reference and thresholds.
- They are made week by week, inside the period: windows reach neither before nor beyond it.
- A change begins at a week's start and lasts 30 days. The slow signal is evaluated at its end, the fast one ten days
  after its start; the candles before are as they were.
- Shuffled data are the period's hours in random order: no change in time is left to be found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from stream import times
from stream.core.forecasting import drift, features
from stream.core.forecasting.contract import Contract
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from training.bundling import drift_rule
from training.bundling.drift_rule import STEP_HOURS
from training.data.dataset import Dataset, DatasetError
from training.studies import drift_changes
from training.studies.drift_changes import Change

if TYPE_CHECKING:
    from rich.table import Table

SHUFFLES = 500
_FAST_SPAN = drift.FAST_HOURS + drift.FAST_REFERENCE_HOURS


class Quiet(msgspec.Struct, frozen=True):
    """Weeks of a part of the period that were judged, and the share of them in which each verdict was `detected`."""

    part: str
    weeks: int
    slow: float
    default: float
    fast_weeks: int
    fast: float


class Power(msgspec.Struct, frozen=True):
    """Shares of `starts` from which a change is found; `unseen`: of the starts after the training range, None where
    there is none."""

    change: str
    starts: int
    slow: float
    fast: float
    unseen_starts: int
    slow_unseen: float | None
    fast_unseen: float | None


class Measure(msgspec.Struct, frozen=True):
    """A measure's thresholds, and the share of judged weeks in which it reaches them, alone or with others."""

    name: str
    threshold: float
    slow: float
    fast_threshold: float
    fast: float


class Study(msgspec.Struct, frozen=True, kw_only=True):
    symbol: str
    start_ms: int
    end_ms: int
    reference: Literal["bundle", "own"]
    #: By year, then of the training range and of what lies after it.
    quiet: tuple[Quiet, ...]
    power: tuple[Power, ...]
    shuffles: int
    shuffled_slow: float
    shuffled_fast: float
    measures: tuple[Measure, ...]


class _Signals:
    """The bundle's two signals on one symbol's measures [T, k]; rows are the symbol's."""

    def __init__(self, values: Array, contract: Contract, symbol: str) -> None:
        of = [contract.reference[name] for name in drift.MEASURES]
        self.values = values
        self.limits = np.array([r.threshold for r in of])
        self.fast_limits = np.array([r.fast_threshold for r in of])
        self._bundle = np.array([r.quantiles for r in of]).T if contract.describes(symbol) else None

    def reference(self, end: int) -> Array | None:
        """Returns what the 30 days before row `end` are compared with."""
        return self._bundle if self._bundle is not None else drift.own_reference(self.values, end)

    def slow(self, end: int) -> Array | None:
        reference = self.reference(end)
        return None if reference is None else drift.slow_distances(self.values, end, reference)

    def fast(self, end: int) -> Array | None:
        return drift.fast_distances(self.values, end)


def calibrated_before(data: Dataset, contract: Contract, end_ms: int) -> Contract:
    """Returns the contract as if its training range ended before `end_ms`: reference and thresholds are made anew, so
    that the hours from there on are unseen. Raises `ValueError` where nothing of the range is left."""
    training = contract.training
    if not contract.describes(data.symbol):
        raise DatasetError(
            f"{data.symbol} is held against its own past: only {training.symbols[0]} can be calibrated anew"
        )
    if not training.trained_from < end_ms <= training.trained_until + HOUR_MS:
        raise DatasetError(f"{times.day(end_ms)} is not within the model's training range: choose a time in it")
    try:
        reference = drift_rule.reference(data, training.trained_from, end_ms)
    except ValueError as error:
        raise DatasetError(f"{error}; choose a later time, or a file that holds the training range") from None
    return msgspec.structs.replace(
        contract,
        reference=reference,
        training=msgspec.structs.replace(training, trained_until=end_ms - HOUR_MS),
    )


def study(
    data: Dataset,
    contract: Contract,
    start_ms: int,
    end_ms: int,
    *,
    seed: int = 7,
    changes: Sequence[Change] = drift_changes.CHANGES,
    every: int = 1,
    progress: Callable[[str], None] = lambda what: None,
) -> Study:
    """Studies the signals over [start, end). `every`: only every so many starts a change is tried.

    Raises `DatasetError` where the period has no 100 days that can be judged, 210 for a symbol that the bundle does not
    describe.
    """
    first, end = np.searchsorted(data.open_time, (start_ms, end_ms)).tolist()
    values = drift.measures(data.features, data.ohlcv)
    signals = _Signals(values[first:end], contract, data.symbol)
    unseen_from = int(np.searchsorted(data.open_time[first:end], contract.training.trained_until, side="right"))
    progress(f"weeks of {data.symbol}")
    ends = range(drift.WINDOW_HOURS, end - first + 1, STEP_HOURS)
    slow = {e: scores for e in ends if (scores := signals.slow(e)) is not None}
    fast = {e: scores for e in ends if (scores := signals.fast(e)) is not None}
    if not slow or not fast:
        needed = f"{_FAST_SPAN // 24} days" if signals.reference(len(signals.values)) is not None else "210 days"
        raise DatasetError(
            f"{data.symbol} has no {needed} in the period that could be judged: choose a longer one, or fetch more"
        )
    years = [datetime.fromtimestamp(ms / 1e3, UTC).year for ms in data.open_time[first:end].tolist()]
    parts = {f"{year}": [e for e in ends if years[e - 1] == year] for year in sorted(set(years))}
    parts["training range"] = [e for e in ends if e <= unseen_from]
    parts["after it"] = [e for e in ends if e > unseen_from]
    starts = range(first, end - drift.WINDOW_HOURS + 1, STEP_HOURS * every)
    whole = _Signals(values, contract, data.symbol)
    # A start needs what both signals are compared with.
    starts_used = [s for s in starts if s >= drift.LOOKBACK_HOURS - 1 and whole.fast(s + drift.FAST_HOURS) is not None]
    starts_used = [s for s in starts_used if whole.reference(s + drift.WINDOW_HOURS) is not None]
    shuffled = _shuffled(signals, contract, data.symbol, np.random.default_rng(seed))
    return Study(
        symbol=data.symbol,
        start_ms=start_ms,
        end_ms=end_ms,
        reference="bundle" if contract.describes(data.symbol) else "own",
        quiet=tuple(_quiet(name, of, slow, fast, signals) for name, of in parts.items()),
        power=_power(data, whole, starts_used, first + unseen_from, changes, progress),
        shuffles=SHUFFLES,
        shuffled_slow=shuffled[0],
        shuffled_fast=shuffled[1],
        measures=tuple(
            Measure(
                name,
                float(signals.limits[k]),
                _share([s[k] >= signals.limits[k] for s in slow.values()]),
                float(signals.fast_limits[k]),
                _share([s[k] >= signals.fast_limits[k] for s in fast.values()]),
            )
            for k, name in enumerate(drift.MEASURES)
        ),
    )


def _quiet(part: str, ends: Sequence[int], slow: dict[int, Array], fast: dict[int, Array], of: _Signals) -> Quiet:
    judged, fast_judged = [slow[e] for e in ends if e in slow], [fast[e] for e in ends if e in fast]
    return Quiet(
        part,
        len(judged),
        _share([drift.detected(s, of.limits) for s in judged]),
        _share([drift.default_detected(s) for s in judged]),
        len(fast_judged),
        _share([drift.detected(s, of.fast_limits) for s in fast_judged]),
    )


def _power(
    data: Dataset,
    of: _Signals,
    starts: Sequence[int],
    unseen_from: int,
    changes: Sequence[Change],
    progress: Callable[[str], None],
) -> tuple[Power, ...]:
    found = np.zeros((len(starts), len(changes), 2), np.bool_)
    for i, start in enumerate(starts):
        if i % 50 == 0:
            progress(f"changes from {i} of {len(starts)} starts")
        reference = of.reference(start + drift.WINDOW_HOURS)
        before = drift.window(of.values, start - drift.FAST_REFERENCE_HOURS, start)
        assert reference is not None
        assert before is not None
        for k, after in enumerate(_after(data, start, changes)):
            slow = drift.distances(drift.measured(after), reference)
            fast = drift.distances(drift.measured(after[: drift.FAST_HOURS]), before)
            found[i, k] = drift.detected(slow, of.limits), drift.detected(fast, of.fast_limits)
    unseen = np.array([start >= unseen_from for start in starts], np.bool_)

    return tuple(
        Power(
            change=change.name,
            starts=len(starts),
            slow=_share(found[:, k, 0].tolist()),
            fast=_share(found[:, k, 1].tolist()),
            unseen_starts=int(unseen.sum()),
            slow_unseen=float(found[unseen, k, 0].mean()) if unseen.any() else None,
            fast_unseen=float(found[unseen, k, 1].mean()) if unseen.any() else None,
        )
        for k, change in enumerate(changes)
    )


def _after(data: Dataset, start: int, changes: Sequence[Change]) -> Array:
    """Computes the measures of the 30 days from row `start` on under each change: [changes, 720, k]."""
    lead = drift.LOOKBACK_HOURS - 1
    rows = slice(start - lead, start + drift.WINDOW_HOURS)
    ones = np.ones((len(changes), lead))
    pairs = [
        drift_changes.factors(c, data.open_time, data.ohlcv, slice(start, start + drift.WINDOW_HOURS)) for c in changes
    ]
    returns, volume = (np.concatenate([ones, np.stack([p[i] for p in pairs])], axis=1) for i in (0, 1))
    ohlcv = drift_changes.changed(data.ohlcv[rows], returns, volume)
    return drift.measures(features.compute(data.open_time[rows], ohlcv), ohlcv)[:, lead:]


def _shuffled(of: _Signals, contract: Contract, symbol: str, chance: np.random.Generator) -> tuple[float, float]:
    pool = drift.measured(of.values)
    own = None if contract.describes(symbol) else drift.OWN_REFERENCE_HOURS
    hits = []
    for _ in range(SHUFFLES):
        rows = pool[chance.permutation(len(pool))]
        if own is None:
            reference = of.reference(0)
            assert reference is not None
        else:
            before = rows[drift.WINDOW_HOURS : drift.WINDOW_HOURS + own]
            reference = np.quantile(before, drift.levels(), axis=0)
        slow = drift.distances(rows[: drift.WINDOW_HOURS], reference)
        fast = drift.distances(rows[: drift.FAST_HOURS], rows[drift.FAST_HOURS : _FAST_SPAN])
        hits.append((drift.detected(slow, of.limits), drift.detected(fast, of.fast_limits)))
    return _share([h[0] for h in hits]), _share([h[1] for h in hits])


def _share(hits: Sequence[bool]) -> float:
    """Returns the share of hits; 0 for no weeks, where nothing alarmed."""
    return float(np.mean(hits)) if len(hits) else 0.0


def tables(found: Study) -> list[Table]:
    """Returns the tables for people: how often the signals alarm, at which changes, and by which measure."""
    from rich.table import Table

    against = "the training range" if found.reference == "bundle" else "the 180 days before"
    quiet = Table(
        "weeks that end in", "weeks", f"30 days against {against}", "Evidently's default", "weeks", "10 against 90"
    )
    for q in found.quiet:
        fast = [f"{q.fast_weeks}", _percent(q.fast)] if q.fast_weeks else ["0", "-"]
        slow = [f"{q.weeks}", _percent(q.slow), _percent(q.default)] if q.weeks else ["0", "-", "-"]
        quiet.add_row(q.part, *slow, *fast)
    quiet.title = f"{found.symbol}: share of weeks with drift"
    quiet.caption = (
        f"{found.shuffles} times shuffled: {_percent(found.shuffled_slow)} of 30 days, "
        f"{_percent(found.shuffled_fast)} of 10 against 90"
    )
    power = Table("change", "starts", "30 days", "10 against 90", "starts after training", "30 days", "10 against 90")
    for p in found.power:
        cells = ["-" if x is None else _percent(x) for x in (p.slow_unseen, p.fast_unseen)]
        power.add_row(p.change, f"{p.starts}", _percent(p.slow), _percent(p.fast), f"{p.unseen_starts}", *cells)
    power.title = f"{found.symbol}: share of start weeks from which a change is found"
    measures = Table("measure", "threshold", "30 days", "fast threshold", "10 against 90")
    for m in found.measures:
        measures.add_row(m.name, f"{m.threshold:.3f}", _percent(m.slow), f"{m.fast_threshold:.3f}", _percent(m.fast))
    measures.title = f"{found.symbol}: share of weeks with the measure beyond its threshold"
    return [quiet, power, measures]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
