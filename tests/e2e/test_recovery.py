"""kill -9, a broker that is away, a start without any peer: nothing lost, nothing published with two values."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

from stream.adapters.journal.store import SqliteJournal
from stream.adapters.mqtt.broker import Session, broker_client
from stream.core.market.candle import HOUR_MS
from stream.errors import UnreachableError

START = 1_704_067_200_000
#: Longer than any test plays until it has seen what it waits for and ends the tape.
HOURS = 1_500
SPEED = 18_000
HOLE = {START + h * HOUR_MS for h in (60, 61, 62)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_tape(rest_url: str) -> list[int]:
    """Ends the exchange's tape with the running hour; returns the open times of all its candles."""
    order = urllib.request.Request(f"{rest_url}/control/fault", b'{"fault": "end"}')
    with urllib.request.urlopen(order, timeout=30) as answer:
        end_ms = json.load(answer)["end_ms"]
    return [t for t in range(START, end_ms, HOUR_MS) if t not in HOLE]


def all_decided(exchange: tuple[str, str], subscriber: Any, until: Any) -> list[int]:
    """Ends the tape and waits for the decision on each of its candles; returns their open times."""
    expected = end_tape(exchange[1])
    until(lambda: {p["open_time"] for p in subscriber.payloads("event/decision.issued")} >= set(expected), "all")
    return expected


@pytest.fixture
def exchange(volcast: Callable[..., Any], long_candle_file: Path) -> tuple[str, str]:
    """`volcast exchange` as a process of its own: five candles a second from a client's first request for the time."""
    process = volcast(
        "exchange", "--candles", long_candle_file, "--from", "2024-01-01", "--hours", HOURS, "--speed", SPEED,
        "--ws-port", 0, "--rest-port", 0,
    )  # fmt: skip
    return process.find(r"--ws-url (\S+)"), process.find(r"--rest-url (\S+)")


@pytest.fixture
def daemon(volcast: Callable[..., Any], exchange: tuple[str, str], mosquitto: Any, tmp_path: Path) -> Callable[[], Any]:
    def start() -> Any:
        return volcast(*run_arguments(exchange, mosquitto.url, tmp_path / "var"))

    return start


def run_arguments(exchange: tuple[str, str], mqtt_url: str, data_dir: Path) -> list[object]:
    return [
        "run", "--ws-url", exchange[0], "--rest-url", exchange[1], "--mqtt-url", mqtt_url,
        "--http-port", 0, "--data-dir", data_dir, "--time-scale", SPEED, "--drift-period-hours", 0,
    ]  # fmt: skip


def get(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def check_values(
    subscriber: Any, rows: dict[int, dict[str, Any]], same_numbers: Callable[..., None], expected: list[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Asserts that every candle has its forecast and decision, with one value however often it was published."""
    forecasts, decisions = subscriber.payloads("event/forecast.issued"), subscriber.payloads("event/decision.issued")
    first: dict[str, dict[str, Any]] = {}
    for message in (*forecasts, *decisions):
        assert first.setdefault(message["id"], message) == message
    by_time = {d["open_time"]: d for d in decisions}
    assert sorted({f["open_time"] for f in forecasts}) == expected
    assert sorted(by_time) == expected
    for forecast in forecasts:
        same_numbers(forecast, by_time[forecast["open_time"]], rows[forecast["open_time"]])
    return forecasts, decisions


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kill_9_at_a_random_moment_changes_nothing(
    seed: int,
    exchange: tuple[str, str],
    daemon: Callable[[], Any],
    mosquitto: Any,
    subscribe: Callable[..., Any],
    predicted: Callable[[str], dict[int, dict[str, Any]]],
    same_numbers: Callable[..., None],
    until: Any,
) -> None:
    subscriber = subscribe(mosquitto.port, "5")
    kills = sorted(random.Random(seed).sample(range(5, 100), 2))
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
    expected = all_decided(exchange, subscriber, until)
    assert running.stop() == 0
    check_values(subscriber, predicted("2024-01-01"), same_numbers, expected)
    states = [p["state"] for p in subscriber.payloads("node/volcast/state")]
    assert states[-1] == "stopped"


STEPS = ("receive", "commit", "publish", "acknowledge", "prune")
MOMENTS = ("before", "after")


@pytest.mark.fault(28)
def test_kill_9_before_and_after_every_step_gives_the_same_journal_and_the_same_messages(
    exchange: tuple[str, str],
    mosquitto: Any,
    daemon: Callable[[], Any],
    subscribe: Callable[..., Any],
    predicted: Callable[[str], dict[int, dict[str, Any]]],
    same_numbers: Callable[..., None],
    tmp_path: Path,
    until: Any,
) -> None:
    subscriber = subscribe(mosquitto.port, "5")
    arguments = [str(a) for a in run_arguments(exchange, mosquitto.url, tmp_path / "var")]
    for step, moment in itertools.product(STEPS, MOMENTS):
        command = [sys.executable, str(ROOT / "tests" / "support" / "killed.py"), step, moment, "3", *arguments]
        killed = subprocess.run(command, timeout=240, check=False, stderr=subprocess.PIPE, text=True)
        assert killed.returncode == -signal.SIGKILL, (step, moment, killed.stderr[-1_000:])
    running = daemon()
    expected = all_decided(exchange, subscriber, until)
    assert running.stop() == 0
    # The messages are those of a run that is not killed, and none has two values, the time of issue included.
    forecasts, decisions = check_values(subscriber, predicted("2024-01-01"), same_numbers, expected)
    check_journal(tmp_path / "var", forecasts, decisions, expected)


def check_journal(
    data_dir: Path, forecasts: list[dict[str, Any]], decisions: list[dict[str, Any]], expected: list[int]
) -> None:
    """Asserts that the journal holds exactly what was published, and that the outbox is empty."""
    with contextlib.closing(SqliteJournal(data_dir, read_only=True)) as journal:
        assert [c.open_time for c in journal.candles("BTCUSDT", START, 2**60)] == expected
        for table, published in (("forecasts", forecasts), ("decisions", decisions)):
            held = [json.loads(row) for row in journal.messages(table, "BTCUSDT", START, None, 10_000)]
            assert {m["id"]: m for m in held} == {m["id"]: m for m in published}
            assert len(held) == len(expected)
        assert journal.outbox() == []


@pytest.mark.fault(29)
@pytest.mark.parametrize("damage", ["truncated", "overwritten", "no database"])
def test_a_damaged_journal_is_rebuilt_and_no_hour_is_passed_over(
    damage: str,
    exchange: tuple[str, str],
    daemon: Callable[[], Any],
    mosquitto: Any,
    subscribe: Callable[..., Any],
    predicted: Callable[[str], dict[int, dict[str, Any]]],
    tmp_path: Path,
    until: Any,
) -> None:
    subscriber = subscribe(mosquitto.port, "5")
    running = daemon()
    until(lambda: len(subscriber.payloads("event/forecast.issued")) >= 40, "forty forecasts")
    # Stopped, so that the outbox is empty: damage would destroy what a killed node had still to publish.
    assert running.stop() == 0
    journal = tmp_path / "var" / "journal.sqlite"
    # A write-ahead log that the process left would repair the file: it is removed too.
    with contextlib.closing(sqlite3.connect(journal)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = journal.stat().st_size
    with journal.open("r+b") as file:
        if damage == "truncated":
            file.truncate(size * 2 // 3)
        elif damage == "overwritten":
            file.seek(size // 2)
            file.write(b"\xa5" * 40_960)
        else:
            file.write(b"\xa5" * 4_096)
    before = {f["open_time"] for f in subscriber.payloads("event/forecast.issued")}
    running = daemon()
    running.find(r"(journal \S+ was damaged .*kept as journal.sqlite.corrupt-\S+, a new one holds)")
    expected = end_tape(exchange[1])
    until(lambda: max(f["open_time"] for f in subscriber.payloads("event/forecast.issued")) == expected[-1], "the end")
    until(lambda: subscriber.payloads("event/decision.issued")[-1]["open_time"] == expected[-1], "the last decision")
    assert running.stop() == 0
    again = daemon()
    again.find("(node volcast is ready|connected to the MQTT broker)")
    assert again.stop() == 0
    assert "damaged" not in again.err
    rows = predicted("2024-01-01")
    forecasts = subscriber.payloads("event/forecast.issued")
    for forecast in forecasts:
        assert forecast["volatility"]["hourly"] == pytest.approx(rows[forecast["open_time"]]["volatility_hourly"])
    published = {f["open_time"] for f in forecasts}
    if damage == "no database":
        # Nothing was left to show how far it had come: it begins anew, with the newest closed hour.
        assert [t for t in expected if t >= min(published - before)] == sorted(
            t for t in published if t >= min(published - before)
        )
    else:
        assert sorted(published) == expected


@pytest.mark.fault(29)
def test_a_backup_made_beside_the_running_daemon_can_be_put_in_its_place(
    exchange: tuple[str, str],
    daemon: Callable[[], Any],
    volcast: Callable[..., Any],
    mosquitto: Any,
    subscribe: Callable[..., Any],
    predicted: Callable[[str], dict[int, dict[str, Any]]],
    same_numbers: Callable[..., None],
    tmp_path: Path,
    until: Any,
) -> None:
    subscriber = subscribe(mosquitto.port, "5")
    running = daemon()
    until(lambda: len(subscriber.payloads("event/forecast.issued")) >= 20, "twenty forecasts")
    copy, var = tmp_path / "copy.sqlite", tmp_path / "var"
    backup = volcast("backup", "--data-dir", var, copy)
    assert backup.popen.wait(240) == 0, backup.err
    refused = volcast("backup", "--data-dir", var, copy)
    assert refused.popen.wait(240) == 1
    assert "is not replaced" in refused.err
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        candles, forecasts = (db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("candles", "forecasts"))
    # A snapshot of one moment: as many candles as were processed, none of them without its forecast.
    assert forecasts >= 19
    assert candles == 2_880 + forecasts - 1
    published = len(subscriber.payloads("event/forecast.issued"))
    until(lambda: len(subscriber.payloads("event/forecast.issued")) >= published + 20, "life after the backup")
    running.stop(signal.SIGKILL)
    for left in var.glob("journal.sqlite*"):
        left.unlink()
    copy.rename(var / "journal.sqlite")
    running = daemon()
    expected = end_tape(exchange[1])
    until(lambda: subscriber.payloads("event/decision.issued")[-1]["open_time"] == expected[-1], "the end")
    assert running.stop() == 0
    rows = predicted("2024-01-01")
    decisions = {d["open_time"]: d for d in subscriber.payloads("event/decision.issued")}
    assert sorted(decisions) == expected
    for forecast in subscriber.payloads("event/forecast.issued"):
        same_numbers(forecast, decisions[forecast["open_time"]], rows[forecast["open_time"]])


@pytest.mark.fault(29)
def test_a_full_disk_stops_the_messages_and_not_the_node(
    exchange: tuple[str, str],
    daemon: Callable[[], Any],
    mosquitto: Any,
    subscribe: Callable[..., Any],
    predicted: Callable[[str], dict[int, dict[str, Any]]],
    same_numbers: Callable[..., None],
    tmp_path: Path,
    until: Any,
) -> None:
    subscriber = subscribe(mosquitto.port, "5")
    running = daemon()
    http = running.find(r"(http://127\.0\.0\.1:\d+)\n")
    until(lambda: len(subscriber.payloads("event/forecast.issued")) >= 20, "twenty forecasts")
    # No file of the process may grow from here on: for SQLite the same as a disk without room.
    resource.prlimit(running.popen.pid, resource.RLIMIT_FSIZE, (4_096, resource.RLIM_INFINITY))
    until(lambda: subscriber.payloads("node/volcast/state")[-1]["state"] == "degraded", "degraded")
    assert "cannot be written" in " ".join(subscriber.payloads("node/volcast/state")[-1]["reasons"])
    # What was stored before is still published.
    newest = f"{http}/api/v1/forecast/BTCUSDT"
    until(lambda: get(newest) == (200, subscriber.payloads("event/forecast.issued")[-1]), "the newest forecast")
    published = subscriber.payloads("event/forecast.issued")
    assert get(f"{http}/healthz")[0] == 200
    assert get(f"{http}/readyz")[0] == 503
    assert len(subscriber.payloads("event/forecast.issued")) == len(published)
    resource.prlimit(running.popen.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    until(lambda: subscriber.payloads("node/volcast/state")[-1]["state"] == "ready", "readiness")

    def after() -> set[str]:
        return {f["provenance"] for f in subscriber.payloads("event/forecast.issued")[len(published) :]}

    until(lambda: {"live", "backfill"} <= after(), "what was missed, and life after it")
    expected = all_decided(exchange, subscriber, until)
    assert running.stop() == 0
    forecasts, decisions = check_values(subscriber, predicted("2024-01-01"), same_numbers, expected)
    check_journal(tmp_path / "var", forecasts, decisions, expected)
    assert "Traceback" not in running.err


@pytest.mark.fault(28)
def test_weeks_of_downtime_are_refilled_oldest_first_and_said(
    volcast: Callable[..., Any],
    mosquitto: Any,
    subscribe: Callable[..., Any],
    long_candle_file: Path,
    predicted: Callable[[str], dict[int, dict[str, Any]]],
    same_numbers: Callable[..., None],
    tmp_path: Path,
    until: Any,
) -> None:
    subscriber = subscribe(mosquitto.port, "5")

    def play(since: str, hours: int) -> tuple[Any, tuple[str, str]]:
        process = volcast(
            "exchange", "--candles", long_candle_file, "--from", since, "--hours", hours, "--speed", SPEED,
            "--ws-port", 0, "--rest-port", 0,
        )  # fmt: skip
        return process, (process.find(r"--ws-url (\S+)"), process.find(r"--rest-url (\S+)"))

    first, urls = play("2024-01-01", 5)
    running = volcast(*run_arguments(urls, mosquitto.url, tmp_path / "var"))
    until(lambda: len(subscriber.payloads("event/decision.issued")) >= 5, "five forecasts")
    assert running.stop() == 0
    first.end()
    # A fortnight later: the hours since then are the exchange's history.
    _, urls = play("2024-01-16", 1_000)
    since = 1_705_363_200_000
    running = volcast(*run_arguments(urls, mosquitto.url, tmp_path / "var"))

    def is_live(forecast: dict[str, Any]) -> bool:
        return forecast["provenance"] == "live" and forecast["open_time"] > since

    until(lambda: any(is_live(f) for f in subscriber.payloads("event/forecast.issued")), "the present")
    expected = end_tape(urls[1])
    until(lambda: subscriber.payloads("event/decision.issued")[-1]["open_time"] == expected[-1], "the end")
    assert running.stop() == 0
    forecasts = subscriber.payloads("event/forecast.issued")
    assert [f["open_time"] for f in forecasts] == expected
    rows = predicted("2024-01-01")
    decisions = {d["open_time"]: d for d in subscriber.payloads("event/decision.issued")}
    for forecast in forecasts:
        same_numbers(forecast, decisions[forecast["open_time"]], rows[forecast["open_time"]])
    progress = [f for f in subscriber.payloads("BTCUSDT/1h/feed") if f["state"] == "backfilling" and f["from"]]
    # The first node asked REST too, for candles that closed while it warmed up.
    progress = [f for f in progress if f["from"] >= START + 5 * HOUR_MS]
    assert progress[0]["from"] == START + 5 * HOUR_MS
    assert progress[0]["to"] >= since - HOUR_MS
    assert {f["provenance"] for f in forecasts[5:340]} == {"backfill"}


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    "moment",
    ["connected to the MQTT broker", "feed is backfilling", "warmed up on", "feed is live", "node volcast is ready"],
)
def test_sigterm_at_any_moment_ends_in_time_and_says_stopped(
    moment: str, daemon: Callable[[], Any], mosquitto: Any, subscribe: Callable[..., Any], until: Any
) -> None:
    subscriber = subscribe(mosquitto.port, "5")
    running = daemon()
    running.find(f"({moment})")
    assert running.stop(timeout_s=10) == 0
    if "connected to the MQTT broker" in running.err:
        until(lambda: subscriber.payloads("node/volcast/state")[-1]["state"] == "stopped", "stopped")
    assert "Traceback" not in running.err


@pytest.mark.fault(28)
def test_sigterm_ends_in_time_when_broker_and_exchange_hang(
    volcast: Callable[..., Any], long_candle_file: Path, mosquitto: Any, tmp_path: Path
) -> None:
    """Both have accepted the connection, and then stop answering."""
    exchange = volcast(
        "exchange", "--candles", long_candle_file, "--from", "2024-01-01", "--hours", HOURS, "--speed", SPEED,
        "--ws-port", 0, "--rest-port", 0,
    )  # fmt: skip
    urls = exchange.find(r"--ws-url (\S+)"), exchange.find(r"--rest-url (\S+)")
    running = volcast(*run_arguments(urls, mosquitto.url, tmp_path / "var"))
    running.find("(feed is live)")
    hanging = (exchange.popen, mosquitto._popen)
    for process in hanging:
        process.send_signal(signal.SIGSTOP)
    try:
        assert running.stop(timeout_s=10) == 0
    finally:
        for process in hanging:
            process.send_signal(signal.SIGCONT)
    assert "Traceback" not in running.err


def test_a_broker_that_is_away_loses_nothing_and_hears_it_in_order(
    exchange: tuple[str, str],
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
        with urllib.request.urlopen(f"{http}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith("volcast_outbox_messages ")).split()[1])

    until(lambda: waiting() >= 60, "thirty candles while the broker is away")
    status, body = get(f"{http}/readyz")
    assert (status, body["reasons"][0]) == (503, "broker not connected")
    mosquitto.start()
    until(lambda: get(f"{http}/readyz")[0] == 200, "readiness")
    expected = all_decided(exchange, subscriber, until)
    forecasts, _ = check_values(subscriber, predicted("2024-01-01"), same_numbers, expected)
    times = [f["open_time"] for f in forecasts]
    assert times == sorted(times)
    assert running.stop() == 0


def test_a_start_with_nobody_there_waits_says_so_and_recovers(
    volcast: Callable[..., Any], mosquitto: Any, subscribe: Callable[..., Any], long_candle_file: Path, until: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    ws_port, rest_port = free_port(), free_port()
    mosquitto.stop()
    running = volcast(
        "run", "--ws-url", f"ws://127.0.0.1:{ws_port}", "--rest-url", f"http://127.0.0.1:{rest_port}",
        "--mqtt-url", mosquitto.url, "--http-port", 0, "--data-dir", tmp_path / "var", "--drift-period-hours", 0,
        "--time-scale", SPEED,
    )  # fmt: skip
    http = running.find(r"(http://127\.0\.0\.1:\d+)\n")
    until(
        lambda: "no connection to the MQTT broker" in running.err and "retrying: " in running.err,
        "both causes in the log",
    )
    status, body = get(f"{http}/readyz")
    assert status == 503
    assert body["reasons"] == ["broker not connected", "the exchange has not answered yet"]
    assert get(f"{http}/healthz")[0] == 200
    assert get(f"{http}/api/v1/forecast/BTCUSDT")[0] == 404
    mosquitto.start()
    subscriber = subscribe(mosquitto.port, "5")
    volcast(
        "exchange", "--candles", long_candle_file, "--from", "2024-01-01", "--hours", HOURS, "--speed", SPEED,
        "--ws-port", ws_port, "--rest-port", rest_port,
    )  # fmt: skip
    until(lambda: len(subscriber.payloads("event/forecast.issued")) >= 5, "forecasts")
    until(lambda: get(f"{http}/readyz")[0] == 200, "readiness")
    assert get(f"{http}/api/v1/forecast/btcusdt")[1]["symbol"] == "BTCUSDT"
    assert running.stop() == 0
    assert "Traceback" not in running.err


def test_sigterm_with_nobody_there_ends_within_ten_seconds(volcast: Callable[..., Any], tmp_path: Path) -> None:
    running = volcast(
        "run", "--ws-url", f"ws://127.0.0.1:{free_port()}", "--rest-url", f"http://127.0.0.1:{free_port()}",
        "--mqtt-url", f"mqtt://127.0.0.1:{free_port()}", "--http-port", 0, "--data-dir", tmp_path / "var",
    )  # fmt: skip
    running.find(r"(no connection to the MQTT broker)")
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
    # A listener that never accepts and whose queue is full: connecting hangs, as to a host that drops packets.
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
        running.find(r"(retrying: )")
        assert running.stop(timeout_s=10) == 0


def test_a_message_the_broker_refuses_stays_in_the_outbox(
    volcast: Callable[..., Any], exchange: tuple[str, str], strict_mosquitto: Any, tmp_path: Path, until: Any
) -> None:
    async def publish_to(topic: str) -> None:
        async with broker_client(strict_mosquitto.url, "test") as client:
            await Session(client).publish(topic, b"{}")

    asyncio.run(publish_to("volcast/v1/node/a/state"))
    with pytest.raises(UnreachableError):
        asyncio.run(publish_to("volcast/v1/binance/spot/BTCUSDT/1h/event/forecast.issued"))
    running = volcast(
        "run", "--ws-url", exchange[0], "--rest-url", exchange[1], "--mqtt-url", strict_mosquitto.url,
        "--http-port", 0, "--data-dir", tmp_path / "var", "--time-scale", SPEED, "--drift-period-hours", 0,
    )  # fmt: skip
    http = running.find(r"(http://127\.0\.0\.1:\d+)\n")

    def metric(name: str) -> float:
        with urllib.request.urlopen(f"{http}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"volcast_{name} ")).split()[1])

    # Nothing that was refused counts as published: two events per candle wait.
    until(lambda: metric("outbox_messages") >= 10, "waiting events")
    assert running.stop() == 0
