"""Tests of forecasts: the better one wins, equals are not told apart, and what cannot be tested says why."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.tsa.stattools import diebold_mariano_test

from stream.core.forecasting import qlike
from training.scoring import comparison
from training.scoring.comparison import confidence_set, diebold_mariano, mincer_zarnowitz

DAYS = 120
PHASE = np.tile(np.arange(24), DAYS)


def market(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Realized σ, a forecast that is right but for noise, and one that is twice as noisy."""
    chance = np.random.default_rng(seed)
    true = np.exp(-5 + 0.3 * chance.standard_normal(len(PHASE)))
    realized = true * np.exp(0.2 * chance.standard_normal(len(PHASE)))
    noise = chance.standard_normal((2, len(PHASE)))
    return realized, true * np.exp(0.05 * noise[0]), true * np.exp(0.3 * noise[1])


def test_the_better_forecaster_wins_in_every_phase():
    realized, good, poor = market(1)
    found = diebold_mariano(realized, good, poor, PHASE)
    assert found.reason is None
    assert (found.phases, found.days) == (24, DAYS)
    assert found.statistic is not None
    assert found.statistic < -2
    assert found.p is not None
    assert found.p < 0.01
    assert found.p_min is not None
    assert found.p_max is not None
    assert found.p_min <= found.p <= found.p_max
    assert found.difference == pytest.approx((qlike.losses(realized, good) - qlike.losses(realized, poor)).mean())


@given(st.integers(0, 1_000))
@settings(max_examples=5)
def test_changing_sides_changes_the_sign_and_nothing_else(seed):
    realized, good, poor = market(seed)
    there, back = diebold_mariano(realized, good, poor, PHASE), diebold_mariano(realized, poor, good, PHASE)
    assert there.statistic == pytest.approx(-(back.statistic or 0.0))
    assert there.p == pytest.approx(back.p)
    assert there.difference == pytest.approx(-(back.difference or 0.0))


def test_each_phase_is_statsmodels_test_of_one_forecast_a_day():
    realized, good, poor = market(2)
    only = PHASE == 5
    found = diebold_mariano(np.where(only, realized, np.nan), good, poor, PHASE)
    expected = diebold_mariano_test(
        realized[only], good[only], poor[only], lags=7, criterion=qlike.losses, harvey_adj=True, horizon=1
    )
    assert found.phases == 1
    assert (found.statistic, found.p) == pytest.approx((expected.statistic, expected.pvalue))


def test_equals_are_seldom_told_apart():
    # 24 phases of 40 markets: at 5 % a test of equals may say "different" in about 1 of 20.
    rejected = []
    for seed in range(40):
        chance = np.random.default_rng(seed)
        realized = np.exp(-5 + 0.2 * chance.standard_normal(len(PHASE)))
        a, b = np.exp(-5 + 0.2 * chance.standard_normal((2, len(PHASE))))
        rejected.append((diebold_mariano(realized, a, b, PHASE).p or 0.0) < 0.05)
    assert np.mean(rejected) < 0.1


def test_a_forecaster_against_itself_is_undefined():
    realized, good, _ = market(3)
    for twin in (good, good * (1 + 1e-15)):
        found = diebold_mariano(realized, good, twin, PHASE)
        assert found.p is None
        assert found.statistic is None
        assert found.reason == "their losses differ by a constant: there is nothing to test"


@pytest.mark.parametrize("days", [0, 1, comparison.MIN_DAYS - 1])
def test_too_few_days_are_undefined(days):
    realized, good, poor = (x[: 24 * days] for x in market(4))
    found = diebold_mariano(realized, good, poor, PHASE[: 24 * days])
    assert (found.p, found.reason) == (None, "fewer than 30 days")
    line = mincer_zarnowitz(realized, good, PHASE[: 24 * days])
    assert line.b is None
    assert line.reason is not None
    assert "fewer than 30 days" in line.reason
    members = confidence_set({"good": np.arange(days) * 1.0, "poor": np.ones(days)})
    assert (members.included, members.reason) == (None, "fewer than 30 days")


def test_the_set_holds_the_best_and_not_the_clearly_worse_and_repeats():
    realized, good, poor = (x[PHASE == 0] for x in market(5))
    losses = {name: qlike.losses(realized, f) for name, f in (("poor", poor), ("good", good), ("also", good * 1.001))}
    found = confidence_set(losses)
    assert found.included is not None
    assert "good" in found.included or "also" in found.included
    assert "poor" not in found.included
    assert found.p is not None
    assert found.p["poor"] is not None
    assert found.p["poor"] <= 0.1
    assert max(v for v in found.p.values() if v is not None) == 1.0
    assert confidence_set(losses) == found


def test_a_set_of_one_and_a_set_with_twins_are_undefined():
    losses = np.random.default_rng(1).random(90)
    assert confidence_set({"only": losses}).reason == "a set of one: nothing to compare"
    assert confidence_set({}).reason == "a set of one: nothing to compare"
    twins = confidence_set({"a": losses, "b": losses.copy()})
    assert twins.p is None
    assert twins.reason == "the losses of a and b differ by a constant"


def test_mincer_zarnowitz_finds_the_line():
    chance = np.random.default_rng(7)
    forecast = np.exp(-5 + 0.3 * chance.standard_normal(len(PHASE)))
    noise = 1e-4 * chance.standard_normal(len(PHASE))
    biased = mincer_zarnowitz(0.001 + 0.8 * forecast + noise, forecast, PHASE)
    assert (biased.a, biased.b) == pytest.approx((0.001, 0.8), rel=0.02)
    assert biased.p is not None
    assert biased.p < 1e-6
    assert biased.r2 is not None
    assert biased.r2 > 0.9
    honest = mincer_zarnowitz(forecast + noise, forecast, PHASE)
    assert honest.b == pytest.approx(1, abs=0.01)
    assert honest.p is not None
    assert honest.p > 0.05
    assert honest.b_min is not None
    assert honest.b_max is not None
    assert honest.b_min <= 1 <= honest.b_max


def test_a_line_through_a_constant_is_undefined():
    constant = np.full(len(PHASE), 0.005)
    assert mincer_zarnowitz(market(8)[0], constant, PHASE).b is None


@settings(max_examples=15)
@given(st.integers(0, 1_000), st.sampled_from([0.0, 1e-17, 1e-15, 1e-12, 1e-8, 1e-3]), st.integers(25, 45))
def test_forecasts_and_outcomes_that_hardly_vary_give_numbers_or_a_reason(seed, size, days):
    chance, phase = np.random.default_rng(seed), PHASE[: days * 24]
    realized, first, second = 1.1e-5 * (1 + size * chance.standard_normal((3, len(phase))))
    wild = 1.1e-5 * np.exp(chance.standard_normal(len(phase)))
    for outcome, forecast in ((realized, first), (wild, first), (realized, wild)):
        line = mincer_zarnowitz(outcome, forecast, phase)
        found = diebold_mariano(outcome, forecast, second, phase)
        for of in (line, found):
            figures = [v for v in msgspec.structs.astuple(of) if isinstance(v, float)]
            assert np.isfinite(figures).all()
            assert figures or of.reason
        day = phase == 0
        losses = {n: qlike.losses(outcome[day], f[day]) for n, f in (("a", forecast), ("b", second))}
        result = confidence_set(losses)
        assert result.reason or np.isfinite(list((result.p or {}).values())).all()


def test_a_bound_that_no_day_reaches_changes_nothing_and_one_that_many_reach_does():
    realized, good, poor = market(1)
    free, _ = comparison.phase_tests(realized, good, poor, PHASE)
    wide, _ = comparison.phase_tests(realized, good, poor, PHASE, bound=1e9)
    tight, _ = comparison.phase_tests(realized, good, poor, PHASE, bound=0.05)
    assert [(t.phase, t.days) for t in free] == [(t.phase, t.days) for t in wide]
    assert [t.statistic for t in wide] == pytest.approx([t.statistic for t in free])
    assert [t.p_better for t in wide] == pytest.approx([t.p_better for t in free])
    assert [t.statistic for t in tight] != pytest.approx([t.statistic for t in free])
