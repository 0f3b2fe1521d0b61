"""The whole table at once says what the operator says hour by hour, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.deciding import batch
from stream.core.deciding.accumulation import HISTORY_HOURS, Rules
from stream.core.deciding.operator import Issued, Matured
from stream.core.deciding.policy import REGIMES, Policy, Thresholds, action
from stream.core.deciding.replay import drive, predict_rows, to_grid
from stream.core.forecasting import features
from stream.core.forecasting.predictions import Prediction
from stream.core.market.candle import HOUR_MS, Candle
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict

pytestmark = pytest.mark.slow

MODEL = sample_model()
VARIED = (
    Policy("slow", forecast="ewma", calm_half_life_hours=168.0, min_hold_hours=168, regime_hysteresis=0.5),
    Policy("steps", forecast="rolling_24h_next", thresholds=Thresholds("daily", 0.02, 0.04), regime_hysteresis=0.2),
    Policy("har", forecast="har", stale_after_hours=1),
)
RULES = Rules.of(Policy(), MODEL.contract, VARIED)
#: With rules that do not compare, and a policy with thresholds of its own.
PLAIN = Rules.of(Policy("own", thresholds=Thresholds("daily", 0.02, 0.04)), MODEL.contract)
START = 1_704_067_200_000
HOURS = 4_400


@cache
def table(symbol: str) -> tuple[tuple[Candle, ...], dict[int, Prediction]]:
    candles = tuple(simulate_symbol(symbol, START, HOURS, 7))
    found = features.compute(*to_grid(candles))
    rows = np.nonzero(found.ready)[0]
    return candles, {p.open_time: p for p in predict_rows(symbol, found, rows, MODEL, sample_predict)}


def both(
    rules: Rules, symbol: str, candles: list[Candle], predictions: dict[int, Prediction], since: int | None
) -> tuple[list[Matured | Issued], list[Matured | Issued]]:
    stepped = [e for _, e in drive(rules, symbol, candles, predictions, since) if isinstance(e, Matured | Issued)]
    at_once = list(batch.events(rules, symbol, candles, predictions, since))
    issued = [e for e in at_once if isinstance(e, Issued)]
    assert numbers(batch.stretches(rules, symbol, candles, predictions, since)) == [
        (
            *(e.prediction, e.model_volatility, e.serving, e.interval.low, e.interval.high),
            *(e.verdict.regime, e.verdict.previous_exposure, e.verdict.exposure, e.verdict.action),
            *(e.compared, e.regimes_from),
        )
        for e in issued
    ]
    return stepped, at_once


def numbers(stretches: Iterator[batch.Stretch]) -> list[tuple[object, ...]]:
    """Returns the columns of stretches as rows."""
    return [
        (
            *(served, prediction.volatility, "har" if har else "model", low, high),
            *(REGIMES[after.regime], before.exposure, after.exposure, action(before, after)),
            *(tuple(compared), one.regimes_from),
        )
        for one in stretches
        for served, prediction, har, low, high, before, after, *compared in zip(
            *(one.served, one.predictions, one.har_served, one.lows, one.highs, one.memories[:-1], one.memories[1:]),
            *(memories[1:] for memories in one.compared),
            strict=True,
        )
    ]


@settings(max_examples=25)
@given(
    st.sampled_from([RULES, PLAIN]),
    st.sampled_from(["BTCUSDT", "ETHUSDT"]),
    st.integers(0, HOURS - 2),
    st.integers(1, 2_000),
    st.sets(st.integers(0, 2_000), max_size=60),
    st.sets(st.integers(0, 2_000), max_size=60),
    st.one_of(st.none(), st.integers(0, 2_000)),
)
def test_a_table_says_what_the_operator_says(
    rules: Rules, symbol: str, first: int, hours: int, missing: set[int], refused: set[int], since: int | None
) -> None:
    whole, predictions = table(symbol)
    part = whole[first : first + hours]
    candles = [c for i, c in enumerate(part) if i not in missing] or [part[-1]]
    given_to = {t: p for t, p in predictions.items() if (t - part[0].open_time) // HOUR_MS not in refused}
    stepped, at_once = both(
        rules, symbol, candles, given_to, None if since is None else part[0].open_time + since * HOUR_MS
    )
    assert stepped == at_once


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
@pytest.mark.parametrize("bias", [0.5, 1.0, 2.0])
def test_over_many_anchors_and_while_har_is_served(symbol: str, bias: float) -> None:
    """A model that is far off is behind har for months: then har's intervals and level are given."""
    candles, predictions = table(symbol)
    wrong = {t: msgspec.structs.replace(p, volatility=p.volatility * bias) for t, p in predictions.items()}
    stepped, at_once = both(RULES, symbol, list(candles), wrong, None)
    assert stepped == at_once
    assert {e.serving for e in at_once if isinstance(e, Issued)} == {"model", "har"}
    since = candles[HISTORY_HOURS + 100].open_time
    stepped, at_once = both(RULES, symbol, list(candles), wrong, since)
    assert stepped == at_once
