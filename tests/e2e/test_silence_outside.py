"""No command sends anything to another machine or writes into the user's home, as the system's calls show.

strace records them, because libraries do this in native code, which no hook of Python sees. The home is empty, and the
variables are unset by which libraries recognise an unattended run (CI) or are told not to report.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from programs import need

from stream.adapters.candles import files
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate

pytestmark = pytest.mark.fault(54)

_INHERITED = ("PATH", "PYTHONPATH", "LANG", "VIRTUAL_ENV")
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_DNS = "53"
START = 1_704_067_200_000
HISTORY = 3_360


@dataclass
class Watched:
    """A command in a home of its own; every network call of it and of its children is recorded."""

    folder: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("home", "tmp", "work"):
            (self.folder / name).mkdir(parents=True)
        kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        places = {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp")}
        self.environment = {**kept, **places, "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        # -D: the command is the test's child, and strace the command's; signals and exit codes are the command's own.
        strace = need("strace")
        trace = [strace, "-D", "-f", "-qq", "--seccomp-bpf", "-s", "64", "-o", self._calls]
        kinds = ["-e", "trace=connect,sendto,sendmsg,sendmmsg", "-e", "signal=none"]
        with (self.folder / "err.txt").open("w") as err, (self.folder / "out.txt").open("w") as out:
            return subprocess.Popen(
                [*map(str, trace), *kinds, "--", sys.executable, *map(str, arguments)],
                env=self.environment,
                cwd=self.folder / "work",
                stdout=out,
                stderr=err,
                text=True,
            )

    def run(self, *arguments: object) -> None:
        assert self.start(*arguments).wait(timeout=400) == 0, self.errors

    @property
    def _calls(self) -> Path:
        return self.folder / "calls.txt"

    @property
    def errors(self) -> str:
        return (self.folder / "err.txt").read_text()

    def breaches(self) -> list[str]:
        """Returns the calls that address another machine or a name server, wherever that is."""
        return [line for line in self._calls.read_text(errors="replace").splitlines() if _reaches_out(line)]

    def written(self) -> list[str]:
        """Returns the files in the home, and those left behind in the folder for temporary files."""
        places = [self.folder / "home", self.folder / "tmp"]
        return [str(p.relative_to(self.folder)) for place in places for p in place.rglob("*")]


def _reaches_out(line: str) -> bool:
    hosts = [v4 or v6 for v4, v6 in _ADDRESS.findall(line)]
    outside = any(not (host.startswith("127.") or host in ("::1", "::ffff:127.0.0.1")) for host in hosts)
    return outside or (bool(hosts) and _DNS in _PORT.findall(line))


@pytest.fixture(scope="module")
def candle_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A candle file with as many hours after 2023 as a backtest needs."""
    path = tmp_path_factory.mktemp("candles") / "btc.parquet"
    files.write(simulate(["BTCUSDT"], START - HISTORY * HOUR_MS, HISTORY + 1_000, 11)["BTCUSDT"], path)
    return path


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "watched")


def test_a_name_that_a_child_asks_for_in_native_code_is_heard(watched: Watched) -> None:
    code = "import subprocess; subprocess.run(['getent', 'ahosts', 'volcast.invalid'])"
    watched.run("-c", code)
    assert watched.breaches()


def test_what_onnxruntime_leaves_in_a_home_without_us_is_found(watched: Watched) -> None:
    watched.run("-c", "import onnxruntime")
    assert any("onnxruntime" in name for name in watched.written())


@pytest.mark.parametrize(
    "module", ["stream.adapters.predictor", "training.data.dataset", "monitor.drift.detection", "export.parity"]
)
def test_nor_is_there_anything_where_it_comes_in_with_a_part_of_us(watched: Watched, module: str) -> None:
    watched.run("-c", f"import {module}, onnxruntime")
    assert watched.breaches() == []
    assert watched.written() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--from", "2024-01-10", "--out", "predicted.csv"],
        ["drift", "--out", "drift.html", "--json", "drift.json", "--memory-mb", "2048"],
        ["report", "--from", "2024-01-03", "--to", "2024-01-10", "--out", "pages"],
        ["backtest", "--from", "2024-01-01", "--to", "2024-02-05", "--html", "risk.html", "--figure", "risk.svg"],
        ["evaluate", "--from", "2024-01-01", "--to", "2024-02-05", "--no-tests", "--html", "e.html"],
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_a_command_on_a_file_speaks_to_nobody_and_leaves_nothing(
    watched: Watched, candle_file: Path, arguments: list[str]
) -> None:
    # Even where telemetry is asked for: the promise does not depend on a variable.
    watched.environment["ORT_DISABLE_TELEMETRY"] = "0"
    command, *rest = arguments
    watched.run("-P", "-m", "stream", command, "--candles", candle_file, *rest)
    assert watched.breaches() == []
    assert watched.written() == []


@pytest.mark.timeout(400)
def test_a_demo_with_its_drift_run_speaks_to_nobody_and_leaves_nothing(
    watched: Watched, until: Callable[..., Any]
) -> None:
    demo = watched.start("-P", "-m", "stream", "demo", "--speed", 600, "--http-port", 0)
    _until_its_drift_run(demo, watched, until)
    assert watched.breaches() == []
    assert watched.written() == []


@pytest.mark.timeout(400)
def test_a_node_speaks_to_its_exchange_and_its_broker_alone(
    watched: Watched, volcast: Callable[..., Any], mosquitto: Any, candle_file: Path, until: Callable[..., Any]
) -> None:
    tape = ["--candles", candle_file, "--from", "2024-01-03", "--speed", 600, "--ws-port", 0, "--rest-port", 0]
    exchange = volcast("exchange", *tape)
    node = watched.start(
        "-P", "-m", "stream", "run", "--ws-url", exchange.find(r"--ws-url (\S+)"), "--rest-url",
        exchange.find(r"--rest-url (\S+)"), "--mqtt-url", mosquitto.url, "--http-port", 0, "--time-scale", 600,
    )  # fmt: skip
    _until_its_drift_run(node, watched, until)
    assert watched.breaches() == []
    assert watched.written() == []


def _until_its_drift_run(node: subprocess.Popen[str], watched: Watched, until: Callable[..., Any]) -> None:
    """Waits for the first drift run, whose process is niced and late on a busy machine; then sends SIGTERM."""
    try:
        until(lambda: node.poll() is not None or "drift of 30 days" in watched.errors, "the first drift run", 300.0)
        node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=30) == 0, watched.errors
    finally:
        if node.poll() is None:
            node.kill()
            node.wait()
