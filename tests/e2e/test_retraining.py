"""A signal of a running node begins a retraining, whose promotion the node takes up, and whose rollback too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fault_harness
import msgspec
import pytest
from fault_oracle import published_by
from retrain_stand import Stand, market

from stream import times
from stream.adapters import champions
from stream.core.market.candle import HOUR_MS
from stream.core.messages.judged import Because
from stream.core.messages.schemas import Forecast
from stream.telemetry import ForecastCommitted, ModelReplaced
from stream.testing.exchange import Exchange

SYMBOL = "BTCUSDT"
#: The node's first hour, after the gate's days.
START = times.parse("2023-12-01")
#: A day in a second and a half, for longer than any machine needs.
SPEED, HOURS = 60_000.0, 6_000


@pytest.fixture
def broker() -> Iterator[str]:
    with fault_harness.new_broker() as url:
        yield url


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    """A data directory whose champion is far off, and a better model, already trained."""
    made = Stand.of(tmp_path / "var", [market()])
    made.crown("constant")
    return made


def forecast_times(data_dir: Path) -> list[int]:
    rows = [row for (key, _), row in published_by(data_dir).items() if key.count(":") == 5]
    return sorted(msgspec.json.decode(row, type=Forecast).open_time for row in rows)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("because", "schema"), [("decay", "volcast.decay/1"), ("drift", "volcast.drift/1")])
async def test_a_signal_leads_to_a_better_champion_and_back(
    because: Because, schema: str, stand: Stand, broker: str
) -> None:
    former = await asyncio.to_thread(stand.version)
    tape = {SYMBOL: market(days=500 + HOURS // 24)}

    def received(watch: fault_harness.Watch, wanted: str) -> list[dict[str, Any]]:
        return [message for message in watch.ear.messages if message["schema"] == wanted]

    async with Exchange.replaying(tape, START, HOURS, SPEED) as exchange:

        async def act_on_the_signal(watch: fault_harness.Watch) -> None:
            watch.ear.kept = ("decay.detected", "drift.detected", "model.judged", "model.changed")
            await watch.until(lambda: bool(received(watch, schema)))
            done = await asyncio.to_thread(stand.retrain, because=because)
            assert done.judged.outcome == "promoted", done.judged.refusals
            await watch.until(lambda: served(watch)[-3:] == [done.judged.refit] * 3)
            await watch.until(lambda: bool(received(watch, "volcast.model.judged/1")))
            await asyncio.to_thread(champions.rollback, stand.folder)
            await watch.until(lambda: served(watch)[-3:] == [former] * 3)

        watch, _ = await fault_harness.run(
            exchange, broker, stand.folder, symbols=(SYMBOL,), alongside=act_on_the_signal, until=lambda watch: True,
            check=False, drift_period_hours=24.0 if because == "drift" else 0.0,
        )  # fmt: skip
    (judged,) = received(watch, "volcast.model.judged/1")
    assert (judged["because"], judged["outcome"], judged["champion"]) == (because, "promoted", former)
    assert judged["qlike_challenger"] < judged["qlike_champion"]
    new = judged["challenger"]
    assert [(f.previous, f.model.version) for f in watch.of(ModelReplaced)] == [(former, new), (new, former)]
    assert [m["model"]["version"] for m in received(watch, "volcast.model.changed/1")] == [new, former]
    hours = await asyncio.to_thread(forecast_times, stand.folder)
    assert hours == list(range(hours[0], hours[-1] + 1, HOUR_MS))


def served(watch: fault_harness.Watch) -> list[str]:
    """Returns which models the newest forecasts are of, in their order."""
    newest = [fact for fact in watch.facts[-200:] if isinstance(fact, ForecastCommitted)]
    return [fact.forecast.model.version for fact in newest]
