"""stream.testing.market: the properties of volatility that a simulated market must have, measured."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.market.candle import HOUR_MS, check
from stream.testing.market import simulate, simulate_symbol

MONDAY_MS = 1_704_067_200_000  # 2024-01-01 00:00 UTC
YEAR = 24 * 364


@pytest.fixture(scope="module")
def long_tape():
    return simulate(["BTCUSDT", "ETHUSDT"], MONDAY_MS, 3 * YEAR, seed=1)


def returns(candles):
    return np.diff(np.log([candles[0].open, *(c.close for c in candles)]))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["BTCUSDT", "DOGEUSDT", "SHIBUSDT", "币安USDT"]), st.integers(0, 2**40), st.integers(0, 80))
def test_every_candle_is_valid_and_a_prefix_does_not_depend_on_the_length(symbol, seed, hours):
    short = simulate_symbol(symbol, MONDAY_MS, hours, seed)
    longer = simulate_symbol(symbol, MONDAY_MS, hours + 50, seed)
    assert [check(c) for c in short] == longer[:hours]
    assert [c.open_time for c in longer] == [MONDAY_MS + i * HOUR_MS for i in range(hours + 50)]
    for before, after in pairwise(longer):
        assert before.close == after.open
    for c in longer:
        assert c.volume > 0
        assert 0 <= c.taker_buy_base <= c.volume
        assert c.low * 0.999 <= c.quote_volume / c.volume <= c.high * 1.001
        assert c.trades >= 1


def test_a_symbol_does_not_depend_on_its_company():
    alone = simulate(["ETHUSDT"], MONDAY_MS, 100, seed=3)["ETHUSDT"]
    assert simulate(["BTCUSDT", "ETHUSDT"], MONDAY_MS, 100, seed=3)["ETHUSDT"] == alone


def test_seed_and_symbol_change_everything():
    tapes = [simulate_symbol(s, MONDAY_MS, 50, seed) for s in ("AAAUSDT", "BBBUSDT") for seed in (1, 2)]
    assert len({tuple(c.close for c in tape) for tape in tapes}) == 4


def test_level_and_tails_are_those_of_bitcoin(long_tape):
    r = returns(long_tape["BTCUSDT"])
    assert 0.004 < r.std() < 0.007
    assert (r**4).mean() / r.var() ** 2 > 6  # a normal has 3
    assert abs(r.mean()) < 4 * r.std() / np.sqrt(r.size)


def test_volatility_clusters_and_forgets_slowly(long_tape):
    size = np.abs(returns(long_tape["BTCUSDT"]))
    daily = size[: size.size // 24 * 24].reshape(-1, 24).mean(axis=1)

    def correlation(lag):
        return np.corrcoef(daily[lag:], daily[:-lag])[0, 1]

    assert correlation(7) > 0.3  # whole weeks: weekly seasonality affects both lags alike
    assert correlation(7) > correlation(49)


def test_seasons_of_day_and_week(long_tape):
    candles = long_tape["BTCUSDT"]
    size = np.abs(returns(candles))
    hour = np.array([c.open_time // HOUR_MS for c in candles])
    by_hour = np.array([size[hour % 24 == h].mean() for h in range(24)])
    assert abs(int(by_hour.argmax()) - 14) <= 3
    assert by_hour[14] / by_hour[2] > 1.4
    weekend = (hour - MONDAY_MS // HOUR_MS) // 24 % 7 >= 5
    assert 0.55 < size[weekend].mean() / size[~weekend].mean() < 0.75


def test_volume_goes_with_volatility_and_symbols_go_together(long_tape):
    btc, eth = (returns(long_tape[s]) for s in ("BTCUSDT", "ETHUSDT"))
    volume = np.log([c.volume for c in long_tape["BTCUSDT"]])
    assert np.corrcoef(volume, np.log(np.abs(btc) + 1e-5))[0, 1] > 0.3
    assert 0.5 < np.corrcoef(btc, eth)[0, 1] < 0.9
    assert eth.std() > btc.std()


def test_ranges_agree_with_returns(long_tape):
    """Parkinson's estimate from high and low is near that from open and close (it ignores drift)."""
    c = long_tape["BTCUSDT"]
    parkinson = np.sqrt(np.mean([np.log(x.high / x.low) ** 2 for x in c]) / (4 * np.log(2)))
    assert parkinson == pytest.approx(returns(c).std(), rel=0.05)


def test_a_shift_multiplies_volatility_from_its_hour_on_and_nothing_before():
    plain = simulate_symbol("BTCUSDT", MONDAY_MS, 2_000, 5)
    shifted = simulate(["BTCUSDT"], MONDAY_MS, 2_000, 5, shift_after_hours=1_000, shift_factor=3.0)["BTCUSDT"]
    assert shifted[:1_000] == plain[:1_000]
    ratio = returns(shifted)[1_000:].std() / returns(plain)[1_000:].std()
    assert ratio == pytest.approx(3.0, rel=0.02)


def test_a_start_off_the_hour_is_refused():
    with pytest.raises(ValueError, match="start of an hour"):
        simulate(["BTCUSDT"], MONDAY_MS + 1, 1, 0)
