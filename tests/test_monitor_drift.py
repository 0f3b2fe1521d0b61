"""Drift: Evidently's scores against our own arithmetic, too little data, a child that fails."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from monitor import drift, drift_job
from stream.adapters import predictor
from stream.commands.node import packaged_model
from stream.core import features
from stream.core.candle import HOUR_MS, Candle
from stream.core.drift import normed_wasserstein
from stream.core.messages import Drift
from stream.core.replay import to_grid
from stream.ports import Clock, DriftFailed, Fact
from stream.testing.market import simulate

START = 1_704_067_200_000
MODEL = predictor.load(packaged_model()).model


@pytest.fixture(scope="module")
def candles() -> list[Candle]:
    return simulate(["BTCUSDT"], START, 1_500, 7)["BTCUSDT"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_scores_are_the_normed_wasserstein_distance_to_the_bundles_reference(
    candles: list[Candle], tmp_path: Path
) -> None:
    html = tmp_path / "reports" / "drift.html"
    found = drift.run("BTCUSDT", candles, MODEL.contract, model_version=MODEL.version, issued_at=5, report=html)
    table = features.compute(*to_grid(candles))
    for feature in found.features:
        column = features.STATIC_NAMES.index(feature.feature)
        reference = np.array(MODEL.contract.reference[feature.feature].quantiles)
        own = normed_wasserstein(table.static[-720:, column].astype(float), reference)
        # Ours compares 100 quantiles, Evidently every row.
        assert feature.score == pytest.approx(own, rel=0.05, abs=0.01)
        assert feature.detected == (feature.score >= feature.threshold)
    assert (found.to, found.rows) == (candles[-1].open_time, 720)
    assert found.from_ == found.to - 719 * HOUR_MS
    assert found.report == "drift.html"
    text = html.read_text()
    assert "<html" in text
    # Nothing is loaded from elsewhere when a person opens it.
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=.?https?:", text)


def test_too_few_candles_are_said(candles: list[Candle]) -> None:
    with pytest.raises(drift.DriftError, match="too few"):
        drift.run("BTCUSDT", candles[:1_000], MODEL.contract, model_version="m", issued_at=5, report=None)


def test_calendar_features_are_not_judged() -> None:
    assert not [n for n in drift.MARKET_FEATURES if "weekend" in n or "hour_" in n or n.startswith("next")]
    assert "log_realized_24h" in drift.MARKET_FEATURES


class Listener:
    symbols: Sequence[str] = ("BTCUSDT",)

    def __init__(self) -> None:
        self.drifts: list[Drift] = []
        self.heard = asyncio.Event()

    def exchange_now_ms(self) -> int:
        return START

    def readiness_ok(self) -> bool:
        return True

    async def publish_drift(self, drift: Drift, expiry_s: int) -> None:
        self.drifts.append(drift)
        assert expiry_s == 3 * 24 * 3_600
        self.heard.set()


async def run_job(code: str, tmp_path: Path) -> tuple[Listener, list[Fact]]:
    listener, facts = Listener(), []

    def observe(fact: Fact) -> None:
        facts.append(fact)
        listener.heard.set()

    schedule = drift_job.Schedule(
        listener,
        period_hours=24,
        data_dir=tmp_path,
        model=packaged_model(),
        clock=Clock(wall_ms=lambda: 5),
        observe=observe,
        command=lambda symbol, data_dir, model, html: [sys.executable, "-c", code, str(html.with_suffix(".json"))],
    )
    running = asyncio.create_task(schedule.run())
    async with asyncio.timeout(30):
        await listener.heard.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return listener, facts


async def test_a_childs_result_is_published(tmp_path: Path) -> None:
    result = Drift(
        symbol="BTCUSDT", issued_at=5, from_=1, to=2, rows=3, method="m", detected=False, drifted_share=0.0,
        features=(), report=None, model_version="v",
    )  # fmt: skip
    (tmp_path / "reports").mkdir()
    body = msgspec.json.encode(result).decode()
    listener, facts = await run_job(f"import sys; open(sys.argv[1], 'w').write({body!r})", tmp_path)
    assert listener.drifts == [result]
    assert facts == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('volcast: too few candles')", "too few candles"),
        ("import os; os.abort()", "exit code"),
        ("pass", "drift-BTCUSDT-5.json"),
    ],
    ids=["refused", "crashed", "silent"],
)
async def test_a_child_that_fails_is_a_counter_and_a_line(tmp_path: Path, code: str, reason: str) -> None:
    listener, facts = await run_job(code, tmp_path)
    assert listener.drifts == []
    (failed,) = facts
    assert isinstance(failed, DriftFailed)
    assert reason in failed.reason


def test_the_command_is_our_own_and_niced(tmp_path: Path) -> None:
    command = drift_job.drift_command("BTCUSDT", tmp_path, packaged_model(), tmp_path / "a.html")
    assert command[:5] == [sys.executable, "-P", "-m", "stream", "drift"]
    assert command[command.index("--nice") + 1] == "10"


def test_old_reports_are_dropped_and_the_newest_kept(tmp_path: Path) -> None:
    for i in range(100, 140):
        for suffix in ("html", "json"):
            (tmp_path / f"drift-BTCUSDT-{i}.{suffix}").write_text("")
    (tmp_path / "drift-ETHUSDT-1.html").write_text("")
    drift_job._prune(tmp_path, "BTCUSDT")
    kept = sorted(p.name for p in tmp_path.glob("drift-BTCUSDT-*.html"))
    assert kept == [f"drift-BTCUSDT-{i}.html" for i in range(110, 140)]
    assert (tmp_path / "drift-ETHUSDT-1.html").exists()
