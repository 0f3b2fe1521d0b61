"""Live = backtest: what the daemon publishes over a real broker is what the backtest decided, field by field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stream.adapters import policies
from stream.adapters import predictor as predictors
from stream.adapters.bundles import packaged_model
from stream.adapters.candles import files
from stream.core.market.candle import HOUR_MS
from stream.core.messages import builders, schemas
from stream.testing.broker import EmbeddedBroker
from training.backtest.decisions import decide, of_bundle
from training.data.dataset import of_grid

START = 1_704_067_200_000
HOURS = 90
#: The time of issue and the provenance differ: the backtest replays.
OWN = {"issued_at", "provenance"}
#: A policy that often changes the exposure, so that there is something to compare.
NERVOUS = """
name = "nervous"
target_volatility_annualized = 0.2
no_trade_band = 0.02
min_hold_hours = 3
calm_half_life_hours = 6
risk_off_from_annualized = 1.2
risk_back_below_annualized = 1.1
"""


def test_the_daemon_publishes_what_the_backtest_decided(
    subscribe: Callable[..., Any], volcast: Callable[..., Any], candle_file: Path, until: Any, tmp_path: Path
) -> None:
    chosen = tmp_path / "nervous.toml"
    chosen.write_text(NERVOUS)
    with EmbeddedBroker() as broker:
        subscriber = subscribe(broker.port, "5")
        demo = volcast(
            "demo", "--candles", candle_file, "--from", "2024-01-01", "--hours", HOURS, "--speed", "max",
            "--policy", chosen, "--mqtt-url", broker.url, "--http-port", 0,
        )  # fmt: skip
        assert demo.popen.wait(240) == 0, demo.err
        table = files.read(candle_file, default_symbol="BTCUSDT")
        data = of_grid("BTCUSDT", *table.grid("BTCUSDT"))
        term = of_bundle(data, predictors.load(packaged_model()), START, START + HOURS * HOUR_MS)
        decided = decide(data, table["BTCUSDT"], [term], [policies.load(chosen)])
        expected = [json.loads(schemas.encode(builders.decision(issued, "replay", 0))) for issued in decided.issued]
        until(lambda: len(subscriber.payloads("event/decision.issued")) >= len(expected), "the last decision")
        published = subscriber.payloads("event/decision.issued")
    assert [without(p) for p in published] == [without(e) for e in expected]
    assert len({p["exposure"] for p in published}) > 3
    codes = {reason["code"] for p in published for reason in p["reasons"]}
    assert {"volatility_target", "within_band", "brake_stale", "input_degraded"} <= codes


def without(payload: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in payload.items() if key not in OWN}
