"""The committed bundle on calendar 2024, which no choice was made on: the figures that the README may quote."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.evaluate import evaluate

BUNDLE = Path(__file__).parents[1] / "export" / "models" / "btcusdt-1h.onnx"


@pytest.mark.real_data
def test_the_committed_bundle_keeps_its_limits_on_2024(real_data):
    year = evaluate(real_data / "btcusdt_1h.parquet", BUNDLE)
    next_24h, rolling = year["next_24h"], year["rolling_24h_next"]
    assert rolling["model"]["rmse"] <= 0.000285
    assert rolling["persistence"]["rmse"] == pytest.approx(0.000395, abs=2e-6)
    assert next_24h["model"]["rmse"] <= 0.00205
    assert next_24h["persistence"]["rmse"] == pytest.approx(0.00268, abs=1e-5)
    assert next_24h["log_har"]["rmse"] == pytest.approx(0.00224, abs=2e-5)
    for baseline in ("persistence", "ewma", "log_har", "har"):
        assert next_24h["model"]["rmse"] < next_24h[baseline]["rmse"]
        assert next_24h["model"]["qlike"] < next_24h[baseline]["qlike"]
    for by_name in year["horizons"].values():
        assert by_name["model"]["qlike"] < min(by_name["persistence"]["qlike"], by_name["ewma"]["qlike"])
    assert 0.85 <= year["interval"]["coverage"] <= 0.95
