"""The book of many hours at once is the one of hour by hour, to the last bit."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from training.backtest.execution import VALID_HOURS, Costs, execute


def hour_by_hour(opens: Array, closes: Array, exposure: Array, costs: Costs) -> tuple[Array, ...]:
    """Returns equity, weight, traded and cost."""
    n = len(opens)
    equity, weight, traded, cost = [0.0] * n, [math.nan] * n, [0.0] * n, [0.0] * n
    cash, units, filled = 1.0, 0.0, 0.0
    worth, held, seen = 1.0, 0.0, -1
    for t, (first, last) in enumerate(zip(opens.tolist(), closes.tolist(), strict=True)):
        decided = [exposure.item(t - ago) for ago in range(costs.delay_hours, VALID_HOURS + 1) if t >= ago]
        wanted = next((one for one in decided if one == one), math.nan)
        if first == first:
            if worth > 0:
                if seen < t - 1:
                    units = held / first
                before = cash + units * first
                if wanted == wanted and before > 0:
                    off = abs(wanted - units * first / before)
                    if wanted != filled or (off >= costs.drift_band and off > 0):
                        moved = wanted * before - units * first
                        paid = abs(moved) * costs.rate
                        units, cash, filled = units + moved / first, cash - moved - paid, wanted
                        traded[t], cost[t] = abs(moved) / before, paid / before
                worth = cash + units * last
                if worth <= 0:
                    worth = cash = units = 0.0
                held, seen = units * last, t
            weight[t] = held / worth if worth > 0 else 0.0
        equity[t] = worth
    return np.array(equity), np.array(weight), np.array(traded), np.array(cost)


@settings(max_examples=200)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 1_300),
    st.sampled_from([0.001, 0.01, 0.1, 0.5]),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    st.sampled_from([0.0, 0.1, 0.9]),
    st.sampled_from([(0.5,), (0.0, 1.0), (3.0,), (0.3, 0.5, 2.0, 7.0)]),
    st.builds(
        Costs,
        fee_bp=st.sampled_from([0.0, 10.0, 500.0]),
        delay_hours=st.sampled_from([1, 2]),
        drift_band=st.sampled_from([0.0, 0.05, 0.3]),
    ),
)
# Quiet hours beyond one look ahead, and a ruin within one.
@example(1, 1_300, 0.001, 0.0, 0.0, (0.5,), Costs())
@example(1, 1_300, 0.1, 0.01, 0.0, (3.0,), Costs())
def test_a_book_is_that_of_hour_by_hour(
    seed: int, hours: int, moves: float, missing: float, silent: float, weights: tuple[float, ...], costs: Costs
) -> None:
    chance = np.random.default_rng(seed)
    closes = 100 * np.exp(np.cumsum(chance.normal(size=hours)) * moves)
    opens = closes * np.exp(chance.normal(size=hours) * moves)
    gone = chance.random(hours) < missing
    opens[gone], closes[gone] = np.nan, np.nan
    exposure = np.where(chance.random(hours) < silent, np.nan, chance.choice(weights, size=hours))
    of = execute(np.arange(hours) * HOUR_MS, opens, closes, exposure, costs)
    slow = hour_by_hour(opens, closes, exposure, costs)
    for found, expected in zip((of.equity, of.weight, of.traded, of.cost), slow, strict=True):
        assert found.tobytes() == expected.tobytes()
