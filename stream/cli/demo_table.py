"""What a demo observed, and how it is shown: a table whose figures are never cut off, and a summary."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.cells import cell_len
from rich.table import Table

from stream import times
from stream.core.deciding.policy import ANNUAL
from stream.core.market.candle import HOUR_MS
from stream.core.messages.schemas import Decision, Drift, Forecast
from stream.telemetry import (
    CandleProcessed,
    DriftFailed,
    DriftFinished,
    Fact,
    ForecastAcknowledged,
    ForecastCommitted,
    GapDeclared,
    OutboxCounted,
    Resumed,
)

#: Name, least width, whether it holds text. The widths keep the layout while the text in it changes.
_COLUMNS = (
    ("symbol", 7, True),
    ("closed", 11, False),
    ("24 h σ", 6, False),
    ("90 %", 8, False),
    ("realized", 8, False),
    ("HAR", 5, False),
    ("served", 6, True),
    ("exposure", 8, False),
    ("action", 8, True),
    ("regime", 6, True),
)
_BETWEEN = 2


@dataclass(slots=True)
class Tally:
    """What the demo observed: the observer behind the table and the summary."""

    started_s: float
    first_forecast_s: float | None = None
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)
    drifts: dict[str, Drift] = field(default_factory=dict)
    #: Why the symbol's newest drift run has no result.
    drift_failures: dict[str, str] = field(default_factory=dict)
    #: "on", or why no drift is measured.
    drift: str = "on"
    processed: dict[str, int] = field(default_factory=dict)
    issued: int = 0
    actions: dict[str, int] = field(default_factory=dict)
    matured: dict[tuple[str, int], float] = field(default_factory=dict)
    squared_errors: dict[str, list[float]] = field(default_factory=dict)
    gaps: int = 0
    outbox: int = 0
    delays_s: list[float] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, fact: Fact) -> None:
        if isinstance(fact, ForecastCommitted):
            self._forecast(fact.forecast, fact.decision)
        elif isinstance(fact, CandleProcessed | Resumed):
            self.processed[fact.symbol] = fact.open_time
        elif isinstance(fact, ForecastAcknowledged):
            self.delays_s.append(fact.delay_s)
        elif isinstance(fact, DriftFinished):
            self.drifts[fact.drift.symbol] = fact.drift
            self.drift_failures.pop(fact.drift.symbol, None)
        elif isinstance(fact, DriftFailed):
            self.drift_failures[fact.symbol] = fact.reason
        elif isinstance(fact, GapDeclared):
            self.gaps += fact.hours
        elif isinstance(fact, OutboxCounted):
            self.outbox = fact.messages
        else:
            return
        self.changed.set()

    def _forecast(self, forecast: Forecast, decision: Decision) -> None:
        if self.first_forecast_s is None:
            self.first_forecast_s = time.monotonic() - self.started_s
        symbol = forecast.symbol
        self.forecasts[symbol], self.decisions[symbol] = forecast, decision
        self.issued += 1
        self.actions[decision.action] = self.actions.get(decision.action, 0) + 1
        # The simulated next day is only minutes away: forecasts of 24 h can be compared with their outcomes.
        predicted = self.matured.pop((symbol, forecast.open_time), None)
        if predicted is not None and forecast.input.gaps == 0:
            self.squared_errors.setdefault(symbol, []).append((predicted - forecast.realized_24h) ** 2)
        self.matured[symbol, forecast.open_time + 24 * HOUR_MS] = forecast.volatility.hourly

    def drift_line(self, symbols: Sequence[str]) -> str:
        """Returns each symbol's drift verdict, or why there is none."""
        if self.drift != "on":
            return self.drift
        return ", ".join(f"{symbol} {self._drift_of(symbol)}" for symbol in symbols)

    def _drift_of(self, symbol: str) -> str:
        found = self.drifts.get(symbol)
        if found is None:
            return f"no result: {self.drift_failures[symbol]}" if symbol in self.drift_failures else "not run yet"
        return _word(found.detected) if found.fast is None or not found.fast.detected else f"{_word(True)} in 10 days"


def tables(tally: Tally, symbols: Sequence[str], width: int) -> list[Table]:
    """Returns the newest forecast and decision of each symbol: one table, or several that each begin with the symbol
    where one would be wider than `width`."""
    rows = [_row(tally, symbol) for symbol in symbols]
    widths = [max([least, cell_len(name), *(cell_len(row[k]) for row in rows)]) for k, (name, least, _) in _columns()]
    groups: list[list[int]] = [[]]
    for k in range(1, len(widths)):
        shown = [0, *groups[-1], k]
        if groups[-1] and sum(widths[i] for i in shown) + _BETWEEN * (len(shown) - 1) > width:
            groups.append([])
        groups[-1].append(k)
    return [_table(rows, widths, [0, *group]) for group in groups]


def _columns() -> Iterator[tuple[int, tuple[str, int, bool]]]:
    return enumerate(_COLUMNS)


def _table(rows: Sequence[Sequence[str]], widths: Sequence[int], shown: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _BETWEEN, 0, 0), header_style="bold")
    for k in shown:
        name, _, words = _COLUMNS[k]
        # On a terminal narrower than a single column its figures continue on the next line.
        table.add_column(name, justify="left" if words else "right", min_width=widths[k], overflow="fold")
    for row in rows:
        table.add_row(*(row[k] for k in shown))
    return table


def _row(tally: Tally, symbol: str) -> tuple[str, ...]:
    forecast, decision = tally.forecasts.get(symbol), tally.decisions.get(symbol)
    if forecast is None or decision is None:
        return (symbol, "warming up", *("" for _ in _COLUMNS[2:]))
    v = forecast.volatility
    return (
        symbol,
        f"{times.moment(forecast.close_time + 1):%m-%d %H:%M}",
        f"{v.annualized:.1%}",
        f"{v.low * ANNUAL:.0%}-{v.high * ANNUAL:.0%}",
        f"{forecast.realized_24h * ANNUAL:.1%}",
        f"{forecast.baselines.har * ANNUAL:.1%}",
        forecast.serving,
        f"{decision.exposure:.0%}",
        decision.action,
        decision.regime,
    )


def summary(tally: Tally, symbols: Sequence[str], *, paced: bool) -> tuple[list[str], dict[str, Any]]:
    """Returns the demo's results as lines for people and as figures.

    At max speed (not `paced`) frames queue, so their delay says nothing about the node and is left out.
    """
    delays = sorted(tally.delays_s) if paced else []
    errors = {s: (sum(e) / len(e)) ** 0.5 for s, e in sorted(tally.squared_errors.items())}
    figures = {
        "forecasts": tally.issued,
        "decisions": sum(tally.actions.values()),
        "actions": dict(sorted(tally.actions.items())),
        "gap_hours": tally.gaps,
        "first_forecast_s": round(tally.first_forecast_s or 0.0, 3),
        "forecast_delay_ms_p50": round(1e3 * delays[len(delays) // 2], 2) if delays else None,
        "rmse_next_24h_hourly": errors,
        "drift": {symbol: drift.detected for symbol, drift in tally.drifts.items()},
        "drift_10_days": {s: d.fast.detected if d.fast is not None else None for s, d in tally.drifts.items()},
    }
    lines = [f"{tally.outbox} message(s) did not reach the broker"] if tally.outbox else []
    actions = ", ".join(f"{count} {action}" for action, count in sorted(tally.actions.items()))
    lines.append(f"{tally.issued} forecasts and as many decisions ({actions})")
    lines.append(f"first forecast {figures['first_forecast_s']} s after the start")
    if delays:
        lines.append(f"closing frame to the broker's acknowledgement: median {figures['forecast_delay_ms_p50']} ms")
    if tally.drift != "on":
        lines.append(f"drift: {tally.drift}")
    else:
        lines += [f"{symbol}: {_drift_words(tally, symbol)}" for symbol in symbols]
    lines += [f"{s}: RMSE of the matured next-24 h forecasts {e:.6f} (hourly σ)" for s, e in errors.items()]
    return lines, figures


def _drift_words(tally: Tally, symbol: str) -> str:
    found = tally.drifts.get(symbol)
    if found is None:
        return f"drift: no result: {tally.drift_failures.get(symbol, 'the demo ended before it was run')}"
    fast = "not judged" if found.fast is None else _word(found.fast.detected)
    return (
        f"drift {_word(found.detected)} in 30 days ({found.drifted_share:.0%} of the features), {fast} in the last 10"
    )


def _word(detected: bool) -> str:
    return "detected" if detected else "not detected"
