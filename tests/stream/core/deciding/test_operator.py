"""Laws of the operator: stream = batch, each symbol alone = interleaved, restart = no restart."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.deciding import accumulation
from stream.core.deciding import policy as risk
from stream.core.deciding.accumulation import HISTORY_HOURS, Rules, anchor
from stream.core.deciding.operator import Event, Gap, Insufficient, Issued, OperatorError, Ready, State, step
from stream.core.deciding.policy import Policy, Thresholds
from stream.core.deciding.replay import follow, predict_ready, predict_rows, replay, same_candles, to_grid, warm
from stream.core.forecasting import features, intervals, serving, target
from stream.core.forecasting.rolling import Rolling
from stream.core.market.candle import HOUR_MS, Candle
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict

pytestmark = pytest.mark.slow

MODEL = sample_model()
#: Every law below holds for all of these policies at once: the memory of each is part of what is compared.
VARIED = (
    Policy(
        "plain", no_trade_band_of_exposure=0.0, min_hold_hours=0, calm_half_life_hours=0.0, risk_off_from_annualized=0.0
    ),
    Policy(
        "nervous",
        no_trade_band_of_exposure=0.05,
        risk_off_from_annualized=1.2,
        risk_back_below_annualized=0.9,
        brake_hours=100,
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
    """Drives the operator as the daemon does: one candle at a time, one prediction at a time."""
    states, rolling = dict(states or {}), Rolling()
    sigmas: dict[str, list[Event]] = {}
    for candle in candles:
        state, events = step(RULES, states.get(candle.symbol, State(candle.symbol)), candle)
        for ready in [e for e in events if isinstance(e, Ready)]:
            state, concluded = step(RULES, state, predict_ready([ready], MODEL, sample_predict, rolling)[0])
            events += concluded
        states[candle.symbol] = state
        sigmas.setdefault(candle.symbol, []).extend(e for e in events if not isinstance(e, Ready))
    return states, sigmas


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


OWN = "ETHUSDT"
OWN_HISTORY = RULES.history_hours(OWN)


@settings(max_examples=4)
@given(st.integers(OWN_HISTORY, OWN_HISTORY + 900), st.sets(st.integers(0, OWN_HISTORY + 900), max_size=60))
def test_a_symbol_with_regimes_of_its_own_needs_300_days_for_the_same(newest: int, missing: set[int]) -> None:
    whole = market(OWN, OWN_HISTORY + 960)
    candles = [c for i, c in enumerate(whole) if i not in missing or i >= newest]
    since = whole[newest].open_time
    long_run = [e for e in batch(candles, since) if isinstance(e, Issued)]
    recent = [c for c in candles if c.open_time > since - OWN_HISTORY * HOUR_MS]
    warmed = warm(RULES, OWN, [c for c in recent if c.open_time < since], MODEL, sample_predict)
    fresh = drive([c for c in recent if c.open_time >= since], {OWN: warmed})[1][OWN]
    assert [e for e in fresh if isinstance(e, Issued)] == long_run
    assert {e.regimes_from for e in long_run} == {"own"}


@settings(max_examples=12)
@given(
    st.sampled_from(["BTCUSDT", OWN]),
    st.integers(1, 4_300),
    st.sets(st.integers(0, 130), max_size=40),
    st.sets(st.integers(0, 4_299), max_size=60),
    st.sets(st.integers(0, 200), max_size=10),
)
def test_a_warm_start_is_where_stepping_through_every_hour_leads(
    symbol: str, hours: int, lately: set[int], missing: set[int], refused: set[int]
) -> None:
    """`lately` and `refused` count back from the newest hour: there meet what is stepped through and what is not."""
    whole = market(symbol)[:hours]
    gone = missing | {hours - 1 - back for back in lately}
    candles = [c for i, c in enumerate(whole) if i not in gone] or [whole[-1]]

    def predict(sequence: Any, static: Any) -> Any:
        answer = sample_predict(sequence, static)
        # `warm` and `replay` ask for the same rows, in one call.
        answer[[k for k in refused if k < len(answer)]] = np.nan
        answer[[-1 - k for k in refused if k < len(answer)]] = np.nan
        return answer

    *_, (stepped, _) = replay(RULES, symbol, candles, MODEL, predict, since=candles[-1].open_time)
    stepped = msgspec.structs.replace(stepped, awaiting=False)
    warmed = warm(RULES, symbol, candles, MODEL, predict)
    assert _differences(warmed, stepped) == []


@settings(max_examples=8)
@given(st.integers(900, 1_000), st.integers(0, 60), st.sets(st.integers(0, 59), max_size=20))
def test_what_follows_a_warm_start_is_what_stepping_through_it_leads_to(
    hours: int, later: int, missing: set[int]
) -> None:
    before = market()[:hours]
    after = [c for i, c in enumerate(market()[hours : hours + later]) if i not in missing]
    warmed = warm(RULES, "BTCUSDT", before, MODEL, sample_predict)
    stepped = drive(after, {"BTCUSDT": warmed})[0]["BTCUSDT"]
    assert _differences(follow(RULES, warmed, after, MODEL, sample_predict), stepped) == []
    assert same_candles(follow(RULES, warmed, after, MODEL, sample_predict), stepped)
    revised = [msgspec.structs.replace(before[-1], close=before[-1].low), *after]
    other = follow(RULES, warm(RULES, "BTCUSDT", before[:-1], MODEL, sample_predict), revised, MODEL, sample_predict)
    assert not same_candles(other, stepped)


def _differences(a: State, b: State) -> list[str]:
    return [name for name in State.__struct_fields__ if not _equal(getattr(a, name), getattr(b, name))]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=True)
    if isinstance(a, msgspec.Struct) and type(a) is type(b):
        return all(_equal(getattr(a, name), getattr(b, name)) for name in a.__struct_fields__)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b or (a != a and b != b))


def test_own_regimes_are_quantiles_of_the_forecasts_of_the_180_days_before_the_fold() -> None:
    candles = market(OWN, OWN_HISTORY + 960)
    states, _ = drive(candles[-1:], {OWN: warm(RULES, OWN, candles[:-1], MODEL, sample_predict)})
    table = features.compute(*to_grid(candles))
    sigmas = {p.open_time: p for p in predict_rows(OWN, table, np.nonzero(table.ready)[0], MODEL, sample_predict)}
    start = anchor(candles[-1].open_time)
    hours = [h for h in range(start // HOUR_MS - 180 * 24, start // HOUR_MS) if h % 5 == 0]
    regimes = states[OWN].regimes
    assert regimes is not None
    for source, own in zip(RULES.sources, regimes, strict=True):
        known = [getattr(sigmas[h * HOUR_MS], risk.SOURCES[source]) for h in hours]
        assert (own.medium_from, own.high_from) == tuple(np.quantile(known, [1 / 3, 4 / 5]))
    everyone = (MODEL.contract.regimes,) * len(RULES.sources)
    young = warm(RULES, OWN, candles[: HISTORY_HOURS + 900], MODEL, sample_predict)
    assert (young.regimes_from, young.regimes) == ("uncalibrated", everyone)
    described = warm(RULES, "BTCUSDT", market(), MODEL, sample_predict)
    assert (described.regimes_from, described.regimes) == ("bundle", everyone)


def test_a_fresh_start_that_knows_some_hours_before_its_fold_says_what_the_long_run_says() -> None:
    """Forecasts before an accumulation serve the regimes only: intervals, daily scores and policies begin with it."""
    candles = market(OWN, OWN_HISTORY + 960)
    for ago in (1, 500):
        since = candles[-ago].open_time
        long_run = [e for e in batch(candles) if isinstance(e, Issued) and e.prediction.open_time >= since]
        recent = [c for c in candles if c.open_time > since - OWN_HISTORY * HOUR_MS]
        assert [e for e in batch(recent, since) if isinstance(e, Issued)] == long_run
        assert long_run[0].regimes_from == "own"


def test_har_is_served_while_the_model_is_behind_it_and_changes_with_a_days_last_candle_only() -> None:
    states_and_events = [
        (state, e) for state, e in replay(RULES, "BTCUSDT", market(), MODEL, sample_predict) if isinstance(e, Issued)
    ]
    served = [e.serving for _, e in states_and_events]
    # The laws above prove something only if both occur in their market.
    assert 0.02 < served.count("har") / len(served) < 0.9
    changes = [b for a, b in pairwise(states_and_events) if a[1].serving != b[1].serving]
    assert len(changes) > 2
    for state, event in changes:
        at_anchor = event.prediction.open_time == state.anchor + HOUR_MS * (HISTORY_HOURS - 721 - 719)
        assert serving.is_daily(event.prediction.open_time) or at_anchor
    for state, event in states_and_events:
        assert (event.serving == "har") == serving.behind(state.days)


def test_what_is_served_as_har_is_hars_level_with_the_models_shape() -> None:
    table = features.compute(*to_grid(market()))
    models = {p.open_time: p for p in predict_rows("BTCUSDT", table, np.nonzero(table.ready)[0], MODEL, sample_predict)}
    some = [e for e in batch(market()) if isinstance(e, Issued) and e.serving == "har"][::97]
    assert some
    for event in some:
        served, sigmas = event.prediction, models[event.prediction.open_time]
        level = sigmas.baseline_har / sigmas.volatility
        assert (served.volatility, event.model_volatility) == (sigmas.baseline_har, sigmas.volatility)
        assert served.horizon_6h == pytest.approx(sigmas.horizon_6h * level)
        row = np.array([(served.open_time - START) // HOUR_MS])
        expected = target.rolling_24h_next(table, row, np.array([served.horizon_1h]))
        assert served.rolling_24h_next == pytest.approx(expected[0], rel=1e-9)
        assert event.interval.low <= served.volatility <= event.interval.high


@pytest.mark.parametrize("missing", [set(), {1_500, 1_501, 2_100, *range(2_600, 2_650), 3_000}], ids=["whole", "holes"])
def test_what_was_carried_from_hour_to_hour_is_what_a_fold_over_those_hours_gives(missing: set[int]) -> None:
    candles = [c for i, c in enumerate(market()) if i not in missing]
    issued = [(s, e) for s, e in replay(RULES, "BTCUSDT", candles, MODEL, sample_predict) if isinstance(e, Issued)]
    compared = {"model": 0, "har": 0}
    for (before, _), (state, event) in list(pairwise(issued))[700::11]:
        if before.anchor != state.anchor or state.past is None:
            continue
        now = event.prediction.open_time
        hours = (now - state.anchor) // HOUR_MS + 1
        every = state.past.hourly(RULES, "BTCUSDT", now)
        every[:, -1] = np.nan
        sigmas, earlier = every[:, -hours:], every[:, :-hours]
        found = accumulation.accumulate(RULES, "BTCUSDT", state.anchor, sigmas, state.realized.rows, earlier)
        assert found.memories == (before.memory, *before.compared)
        assert found.days == state.days
        served = event.prediction.volatility
        accumulated = {
            "model": (RULES.calibration, found.calibrated),
            "har": (RULES.har_calibration, found.har_calibrated),
        }
        calibration, memory = accumulated[event.serving]
        if memory is not None:
            assert intervals.give(calibration, memory, now, served)[1] == event.interval
            compared[event.serving] += 1
    assert min(compared.values()) > 10


def test_a_models_own_interval_does_not_depend_on_who_was_served() -> None:
    """The model's interval adapts to the model's own errors: once served again, it is as if it always had been."""
    never = msgspec.structs.replace(RULES, policy=Policy(), compared=())
    events = [(s, e) for s, e in replay(never, "BTCUSDT", market(), MODEL, sample_predict) if isinstance(e, Issued)]
    back = [
        (s, e) for (_, a), (s, e) in pairwise(events)
        if a.serving == "har" and e.serving == "model" and s.past is not None
    ]  # fmt: skip
    assert back
    for state, event in back[:3]:
        now, start = event.prediction.open_time, state.anchor
        hours = (now - start) // HOUR_MS + 1
        sigmas = state.past.hourly(never, "BTCUSDT", now)[:, -hours:]
        sigmas[:, -1] = np.nan
        memory = intervals.accumulate(RULES.calibration, start, sigmas[0], state.realized.rows[-hours:])
        _, expected = intervals.give(RULES.calibration, memory, now, event.prediction.volatility)
        assert event.interval == expected


def test_a_policy_decides_beside_others_as_it_does_alone() -> None:
    candles = [c for i, c in enumerate(market()[:1_700]) if i % 411 not in (7, 8, 9, 10)]
    together = [e for e in batch(candles) if isinstance(e, Issued)]
    for k, policy in enumerate(VARIED):
        alone = replay(Rules.of(policy, MODEL.contract), "BTCUSDT", candles, MODEL, sample_predict)
        verdicts = [e.verdict for _, e in alone if isinstance(e, Issued)]
        assert [v.exposure for v in verdicts] == [e.compared[k].exposure for e in together]
        assert len({v.exposure for v in verdicts}) > 1, policy.name


def test_the_fold_and_its_look_back_fit_into_the_declared_history() -> None:
    for hour in range(2 * 720):
        start = START + hour * HOUR_MS
        accumulated = (start - anchor(start)) // HOUR_MS
        assert accumulated >= 1_440
        assert accumulated + 721 <= HISTORY_HOURS


def test_a_hole_is_declared_with_its_first_and_last_hour() -> None:
    candles = [c for i, c in enumerate(market()[:60]) if i not in (40, 41)]
    (gap,) = [e for e in batch(candles) if isinstance(e, Gap)]
    assert (gap.from_open_time, gap.to_open_time, gap.hours) == (START + 40 * HOUR_MS, START + 41 * HOUR_MS, 2)


def test_under_12_of_24_returns_there_is_no_forecast_and_from_12_on_there_is() -> None:
    events = batch(market()[:14])
    assert [type(e) for e in events] == [Insufficient] * 12 + [Issued] * 2
    assert events[11] == Insufficient("BTCUSDT", START + 11 * HOUR_MS, 11)


@pytest.mark.parametrize(
    ("missing", "quality"),
    [(set(), "good"), ({780}, "repaired"), ({780, 790}, "repaired"), ({770, 780, 790}, "degraded")],
)
def test_quality_counts_the_missing_hours_of_the_last_48(missing: set[int], quality: str) -> None:
    candles = [c for i, c in enumerate(market()[:800]) if i not in missing]
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
