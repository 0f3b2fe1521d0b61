"""A replay through real sockets and a real broker publishes what batch prediction computes, to independent clients."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream.core.market.candle import HOUR_MS
from stream.testing.broker import EmbeddedBroker

START = 1_704_067_200_000
HOLE = {START + h * HOUR_MS for h in (60, 61, 62)}


def check_replay(
    subscribers: list[Any], rows: dict[int, dict[str, Any]], hours: int, same_numbers: Callable[..., None], until: Any
) -> None:
    expected = [START + h * HOUR_MS for h in range(hours) if START + h * HOUR_MS not in HOLE]
    for subscriber in subscribers:
        until(lambda s=subscriber: len(s.payloads("event/decision.issued")) >= len(expected), "the last decision")
        forecasts = subscriber.payloads("event/forecast.issued")
        decisions = subscriber.payloads("event/decision.issued")
        assert [f["open_time"] for f in forecasts] == expected
        assert len({f["id"] for f in forecasts}) == len({d["id"] for d in decisions}) == len(expected)
        for forecast, decision in zip(forecasts, decisions, strict=True):
            same_numbers(forecast, decision, rows[forecast["open_time"]])


def test_mosquittos_own_clients_read_what_predict_computes(
    mosquitto: Any,
    subscribe: Callable[..., Any],
    volcast: Callable[..., Any],
    predicted: Callable[[str], dict[int, dict[str, Any]]],
    candle_file: Path,
    same_numbers: Callable[..., None],
    until: Any,
    tmp_path: Path,
) -> None:
    subscribers = [subscribe(mosquitto.port, version) for version in ("5", "311")]
    summary = tmp_path / "summary.json"
    demo = volcast(
        "demo", "--candles", candle_file, "--from", "2024-01-01", "--hours", 200, "--speed", "max",
        "--mqtt-url", mosquitto.url, "--http-port", 0, "--json", summary,
    )  # fmt: skip
    assert demo.popen.wait(240) == 0, demo.err
    rows = predicted("2024-01-01")
    check_replay(subscribers, rows, 200, same_numbers, until)
    # The hours with all 24 returns after them; those of 36 to 62 lack some because of the hole at 60 to 62.
    matured = [START + h * HOUR_MS for h in range(200 - 24) if h + 24 < 60 or h > 62]
    for subscriber in subscribers:
        scored = subscriber.payloads("event/forecast.scored")
        assert [s["open_time"] for s in scored] == matured
        for s in scored:
            forecast, outcome = rows[s["open_time"]], rows[s["open_time"] + 24 * HOUR_MS]["realized_24h"]
            assert (s["forecast_id"], s["volatility"]) == (forecast["id"], pytest.approx(forecast["volatility_hourly"]))
            assert s["realized"] == pytest.approx(outcome, rel=1e-9)
            assert s["covered"] == (forecast["volatility_low"] <= s["realized"] <= forecast["volatility_high"])
            x = (outcome / forecast["volatility_hourly"]) ** 2
            assert s["qlike"] == pytest.approx(x - math.log(x) - 1)
        (opened,) = subscriber.payloads("event/gap.opened")
        assert (opened["from"], opened["to"], opened["hours"]) == (min(HOLE), max(HOLE), 3)
        states = [p["state"] for p in subscriber.payloads("node/demo/state")]
        assert (states[0], states[-1]) == ("starting", "stopped")
        assert "ready" in states
    figures = json.loads(summary.read_text())
    assert (figures["forecasts"], figures["decisions"], figures["gap_hours"]) == (197, 197, 3)
    assert "197 forecasts" in demo.out


def test_mosquitto_sub_reads_from_the_embedded_broker(
    subscribe: Callable[..., Any],
    volcast: Callable[..., Any],
    predicted: Callable[[str], dict[int, dict[str, Any]]],
    candle_file: Path,
    same_numbers: Callable[..., None],
    until: Any,
) -> None:
    with EmbeddedBroker() as broker:
        subscriber = subscribe(broker.port, "5")
        demo = volcast(
            "demo", "--candles", candle_file, "--from", "2024-01-01", "--hours", 50, "--speed", "max",
            "--mqtt-url", broker.url, "--http-port", 0,
        )  # fmt: skip
        assert demo.popen.wait(240) == 0, demo.err
        check_replay([subscriber], predicted("2024-01-01"), 50, same_numbers, until)


@pytest.mark.real_data
@pytest.mark.timeout(400)
def test_a_month_of_real_candles(
    real_data: Path,
    mosquitto: Any,
    subscribe: Callable[..., Any],
    volcast: Callable[..., Any],
    same_numbers: Callable[..., None],
    until: Any,
    tmp_path: Path,
) -> None:
    import polars as pl

    candles = real_data / "btcusdt_1h.parquet"
    subscriber = subscribe(mosquitto.port, "5")
    demo = volcast(
        "demo", "--candles", candles, "--from", "2024-03-01", "--hours", 720, "--speed", "max",
        "--mqtt-url", mosquitto.url, "--http-port", 0,
    )  # fmt: skip
    out = tmp_path / "p.parquet"
    command = ["predict", "--candles", str(candles), "--from", "2024-03-01", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "stream", *command], check=True, capture_output=True)
    rows = pl.read_parquet(out).with_columns(pl.col("open_time", "close_time").dt.epoch("ms")).head(720)
    assert demo.popen.wait(240) == 0, demo.err
    until(lambda: len(subscriber.payloads("event/decision.issued")) >= 720, "the last decision")
    forecasts, decisions = subscriber.payloads("event/forecast.issued"), subscriber.payloads("event/decision.issued")
    assert [f["open_time"] for f in forecasts] == rows["open_time"].to_list()
    assert len({f["id"] for f in forecasts}) == len({d["id"] for d in decisions}) == 720
    for forecast, decision, row in zip(forecasts, decisions, rows.iter_rows(named=True), strict=True):
        same_numbers(forecast, decision, row)


def test_without_the_extra_the_daemon_runs_and_says_that_drift_is_off(
    mosquitto: Any, subscribe: Callable[..., Any], volcast: Callable[..., Any], until: Any, tmp_path: Path
) -> None:
    subscriber = subscribe(mosquitto.port, "5")
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['evidently'] = None")
    demo = volcast(
        "demo", "--hours", 30, "--speed", "max", "--mqtt-url", mosquitto.url, "--http-port", 0,
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert demo.popen.wait(240) == 0, demo.err
    until(lambda: len(subscriber.payloads("event/forecast.issued")) >= 30, "every forecast")
    (info,) = subscriber.payloads("node/demo/info")
    assert info["drift"].startswith("off: evidently is not installed")
    assert "drift is off: evidently is not installed" in demo.err
    assert "drift: off: evidently is not installed" in demo.out


def test_the_simulated_demo_ends_by_itself_with_a_summary(volcast: Callable[..., Any]) -> None:
    demo = volcast("demo", "--hours", 72, "--speed", 36_000, "--http-port", 0)
    assert demo.popen.wait(240) == 0, demo.err
    assert "72 forecasts and as many decisions" in demo.out
    assert "drift detected" in demo.out or "drift not detected" in demo.out
    assert "Traceback" not in demo.err
