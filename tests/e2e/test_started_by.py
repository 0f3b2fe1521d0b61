"""A node by the way it is started: by `nohup`, on a terminal that is closed, by a supervisor, on many cores."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.fault(55)


class Node:
    """`volcast run`, started with the test's options."""

    def __init__(self, arguments: list[str], log: Any, **how: Any) -> None:
        command = [sys.executable, "-m", "stream", "run", *arguments]
        self.popen = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **how)

    def get(self, url: str) -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())


@pytest.fixture
def arguments(volcast: Callable[..., Any], mosquitto: Any, candle_file: Path, tmp_path: Path) -> list[str]:
    tape = ["--candles", candle_file, "--from", "2024-01-03", "--ws-port", 0, "--rest-port", 0]
    exchange = volcast("exchange", *tape)
    return [
        "--ws-url", exchange.find(r"--ws-url (\S+)"), "--rest-url", exchange.find(r"--rest-url (\S+)"),
        "--mqtt-url", mosquitto.url, "--data-dir", str(tmp_path / "var"), "--time-scale", "3600",
        "--drift-period-hours", "0",
    ]  # fmt: skip


@pytest.fixture
def start(arguments: list[str]) -> Iterator[Callable[..., Node]]:
    started: list[Node] = []

    def start(log: Any, *more: str, **how: Any) -> Node:
        started.append(Node([*arguments, *more], log, **how))
        return started[-1]

    yield start
    for node in started:
        if node.popen.poll() is None:
            node.popen.kill()
            node.popen.wait()


def forecasts(metrics: str) -> float:
    lines = [line for line in metrics.splitlines() if line.startswith("volcast_forecasts_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def ignore_hangup() -> None:
    """Ignores SIGHUP, as `nohup` makes a process do."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def listening(pid: int) -> str | None:
    """Returns the URL at which a process serves HTTP, from the system's own tables; None where it does not yet."""
    sockets = set()
    with contextlib.suppress(OSError):
        sockets = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        parts = line.split()
        if parts[3] == "0A" and f"socket:[{parts[9]}]" in sockets:
            return f"http://127.0.0.1:{int(parts[1].partition(':')[2], 16)}"
    return None


def test_a_node_that_nohup_started_outlives_its_terminal(start: Callable[..., Node], until: Callable[..., Any]) -> None:
    master, slave = pty.openpty()
    node = start(slave, "--http-port", "0", preexec_fn=ignore_hangup, start_new_session=True)
    os.close(slave)
    url = until(lambda: listening(node.popen.pid), "the node's HTTP")
    until(lambda: forecasts(node.get(f"{url}/metrics")) > 0, "its first forecast")
    # The terminal is closed: from now on writing a line fails, and the process receives SIGHUP.
    os.close(master)
    node.popen.send_signal(signal.SIGHUP)
    count = forecasts(node.get(f"{url}/metrics"))
    until(lambda: forecasts(node.get(f"{url}/metrics")) > count, "another forecast")
    node.popen.send_signal(signal.SIGTERM)
    assert node.popen.wait(20) == 0


def test_a_node_whose_terminal_is_closed_says_goodbye(start: Callable[..., Node], until: Callable[..., Any]) -> None:
    node = start(subprocess.DEVNULL, "--http-port", "0")
    url = until(lambda: listening(node.popen.pid), "the node's HTTP")
    until(lambda: forecasts(node.get(f"{url}/metrics")) > 0, "its first forecast")
    node.popen.send_signal(signal.SIGHUP)
    assert node.popen.wait(20) == 0


def test_a_supervisor_that_asks_is_told_of_start_life_and_stop(
    start: Callable[..., Node], tmp_path: Path, until: Callable[..., Any]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(120)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        node = start(subprocess.DEVNULL, "--http-port", "0", env=environment)
        messages = {systemd.recv(100), systemd.recv(100)}
        while b"READY=1" not in messages:
            messages.add(systemd.recv(100))
        assert messages == {b"READY=1", b"WATCHDOG=1"}
        assert listening(node.popen.pid) is not None
        node.popen.send_signal(signal.SIGTERM)
        while systemd.recv(100) != b"STOPPING=1":
            pass
        assert node.popen.wait(20) == 0


def test_a_node_has_as_many_threads_on_one_core_as_on_all(
    start: Callable[..., Node], tmp_path: Path, until: Callable[..., Any]
) -> None:
    threads = []
    for cores in (1, 2):

        def pin(number: int = cores) -> None:
            os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:number]))

        where = ["--http-port", "0", "--data-dir", str(tmp_path / f"of{cores}"), "--instance", f"of{cores}"]
        node = start(subprocess.DEVNULL, *where, preexec_fn=pin)
        url = until(lambda pid=node.popen.pid: listening(pid), "the node's HTTP")
        until(lambda url=url, node=node: forecasts(node.get(f"{url}/metrics")) > 0, "its first forecast")
        # Threads for single calls come and go; those of a library's pool stay.
        counts = [len(list(Path(f"/proc/{node.popen.pid}/task").iterdir())) for _ in range(50)]
        threads.append(min(counts))
        node.popen.send_signal(signal.SIGTERM)
        assert node.popen.wait(20) == 0
    assert threads[0] == threads[1]
