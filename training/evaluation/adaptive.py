"""The intervals that a daemon would have published around a model's forecasts, for any stretch of rows at once: with
its accumulation, its anchors and its delayed outcomes. Whether `har` is served meanwhile changes nothing here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stream.core.deciding.accumulation import anchor
from stream.core.forecasting import intervals
from stream.core.forecasting.contract import Calibration
from stream.core.forecasting.intervals import DELAY_HOURS
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from training.data.dataset import Dataset, Rows
from training.data.panel import IntervalSeries


def adaptive(data: Dataset, rows: Rows, forecast: Callable[[Rows], Array], calibration: Calibration) -> IntervalSeries:
    """Computes intervals of the next 24 h for `rows`, in time order. `forecast` returns hourly σ for any rows.

    It is called for the rows since the anchor before the first of them too, as a daemon that starts there does.
    """
    start = int(data.open_time[0])
    first = max((anchor(int(data.open_time[rows[0]])) - start) // HOUR_MS, 0)
    asked = np.arange(first, int(rows[-1]) + 1)
    asked = asked[data.features.ready[asked]]
    volatility = np.full(len(data.open_time), np.nan)
    volatility[asked] = forecast(asked)
    known = np.full(len(data.open_time), np.nan)
    known[DELAY_HOURS:] = data.targets.next_24h[:-DELAY_HOURS]

    low, high = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    wanted = {int(row): k for k, row in enumerate(rows)}
    began: int | None = None
    memory = intervals.start(calibration)
    for row in range(int(rows[0]), int(rows[-1]) + 1):
        time = int(data.open_time[row])
        if anchor(time) != began:
            began = anchor(time)
            since = (began - start) // HOUR_MS
            lead = np.full(max(-since, 0), np.nan)
            past = slice(max(since, 0), row)
            memory = intervals.accumulate(
                calibration, began, np.append(lead, volatility[past]), np.append(lead, known[past])
            )
        memory = intervals.passed(memory)
        earlier = float(volatility[row - DELAY_HOURS]) if row >= DELAY_HOURS else np.nan
        if np.isfinite(known[row]) and np.isfinite(earlier):
            memory = intervals.learn(calibration, memory, time, earlier, float(known[row]))
        if np.isfinite(volatility[row]):
            memory, given = intervals.give(calibration, memory, time, float(volatility[row]))
            if row in wanted:
                low[wanted[row]], high[wanted[row]] = given.low, given.high
    return IntervalSeries(low, high, calibration.level)
