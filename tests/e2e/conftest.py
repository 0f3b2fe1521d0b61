"""Real parts for the end-to-end tests: Mosquitto, `volcast` commands as processes, a subscriber that keeps all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import need

from stream.adapters.candles import files
from stream.core.market.candle import HOUR_MS, Candle
from stream.testing.market import simulate

#: The tests' own market: 140 days of history before the first candle that is played.
START = 1_704_067_200_000
HISTORY = 3_360


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = 120.0) -> Any:
    """Polls the condition and returns its first true value; fails, naming `what`, where none comes in time."""
    ends = time.monotonic() + deadline_s
    while time.monotonic() < ends:
        found = condition()
        if found:
            return found
        # The pause between two polls, not a fixed wait.
        select.select([], [], [], 0.02)
    pytest.fail(f"waited {deadline_s:g} s in vain for {what}")


class Process:
    """A `volcast` command as a process, its output collected in files."""

    def __init__(self, args: list[str], folder: Path, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / "out.txt", folder / "err.txt"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "stream", *args], stdout=out, stderr=err, env={**os.environ, **environment}
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def find(self, pattern: str, deadline_s: float = 120.0) -> str:
        """Waits until the output matches the pattern, and returns its first group."""

        def look() -> re.Match[str] | None:
            if self.popen.poll() is not None:
                pytest.fail(f"the process ended with {self.popen.returncode}: {self.err[-2000:]}")
            return re.search(pattern, self.out + self.err)

        return str(wait_until(look, pattern, deadline_s).group(1))

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 15.0) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(timeout_s)

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()


class Mosquitto:
    """A real broker that can be taken away and brought back, its state on disk."""

    def __init__(self, folder: Path, rules: str = "") -> None:
        """`rules`: an access list; without one every client may do everything."""
        self._program = need("mosquitto")
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._log = folder / "mosquitto.log"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
            f"persistence_location {folder}/\nmax_queued_messages 0\nmax_inflight_messages 0\n"
        )
        if rules:
            (folder / "acl").write_text(rules)
            self._config.write_text(f"{self._config.read_text()}acl_file {folder}/acl\n")
        if os.geteuid() == 0:
            # Started by root it would change to its own user, which may not write into the test's folder.
            self._config.write_text(self._config.read_text() + "user root\n")
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self._log.open("a") as log:
            self._popen = subprocess.Popen([self._program, "-c", str(self._config)], stdout=log, stderr=log)
        wait_until(self._listens, "mosquitto")

    def _listens(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=0.2).close()
            return True
        return False

    def stop(self) -> None:
        if self._popen is not None:
            self._popen.terminate()
            self._popen.wait()
            self._popen = None


class Subscriber:
    """`mosquitto_sub`: an independent client, which writes topic and payload line by line."""

    def __init__(self, port: int, folder: Path, version: str, topic: str = "volcast/v1/#") -> None:
        program = need("mosquitto_sub")
        self._file = folder / f"sub-{version}-{port}.txt"
        command = [program, "-V", version, "-h", "127.0.0.1", "-p", str(port), "-t", topic, "-q", "1", "-F", "%r %t %p"]
        # A session of its own that survives the broker's absence.
        command += ["-i", f"sub-{version}", "-c"] + (["-x", "4294967295"] if version == "5" else [])
        with self._file.open("w") as out:
            self.popen = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)

    def messages(self, ending: str = "") -> list[tuple[str, dict[str, Any]]]:
        """Returns (topic, payload) of the live messages in order; retained copies from before are left out."""
        found = []
        for line in self._file.read_text().splitlines():
            retained, topic, payload = line.split(" ", 2)
            if retained == "0" and topic.endswith(ending) and payload:
                found.append((topic, json.loads(payload)))
        return found

    def payloads(self, ending: str) -> list[dict[str, Any]]:
        return [payload for _, payload in self.messages(ending)]

    def end(self) -> None:
        self.popen.terminate()
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            # mosquitto_sub has been seen to miss the signal.
            self.popen.kill()
            self.popen.wait()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    broker = Mosquitto(folder)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def strict_mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that accepts everything but events."""
    folder = tmp_path / "strict"
    folder.mkdir()
    broker = Mosquitto(
        folder, "topic read #\ntopic write volcast/v1/node/#\ntopic write volcast/v1/binance/spot/+/1h/+\n"
    )
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def subscribe(tmp_path: Path) -> Iterator[Callable[..., Subscriber]]:
    opened: list[Subscriber] = []

    def subscribe(port: int, version: str = "5") -> Subscriber:
        subscriber = Subscriber(port, tmp_path, version)
        opened.append(subscriber)
        return subscriber

    yield subscribe
    for subscriber in opened:
        subscriber.end()


@pytest.fixture
def volcast(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts `volcast` commands; those that still run at the end are killed."""
    started: list[Process] = []

    def start(*args: object, **environment: str) -> Process:
        process = Process([str(a) for a in args], tmp_path / f"p{len(started)}", **environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.end()


@pytest.fixture(scope="session")
def long_market() -> dict[str, list[Candle]]:
    tape = simulate(["BTCUSDT", "ETHUSDT"], START - HISTORY * HOUR_MS, HISTORY + 1_600, 11)
    # A hole in the part that is played: the exchange was down for three hours.
    holes = {START + h * HOUR_MS for h in (60, 61, 62)}
    return {symbol: [c for c in series if c.open_time not in holes] for symbol, series in tape.items()}


@pytest.fixture(scope="session")
def market(long_market: dict[str, list[Candle]]) -> dict[str, list[Candle]]:
    ends = START + 400 * HOUR_MS
    return {symbol: [c for c in series if c.open_time < ends] for symbol, series in long_market.items()}


@pytest.fixture(scope="session")
def long_candle_file(long_market: dict[str, list[Candle]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same market for tapes that a test ends itself: longer than any test plays until then."""
    path = tmp_path_factory.mktemp("candles") / "long.parquet"
    files.write(long_market["BTCUSDT"], path)
    return path


@pytest.fixture(scope="session")
def candle_file(market: dict[str, list[Candle]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("candles") / "btc.parquet"
    files.write(market["BTCUSDT"], path)
    return path


@pytest.fixture
def predicted(long_candle_file: Path, tmp_path: Path) -> Callable[[str], dict[int, dict[str, Any]]]:
    """Runs `volcast predict` on the tests' market; returns its rows by open time."""
    import polars as pl

    def predict(since: str) -> dict[int, dict[str, Any]]:
        out = tmp_path / "predicted.parquet"
        command = ["predict", "--candles", long_candle_file, "--from", since, "--out", out]
        subprocess.run([sys.executable, "-m", "stream", *map(str, command)], check=True, capture_output=True)
        table = pl.read_parquet(out).with_columns(pl.col("open_time", "close_time").dt.epoch("ms"))
        return {row["open_time"]: row for row in table.iter_rows(named=True)}

    return predict


@pytest.fixture
def same_numbers() -> Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]:
    """Asserts that a forecast and a decision from MQTT have the values of a row of `predict`, to 1e-9."""

    def compare(forecast: dict[str, Any], decision: dict[str, Any], row: dict[str, Any]) -> None:
        volatility, baselines = forecast["volatility"], forecast["baselines"]
        horizons = {h["hours"]: h["hourly"] for h in forecast["horizons"]}
        numbers = {
            "volatility_hourly": volatility["hourly"],
            "volatility_low": volatility["low"],
            "volatility_high": volatility["high"],
            **{f"horizon_{h}h": horizons[h] for h in (1, 6, 12, 24)},
            "rolling_24h_next": forecast["rolling_24h_next"],
            "realized_24h": forecast["realized_24h"],
            **{f"baseline_{name}": baselines[name] for name in ("persistence", "ewma", "har")},
            "exposure": decision["exposure"],
        }
        assert numbers == {name: pytest.approx(row[name], rel=1e-9) for name in numbers}
        words = {
            "id": forecast["id"],
            "symbol": forecast["symbol"],
            "open_time": forecast["open_time"],
            "close_time": forecast["close_time"],
            "regime": decision["regime"],
            "action": decision["action"],
            "quality": forecast["input"]["quality"],
        }
        assert words == {name: row[name] for name in words}
        assert decision["forecast_id"] == forecast["id"]
        assert decision["open_time"] == forecast["open_time"]
        assert volatility["annualized"] == pytest.approx(volatility["hourly"] * 8_760**0.5, rel=1e-12)

    return compare


@pytest.fixture
def until() -> Callable[..., Any]:
    return wait_until
