"""kill -9, a broker that is away, a start without anybody: nothing lost, nothing twice with another value."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream.adapters.mqtt import Session, broker_client
from stream.core.candle import HOUR_MS
from stream.ports import UnreachableError

START = 1_704_067_200_000
HOURS = 240
HOLE = {START + h * HOUR_MS for h in (60, 61, 62)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


EXPECTED = [START + h * HOUR_MS for h in range(HOURS) if START + h * HOUR_MS not in HOLE]


@pytest.fixture
def exchange(volcast: Callable[..., Any], candle_file: Path) -> tuple[str, str]:
    """`volcast exchange` as a process of its own: ten candles a second, started by the first subscription."""
    process = volcast(
        "exchange", "--candles", candle_file, "--from", "2024-01-01", "--hours", HOURS, "--speed", 36_000,
        "--ws-port", 0, "--rest-port", 0,
    )  # fmt: skip
    return process.find(r"--ws-url (\S+)"), process.find(r"--rest-url (\S+)")


@pytest.fixture
def daemon(volcast: Callable[..., Any], exchange: tuple[str, str], mosquitto: Any, tmp_path: Path) -> Callable[[], Any]:
    def start() -> Any:
        return volcast(
            "run", "--ws-url", exchange[0], "--rest-url", exchange[1], "--mqtt-url", mosquitto.url,
            "--http-port", 0, "--data-dir", tmp_path / "var", "--time-scale", 36_000, "--drift-period-hours", 0,
        )  # fmt: skip

    return start


def get(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def check_values(
    subscriber: Any, rows: dict[int, dict[str, Any]], same_numbers: Callable[..., None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every candle has its forecast and decision, the same whenever it was said more than once."""
    forecasts, decisions = subscriber.payloads("event/forecast.issued"), subscriber.payloads("event/decision.issued")
    first: dict[str, dict[str, Any]] = {}
    for message in (*forecasts, *decisions):
        assert first.setdefault(message["id"], message) == message
    by_time = {d["open_time"]: d for d in decisions}
    assert sorted({f["open_time"] for f in forecasts}) == EXPECTED
    assert sorted(by_time) == EXPECTED
    for forecast in forecasts:
        same_numbers(forecast, by_time[forecast["open_time"]], rows[forecast["open_time"]])
    return forecasts, decisions


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kill_9_at_a_random_moment_changes_nothing(
    seed: int,
    daemon: Callable[[], Any],
    mosquitto: Any,
    subscribe: Callable[..., Any],
    predicted: Callable[[str], dict[int, dict[str, Any]]],
    same_numbers: Callable[..., None],
    until: Any,
) -> None:
    subscriber = subscribe(mosquitto.port, "5")
    kills = sorted(random.Random(seed).sample(range(5, HOURS - 30), 2))
    running = daemon()
    for kill in kills:
        until(lambda n=kill: len(subscriber.payloads("event/forecast.issued")) >= n, f"forecast {kill}")
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        lost = len(subscriber.payloads("node/volcast/state"))
        until(lambda: subscriber.payloads("node/volcast/state")[-1]["state"] == "lost", "the last will")
        running = daemon()
        until(
            lambda n=lost: "ready" in [p["state"] for p in subscriber.payloads("node/volcast/state")[n:]],
            "ready after lost",
        )
    until(lambda: len({p["open_time"] for p in subscriber.payloads("event/decision.issued")}) >= len(EXPECTED), "all")
    assert running.stop() == 0
    check_values(subscriber, predicted("2024-01-01"), same_numbers)
    states = [p["state"] for p in subscriber.payloads("node/volcast/state")]
    assert states[-1] == "stopped"


def test_a_broker_that_is_away_loses_nothing_and_hears_it_in_order(
    daemon: Callable[[], Any],
    mosquitto: Any,
    subscribe: Callable[..., Any],
    predicted: Callable[[str], dict[int, dict[str, Any]]],
    same_numbers: Callable[..., None],
    until: Any,
) -> None:
    subscriber = subscribe(mosquitto.port, "5")
    running = daemon()
    http = running.find(r"(http://127\.0\.0\.1:\d+)\n")
    until(lambda: len(subscriber.payloads("event/forecast.issued")) >= 10, "ten forecasts")
    mosquitto.stop()

    def waiting() -> float:
        with urllib.request.urlopen(f"{http}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith("volcast_outbox_messages ")).split()[1])

    # Over a minute of the exchange's time passes with each of these candles.
    until(lambda: waiting() >= 60, "thirty candles while the broker is away")
    status, body = get(f"{http}/readyz")
    assert (status, body["reasons"][0]) == (503, "broker not connected")
    mosquitto.start()
    until(lambda: len({p["open_time"] for p in subscriber.payloads("event/decision.issued")}) >= len(EXPECTED), "all")
    forecasts, _ = check_values(subscriber, predicted("2024-01-01"), same_numbers)
    times = [f["open_time"] for f in forecasts]
    assert times == sorted(times)
    assert get(f"{http}/readyz")[0] == 200
    assert running.stop() == 0


def test_a_start_with_nobody_there_waits_says_so_and_recovers(
    volcast: Callable[..., Any], mosquitto: Any, subscribe: Callable[..., Any], candle_file: Path, until: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    ws_port, rest_port = free_port(), free_port()
    mosquitto.stop()
    running = volcast(
        "run", "--ws-url", f"ws://127.0.0.1:{ws_port}", "--rest-url", f"http://127.0.0.1:{rest_port}",
        "--mqtt-url", mosquitto.url, "--http-port", 0, "--data-dir", tmp_path / "var", "--drift-period-hours", 0,
        "--time-scale", 36_000,
    )  # fmt: skip
    http = running.find(r"(http://127\.0\.0\.1:\d+)\n")
    until(lambda: "no broker, trying on" in running.err and "asking on" in running.err, "both causes in the log")
    status, body = get(f"{http}/readyz")
    assert status == 503
    assert body["reasons"] == ["broker not connected", "the exchange has not answered yet"]
    assert get(f"{http}/healthz")[0] == 200
    assert get(f"{http}/api/v1/forecast/BTCUSDT")[0] == 404
    mosquitto.start()
    subscriber = subscribe(mosquitto.port, "5")
    volcast(
        "exchange", "--candles", candle_file, "--from", "2024-01-01", "--hours", HOURS, "--speed", 36_000,
        "--ws-port", ws_port, "--rest-port", rest_port,
    )  # fmt: skip
    until(lambda: len(subscriber.payloads("event/forecast.issued")) >= 5, "forecasts", 90)
    until(lambda: get(f"{http}/readyz")[0] == 200, "readiness")
    assert get(f"{http}/api/v1/forecast/btcusdt")[1]["symbol"] == "BTCUSDT"
    assert running.stop() == 0
    assert "Traceback" not in running.err


def test_sigterm_with_nobody_there_ends_within_ten_seconds(volcast: Callable[..., Any], tmp_path: Path) -> None:
    running = volcast(
        "run", "--ws-url", f"ws://127.0.0.1:{free_port()}", "--rest-url", f"http://127.0.0.1:{free_port()}",
        "--mqtt-url", f"mqtt://127.0.0.1:{free_port()}", "--http-port", 0, "--data-dir", tmp_path / "var",
    )  # fmt: skip
    running.find(r"(no broker)")
    assert running.stop(timeout_s=10) == 0


def test_a_running_daemon_has_neither_training_nor_drift_libraries_in_memory(
    daemon: Callable[[], Any], mosquitto: Any, subscribe: Callable[..., Any], until: Any
) -> None:
    subscriber = subscribe(mosquitto.port, "5")
    running = daemon()
    until(lambda: len(subscriber.payloads("event/forecast.issued")) >= 5, "forecasts")
    maps = Path(f"/proc/{running.popen.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert not [name for name in ("tensorflow", "/pandas/", "evidently", "/scipy/", "polars") if name in maps]


def test_sigterm_ends_within_ten_seconds_while_a_broker_swallows_every_packet(
    volcast: Callable[..., Any], tmp_path: Path
) -> None:
    # A listener that never accepts and whose queue is full: connecting hangs, as with a host that drops packets.
    with socket.socket() as deaf, socket.socket() as filler, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for client in (filler, second):
            client.setblocking(False)
            client.connect_ex(deaf.getsockname())
        running = volcast(
            "run", "--ws-url", f"ws://127.0.0.1:{free_port()}", "--rest-url", f"http://127.0.0.1:{free_port()}",
            "--mqtt-url", f"mqtt://127.0.0.1:{deaf.getsockname()[1]}", "--http-port", 0, "--data-dir", tmp_path / "var",
        )  # fmt: skip
        running.find(r"(asking on)")
        assert running.stop(timeout_s=10) == 0


def test_a_message_the_broker_refuses_stays_in_the_outbox(
    volcast: Callable[..., Any], exchange: tuple[str, str], strict_mosquitto: Any, tmp_path: Path, until: Any
) -> None:
    async def say(topic: str) -> None:
        async with broker_client(strict_mosquitto.url, "test") as client:
            await Session(client).publish(topic, b"{}")

    asyncio.run(say("volcast/v1/node/a/state"))
    with pytest.raises(UnreachableError):
        asyncio.run(say("volcast/v1/binance/spot/BTCUSDT/1h/event/forecast.issued"))
    running = volcast(
        "run", "--ws-url", exchange[0], "--rest-url", exchange[1], "--mqtt-url", strict_mosquitto.url,
        "--http-port", 0, "--data-dir", tmp_path / "var", "--time-scale", 36_000, "--drift-period-hours", 0,
    )  # fmt: skip
    http = running.find(r"(http://127\.0\.0\.1:\d+)\n")

    def metric(name: str) -> float:
        with urllib.request.urlopen(f"{http}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"volcast_{name} ")).split()[1])

    # Nothing that was refused counts as said: two events a candle wait.
    until(lambda: metric("outbox_messages") >= 10, "waiting events")
    assert running.stop() == 0
