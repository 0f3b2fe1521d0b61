"""The source of a report: a candle file, forecast by the daemon's operator, or the journal."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from monitor.reports.drift import HISTORY_HOURS, Period
from monitor.reports.regression import AHEAD_HOURS, Matured
from monitor.reports.report import Source
from monitor.reports.trend import TREND_HOURS
from stream.adapters import policies
from stream.adapters.candles import files
from stream.adapters.journal.store import SqliteJournal
from stream.adapters.predictor import Predictor
from stream.core.deciding import operator
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.replay import events, to_grid
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages import builders, scoring
from stream.core.messages.schemas import Forecast
from stream.core.messages.scoreboard import plausible
from stream.core.messages.scoring import Outcome
from stream.errors import RefusedError
from stream.times import minute

#: Outcomes are read from the journal in pieces of this many hours.
_PAGE_HOURS = 1_000
#: The first point of the trend uses forecasts from before the period.
_EARLIER_HOURS = TREND_HOURS + AHEAD_HOURS

#: Returns the requested period, given the newest candle's open time: its end may have to come earlier.
Cut = Callable[[int], Period]


def of_file(path: Path, symbol: str, predictor: Predictor, cut: Cut) -> tuple[Source, Period]:
    """Replays a candle file, and returns the source and its period.

    Raises `RefusedError` where the file has no candle in the period.
    """
    series = files.read(path, asked=symbol)[symbol]
    whole = _within(cut, series[-1].open_time, f"{path}: {symbol}")
    rules = Rules.of(policies.load(None), predictor.model.contract)
    since = whole.from_ms - _EARLIER_HOURS * HOUR_MS
    history = rules.history_hours(symbol)
    needed_ms = since - max(history, HISTORY_HOURS) * HOUR_MS
    series = [c for c in series if needed_ms <= c.open_time < whole.to_ms]
    if not series or series[-1].open_time < whole.from_ms:
        raise RefusedError(f"{path} has no candle of {symbol} in that period: name another, or fetch more")
    outcomes = list(_replayed(rules, symbol, series, predictor, since))
    grid, ohlcv = to_grid(series)
    notes = []
    if int(grid[0]) > whole.from_ms - (history - 1) * HOUR_MS:
        notes.append(
            f"candles begin with {minute(int(grid[0]))}: a daemon, which fetches {history:,} hours before a forecast, "
            "may say something else at first"
        )
    origin = f"candle file {path.name}"
    return Source(symbol, grid, ohlcv, Matured.of(outcomes), origin, notes=tuple(notes)), whole


def _replayed(rules: Rules, symbol: str, series: list[Candle], predictor: Predictor, since: int) -> list[Outcome]:
    """Returns the outcomes of the forecasts that the daemon would have issued for these candles."""
    outcomes: list[Outcome] = []
    waiting: dict[int, Forecast] = {}
    for event in events(rules, symbol, series, predictor.model, predictor, since):
        if isinstance(event, operator.Issued):
            forecast = builders.forecast(event, predictor.model, "replay", issued_at=0)
            waiting[forecast.open_time] = forecast
        elif isinstance(event, operator.Matured) and event.open_time in waiting:
            outcomes.append(scoring.outcome(waiting.pop(event.open_time), event.realized))
    return outcomes


def of_journal(data_dir: Path, symbol: str, predictor: Predictor, cut: Cut) -> tuple[Source, Period]:
    """Reads what was issued and stored, alongside a running daemon, and returns the source and its period.

    Raises `RefusedError` where the journal has no candle in the period.
    """
    version = predictor.model.version
    others: Counter[str] = Counter()
    parts: list[Matured] = []
    with contextlib.closing(SqliteJournal(data_dir, read_only=True)) as journal:
        newest = journal.last_open_time(symbol)
        if newest is None:
            raise RefusedError(
                f"the journal in {data_dir} has no candle of {symbol}: "
                f"it holds {', '.join(journal.symbols()) or 'none at all'}"
            )
        whole = _within(cut, newest, f"the journal in {data_dir}: {symbol}")
        series = journal.candles(symbol, whole.from_ms - HISTORY_HOURS * HOUR_MS, whole.to_ms - HOUR_MS)
        if not series or series[-1].open_time < whole.from_ms:
            raise RefusedError(f"the journal in {data_dir} has no candle of {symbol} in that period: name another")
        page_ms = _PAGE_HOURS * HOUR_MS
        for first in range(whole.from_ms - _EARLIER_HOURS * HOUR_MS, whole.to_ms, page_ms):
            page = journal.outcomes(symbol, first, min(first + page_ms, whole.to_ms) - HOUR_MS)
            parts.append(Matured.of([o for o in page if o.model_version == version and plausible(o)]))
            others.update(o.model_version for o in page if o.model_version != version and o.open_time >= whole.from_ms)
    grid, ohlcv = to_grid(series)
    origin = f"journal of a node ({data_dir.name})" if data_dir.name else "journal of a node"
    return Source(symbol, grid, ohlcv, Matured.joined(parts), origin, dict(sorted(others.items()))), whole


def _within(cut: Cut, newest: int, where: str) -> Period:
    whole = cut(newest)
    if whole.to_ms <= whole.from_ms:
        raise RefusedError(
            f"{where} ends with {minute(newest)}, before {whole.name}: fetch more, or choose another period"
        )
    return whole
