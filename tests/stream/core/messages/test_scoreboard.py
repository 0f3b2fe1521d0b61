"""Live scores: the board is plain arithmetic over matured forecasts, in whatever way their outcomes reached it."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.deciding.operator import State
from stream.core.forecasting import qlike, serving
from stream.core.forecasting.contract import Usual
from stream.core.market.candle import HOUR_MS
from stream.core.messages import schemas, scoreboard
from stream.core.messages.scoreboard import FORECASTERS, WINDOW_DAYS, Scoreboard
from stream.core.messages.scoring import Outcome

START = 1_704_067_200_000
USUAL = Usual(-0.01, 0.1, -0.1, 0.4)
VERSION = "abababababab"
STATE = State("BTCUSDT", days=(0.02,) * 28 + (math.nan, 0.3), serving="model")


def outcome(hour: int, sigmas: tuple[float, ...], version: str = VERSION, **changes: Any) -> Outcome:
    served, model, har, ewma, persistence, realized = sigmas
    made = Outcome(
        forecast_id=f"binance:spot:BTCUSDT:1h:{START + hour * HOUR_MS}:{version}", revision=0, symbol="BTCUSDT",
        open_time=START + hour * HOUR_MS, provenance="live", model_version=version, realized=realized,
        volatility=served, low=0.7 * served, high=1.4 * served, level=0.9, persistence=persistence, ewma=ewma, har=har,
        serving="har" if served == har else "model", model_volatility=model,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


sigma = st.floats(1e-4, 0.1)
lines = st.dictionaries(
    st.integers(0, 100 * 24), st.tuples(sigma, sigma, sigma, sigma, sigma, sigma), min_size=1, max_size=60
).map(lambda by_hour: [outcome(hour, by_hour[hour]) for hour in sorted(by_hour)])


def built(outcomes: list[Outcome]) -> Scoreboard:
    return Scoreboard.of(USUAL, VERSION, outcomes, [o for o in outcomes if serving.is_daily(o.open_time)])


@given(lines)
def test_every_window_is_plain_arithmetic_over_what_matured_in_it(outcomes: list[Outcome]) -> None:
    score = built(outcomes).score(STATE, 5)
    assert (score.open_time, score.model_version) == (outcomes[-1].open_time, VERSION)
    assert [(w.days, w.model) for w in score.windows] == [(d, name) for d in WINDOW_DAYS for name in FORECASTERS]
    for w in score.windows:
        inside = [o for o in outcomes if o.open_time > outcomes[-1].open_time - w.days * 24 * HOUR_MS]
        field = {"served": "volatility", "model": "model_volatility"}.get(w.model, w.model)
        pairs = [(getattr(o, field), o.realized) for o in inside]
        assert w.matured == len(pairs)
        assert w.qlike == pytest.approx(math.fsum(qlike.loss(r, f) for f, r in pairs) / len(pairs), rel=1e-9)
        assert w.rmse == pytest.approx(math.sqrt(math.fsum((f - r) ** 2 for f, r in pairs) / len(pairs)), rel=1e-9)
        assert w.bias == pytest.approx(math.fsum(f - r for f, r in pairs) / len(pairs), rel=1e-9, abs=1e-15)
        ratio = math.fsum(f for f, _ in pairs) / math.fsum(r for _, r in pairs) - 1
        assert w.bias_ratio == pytest.approx(ratio, rel=1e-6, abs=1e-9)
        held = sum(o.low <= o.realized <= o.high for o in inside) / len(inside)
        assert w.coverage == (pytest.approx(held) if w.model == "served" else None)


@given(lines, st.data())
def test_a_board_that_was_carried_on_equals_one_that_was_built_anew(
    outcomes: list[Outcome], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(outcomes)))
    carried = built(outcomes[:cut])
    for one in outcomes[cut:]:
        carried.add(one)
    anew = built(outcomes)
    assert carried.score(STATE, 5) == anew.score(STATE, 5)
    assert carried.memory == anew.memory


@given(lines, st.tuples(sigma, sigma, sigma, sigma, sigma, sigma))
def test_outcomes_of_another_model_change_nothing(outcomes: list[Outcome], other: tuple[float, ...]) -> None:
    board, mixed = built(outcomes), built(outcomes)
    foreign = outcome(200 * 24 + 23, other, version="cdcdcdcdcdcd")
    assert mixed.alarm(foreign) is None
    mixed.add(foreign)
    assert mixed.score(STATE, 5) == board.score(STATE, 5)


def test_before_anything_has_matured_only_the_choice_of_who_is_served_is_told() -> None:
    score = Scoreboard(USUAL, VERSION).score(STATE, 5)
    assert (score.open_time, score.windows, score.rule.days) == (None, (), 29)
    assert schemas.encode(score).count(b"null") == 3


@pytest.mark.parametrize("field", ["realized", "volatility", "model_volatility", "har", "ewma"])
@pytest.mark.parametrize("bad", [0.0, -1.0, 1e-200, 1e200, math.inf, math.nan])
def test_a_row_that_no_forecast_can_have_is_left_out_and_stops_nobody(field: str, bad: float) -> None:
    days = broken(10, 1.0)
    spoilt = [*days[:4], msgspec.structs.replace(days[4], **{field: bad}), *days[5:]]
    without = [*days[:4], *days[5:]]
    assert built(spoilt).score(STATE, 5) == built(without).score(STATE, 5)
    assert built(spoilt).memory == built(without).memory


def test_a_score_says_who_is_served_and_by_which_rule() -> None:
    score = built([outcome(23, (0.01, 0.01, 0.02, 0.01, 0.01, 0.01))]).score(STATE, 5)
    assert (score.rule.serving, score.rule.days, score.rule.limit) == ("model", 29, serving.LIMIT)
    assert score.rule.excess == pytest.approx((28 * 0.02 + 0.3) / 29)
    assert score.decay == schemas.DecayState(False, None, None)
    # NaN is refused too, although the score has nulls that are intended.
    assert schemas.encode(score).count(b"null") == 14
    spoilt = msgspec.structs.replace(score, rule=msgspec.structs.replace(score.rule, excess=math.nan))
    with pytest.raises(ValueError, match="no number to publish"):
        schemas.encode(spoilt)


def broken(days: int, factor: float) -> list[Outcome]:
    """Returns outcomes of a model whose forecasts are right for 60 days, and then `factor` times as high."""
    made = []
    for day in range(days):
        wobble = 0.01 * math.exp(0.3 * math.sin(7.1 * day))
        forecast = 0.01 * (factor if day >= 60 else 1.0)
        made.append(outcome(day * 24 + 23, (forecast, forecast, 0.01, 0.01, 0.01, wobble)))
    return made


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_a_model_that_breaks_is_told_once_with_its_evidence(factor: float) -> None:
    board, published = Scoreboard(USUAL, VERSION), []
    for one in broken(150, factor):
        alarm = board.alarm(one)
        board.add(one)
        if alarm is not None:
            published.append(scoreboard.decay_message("BTCUSDT", USUAL, alarm, VERSION, 5))
    assert len(published) == 1
    (decay,) = published
    assert decay.since >= START + 50 * 24 * HOUR_MS
    assert START + 60 * 24 * HOUR_MS < decay.open_time < START + 82 * 24 * HOUR_MS
    assert decay.statistic >= decay.threshold
    assert decay.id == f"binance:spot:BTCUSDT:1h:{decay.open_time}:{VERSION}:decay:{decay.kind}"
    score = board.score(STATE, 5)
    assert (score.decay.detected, score.decay.kind, score.decay.since) == (True, decay.kind, decay.since)


def test_a_revised_outcome_neither_repeats_an_alarm_nor_swallows_one() -> None:
    days = broken(100, 0.4)
    _, before = scoreboard.alarms(USUAL, days)
    (alarm,) = before
    at = next(i for i, o in enumerate(days) if o.open_time == alarm.open_time)
    # The outcome that raised the alarm becomes usual: the alarm comes a day later, and was published already.
    moved = [*days[:at], msgspec.structs.replace(days[at], realized=days[at].model_volatility * 0.9), *days[at + 1 :]]
    _, after = scoreboard.alarms(USUAL, moved)
    assert [a.open_time for a in after] != [a.open_time for a in before]
    assert scoreboard.unpublished([alarm.open_time], after) == []
    assert scoreboard.unpublished([], after) == list(after)
