"""Messages: their fields are a promise. A change here that is not an addition is a new major version."""

from __future__ import annotations

import json
import math

import msgspec
import pytest

from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import RECENT_HOURS, Gap, Issued, RecentForecast
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import replay
from stream.core.market.candle import HOUR_MS
from stream.core.messages import builders, schemas, topics
from stream.core.messages.schemas import Drift, DriftFeature, Feed, NodeState
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict

START = 1_704_067_200_000
MODEL = sample_model()


@pytest.fixture(scope="module")
def issued() -> Issued:
    rules = Rules.of(Policy(), MODEL.contract)
    candles = simulate_symbol("BTCUSDT", START, 100, 7)
    events = [e for _, e in replay(rules, "BTCUSDT", candles, MODEL, sample_predict) if isinstance(e, Issued)]
    return events[-1]


def test_topics_are_the_contracts() -> None:
    root = "volcast/v1/binance/spot/BTCUSDT/1h"
    assert topics.symbol_topic("BTCUSDT", "forecast") == f"{root}/forecast"
    assert topics.event_topic("BTCUSDT", "forecast.issued") == f"{root}/event/forecast.issued"
    assert topics.node_topic("a", "state") == "volcast/v1/node/a/state"


def test_every_message_has_a_schema_of_its_own() -> None:
    assert len(schemas.SCHEMAS) == len(set(schemas.SCHEMAS)) == len(schemas.Message.__subclasses__())
    assert all(s.startswith("volcast.") and s.endswith("/1") for s in schemas.SCHEMAS)


def test_a_forecast_has_the_contracts_fields(issued: Issued) -> None:
    body = json.loads(schemas.encode(builders.forecast(issued, MODEL, "live", 5)))
    assert set(body) == {
        "schema", "id", "revision", "symbol", "interval", "open_time", "close_time", "issued_at", "valid_until",
        "provenance", "volatility", "horizons", "rolling_24h_next", "realized_24h", "baselines", "serving",
        "model_volatility", "model", "input",
    }  # fmt: skip
    assert set(body["volatility"]) == {"hourly", "annualized", "low", "high", "level"}
    assert [h["hours"] for h in body["horizons"]] == [1, 6, 12, 24]
    assert set(body["baselines"]) == {"persistence", "ewma", "har"}
    assert set(body["model"]) == {"version", "sha256", "features_version", "trained_until"}
    assert set(body["input"]) == {"gaps", "quality"}
    open_time = START + 99 * HOUR_MS
    assert body["schema"] == "volcast.forecast/1"
    assert body["id"] == f"binance:spot:BTCUSDT:1h:{open_time}:{MODEL.sha256[:12]}"
    assert body["close_time"] == open_time + 3_599_999
    assert body["valid_until"] == body["close_time"] + 2 * 3_600_000
    assert body["volatility"]["low"] < body["volatility"]["hourly"] < body["volatility"]["high"]


def test_a_decision_has_the_contracts_fields(issued: Issued) -> None:
    body = json.loads(schemas.encode(builders.decision(issued, "backfill", 5)))
    assert set(body) >= {
        "schema", "id", "revision", "forecast_id", "symbol", "open_time", "issued_at", "valid_until", "provenance",
        "regime", "exposure", "previous_exposure", "action", "target_volatility_annualized", "reasons",
    }  # fmt: skip
    assert body["id"] == f"{body['forecast_id']}:{Policy().version}"
    assert body["reasons"][0]["code"] == "volatility_target"
    assert set(body["reasons"][0]["values"]) == {"target_annualized", "forecast_annualized", "desired_exposure"}


def test_recent_stays_under_its_limit_with_the_longest_numbers() -> None:
    entry = RecentForecast(START, 0.0012345678901234567, 0.0012345678901234567, 0.0012345678901234567, 1 / 3e5)
    recent = builders.recent("A" * 40, (entry,) * RECENT_HOURS, MODEL, START)
    assert len(schemas.encode(recent)) <= schemas.RECENT_BYTES


def test_from_and_to_are_called_so_on_the_wire() -> None:
    feed = Feed(symbol="BTCUSDT", state="gap", since=1, from_=2, to=None, issued_at=3)
    assert json.loads(schemas.encode(feed))["from"] == 2
    gap = builders.gap(Gap("BTCUSDT", START, START + HOUR_MS), "opened", 1)
    body = json.loads(schemas.encode(gap))
    assert (body["from"], body["to"], body["hours"], body["state"]) == (START, START + HOUR_MS, 2, "opened")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_never_sent(bad: float) -> None:
    drift = Drift(
        symbol="BTCUSDT", issued_at=1, from_=1, to=2, rows=1, method="m", detected=False, drifted_share=0.0,
        features=(DriftFeature("a", bad, 1.0, False, False),), default_detected=False, reference="bundle", fast=None,
        report=None, model_version="m",
    )  # fmt: skip
    with pytest.raises(ValueError, match="no number to publish"):
        schemas.encode(drift)


def test_consumers_may_meet_fields_they_do_not_know() -> None:
    state = NodeState(instance="a", state="ready", session="s", since=1)
    later = json.loads(schemas.encode(state)) | {"something_new": 1}
    assert msgspec.json.decode(json.dumps(later), type=NodeState) == state


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["volatility", "low", "high", "realized"])
def test_a_recent_line_without_a_number_is_refused_however_many_outcomes_are_open(field: str, bad: float) -> None:
    lines = [schemas.RecentEntry(h * HOUR_MS, 0.01, 0.005, 0.02, None if h >= 24 else 0.01) for h in range(48)]
    spoilt = [msgspec.structs.replace(lines[3], **{field: bad}), *lines[4:]]

    def recent(forecasts: list[schemas.RecentEntry]) -> schemas.Recent:
        return schemas.Recent(symbol="BTCUSDT", model_version="m", issued_at=1, forecasts=tuple(forecasts))

    assert schemas.encode(recent(lines)).count(b"null") == 48 - 24
    with pytest.raises(ValueError, match="no number to publish"):
        schemas.encode(recent(spoilt))
