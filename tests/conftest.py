"""Fixtures that every test may ask for: the loop-blocking detector, real candles, a model without a network."""

from __future__ import annotations

import inspect
import logging
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import programs
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from repository import REAL_DATA

from stream.core.forecasting.contract import Model
from stream.testing.sample_model import sample_model, sample_predict

settings.register_profile(
    "volcast",
    # How fast a machine is is no property of the code.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
    max_examples=40,
)
settings.load_profile("volcast")

# Under `nohup`, or in the background of a script, these are ignored, and whoever is started inherits that. A handler is
# not inherited: the processes that tests start hear what is sent to them, and this one still ignores it.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

# The processes that tests start look for programs where tests do.
os.environ["PATH"] = programs.PATH
# What tests score is no look at the test year.
os.environ["VOLCAST_LEDGER"] = ""


@pytest.fixture(autouse=True)
def _never_block_the_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails an async test whose event loop is blocked by a call that waits."""
    measuring = request.node.get_closest_marker("bench") is not None
    if measuring or not inspect.iscoroutinefunction(getattr(request, "function", None)):
        yield
        return
    with blockbuster_ctx("stream") as buster:
        for call in ("io.TextIOWrapper.write", "io.BufferedWriter.write"):
            # Log lines to stderr and pytest's capture file; nothing in the live path writes files on the loop.
            if call in buster.functions:
                buster.functions[call].deactivate()
        yield


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Gives back the log that a command run within the test has taken over."""
    root = logging.getLogger()
    names = ("stream", "training", "export", "monitor", "mqtt", "websockets", "matplotlib")
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in names}
    level = root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


@pytest.fixture
def real_data() -> Path:
    """The folder of real candles; only tests marked `real_data` may skip, and only where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real candles: {REAL_DATA} is absent")
    return REAL_DATA


@pytest.fixture
def rng() -> random.Random:
    return random.Random(7)


@pytest.fixture
def model() -> Model:
    return sample_model()


@pytest.fixture
def predict() -> Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]:
    return sample_predict


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Where skipping is forbidden (CI) a skip is a failure, except for lack of the real candles."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("VOLCAST_FORBID_SKIPS") and not hasattr(report, "wasxfail"):
        if item.get_closest_marker("real_data") and not REAL_DATA.is_dir():
            return
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and skipping is forbidden: {report.longrepr}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what to install where tests skipped for want of a program."""
    line = programs.skipped(str(report.longrepr) for report in terminalreporter.getreports("skipped"))
    if line:
        terminalreporter.write_line(line, yellow=True)
