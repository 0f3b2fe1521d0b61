"""Silence of the stream, and limits on control frames and connects, on an injected clock."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.adapters.backoff import Backoff, ConnectBudget
from stream.adapters.feed.control_frames import PER_SECOND, ControlFrames
from stream.adapters.feed.silence import Silence
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.market.exchange_time import ExchangeTime

START = 1_704_067_200_000


def candle(symbol: str, volume: float = 1.0) -> Candle:
    return Candle(symbol, START, 1.0, 1.0, 1.0, 1.0, volume)


def test_silence_is_suspected_after_its_time_and_not_before() -> None:
    silence = Silence(["A", "B"], {}, 0.0, 60.0)
    silence.received(candle("A"), 30.0)
    assert silence.suspects(59.9) == []
    assert silence.suspects(60.0) == ["B"]
    assert not silence.total(60.0)
    assert silence.suspects(90.0) == ["B", "A"]
    assert silence.total(90.0)
    silence.excuse(90.0)
    assert silence.suspects(149.0) == []


def test_rest_is_the_arbiter() -> None:
    silence = Silence(["A"], {}, 0.0, 60.0)
    assert silence.has_news("A", candle("A")) is None
    assert silence.has_news("A", candle("A")) is False
    assert silence.has_news("A", candle("A", 2.0)) is True
    assert silence.has_news("A", None) is False


def test_a_stream_that_stays_mute_is_woken_less_and_less_often() -> None:
    silence = Silence(["A", "B"], {}, 0.0, 60.0)
    now_s, attempts = 0.0, []
    while now_s < 86_400:
        now_s += 1.0
        silence.received(candle("B"), now_s)
        if silence.suspects(now_s):
            silence.woken("A", now_s)
            attempts.append(now_s)
    assert attempts[:3] == [60.0, 120.0, 240.0]
    assert len(attempts) < 32
    # A frame ends the suspicion.
    silence.received(candle("A"), now_s)
    assert silence.suspects(now_s + 60) == ["A", "B"]


@given(st.lists(st.tuples(st.sampled_from(["json", "pong"]), st.floats(0, 0.6)), max_size=60))
def test_no_second_holds_more_json_than_leaves_room_for_a_pong(wishes: list[tuple[str, float]]) -> None:
    now = [0.0]
    frames = ControlFrames(lambda: now[0])
    sent: list[tuple[float, str]] = []
    for kind, after_s in wishes:
        now[0] += after_s
        # The exchange pings every 20 s, so there is no more than one pong a second.
        if kind == "pong" and not any(k == "pong" and now[0] - t < 1.1 for t, k in sent):
            frames.pong()
            sent.append((now[0], "pong"))
        elif kind == "json":
            while (wait_s := frames.wait_s()) > 0:
                now[0] += wait_s
            frames.json_sent()
            sent.append((now[0], "json"))
    for at_s, _ in sent:
        assert sum(at_s <= t < at_s + 1.0 for t, _ in sent) <= PER_SECOND
    json_at_s = [t for t, k in sent if k == "json"]
    assert all(b - a >= 0.25 - 1e-9 for a, b in itertools.pairwise(json_at_s))


@pytest.mark.fault(6)
def test_no_five_minutes_hold_more_attempts_than_the_budget() -> None:
    now = [0.0]
    budget, rng = ConnectBudget(lambda: now[0], attempts=100), random.Random(3)
    backoff = Backoff(rng, first_s=0.01, cap_s=0.01)
    spent: list[float] = []
    for _ in range(1_000):
        now[0] += backoff.next_s()
        now[0] += budget.wait_s()
        budget.spend()
        spent.append(now[0])
    assert max(sum(t <= u < t + 300 for u in spent) for t in spent) == 100


def test_a_calm_moment_is_far_from_a_close() -> None:
    time = ExchangeTime()
    assert time.until_calm_s(0.0) == 0.0
    for _ in range(2):
        time.observe(START, 0.0)
    for second in range(0, 7_200, 7):
        wait_s = time.until_calm_s(float(second))
        into_s = (second + wait_s) % (HOUR_MS / 1_000)
        assert 120 <= into_s <= 3_600 - 120
    assert ExchangeTime(3_600.0).until_calm_s(5.0) == 0.0
