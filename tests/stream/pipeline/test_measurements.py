"""What the node measures of itself, and what it logs of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from stream.clock import Clock
from stream.core.market.exchange_time import ExchangeTime
from stream.pipeline.measurements import Measurements

START = 1_704_067_200_000


@pytest.mark.fault(40)
def test_a_jump_of_the_exchanges_clock_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    nobody: Any = None
    now_s = 0.0
    time = ExchangeTime()
    clock = Clock(monotonic_s=lambda: now_s)
    measurements = Measurements(
        Path(), journal=nobody, worker=nobody, exchange_time=time, clock=clock, observe=lambda fact: None
    )
    assert measurements.exchange_time() is None
    for now_s, server_s in ((0.0, 0), (1.0, 1), (2.0, 86_402), (3.0, None), (4.0, 4), (5.0, 5)):
        if server_s is not None:
            time.observe(START + server_s * 1_000, now_s, now_s)
        with caplog.at_level(logging.INFO, "stream.pipeline.measurements"):
            answered = measurements.exchange_time()
    assert answered == START + 5_000
    jump, settled = caplog.messages
    assert jump == "the exchange's clock jumped by +86400 s; not believed until it says so again"
    assert settled.startswith("the exchange's clock is settled: it is 2024-01-01 00:00")
