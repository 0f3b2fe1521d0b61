"""Ledger, exchange time, candle rules: small pure things."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.candle import HOUR_MS, Candle, CandleError, check, grid_floor, to_ms
from stream.core.exchange_time import ExchangeTime
from stream.core.ledger import Verdict, judge, overdue

T0 = 1_704_067_200_000


@pytest.mark.parametrize(
    ("hours", "verdict"),
    [(1, Verdict.DUE), (0, Verdict.DUPLICATE), (-1, Verdict.OUT_OF_ORDER), (2, Verdict.HOLE), (500, Verdict.HOLE)],
)
def test_the_ledger_judges_by_the_hour(hours: int, verdict: Verdict) -> None:
    assert judge(T0, T0 + hours * HOUR_MS) is verdict


def test_whatever_comes_first_is_due() -> None:
    assert judge(None, T0) is Verdict.DUE
    assert overdue(None, T0, 0)


def test_a_candle_is_overdue_when_its_close_and_the_grace_have_passed() -> None:
    close_of_next = T0 + 2 * HOUR_MS
    assert not overdue(T0, close_of_next + 59_999, 60_000)
    assert overdue(T0, close_of_next + 60_000, 60_000)


@given(
    st.lists(st.tuples(st.integers(T0, T0 + 10**9), st.floats(0, 10**6)), min_size=1), st.sampled_from([0, 1, 3_600])
)
def test_exchange_time_never_runs_backwards(told: list[tuple[int, float]], scale: float) -> None:
    clock = ExchangeTime(scale)
    seen = 0
    for (server_ms, _), at_s in zip(told, sorted(at for _, at in told), strict=True):
        clock.observe(server_ms, at_s)
        assert clock.now_ms(at_s) >= max(seen, server_ms)
        seen = clock.now_ms(at_s)


def test_exchange_time_advances_with_the_monotonic_clock_times_the_scale() -> None:
    clock = ExchangeTime(60)
    with pytest.raises(LookupError):
        clock.now_ms(0.0)
    clock.observe(T0, 100.0)
    assert clock.now_ms(101.5) == T0 + 90_000


def candle(**changes: float) -> Candle:
    values = {"open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 5.0} | changes
    return Candle("BTCUSDT", int(values.pop("open_time", T0)), **values)


def test_a_clock_of_ours_that_runs_fast_does_not_pull_exchange_time_away() -> None:
    clock = ExchangeTime()
    drift = 1 + 30e-6
    for second in range(0, 30 * 86_400, 60):
        clock.observe(T0 + second * 1_000, second * drift)
    ahead_ms = clock.now_ms(second * drift) - (T0 + second * 1_000)
    assert 0 <= ahead_ms < 50


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"open_time": T0 + 1}, "off_grid"),
        ({"open_time": 0}, "time_range"),
        ({"open_time": T0 * 1_000}, "time_range"),
        ({"close": math.nan}, "not_finite"),
        ({"high": math.inf}, "not_finite"),
        ({"low": 0.0}, "price_range"),
        ({"open": -1.0}, "price_range"),
        ({"volume": -1.0}, "volume_range"),
        ({"low": 10.5}, "ohlc_order"),
        ({"high": 10.5}, "ohlc_order"),
    ],
)
def test_a_candle_that_contradicts_itself_is_refused_by_name(changes: dict[str, float], reason: str) -> None:
    with pytest.raises(CandleError) as refused:
        check(candle(**changes))
    assert refused.value.reason == reason


def test_a_good_candle_passes_and_closes_one_millisecond_before_the_next_hour() -> None:
    assert check(candle()).close_time == T0 + HOUR_MS - 1
    assert grid_floor(T0 + HOUR_MS - 1) == T0
    assert to_ms(T0 * 1_000) == to_ms(T0) == T0
