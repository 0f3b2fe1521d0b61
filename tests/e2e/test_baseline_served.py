"""A model behind `har` for 30 days is not served, and all outputs report it: messages, node, HTTP, metrics, batch."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from other_bundles import write_scaled

from stream.adapters import predictor
from stream.adapters.bundles import packaged_model
from stream.core.deciding.replay import to_grid
from stream.core.forecasting import features
from stream.core.market.candle import HOUR_MS, Candle

START = 1_704_067_200_000
HOURS = 40
FACTOR = 2.5


@pytest.fixture(scope="module")
def too_high(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged bundle with a graph whose output is `FACTOR` times as high: a real model that has gone wrong."""
    return write_scaled(tmp_path_factory.mktemp("model") / "too-high.onnx", FACTOR)


def test_the_baseline_is_served_and_said_everywhere(
    mosquitto: Any,
    subscribe: Callable[..., Any],
    volcast: Callable[..., Any],
    same_numbers: Callable[..., None],
    until: Any,
    too_high: Path,
    candle_file: Path,
    market: dict[str, list[Candle]],
    tmp_path: Path,
) -> None:
    subscriber = subscribe(mosquitto.port, "5")
    exchange = volcast(
        "exchange", "--candles", candle_file, "--from", "2024-01-01", "--hours", HOURS, "--speed", "max",
        "--ws-port", 0, "--rest-port", 0,
    )  # fmt: skip
    ws, rest = exchange.find(r"--ws-url (\S+)"), exchange.find(r"--rest-url (\S+)")
    node = volcast(
        "run", "--ws-url", ws, "--rest-url", rest, "--time-scale", 0, "--mqtt-url", mosquitto.url, "--http-port", 0,
        "--data-dir", tmp_path / "var", "--model", too_high, "--drift-period-hours", 0, "--instance", "served",
    )  # fmt: skip
    url = node.find(r"(http://127\.0\.0\.1:\d+)")
    until(lambda: len(subscriber.payloads("event/decision.issued")) >= HOURS, "every decision")
    reasons = until(
        lambda: [s for s in subscriber.payloads("node/served/state") if s["state"] == "ready" and s["reasons"]],
        "the node's word for it",
    )
    assert "BTCUSDT: har is served" in reasons[-1]["reasons"][0]

    def get(path: str) -> Any:
        with urllib.request.urlopen(url + path, timeout=30) as answer:
            return json.load(answer) if path != "/metrics" else answer.read().decode()

    ready = until(lambda: (r := get("/readyz"))["serving_baseline"] and r, "/readyz")
    assert (ready["ready"], ready["serving_baseline"]) == (True, ["BTCUSDT"])
    assert "har is served" in ready["remarks"][0]
    assert get("/api/v1/forecast/BTCUSDT")["serving"] == "har"
    score = until(lambda: get("/api/v1/score/BTCUSDT"), "a score")
    assert (score["rule"]["serving"], score["rule"]["excess"] > score["rule"]["limit"]) == ("har", True)
    assert 'volcast_serving_baseline{symbol="BTCUSDT"} 1' in get("/metrics")

    out = tmp_path / "rows.parquet"
    command = ["predict", "--candles", candle_file, "--from", "2024-01-01", "--out", out, "--model", too_high]
    subprocess.run([sys.executable, "-m", "stream", *map(str, command)], check=True, capture_output=True)
    table = pl.read_parquet(out).with_columns(pl.col("open_time", "close_time").dt.epoch("ms"))
    rows = {row["open_time"]: row for row in table.iter_rows(named=True)}
    decisions = {d["forecast_id"]: d for d in subscriber.payloads("event/decision.issued")}
    forecasts = subscriber.payloads("event/forecast.issued")
    right = _right(market)
    for forecast in forecasts:
        row, decision = rows[forecast["open_time"]], decisions[forecast["id"]]
        same_numbers(forecast, decision, row)
        assert (forecast["serving"], row["serving"]) == ("har", "har")
        assert forecast["volatility"]["hourly"] == forecast["baselines"]["har"]
        assert forecast["model_volatility"] == pytest.approx(row["model_volatility"], rel=1e-9)
        assert forecast["model_volatility"] == pytest.approx(FACTOR * right[forecast["open_time"]], rel=1e-5)
        assert "baseline_served" in {r["code"] for r in decision["reasons"]}


def _right(market: dict[str, list[Candle]]) -> dict[int, float]:
    """Computes the packaged model's forecasts of the same hours, by open time."""
    bundle = predictor.load(packaged_model())
    grid, ohlcv = to_grid(market["BTCUSDT"])
    table = features.compute(grid, ohlcv)
    rows = np.nonzero((grid >= START) & (grid < START + HOURS * HOUR_MS))[0]
    sigma = bundle(table.sequences(rows), table.static[rows])[:, 0]
    return dict(zip(grid[rows].tolist(), sigma.astype(float).tolist(), strict=True))
