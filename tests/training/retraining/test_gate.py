"""The gate: a better challenger passes; one that is not, that has seen the days, or that cannot be judged does not."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from stream.core.forecasting.contract import Contract
from stream.core.market.candle import HOUR_MS
from stream.testing.sample_model import sample_model
from stream.times import parse
from training.data.panel import IntervalSeries
from training.retraining import gate
from training.retraining.gate import Compared, Forecasts, Judgement, Window

WINDOW = Window.ending(parse("2024-06-30"))
HOURS = gate.DAYS * 24 - 25
OPEN_TIME = WINDOW.from_ms + HOUR_MS * np.arange(HOURS)
SHA = "1" * 64


def learnt(until_ms: int, sha256: str = SHA) -> Contract:
    contract = sample_model().contract
    training = msgspec.structs.replace(contract.training, trained_until=until_ms - HOUR_MS, data_sha256=sha256)
    return msgspec.structs.replace(contract, training=training)


OLD = learnt(parse("2022-01-01"))
NEW = learnt(WINDOW.learnt_until)


def noise(chance: np.random.Generator, spread: float) -> np.ndarray:
    """Noise that lasts a day: forecasts of neighbouring hours share most of their 24 hours, and of their errors."""
    each = chance.standard_normal(HOURS + 23)
    return spread * np.convolve(each, np.ones(24) / np.sqrt(24), "valid")


class Market:
    """Outcomes, and forecasts that miss the truth by a chosen spread."""

    def __init__(self, seed: int) -> None:
        self.chance = np.random.default_rng(seed)
        self.true = np.exp(-5.2 + noise(self.chance, 0.3))
        self.realized = self.true * np.exp(noise(self.chance, 0.2))

    def forecasts(self, spread: float, *, width: float = 1.65, bias: float = 0.0) -> Forecasts:
        sigma = self.true * np.exp(bias + noise(self.chance, spread))
        reach = width * float(np.std(np.log(self.realized / sigma)))
        interval = IntervalSeries(sigma * np.exp(-reach), sigma * np.exp(reach), 0.9)
        return Forecasts(OPEN_TIME, sigma, interval, self.realized)


def judged(*pairs: Compared, champion: Contract = OLD, challenger: Contract = NEW) -> Judgement:
    return gate.judge(pairs, champion, challenger, WINDOW, learnt_sha256=SHA)


def pair(market: Market, old: float, new: float, symbol: str = "BTCUSDT") -> Compared:
    return gate.compared(symbol, market.forecasts(old), market.forecasts(new))


def test_a_better_challenger_passes() -> None:
    found = judged(pair(Market(1), 0.4, 0.05))
    assert found.refusals == ()
    (figures,) = found.symbols
    assert figures.qlike_challenger < figures.qlike_champion
    assert figures.p_better is not None
    assert figures.p_better < gate.P
    assert figures.phases == 24
    assert found.notes == ()


def test_a_worse_challenger_is_refused() -> None:
    (refusal,) = judged(pair(Market(1), 0.05, 0.4)).refusals
    assert "not better" in refusal


def test_one_that_equals_the_champion_is_refused() -> None:
    of = Market(2).forecasts(0.2)
    (refusal,) = judged(gate.compared("BTCUSDT", of, of)).refusals
    assert "not better" in refusal


def test_one_that_is_better_by_a_hair_is_not_tested_better() -> None:
    of = Market(2).forecasts(0.2)
    scale = 1 + 1e-13
    for factor in (scale, 1 / scale):
        near = Forecasts(of.open_time, of.sigma * factor, of.interval, of.realized)
        assert judged(gate.compared("BTCUSDT", of, near)).refusals


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.3])
def test_of_twenty_challengers_of_noise_at_most_two_pass(spread: float) -> None:
    """The champion's forecasts with noise on them, over the same days: chance alone must not win."""
    for seed in range(3):
        market = Market(seed)
        of = market.forecasts(0.1)
        passed = 0
        for _ in range(20):
            noisy = Forecasts(OPEN_TIME, of.sigma * np.exp(noise(market.chance, spread)), of.interval, of.realized)
            passed += judged(gate.compared("BTCUSDT", of, noisy)).refusals == ()
        assert passed <= 2


def test_of_challengers_that_are_as_good_as_the_champion_one_in_ten_passes_at_most() -> None:
    """Both miss the truth by equally much, by chance: whoever is ahead is luckier. That is what p < 0.1 allows."""
    passed = [judged(pair(Market(seed), 0.25, 0.25)).refusals == () for seed in range(100)]
    assert np.mean(passed) <= 0.1


def test_one_wild_day_neither_decides_nor_is_forgiven() -> None:
    """It drowns the evidence of the other days where it counts in full, and shows in the mean all the same."""
    market = Market(4)
    old, new = market.forecasts(0.3), market.forecasts(0.05)
    for factor, passes in ((0.5, True), (0.1, False)):
        sigma = new.sigma.copy()
        sigma[480:504] *= factor
        wild = Forecasts(OPEN_TIME, sigma, new.interval, new.realized)
        found = judged(gate.compared("BTCUSDT", old, wild))
        assert (found.refusals == ()) is passes, found.refusals
        assert (found.symbols[0].p_better or 1) < gate.P


def test_one_that_has_memorised_the_days_is_refused_however_good_it_is() -> None:
    market = Market(3)
    perfect = Forecasts(OPEN_TIME, market.realized.copy(), market.forecasts(0.1).interval, market.realized)
    of = gate.compared("BTCUSDT", market.forecasts(0.4), perfect)
    assert judged(of).symbols[0].qlike_challenger == pytest.approx(0.0)
    for until in (WINDOW.to_ms, WINDOW.learnt_until + HOUR_MS):
        refusals = judged(of, challenger=learnt(until)).refusals
        assert "may know the gate's days" in refusals[0]
    refusals = judged(of, challenger=learnt(WINDOW.learnt_until, "2" * 64)).refusals
    assert "other candles than it was given" in refusals[0]


def test_a_champion_that_has_seen_the_days_is_reported_and_its_unseen_days_are_scored_apart() -> None:
    seen = learnt(WINDOW.from_ms + 60 * 24 * HOUR_MS)
    found = judged(pair(Market(1), 0.4, 0.05), champion=seen)
    assert found.refusals == ()
    assert "from 60 of the 90 days" in found.notes[0]
    assert found.symbols[0].qlike_champion_unseen is not None
    # The same days, the same forecasts: only the report differs.
    assert found.symbols[0].p_better == judged(pair(Market(1), 0.4, 0.05)).symbols[0].p_better


@pytest.mark.parametrize(("width", "holds"), [(0.5, False), (1.65, True), (6.0, False)])
def test_an_interval_that_is_too_narrow_or_too_wide_is_refused(width: float, holds: bool) -> None:
    market = Market(1)
    of = gate.compared("BTCUSDT", market.forecasts(0.4), market.forecasts(0.05, width=width))
    assert (judged(of).refusals == ()) is holds


def test_one_that_is_clearly_worse_on_another_symbol_is_refused() -> None:
    good = pair(Market(1), 0.4, 0.05)
    (refusal,) = judged(good, pair(Market(2), 0.05, 0.5, "ETHUSDT")).refusals
    assert refusal.startswith("ETHUSDT: it is clearly worse")
    # No better there is no reason, only clearly worse is.
    assert judged(good, pair(Market(2), 0.2, 0.22, "ETHUSDT")).refusals == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_what_is_no_volatility_counts_against_the_challenger(value: float) -> None:
    market = Market(1)
    of = market.forecasts(0.05)
    for share in (0.6, 1.0):
        sigma = of.sigma.copy()
        sigma[: int(share * HOURS)] = value
        broken = Forecasts(OPEN_TIME, sigma, of.interval, of.realized)
        refusals = judged(gate.compared("BTCUSDT", market.forecasts(0.4), broken)).refusals
        assert "usable forecast" in refusals[0]


def test_a_symbol_that_is_halted_keeps_nobody_from_a_better_model() -> None:
    nothing = Forecasts(np.empty(0, np.int64), np.empty(0), IntervalSeries(np.empty(0), np.empty(0), 0.9), np.empty(0))
    found = judged(pair(Market(1), 0.4, 0.05), gate.compared("ETHUSDT", nothing, nothing))
    assert found.refusals == ()
    assert "ETHUSDT" in found.notes[0]
    assert "ETHUSDT" not in {of.symbol for of in judged(pair(Market(1), 0.4, 0.05)).symbols}


def test_hours_that_only_one_forecasts_are_scored_for_neither() -> None:
    market = Market(1)
    old, new = market.forecasts(0.4), market.forecasts(0.05)
    later = Forecasts(
        OPEN_TIME[100:],
        new.sigma[100:],
        IntervalSeries(new.interval.low[100:], new.interval.high[100:], 0.9),
        new.realized[100:],
    )
    of = gate.compared("BTCUSDT", old, later)
    assert judged(of).symbols[0].forecasts == HOURS - 100
    assert (of.champion.open_time == of.challenger.open_time).all()


def test_a_challenger_may_learn_until_a_day_before_the_days() -> None:
    assert WINDOW.learnt_until == parse("2024-03-31")
    assert WINDOW.from_ms == parse("2024-04-01")


REFIT = learnt(WINDOW.to_ms)


def test_a_refit_that_forecasts_nearly_the_same_is_the_same_model() -> None:
    sigma = Market(1).forecasts(0.1).sigma
    assert gate.refit_refusals(NEW, REFIT, [("BTCUSDT", sigma, sigma * 1.03)], WINDOW.to_ms) == ()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda s: s * 1.3, "another model"),
        (lambda s: np.where(np.arange(len(s)) < 100, s * 3, s), "another model"),
        (lambda s: np.where(np.arange(len(s)) < 100, np.nan, s), "no volatility"),
        (lambda s: s[1:], "hours"),
        (lambda s: s[:0], "hours"),
    ],
    ids=["shifted", "apart", "nan", "fewer", "none"],
)
def test_a_refit_that_is_another_model_is_refused(change, names: str) -> None:
    sigma = Market(1).forecasts(0.1).sigma
    (refusal,) = gate.refit_refusals(NEW, REFIT, [("BTCUSDT", sigma, change(sigma))], WINDOW.to_ms)
    assert names in refusal


def test_a_refit_of_another_kind_or_range_is_refused() -> None:
    sigma = Market(1).forecasts(0.1).sigma
    others = [
        msgspec.structs.replace(REFIT, features_version="0"),
        msgspec.structs.replace(REFIT, training=msgspec.structs.replace(REFIT.training, symbols=("ETHUSDT",))),
        NEW,
        learnt(WINDOW.to_ms + HOUR_MS),
    ]
    for other in others:
        assert gate.refit_refusals(NEW, other, [("BTCUSDT", sigma, sigma)], WINDOW.to_ms)
