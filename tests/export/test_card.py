"""The model card says what the evaluation and the contract say, and refuses an evaluation of another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export import card
from stream.testing.sample_model import sample_model

CONTRACT = sample_model().contract


@pytest.fixture
def figures() -> dict[str, Any]:
    measures = {"rmse": 0.0019361, "mae": 0.0014, "qlike": 0.27, "r2": 0.36, "bias": None}
    return {
        "symbol": "BTCUSDT",
        "start": "2024-01-01",
        "end": "2025-01-01",
        "rows": 8_760,
        "protocol": {"text": "As they are."},
        "models": [
            {
                "name": "model",
                "trained_from": CONTRACT.training.trained_from,
                "trained_until": CONTRACT.training.trained_until,
                "data_sha256": CONTRACT.training.data_sha256,
                "symbols": list(CONTRACT.training.symbols),
                "seed": CONTRACT.training.seed,
                "features_version": CONTRACT.features_version,
            }
        ],
        "next_24h": {"model": measures, "har": measures | {"rmse": 0.0020541}},
        "rolling_24h_next": {"model": measures | {"rmse": 0.000273}, "leaky": measures},
        "horizons": {"1h": {"model": measures}},
        "intervals": {
            "adaptive": {
                "level": 0.9,
                "coverage": 0.902,
                "width": 1.2,
                "winkler": 0.0084,
                "coverage_30d_min": None,
                "groups": {"coming 24 h": {"weekday": {"coverage": 0.904}}},
            }
        },
    }


def written(tmp_path: Path, figures: Any) -> Path:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(figures))
    return path


def test_the_scores_that_travel_are_flat_and_without_nulls(figures: dict[str, Any]) -> None:
    scores = card.scores(figures)
    assert scores["2024-01-01.next_24h.har.rmse"] == 0.0020541
    assert scores["2024-01-01.interval.adaptive.coverage"] == 0.902
    assert "2024-01-01.next_24h.model.bias" not in scores


def test_the_card_has_model_baselines_intervals_data_and_the_count(figures: dict[str, Any], tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    assert card.count_scorings(ledger) == 0
    ledger.write_text("{}\n{}\n")
    read = card.read_evaluation(written(tmp_path, figures), CONTRACT)
    text = card.render(CONTRACT, read, version="abc", sha256="f" * 64, size=1_000, scorings=card.count_scorings(ledger))
    for part in (
        "| **model** | 0.001936 | 0.001400 | 0.2700 | 0.360 | 0.000273 |",
        "| har | 0.002054 |",
        "| leaky |  |  |  |  | 0.001936 |",
        "| adaptive, 90% | 0.902 | 0.904 |  |  | 1.200 | 8.40 |",
        CONTRACT.training.data_sha256,
        "counts 2 scoring(s)",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda f: f["models"][0].update(data_sha256="1" * 64), "learnt otherwise"),
        (lambda f: f["models"][0].update(seed=8), "learnt otherwise"),
        (lambda f: f["models"][0].update(symbols=["ETHUSDT"]), "learnt otherwise"),
        (lambda f: f["models"][0].update(features_version="2"), "learnt otherwise"),
        (lambda f: f["models"][0].update(trained_from=5), "learnt otherwise"),
        (lambda f: f["models"][0].update(trained_until=f["models"][0]["trained_until"] + 1), "learnt otherwise"),
        (lambda f: f["models"][0].update(trained_until=f["models"][0]["trained_until"] - 1), "learnt otherwise"),
        (lambda f: f.pop("next_24h"), "is no evaluation"),
        (lambda f: f["next_24h"].pop("model"), "is no evaluation"),
        (lambda f: f.update(models=[]), "is no evaluation"),
    ],
)
def test_an_evaluation_of_something_else_is_refused(
    figures: dict[str, Any], tmp_path: Path, spoil: Any, cause: str
) -> None:
    spoil(figures)
    with pytest.raises(card.CardError, match=cause):
        card.read_evaluation(written(tmp_path, figures), CONTRACT)


def test_a_bundle_that_was_fitted_again_on_more_says_what_was_scored(figures: dict[str, Any], tmp_path: Path) -> None:
    figures["models"][0].update(trained_until=CONTRACT.training.trained_until - 3_600_000, data_sha256="1" * 64)
    read = card.read_evaluation(written(tmp_path, figures), CONTRACT)
    text = card.render(CONTRACT, read, version="abc", sha256="f" * 64, size=1_000, scorings=None)
    assert "What was scored had learnt until 2023-12-31 22:00 UTC; this bundle is the same recipe fitted again" in text
    at_once = card.render(
        CONTRACT,
        read | {"models": [read["models"][0] | {"trained_until": CONTRACT.training.trained_until}]},
        version="abc",
        sha256="f" * 64,
        size=1,
        scorings=None,
    )
    assert "fitted again" not in at_once


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(card.CardError, match=r"absent\.json: cannot be read"):
        card.read_evaluation(tmp_path / "absent.json", CONTRACT)
    (tmp_path / "half.json").write_text('{"models": [')
    with pytest.raises(card.CardError, match="is no evaluation"):
        card.read_evaluation(tmp_path / "half.json", CONTRACT)
