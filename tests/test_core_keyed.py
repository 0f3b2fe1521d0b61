"""Laws of the operator: stream = batch, each symbol alone = interleaved, restart = no restart."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.candle import HOUR_MS, Candle
from stream.core.keyed import (
    HISTORY_HOURS,
    Event,
    Gap,
    Insufficient,
    Issued,
    OperatorError,
    Ready,
    Rules,
    State,
    anchor,
    step,
)
from stream.core.policy import Policy, Thresholds
from stream.core.replay import predict_ready, replay, warm
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict

MODEL = sample_model()
#: Every law below holds for all of these at once: what each remembers is part of what is compared.
VARIED = (
    Policy("plain", no_trade_band=0.0, min_hold_hours=0, calm_half_life_hours=0.0, risk_off_from_annualized=0.0),
    Policy(
        "nervous", no_trade_band=0.05, risk_off_from_annualized=1.2, risk_back_below_annualized=0.9, brake_hours=100
    ),
    Policy("slow", forecast="ewma", calm_half_life_hours=168.0, min_hold_hours=168, regime_hysteresis=0.5),
    Policy("steps", forecast="rolling_24h_next", thresholds=Thresholds("daily", 0.02, 0.04), regime_hysteresis=0.2),
    Policy("har", forecast="har", stale_after_hours=1),
    Policy("last", forecast="persistence", max_exposure=2.0, allow_leverage=True),
)
RULES = Rules.of(Policy(), MODEL.contract, VARIED)
START = 1_704_067_200_000


@cache
def market(symbol: str = "BTCUSDT", hours: int = 4_400) -> tuple[Candle, ...]:
    return tuple(simulate_symbol(symbol, START, hours, 7))


def drive(
    candles: Sequence[Candle], states: dict[str, State] | None = None
) -> tuple[dict[str, State], dict[str, list[Event]]]:
    """The live driver in four lines: one candle at a time, one prediction at a time."""
    states = dict(states or {})
    said: dict[str, list[Event]] = {}
    for candle in candles:
        state, events = step(RULES, states.get(candle.symbol, State(candle.symbol)), candle)
        for ready in [e for e in events if isinstance(e, Ready)]:
            state, concluded = step(RULES, state, predict_ready([ready], MODEL, sample_predict)[0])
            events += concluded
        states[candle.symbol] = state
        said.setdefault(candle.symbol, []).extend(e for e in events if not isinstance(e, Ready))
    return states, said


def batch(candles: Sequence[Candle], since: int | None = None) -> list[Event]:
    events = replay(RULES, candles[0].symbol, candles, MODEL, sample_predict, since)
    return [e for _, e in events if not isinstance(e, Ready)]


holes = st.sets(st.integers(1, 118), max_size=70)


@given(holes, st.integers(0, 4_000))
def test_stream_equals_batch_from_the_same_first_candle(missing: set[int], first: int) -> None:
    candles = [c for i, c in enumerate(market()[first : first + 120]) if i not in missing]
    assert drive(candles)[1]["BTCUSDT"] == batch(candles)


@given(st.randoms(use_true_random=False), holes)
def test_any_interleaving_gives_each_symbol_what_it_gets_alone(order: random.Random, missing: set[int]) -> None:
    lanes = {
        "BTCUSDT": [c for i, c in enumerate(market()[:60]) if i not in missing],
        "ETHUSDT": list(market("ETHUSDT", 60)),
        "XRPUSDT": list(market("XRPUSDT", 60))[5:],
    }
    waiting = {symbol: list(candles) for symbol, candles in lanes.items()}
    mixed: list[Candle] = []
    while waiting:
        symbol = order.choice(sorted(waiting))
        mixed.append(waiting[symbol].pop(0))
        if not waiting[symbol]:
            del waiting[symbol]
    together = drive(mixed)[1]
    assert together == {symbol: drive(candles)[1][symbol] for symbol, candles in lanes.items()}


@given(st.integers(1, 119), holes)
def test_a_state_that_was_stored_and_loaded_goes_on_as_if_nothing_had_happened(cut: int, missing: set[int]) -> None:
    candles = [c for i, c in enumerate(market()[:120]) if i not in missing]
    states, before = drive(candles[:cut])
    _, after = drive(candles[cut:], pickle.loads(pickle.dumps(states)))
    whole = drive(candles)[1]["BTCUSDT"]
    assert before.get("BTCUSDT", []) + after.get("BTCUSDT", []) == whole


@settings(max_examples=12)
@given(st.integers(HISTORY_HOURS, 4_300), st.sets(st.integers(0, 4_399), max_size=60))
def test_a_fresh_start_on_120_days_says_what_the_long_run_says(newest: int, missing: set[int]) -> None:
    candles = [c for i, c in enumerate(market()) if i not in missing or i >= newest]
    since = market()[newest].open_time
    long_run = [e for e in batch(candles) if isinstance(e, Issued) and e.prediction.open_time >= since]
    recent = [c for c in candles if c.open_time > since - HISTORY_HOURS * HOUR_MS]
    warmed = warm(RULES, "BTCUSDT", [c for c in recent if c.open_time < since], MODEL, sample_predict)
    rest = [c for c in recent if c.open_time >= since]
    fresh = drive(rest, {"BTCUSDT": warmed})[1]["BTCUSDT"]
    assert [e for e in fresh if isinstance(e, Issued)] == long_run
    assert batch(recent, since) == [e for e in fresh if not isinstance(e, Gap) or e in batch(recent, since)]


def test_a_policy_decides_beside_others_as_it_does_alone() -> None:
    candles = [c for i, c in enumerate(market()[:1_700]) if i % 411 not in (7, 8, 9, 10)]
    together = [e for e in batch(candles) if isinstance(e, Issued)]
    for k, policy in enumerate(VARIED):
        alone = replay(Rules.of(policy, MODEL.contract), "BTCUSDT", candles, MODEL, sample_predict)
        verdicts = [e.verdict for _, e in alone if isinstance(e, Issued)]
        assert [v.exposure for v in verdicts] == [e.beside[k].exposure for e in together]
        assert len({v.exposure for v in verdicts}) > 1, policy.name


def test_the_fold_and_its_look_back_fit_into_the_declared_history() -> None:
    for hour in range(2 * 720):
        start = START + hour * HOUR_MS
        folded = (start - anchor(start)) // HOUR_MS
        assert folded >= 1_440
        assert folded + 721 <= HISTORY_HOURS


def test_a_hole_is_declared_with_its_first_and_last_hour() -> None:
    candles = [c for i, c in enumerate(market()[:60]) if i not in (40, 41)]
    (gap,) = [e for e in batch(candles) if isinstance(e, Gap)]
    assert (gap.from_open_time, gap.to_open_time, gap.hours) == (START + 40 * HOUR_MS, START + 41 * HOUR_MS, 2)


def test_under_12_of_24_returns_there_is_no_forecast_and_from_12_on_there_is() -> None:
    events = batch(market()[:14])
    assert [type(e) for e in events] == [Insufficient] * 12 + [Issued] * 2
    assert events[11] == Insufficient("BTCUSDT", START + 11 * HOUR_MS, 11)


@pytest.mark.parametrize(
    ("missing", "quality"), [(set(), "good"), ({80}, "repaired"), ({80, 90}, "repaired"), ({70, 80, 90}, "degraded")]
)
def test_quality_counts_the_missing_hours_of_the_last_48(missing: set[int], quality: str) -> None:
    candles = [c for i, c in enumerate(market()[:100]) if i not in missing]
    issued = [e for e in batch(candles) if isinstance(e, Issued)]
    assert (issued[-1].prediction.quality, issued[-1].prediction.gaps) == (quality, len(missing))


def test_recent_forecasts_get_their_outcome_24_hours_later_and_none_across_a_hole() -> None:
    whole = drive(market()[:120])[0]["BTCUSDT"].recent
    assert len(whole) == 48
    assert [r.realized is None for r in whole] == [False] * 24 + [True] * 24
    outcome = {
        e.prediction.open_time: e.prediction.realized_24h for e in batch(market()[:120]) if isinstance(e, Issued)
    }
    assert all(r.realized == pytest.approx(outcome[r.open_time + 24 * HOUR_MS], rel=1e-9) for r in whole[:24])
    holed = [c for i, c in enumerate(market()[:120]) if i != 100]
    by_hour = {(r.open_time - START) // HOUR_MS: r for r in drive(holed)[0]["BTCUSDT"].recent}
    assert by_hour[75].realized is not None
    assert by_hour[77].realized is None


def test_the_driver_is_told_when_it_breaks_the_protocol() -> None:
    states, _ = drive(market()[:30])
    with pytest.raises(OperatorError, match="does not follow"):
        step(RULES, states["BTCUSDT"], market()[10])
    waiting, _ = step(RULES, states["BTCUSDT"], market()[30])
    with pytest.raises(OperatorError, match="still waits"):
        step(RULES, waiting, market()[31])
    issued = [e for e in batch(market()[:30]) if isinstance(e, Issued)]
    with pytest.raises(OperatorError, match="nobody waits"):
        step(RULES, waiting, issued[-1].prediction)
