"""The HTTP surface, over a real socket: the contract's paths, strict inputs, honest codes, the page in a browser."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from programs import need
from prometheus_client.parser import text_string_to_metric_families

from monitor.http import server
from monitor.metrics import Metrics
from stream import telemetry, web
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Issued, State
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import replay
from stream.core.market.candle import HOUR_MS
from stream.core.messages import builders, schemas
from stream.core.messages.scoreboard import FORECASTERS, WINDOW_DAYS, Scoreboard
from stream.core.messages.shadows import ShadowScore, ShadowWindow
from stream.errors import JournalError
from stream.telemetry import Latest, Readiness
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict

START = 1_704_067_200_000
MODEL = sample_model()


class Facts:
    """A status that says what the test wants it to say."""

    symbols: Sequence[str] = ("BTCUSDT",)
    heartbeat_age_s = 1.0

    def __init__(self) -> None:
        rules = Rules.of(Policy(), MODEL.contract)
        candles = simulate_symbol("BTCUSDT", START, 60, 7)
        issued = [e for _, e in replay(rules, "BTCUSDT", candles, MODEL, sample_predict) if isinstance(e, Issued)]
        self.forecasts = [builders.forecast(e, MODEL, "live", 9) for e in issued]
        self.decision = builders.decision(issued[-1], "live", 9)
        self.ready = Readiness(True)
        self.journal_error: JournalError | None = None
        self.known = Latest(schemas.encode(self.forecasts[-1]), schemas.encode(self.decision))

    def readiness(self) -> Readiness:
        return self.ready

    async def latest(self, symbol: str) -> Latest:
        if self.journal_error is not None:
            raise self.journal_error
        return self.known

    async def history(self, symbol: str, from_ms: int | None, to_ms: int | None, limit: int) -> list[bytes]:
        chosen = [f for f in self.forecasts if (from_ms or 0) <= f.open_time <= (to_ms or 2**60)]
        return [schemas.encode(f) for f in chosen[:limit]]


LINEAGE = {"parents": ["0123456789ab"], "promoted_at": 1_700_000_000_000, "because": "decay"}
IN_USE = server.ModelInUse(builders.model_ref(MODEL), LINEAGE)


@pytest.fixture(scope="module")
def facts() -> Facts:
    return Facts()


@pytest.fixture
def metrics(facts: Facts) -> Metrics:
    metrics = Metrics(version="1.2.3", symbols=("BTCUSDT",), model=MODEL)
    metrics(telemetry.ForecastCommitted(facts.forecasts[-1], facts.decision))
    return metrics


@pytest.fixture
async def client(facts: Facts, metrics: Metrics) -> AsyncIterator[httpx.AsyncClient]:
    app = await asyncio.to_thread(server.build_app, facts, metrics.chunks, version="1.2.3", model=lambda: IN_USE)
    async with (
        web.serve(app, web.bind("127.0.0.1", 0)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        yield client


async def test_forecast_and_decision_are_the_very_messages(client: httpx.AsyncClient, facts: Facts) -> None:
    answer = await client.get("/api/v1/forecast/btcusdt")
    assert (answer.status_code, answer.content) == (200, facts.known.forecast)
    assert answer.headers["content-type"] == "application/json"
    assert (await client.get("/api/v1/decision/BTCUSDT")).content == facts.known.decision


async def test_a_journal_that_cannot_be_read_is_said_and_no_missing_forecast(
    client: httpx.AsyncClient, facts: Facts
) -> None:
    facts.journal_error = JournalError("the journal cannot be read: Input/output error")
    try:
        answer = await client.get("/api/v1/forecast/BTCUSDT")
    finally:
        facts.journal_error = None
    assert answer.status_code == 503
    assert answer.json()["detail"] == "the journal cannot be read: Input/output error"


async def test_the_model_in_use_is_shown_with_its_lineage(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/api/v1/model")).json()
    assert answer["model"]["version"] == MODEL.version
    assert answer["lineage"] == LINEAGE


async def test_history_is_a_list_within_its_bounds(client: httpx.AsyncClient, facts: Facts) -> None:
    first = facts.forecasts[10].open_time
    answer = await client.get("/api/v1/history/BTCUSDT", params={"from": first, "to": first + 9 * HOUR_MS, "limit": 5})
    assert [f["open_time"] for f in answer.json()] == [first + h * HOUR_MS for h in range(5)]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/forecast/XRPUSDT", 404),
        ("/api/v1/drift/BTCUSDT", 404),
        ("/api/v1/forecast/..%2f..%2fetc", 404),
        ("/api/v1/forecast/a$b", 400),
        ("/api/v1/history/BTCUSDT?limit=0", 400),
        ("/api/v1/history/BTCUSDT?limit=1001", 400),
        ("/api/v1/history/BTCUSDT?from=-1", 400),
        ("/api/v1/history/BTCUSDT?from=yesterday", 400),
        ("/nothing", 404),
    ],
)
async def test_what_is_not_there_or_not_allowed_is_said(client: httpx.AsyncClient, path: str, status: int) -> None:
    answer = await client.get(path)
    assert answer.status_code == status
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_nothing_can_be_written(client: httpx.AsyncClient, method: str) -> None:
    for path in ("/api/v1/forecast/BTCUSDT", "/metrics", "/healthz"):
        assert (await client.request(method, path)).status_code == 405


async def test_health_is_the_pipelines_heartbeat(client: httpx.AsyncClient, facts: Facts) -> None:
    assert (await client.get("/healthz")).status_code == 200
    facts.heartbeat_age_s = 30.5
    try:
        assert (await client.get("/healthz")).status_code == 503
    finally:
        facts.heartbeat_age_s = 1.0


async def test_readiness_gives_its_reasons(client: httpx.AsyncClient, facts: Facts) -> None:
    assert (await client.get("/readyz")).json() == {
        "ready": True, "reasons": [], "halted": [], "symbols": ["BTCUSDT"], "serving_baseline": [], "remarks": [],
    }  # fmt: skip
    facts.ready = Readiness(False, ("broker not connected",), ("ETHUSDT",))
    try:
        answer = await client.get("/readyz")
    finally:
        facts.ready = Readiness(True)
    assert (answer.status_code, answer.json()["reasons"], answer.json()["halted"]) == (
        503, ["broker not connected"], ["ETHUSDT"],
    )  # fmt: skip


@pytest.mark.fault(48)
async def test_a_scrape_of_many_symbols_does_not_hold_the_loop(facts: Facts) -> None:
    """Its parts are written between other work. Meanwhile others are answered, and a second scrape shares the first."""
    go_on, both_are_here = asyncio.Event(), asyncio.Event()
    begun: list[object] = []
    asked: list[object] = []

    def parts(names: object) -> Iterator[bytes]:
        begun.append(names)
        while not go_on.is_set():
            yield b""
        yield b"metrics"

    app = await asyncio.to_thread(server.build_app, facts, parts, version="1.2.3", model=lambda: IN_USE)

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") == "/metrics":
            asked.append(scope)
            if len(asked) == 2:
                both_are_here.set()
        await app(scope, receive, send)

    async with (
        web.serve(watched, web.bind("127.0.0.1", 0)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        scrapes = [asyncio.create_task(client.get("/metrics")) for _ in range(2)]
        await both_are_here.wait()
        assert (await client.get("/healthz")).status_code == 200
        go_on.set()
        assert [(await answer).content for answer in scrapes] == [b"metrics"] * 2
    assert begun == [None]


async def test_a_scrape_can_ask_for_some_metrics(client: httpx.AsyncClient) -> None:
    names = ["volcast_ws_connects_total", "volcast_exposure_ratio", "volcast_no_such_thing"]
    answer = await client.get("/metrics", params={"name[]": names})
    families = text_string_to_metric_families(answer.text)
    assert {f"volcast_{name}" for name in ("ws_connects", "exposure_ratio")} == {f.name for f in families}
    alone = await client.get("/metrics?name[]=volcast_no_such_thing")
    assert (alone.status_code, alone.content) == (200, b"")


@pytest.mark.parametrize(
    "path",
    ["/metrics", "/healthz", "/readyz", "/", "/openapi.json", "/api/v1/forecast/BTCUSDT", "/api/v1/history/BTCUSDT"],
)
async def test_head_answers_everywhere_like_get_without_a_body(client: httpx.AsyncClient, path: str) -> None:
    asked, answered = await client.head(path), await client.get(path)
    assert (asked.status_code, asked.content) == (answered.status_code, b"")
    assert asked.headers["content-type"] == answered.headers["content-type"]


async def test_metrics_are_prometheus_text_with_the_contracts_names(client: httpx.AsyncClient, facts: Facts) -> None:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    names = {sample.name for family in families.values() for sample in family.samples}
    for name in (
        "build_info", "model_info", "model_trained_until_timestamp_seconds", "ws_connected", "ws_connects_total",
        "ws_messages_total", "klines_closed_total", "kline_duplicates_total", "kline_out_of_order_total",
        "kline_gaps_total", "kline_missing", "kline_delivery_delay_seconds_bucket", "feature_buffer_hours",
        "inference_seconds_bucket", "forecast_delay_seconds_bucket", "forecasts_total",
        "forecast_volatility_annualized", "forecast_interval_annualized", "realized_volatility_annualized",
        "baseline_volatility_annualized", "serving_baseline", "exposure_ratio", "regime", "drift_threshold",
        "drift_detected", "drift_runs_total", "drift_failures_total", "mqtt_connected", "mqtt_publishes_total",
        "mqtt_publish_failures_total", "outbox_messages", "journal_bytes", "journal_commit_failures_total",
        "data_dir_free_bytes", "backfill_requests_total", "backfill_failures_total", "rest_used_weight_ratio",
        "event_loop_lag_seconds", "clock_offset_seconds",
    ):  # fmt: skip
        assert f"volcast_{name}" in names, name
    volatility = {s.labels["horizon"]: s.value for s in families["volcast_forecast_volatility_annualized"].samples}
    assert set(volatility) == {"next", "1h", "6h", "12h", "24h"}
    assert volatility["next"] == pytest.approx(facts.forecasts[-1].volatility.annualized, rel=1e-5)


def score(*, detected: bool) -> schemas.Score:
    def window(name: Any, days: int) -> schemas.ScoreWindow:
        return schemas.ScoreWindow(name, days, 100, 0.3, 0.002, -1e-4, -0.02, 0.88 if name == "served" else None)

    return schemas.Score(
        symbol="BTCUSDT", open_time=START, issued_at=5, model_version=MODEL.version,
        windows=tuple(window(name, days) for days in WINDOW_DAYS for name in FORECASTERS),
        rule=schemas.ServingRule("model", 30, 0.01, 0.05),
        decay=schemas.DecayState(detected, "realized_above" if detected else None, START if detected else None),
    )  # fmt: skip


async def test_scores_are_served_and_counted(client: httpx.AsyncClient, metrics: Metrics, facts: Facts) -> None:
    assert (await client.get("/api/v1/score/BTCUSDT")).status_code == 404
    facts.known.score = schemas.encode(score(detected=True))
    try:
        answer = await client.get("/api/v1/score/btcusdt")
    finally:
        known, facts.known.score = facts.known.score, None
    assert (answer.status_code, answer.content) == (200, known)
    metrics(telemetry.ScoreChanged(score(detected=True)))
    text = metrics.text().decode()
    for line in (
        'volcast_live_qlike{model="har",symbol="BTCUSDT",window="30d"} 0.3',
        'volcast_live_rmse{model="served",symbol="BTCUSDT",window="90d"} 0.002',
        'volcast_live_bias_ratio{model="model",symbol="BTCUSDT",window="7d"} -0.02',
        'volcast_live_coverage_ratio{symbol="BTCUSDT",window="7d"} 0.88',
        'volcast_live_matured_forecasts{symbol="BTCUSDT",window="7d"} 100',
        'volcast_decay_detected{symbol="BTCUSDT"} 1',
    ):
        assert line in text, line
    metrics(telemetry.ScoreChanged(score(detected=False)))
    assert 'volcast_decay_detected{symbol="BTCUSDT"} 0' in metrics.text().decode()
    har = msgspec.structs.replace(facts.forecasts[-1], serving="har")
    metrics(telemetry.ForecastCommitted(har, facts.decision))
    assert 'volcast_serving_baseline{symbol="BTCUSDT"} 1' in metrics.text().decode()


async def test_openapi_describes_what_mqtt_carries(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert "/api/v1/forecast/{symbol}" in document["paths"]
    assert {"Score", "Drift"} <= set(document["components"]["schemas"])
    fields = document["components"]["schemas"]["Forecast"]["properties"]
    assert {"schema", "id", "volatility", "horizons"} <= set(fields)


async def seen(url: object, profile: Path) -> str:
    """The page as Chromium shows it after some seconds, without line breaks."""
    command = [
        need("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", "--virtual-time-budget=4000", "--dump-dom", str(url),
    ]  # fmt: skip
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120, check=True)
    return " ".join(done.stdout.split())


def cell(page: str, name: str) -> str:
    found = re.search(rf'data-testid="{name}">(.*?)</(?:td|div)>', page)
    assert found, page
    return found[1]


async def test_a_person_sees_the_forecast_on_the_page(client: httpx.AsyncClient, facts: Facts, tmp_path: Path) -> None:
    facts.known.score = schemas.encode(score(detected=True))
    window = ShadowWindow(30, 100, 0.25, 0.001, 0.9, 0.3, 0.001, 0.9)
    facts.known.shadow = msgspec.json.encode(
        ShadowScore(
            symbol="BTCUSDT",
            model_version="shadow12",
            open_time=0,
            annualized=0.2,
            low=0.1,
            high=0.4,
            windows=(window,),
        )
    )
    try:
        page = await seen(client.base_url, tmp_path)
    finally:
        facts.known.score = facts.known.shadow = None
    assert cell(page, "forecast-BTCUSDT").startswith(f"{100 * facts.forecasts[-1].volatility.annualized:.1f} %")
    assert cell(page, "decision-BTCUSDT").startswith("hold ")
    assert ">ready<" in page
    assert "<svg" in page
    assert "30 days, 100 forecasts: QLIKE 0.300 (HAR 0.300)" in cell(page, "score-BTCUSDT")
    assert "decay: realized_above" in cell(page, "score-BTCUSDT")
    assert f'id="model">{MODEL.version}, learnt until' in page
    assert "promoted 2023-11-14 22:13 UTC (decay) after 0123456789ab" in page
    assert "shadow12: 20.0 % (10.0 % to 40.0 %); 30 days, 100 forecasts: QLIKE 0.250 (the model 0.300), 90.0 %" in cell(
        page, "shadow-BTCUSDT"
    )
    # Everything it shows comes from this server.
    assert "https://" not in Path(server.__file__).with_name("page.html").read_text()


async def test_the_page_of_a_node_in_its_first_day_shows_forecast_and_decision(
    client: httpx.AsyncClient, facts: Facts, tmp_path: Path
) -> None:
    # What every node tells before the first forecast has matured: who is served and why, and no window.
    board = Scoreboard(MODEL.contract.usual, MODEL.version)
    facts.known.score = schemas.encode(board.score(State("BTCUSDT"), 9))
    try:
        page = await seen(client.base_url, tmp_path)
    finally:
        facts.known.score = None
    assert ">ready<" in page
    assert cell(page, "forecast-BTCUSDT").startswith(f"{100 * facts.forecasts[-1].volatility.annualized:.1f} %")
    assert cell(page, "decision-BTCUSDT").startswith("hold ")
    assert cell(page, "score-BTCUSDT") == "none yet: a forecast is scored when its 24 hours are over"
    assert cell(page, "drift-BTCUSDT") == "no result yet"
    assert "<svg" in page


@pytest.mark.parametrize("broken", ["forecast", "decision", "score", "drift", "history"])
async def test_a_part_of_the_page_that_fails_says_so_and_fails_alone(
    broken: str, client: httpx.AsyncClient, facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {
        "forecast": facts.known.forecast, "decision": facts.known.decision, "drift": None,
        "score": schemas.encode(score(detected=False)),
    }  # fmt: skip
    # A record of a later version that the page does not understand, or none at all.
    spoilt = good | ({broken: b'{"schema":"volcast.other/9"}'} if broken in good else {})
    monkeypatch.setattr(facts, "known", Latest(**spoilt))
    if broken == "history":

        async def history(*_: object) -> list[bytes]:
            return [b'{"open_time":1}', b'{"open_time":2}']

        monkeypatch.setattr(facts, "history", history)
    page = await seen(client.base_url, tmp_path)
    shown = {kind: cell(page, f"{kind}-BTCUSDT") for kind in ("forecast", "decision", "score", "drift")}
    failed = {kind for kind, text in shown.items() if text.startswith("cannot be shown")}
    assert failed == {broken} - {"history"}
    assert ">ready<" in page
    chart = cell(page, "chart-BTCUSDT")
    assert ("<svg" in chart) is (broken not in ("history", "forecast"))
    assert broken != "history" or chart.startswith("cannot be shown")


def test_labels_of_configured_symbols_exist_from_the_start() -> None:
    text = Metrics(version="1", symbols=("BTCUSDT", "ETHUSDT"), model=MODEL).text().decode()
    for line in (
        'volcast_klines_closed_total{provenance="backfill",symbol="ETHUSDT"} 0',
        'volcast_forecasts_total{provenance="live",symbol="ETHUSDT"} 0',
        'volcast_drift_detected{symbol="ETHUSDT"} 0',
        'volcast_serving_baseline{symbol="ETHUSDT"} 0',
        'volcast_drift_fast_detected{symbol="ETHUSDT"} 0',
        'volcast_decay_detected{symbol="ETHUSDT"} 0',
        'volcast_decay_alarms_total{kind="excess_qlike",symbol="ETHUSDT"} 0',
        'volcast_live_matured_forecasts{symbol="ETHUSDT",window="30d"} 0',
    ):
        assert line in text
    assert "_created" not in text
    assert json.dumps("1")[1:-1] in text


def test_every_fact_that_is_told_is_known_to_the_metrics_or_is_no_number() -> None:
    metrics: Any = Metrics(version="1", symbols=(), model=MODEL)
    # Scores are in the journal and on MQTT; a gauge of single scores would only be noise.
    silent = {telemetry.NodeChanged, telemetry.ForecastScored}
    assert set(telemetry.Fact.__subclasses__()) - set(metrics._handlers) == silent
