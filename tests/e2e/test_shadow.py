"""A model that runs beside the one that is served: scored live, kept over restarts, and never published."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import fault_harness as stand
import pytest
from fault_harness import LONG, START
from other_bundles import write_scaled

from stream.adapters import predictor as predictors
from stream.adapters.bundles import CHALLENGER, packaged_model
from stream.adapters.journal.store import SqliteJournal
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Issued, Matured
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import events
from stream.core.market.candle import Candle
from stream.core.messages.shadows import ShadowForecast, taken
from stream.telemetry import ForecastCommitted, ShadowScored
from stream.testing.exchange import Exchange

SYMBOL = "BTCUSDT"


@pytest.fixture
def broker() -> Iterator[str]:
    with stand.new_broker() as url:
        yield url


@pytest.fixture(scope="module")
def shadow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scaled(tmp_path_factory.mktemp("model") / "shadow_bundle.onnx", 1.25)


@pytest.fixture(scope="module")
def versions(shadow_bundle: Path) -> tuple[str, str]:
    first, second = (predictors.load(path).model.version for path in (packaged_model(), shadow_bundle))
    return first, second


def kept(data_dir: Path, version: str) -> list[ShadowForecast]:
    with contextlib.closing(SqliteJournal(data_dir, read_only=True)) as journal:
        return journal.shadows(SYMBOL, version, 0, 2**60)


def replayed(tape: list[Candle], bundle: Path, since: int) -> list[ShadowForecast]:
    predictor = predictors.load(bundle)
    rules = Rules.of(Policy(), predictor.model.contract)
    found = [
        event
        for event in events(rules, SYMBOL, tape, predictor.model, predictor, since)
        if isinstance(event, Issued | Matured)
    ]
    made = taken({}, found, SYMBOL, predictor.model.version)
    return [made[t] for t in sorted(made)]


async def test_it_is_scored_beside_the_model_over_a_restart_and_never_published(
    broker: str, shadow_bundle: Path, versions: tuple[str, str], tmp_path: Path
) -> None:
    present, other = versions
    tape = stand.market((SYMBOL,), hours=LONG, history=3_000)

    def matured(watch: stand.Watch, least: int) -> bool:
        scores = [fact.score for fact in watch.of(ShadowScored)]
        return bool(scores) and bool(scores[-1].windows) and scores[-1].windows[-1].matured >= least

    async with Exchange.replaying(tape, START, LONG, stand.PACED) as exchange:
        first, _ = await stand.run(
            exchange, broker, tmp_path, symbols=(SYMBOL,), shadow=shadow_bundle, until=lambda watch: matured(watch, 3)
        )
        before = len(await asyncio.to_thread(kept, tmp_path, other))
    async with Exchange.replaying(tape, START, LONG, stand.PACED) as exchange:
        # The second run begins anew on the tape, where the first one has been.
        second, ear = await stand.run(
            exchange, broker, tmp_path, symbols=(SYMBOL,), shadow=shadow_bundle, check=False,
            until=lambda watch: matured(watch, before + 2),
        )  # fmt: skip
        whole = exchange.tape.all(SYMBOL)
    forecasts = await asyncio.to_thread(kept, tmp_path, other)
    since, last = forecasts[0].open_time, forecasts[-1].open_time
    right = await asyncio.to_thread(replayed, [c for c in whole if c.open_time <= last], shadow_bundle, since)
    assert [f.open_time for f in forecasts] == [f.open_time for f in right]
    for found, expected in zip(forecasts, right, strict=True):
        assert (found.volatility, found.low, found.high) == pytest.approx(
            (expected.volatility, expected.low, expected.high), rel=1e-7
        )
        assert (found.realized is None) == (expected.realized is None)
    window = second.of(ShadowScored)[-1].score.windows[-1]
    assert window.qlike != window.model_qlike
    # Nothing of it is published.
    assert {f.forecast.model.version for w in (first, second) for f in w.of(ForecastCommitted)} == {present}
    assert not any(other.encode() in payload for payloads in ear.events.values() for payload in payloads)


async def test_a_challenger_that_is_placed_while_the_node_runs_is_its_shadow_until_it_is_taken_away(
    broker: str, shadow_bundle: Path, versions: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, other = versions
    caplog.set_level(logging.INFO)
    tape = stand.market((SYMBOL,), hours=LONG, history=3_000)

    def logged(sentence: str) -> bool:
        return any(sentence in record.getMessage() for record in caplog.records)

    async with Exchange.replaying(tape, START, LONG, stand.PACED) as exchange:

        async def place_and_take(watch: stand.Watch) -> None:
            await watch.until(lambda: watch.live() >= 3)
            assert not watch.of(ShadowScored)
            challenger = tmp_path / CHALLENGER
            await asyncio.to_thread(lambda: challenger.write_bytes(shadow_bundle.read_bytes()[:1_000]))
            await watch.until(lambda: logged("no model runs as a shadow"))
            await asyncio.to_thread(lambda: challenger.write_bytes(shadow_bundle.read_bytes()))
            await watch.until(lambda: {f.score.model_version for f in watch.of(ShadowScored)} == {other})
            await asyncio.to_thread(challenger.unlink)
            await watch.until(lambda: logged(f"model {other} is no shadow any more"))

        await stand.run(
            exchange, broker, tmp_path, symbols=(SYMBOL,), alongside=place_and_take, until=lambda watch: True
        )
