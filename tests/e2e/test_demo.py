"""`volcast demo` as people run it: on a busy machine, on terminals of any width; its exchange as another process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from programs import need

from stream.testing.broker import EmbeddedBroker

EIGHT = "BTCUSDT,ETHUSDT,SOLUSDT,XRPUSDT,DOGEUSDT,LTCUSDT,ADAUSDT,BNBUSDT"


class Screen:
    """What a terminal shows of the bytes that it received: lines, and the cursor moves that a live table makes."""

    def __init__(self) -> None:
        self.lines = [""]
        self._row = self._column = 0

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
            if part == "\r":
                self._column = 0
            elif part == "\n":
                self._row, self._column = self._row + 1, 0
                if self._row == len(self.lines):
                    self.lines.append("")
            elif part.startswith("\x1b"):
                self._control(part[2:-1], part[-1])
            else:
                line = self.lines[self._row].ljust(self._column)
                self.lines[self._row] = line[: self._column] + part + line[self._column + len(part) :]
                self._column += len(part)

    def _control(self, number: str, kind: str) -> None:
        if kind == "A":
            self._row = max(0, self._row - int(number or 1))
        elif kind == "K":
            self.lines[self._row] = ""


class Terminal:
    """A `volcast` command on a pseudo-terminal of that many columns."""

    def __init__(self, *args: object, columns: int) -> None:
        self._end, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "stream", *map(str, args)],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"},
        )  # fmt: skip
        os.close(theirs)
        self.screen = Screen()

    def until(self, found: Callable[[list[str]], Any]) -> Any:
        """Reads on until `found(lines)` is true, and fails where the command ends before."""
        while not (answer := found(self.screen.lines)):
            assert self._read(), "\n".join(self.screen.lines)
        return answer

    def _read(self) -> bool:
        ready, _, _ = select.select([self._end], [], [], 120.0)
        # EIO: the other end has been closed.
        with contextlib.suppress(OSError):
            text = os.read(self._end, 65_536).decode() if ready else ""
            self.screen.feed(text)
            return bool(text)
        return False

    def rest(self) -> list[str]:
        while self._read():
            pass
        return self.screen.lines

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        os.close(self._end)


@pytest.fixture
def busy() -> Iterator[None]:
    """Keeps every core busy with something else."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


@pytest.mark.fault(58)
@pytest.mark.timeout(900)
@pytest.mark.parametrize("symbols", ["BTCUSDT", "BTCUSDT,ETHUSDT,SOLUSDT", EIGHT])
def test_a_demo_on_a_busy_machine_is_ready_publishes_all_and_runs_drift_for_each_symbol(
    symbols: str, busy: None, volcast: Callable[..., Any], tmp_path: Path, until: Callable[..., Any]
) -> None:
    names = symbols.split(",")
    demo = volcast(
        "demo", "--hours", 20, "--symbols", symbols, "--http-port", 0, "--data-dir", tmp_path / "data",
        "--json", tmp_path / "demo.json",
    )  # fmt: skip
    until(lambda: demo.popen.poll() is not None, "the demo's end", 600.0)
    assert demo.popen.returncode == 0, demo.err
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["forecasts"] == figures["decisions"] == 20 * len(names)
    assert figures["gap_hours"] == 0
    assert set(figures["drift"]) == set(names)
    assert "node demo is ready" in demo.err
    assert "feed is gap" not in demo.err
    assert f"{20 * len(names)} forecasts and as many decisions" in demo.out
    for name in names:
        assert re.search(rf"^{name}: drift (not )?detected in 30 days", demo.out, re.MULTILINE)


@pytest.mark.fault(57)
def test_a_stall_of_the_simulated_exchange_is_one_change_of_the_nodes_state_and_back(
    volcast: Callable[..., Any], until: Callable[..., Any], subscribe: Callable[..., Any], tmp_path: Path
) -> None:
    exchange = volcast("exchange", "--symbols", "DEMOUSDT", "--ws-port", 0, "--rest-port", 0, PYTHONUNBUFFERED="1")
    ws_url = exchange.find(r"--ws-url (\S+)")
    rest_url = exchange.find(r"--rest-url (\S+)")
    # The history comes so late that the exchange's clock would be hours behind the node's if it waited for a listener.
    slow = {"fault": "slow_rest", "seconds": 8, "path": "/api/v3/klines"}
    assert httpx.post(f"{rest_url}/control/fault", json=slow, trust_env=False).status_code == 200
    with EmbeddedBroker() as broker:
        subscriber = subscribe(broker.port)
        node = volcast(
            "run", "--symbols", "DEMOUSDT", "--ws-url", ws_url, "--rest-url", rest_url, "--mqtt-url", broker.url,
            "--http-port", 0, "--data-dir", tmp_path / "data", "--time-scale", 3_600, "--instance", "demo",
        )  # fmt: skip

        def states() -> list[str]:
            published = [p["state"] for p in subscriber.payloads("node/demo/state")]
            return [state for state, before in zip(published, [None, *published], strict=False) if state != before]

        def forecasts() -> int:
            return len(subscriber.messages("event/forecast.issued"))

        until(lambda: states()[-1:] == ["ready"], "a node that is ready")
        until(lambda: forecasts() >= 12, "12 forecasts")
        exchange.popen.send_signal(signal.SIGSTOP)
        until(lambda: states()[-1] == "degraded", "a node that misses its candles")
        exchange.popen.send_signal(signal.SIGCONT)
        until(lambda: states()[-1] == "ready", "a node that is ready again")
        since = forecasts()
        until(lambda: forecasts() >= since + 15, "15 more forecasts")
        assert states() == ["starting", "ready", "degraded", "ready"]
        assert node.stop() == 0


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_demos_table_shows_whole_figures_and_leaves_warnings_on_the_screen(columns: int) -> None:
    terminal = Terminal("demo", "--http-port", 0, "--symbols", "BTCUSDT,1000SATSUSDT", columns=columns)
    with contextlib.closing(terminal):
        rest_url = terminal.until(lambda lines: re.search(r"exchange\s+(http\S+)/control", "\n".join(lines)))[1]
        # Forecast, interval, realized, HAR, served, exposure, action, regime.
        found = [
            r"\d+\.\d%",
            r"\d+%-\d+%",
            r"\d+\.\d%",
            r"\d+\.\d%",
            "(model|har)",
            r"\d+%",
            "(hold|increase|reduce)",
            r"\w+",
        ]
        whole = re.compile(" .*".join(found))

        def all_parts(lines: list[str]) -> list[str] | None:
            """Returns the screen once every part of the table is drawn."""
            return lines if whole.search(" ".join(line for line in lines if line.startswith("BTCUSDT"))) else None

        shown = [line.rstrip() for line in terminal.until(all_parts)]
        assert max(len(line) for line in shown if line.startswith(("symbol", "BTCUSDT", "1000SATS"))) <= columns
        assert "…" not in "\n".join(shown)
        junk = {"fault": "malformed", "kinds": ["not_json"]}
        assert httpx.post(f"{rest_url}/control/fault", json=junk, trust_env=False).status_code == 200
        warning = "a frame is skipped"
        terminal.until(lambda lines: warning in " ".join(lines))
        issued = re.compile(r"· (\d+) forecasts ·")

        def count(lines: list[str]) -> int:
            return max((int(number) for number in issued.findall("\n".join(lines))), default=0)

        before = count(terminal.screen.lines)
        terminal.until(lambda lines: count(lines) > before + 5)
        assert sum(warning in line for line in terminal.screen.lines) == 1
        terminal.popen.send_signal(signal.SIGINT)
        end = terminal.rest()
        assert terminal.popen.wait(15) == 0, end
    # The last table stays, with the summary.
    assert any(line.startswith("1000SATSUSDT") for line in end)
    assert "forecasts and as many decisions" in "\n".join(end)


def test_a_person_sees_forecast_and_decision_of_a_node_in_its_first_hours(
    volcast: Callable[..., Any], until: Callable[..., Any], tmp_path: Path
) -> None:
    # An hour a minute: nothing can have matured yet.
    demo = volcast("demo", "--http-port", 0, "--speed", 60, "--symbols", "BTCUSDT,ETHUSDT", PYTHONUNBUFFERED="1")
    url = demo.find(r"page\s+(http\S+)")
    demo.find(r"(node demo is ready)")
    until(lambda: httpx.get(f"{url}api/v1/score/ETHUSDT", trust_env=False).status_code == 200, "the first score")
    chromium = need("chromium")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=4000", "--dump-dom", url,
    ]  # fmt: skip
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    page = " ".join(page.split())
    assert 'id="state">ready<' in page
    for symbol in ("BTCUSDT", "ETHUSDT"):
        assert re.search(rf'data-testid="forecast-{symbol}">\d+\.\d % \(\d+\.\d % to \d+\.\d %\)<', page), page
        assert re.search(rf'data-testid="decision-{symbol}">hold \d+\.\d % \(', page)
        assert f'data-testid="score-{symbol}">none yet' in page
    assert ">cannot be shown" not in page
    assert demo.stop() == 0
