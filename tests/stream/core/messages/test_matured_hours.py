"""What a board reads from the operator's past is what it would have kept itself, to the last bit."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import State
from stream.core.deciding.past import EACH_HOURS, Past
from stream.core.deciding.policy import Policy
from stream.core.forecasting.predictions import Prediction
from stream.core.forecasting.tail import Tail
from stream.core.market.candle import HOUR_MS
from stream.core.messages.matured_hours import HOURS, MaturedHours
from stream.core.messages.scoring import Outcome
from stream.testing.sample_model import sample_model

RULES = Rules.of(Policy(), sample_model().contract)
FIRST = 473_001
DELAY = 24


def market(hours: int, seed: int) -> tuple[list[Prediction | None], list[float]]:
    """Returns a forecast of each hour, and σ of the 24 hours that end with it; some are missing."""
    rng = np.random.default_rng(seed)
    realized = rng.lognormal(-5, 0.5, hours)
    realized[rng.random(hours) < 0.02] = math.nan
    forecasts: list[Prediction | None] = []
    for k in range(hours):
        sigma = float(np.float32(rng.lognormal(-5, 1)))
        har, ewma = rng.lognormal(-5, 1, 2).tolist()
        # In nearly all hours the same number but for its last bits.
        now = float(realized[k]) * (1 + int(rng.integers(-3, 4)) * 2.0**-52) if k % 7 else ewma
        now = ewma if math.isnan(now) else now
        forecast = Prediction(
            "X", (FIRST + k) * HOUR_MS, "m", sigma, sigma, sigma, sigma, sigma, sigma, now, now, ewma, har, 0, "good"
        )
        forecasts.append(forecast if rng.random() > 0.02 else None)
    return forecasts, realized.tolist()


def outcome(p: Prediction, realized: float, rng: np.random.Generator) -> Outcome:
    """The outcome of a forecast; of some hours what was published differs in its last bits or altogether."""
    served = p.baseline_har if rng.random() < 0.3 else p.volatility
    made = Outcome(
        p.id, 0, "X", p.open_time, "live", "m", realized, served, 0.5 * served, 2 * served, 0.9, p.baseline_persistence,
        p.baseline_ewma, p.baseline_har, model_volatility=p.volatility,
    )  # fmt: skip
    if rng.random() < 0.03:
        name = str(rng.choice(["realized", "volatility", "har", "model_volatility", "persistence"]))
        made = msgspec.structs.replace(made, **{name: getattr(made, name) * (1 + 2.0**-52 * rng.integers(1, 2**40))})
    return made


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), restart=st.integers(0, 600), hole=st.integers(1, 60), past=st.booleans())
def test_columns_do_not_depend_on_who_keeps_them(seed: int, restart: int, hole: int, past: bool) -> None:
    """Hours pass one by one, some without a candle; at one of them the board is built anew from all outcomes."""
    hours = 600 + (HOURS if past else 0)
    forecasts, realized = market(hours, seed)
    rng = np.random.default_rng(seed)
    state = State("X", realized=Tail.of(np.full(EACH_HOURS, np.nan)))
    shared, plain = MaturedHours(), MaturedHours()
    outcomes: list[Outcome] = []
    absent = range(hours - 300, hours - 300 + hole)
    for k, (p, now) in enumerate(zip(forecasts, realized, strict=True)):
        if k in absent:
            continue
        last = FIRST + k - 1 if state.last_open_time is None else state.last_open_time // HOUR_MS
        state = msgspec.structs.replace(
            state, last_open_time=(FIRST + k) * HOUR_MS, realized=state.realized.later(now, FIRST + k - last, math.nan)
        )
        if p is not None and state.past is not None:
            state = msgspec.structs.replace(state, past=state.past.later(RULES, p))
        elif p is not None:
            first = np.array([[p.volatility], [p.baseline_har], [0.0]])
            state = msgspec.structs.replace(state, past=Past.of(RULES, "X", p.open_time, first))
        of = forecasts[k - DELAY] if k >= DELAY and k - DELAY not in absent else None
        if of is not None and not math.isnan(now):
            made = outcome(of, now, rng)
            outcomes.append(made)
            shared.place(made, state)
            plain.place(made, None)
        if k == hours - 600 + restart:
            shared = MaturedHours()
            for before in outcomes:
                shared.place(before, state)
    for one, other in zip(shared.columns(), plain.columns(), strict=True):
        known = np.isfinite(plain.columns()[0])
        assert np.array_equal(np.isfinite(shared.columns()[0]), known)
        assert np.array_equal(one[..., known], other[..., known])
