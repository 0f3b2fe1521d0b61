"""Due candles, exchange time, candle rules: small pure functions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.market.candle import HOUR_MS, Candle, CandleError, check, grid_floor, to_ms
from stream.core.market.due_candles import Absences, Order, judge, lacking, overdue
from stream.core.market.exchange_time import ExchangeTime

T0 = 1_704_067_200_000


@pytest.mark.parametrize(
    ("hours", "verdict"),
    [(1, Order.DUE), (0, Order.DUPLICATE), (-1, Order.OUT_OF_ORDER), (2, Order.HOLE), (500, Order.HOLE)],
)
def test_the_ledger_judges_by_the_hour(hours: int, verdict: Order) -> None:
    assert judge(T0, T0 + hours * HOUR_MS) is verdict


def test_whatever_comes_first_is_due() -> None:
    assert judge(None, T0) is Order.DUE
    assert overdue(None, T0, 0)


def test_a_candle_is_overdue_when_its_close_and_the_grace_have_passed() -> None:
    close_of_next = T0 + 2 * HOUR_MS
    assert not overdue(T0, close_of_next + 59_999, 60_000)
    assert overdue(T0, close_of_next + 60_000, 60_000)


def believed(scale: float = 1.0, offset_ms: int = 0, at_s: float = 0.0) -> ExchangeTime:
    """Returns an exchange time after two readings that agree."""
    clock = ExchangeTime(scale)
    for _ in range(2):
        clock.observe(T0 + offset_ms, at_s)
    return clock


@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 10**6), st.booleans()), min_size=1),
    st.sampled_from([1.0, 60.0, 3_600.0]),
)
def test_one_reading_never_moves_the_exchanges_time_by_more_than_our_clock_allows(
    readings: list[tuple[int, float, bool]], scale: float
) -> None:
    clock = believed(scale)
    before_ms, before_s, doubted = T0, 0.0, False
    for (server_ms, _, asked), at_s in zip(readings, sorted(at for _, at, _ in readings), strict=True):
        clock.observe(T0 + server_ms, at_s, at_s if asked else None)
        moved_ms = clock.now_ms(at_s) - before_ms - (at_s - before_s) * scale * 1_000
        # A larger move takes a second reading that agrees with one in doubt, or readings that are late for minutes.
        assert moved_ms <= 2_000 * scale + 1 or doubted
        doubted = clock.doubt_ms is not None
        before_ms, before_s = clock.now_ms(at_s), at_s


@given(st.lists(st.integers(T0, T0 + 10**9), min_size=1))
def test_at_full_speed_the_exchange_alone_moves_its_time_and_never_backwards(readings: list[int]) -> None:
    clock = ExchangeTime(0)
    seen = 0
    for at_s, server_ms in enumerate(readings):
        clock.observe(server_ms, float(at_s))
        assert clock.now_ms(float(at_s)) >= max(seen, server_ms)
        seen = clock.now_ms(float(at_s))


def test_exchange_time_advances_with_the_monotonic_clock_times_the_scale() -> None:
    clock = ExchangeTime(60)
    with pytest.raises(LookupError):
        clock.now_ms(0.0)
    clock.observe(T0, 100.0)
    # One reading alone is not enough.
    assert not clock.known
    clock.observe(T0 + 60_000, 101.0)
    assert clock.now_ms(101.5) == T0 + 90_000


@pytest.mark.parametrize("wrong_ms", [40 * 60_000, 86_400_000, -3_000_000])
def test_a_first_reading_that_is_wrong_is_outvoted(wrong_ms: int) -> None:
    clock = ExchangeTime()
    clock.observe(T0 + wrong_ms, 0.0)
    clock.observe(T0 + 100, 0.1)
    assert not clock.known
    clock.observe(T0 + 200, 0.2)
    assert clock.now_ms(0.2) == T0 + 200


def test_a_jump_counts_when_it_is_said_again_and_not_contradicted() -> None:
    clock = believed()
    jumped = T0 + 40 * 60_000
    clock.observe(jumped, 0.5)
    assert (clock.now_ms(0.5), clock.doubt_ms) == (T0 + 500, 40 * 60_000 - 500)
    clock.observe(T0 + 1_000, 1.0)
    assert clock.doubt_ms is None
    clock.observe(jumped + 1_000, 1.5)
    clock.observe(jumped + 1_100, 1.6)
    assert clock.now_ms(1.6) == T0 + 1_600, "twice in a moment is once"
    clock.observe(jumped + 2_100, 2.6)
    assert clock.now_ms(2.6) == jumped + 2_100


def test_it_steps_back_only_on_answers_whose_lateness_is_known() -> None:
    clock = believed(offset_ms=86_400_000)
    for at_s in (10.0, 20.0, 30.0):
        clock.observe(T0 + round(at_s * 1_000), at_s)
    assert clock.now_ms(30.0) == T0 + 86_400_000 + 30_000, "a stream may be as late as it likes"
    clock.observe(T0 + 40_000, 40.0, asked_s=39.9)
    clock.observe(T0 + 42_000, 42.0, asked_s=41.9)
    assert clock.now_ms(42.0) == T0 + 42_000


def candle(**changes: float) -> Candle:
    values = {"open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 5.0} | changes
    return Candle("BTCUSDT", int(values.pop("open_time", T0)), **values)


def test_a_clock_of_ours_that_runs_fast_does_not_pull_exchange_time_away() -> None:
    clock = believed()
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


def test_an_answer_lacks_only_what_it_has_a_candle_before_and_after() -> None:
    assert lacking([]) == []
    assert lacking([T0]) == []
    assert lacking([T0, T0 + HOUR_MS]) == []
    assert lacking([T0, T0 + 3 * HOUR_MS]) == [T0 + HOUR_MS, T0 + 2 * HOUR_MS]


answers = st.lists(st.tuples(st.sets(st.integers(0, 9)), st.floats(0, 40)), max_size=12)


@given(answers)
def test_an_hour_does_not_exist_once_two_answers_apart_lack_it_and_none_between_has_it(
    sequence: list[tuple[set[int], float]],
) -> None:
    """Against a plain definition: the latest run of answers that lack the hour spans at least the time apart."""
    absences, at_s = Absences(30.0), 0.0
    since: dict[int, float] = {}
    proven: set[int] = set()
    for absent, pause_s in sequence:
        at_s += pause_s
        present = set(range(10)) - absent
        absences.shown(absent, present, at_s)
        since = {h: since.get(h, at_s) for h in absent}
        proven = {h for h in absent if at_s - since[h] >= 30.0}
        assert {h for h in range(10) if absences.proven((h,))} == proven
        waiting = absent - proven
        assert absences.again_at_s(sorted(absent)) == (max(since[h] for h in waiting) + 30.0 if waiting else None)
    absences.forget(4)
    assert {h for h in range(10) if absences.proven((h,))} == {h for h in proven if h > 4}
