"""The data directory's champion is replaced under a running node: no candle is lost, and the new model forecasts what
it would in a node that always ran with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fault_harness as stand
import msgspec
import pytest
from fault_harness import LONG, START
from fault_oracle import numbers, published_by, words
from other_bundles import write_scaled

from stream.adapters import predictor as predictors
from stream.adapters.bundles import CHAMPION, ModelFile, model_path, packaged_model
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Issued
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import replay
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages import builders
from stream.core.messages.schemas import Decision, Forecast
from stream.telemetry import CandleRevised, ForecastCommitted, ModelReplaced, NodeChanged
from stream.testing.exchange import Exchange

SYMBOL = "BTCUSDT"
#: Slow enough for two hours to pass while a state is computed, and for a look every two seconds to see much.
SPEED = 12_000.0
#: The history that the packaged model's decisions depend on, and some.
HISTORY = 3_000


@pytest.fixture
def broker() -> Iterator[str]:
    with stand.new_broker() as url:
        yield url


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scaled(tmp_path_factory.mktemp("model") / "other.onnx", 1.25)


@pytest.fixture(scope="module")
def versions(other: Path) -> tuple[str, str]:
    first, second = (predictors.load(path).model.version for path in (packaged_model(), other))
    return first, second


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    made = tmp_path / "var"
    made.mkdir()
    return made


def put(bundle: Path, data_dir: Path) -> None:
    """Puts a bundle in the champion's place, as a promotion does."""
    written = data_dir / "written.onnx"
    written.write_bytes(bundle.read_bytes())
    written.replace(data_dir / CHAMPION)


def served(watch: stand.Watch) -> list[str]:
    """Returns which model each forecast is of, in their order."""
    return [fact.forecast.model.version for fact in watch.of(ForecastCommitted)]


def hold(data_dir: Path, tape: list[Candle], bundles: list[Path]) -> None:
    """Asserts that each forecast and decision is the one of a replay with the model that it names."""
    rows = published_by(data_dir)
    forecasts = [msgspec.json.decode(row, type=Forecast) for (i, _), row in rows.items() if len(i.split(":")) == 6]
    decisions = [msgspec.json.decode(row, type=Decision) for (i, _), row in rows.items() if len(i.split(":")) == 7]
    assert len(forecasts) == len(decisions)
    times = sorted({f.open_time for f in forecasts})
    assert times == list(range(times[0], times[-1] + 1, HOUR_MS))
    assert len(forecasts) == len(times)
    published = {f.id: f for f in forecasts} | {d.id: d for d in decisions}
    for bundle in bundles:
        predictor = predictors.load(bundle)
        rules = Rules.of(Policy(), predictor.model.contract)
        for _, event in replay(rules, SYMBOL, tape, predictor.model, predictor, since=times[0]):
            if not isinstance(event, Issued):
                continue
            for right in (builders.forecast(event, predictor.model, "live", 0), builders.decision(event, "live", 0)):
                if (found := published.pop(right.id, None)) is not None:
                    assert words(found) == words(right)
                    assert numbers(found) == pytest.approx(numbers(right), rel=1e-7, abs=1e-12)
    assert not published


async def test_a_promotion_and_its_rollback_lose_no_candle(
    broker: str, data_dir: Path, other: Path, versions: tuple[str, str]
) -> None:
    first, second = versions
    tape = stand.market((SYMBOL,), hours=LONG, history=HISTORY)
    async with Exchange.replaying(tape, START, LONG, SPEED) as exchange:

        async def promote_and_roll_back(watch: stand.Watch) -> None:
            await watch.until(lambda: watch.live() >= 3)
            await asyncio.to_thread(put, other, data_dir)
            await watch.until(lambda: served(watch).count(second) >= 5)
            await asyncio.to_thread((data_dir / CHAMPION).unlink)
            await watch.until(lambda: served(watch)[-5:] == [first] * 5)

        watch, ear = await stand.run(
            exchange, broker, data_dir, symbols=(SYMBOL,), alongside=promote_and_roll_back, until=lambda watch: True,
            check=False,
        )  # fmt: skip
        played = [c for c in exchange.tape.all(SYMBOL) if c.open_time < exchange.end_ms]
    assert [(f.previous, f.model.version) for f in watch.of(ModelReplaced)] == [(first, second), (second, first)]
    announced = [
        msgspec.json.decode(p) for (i, _), payloads in ear.events.items() if ":model:" in i for p in payloads
    ]  # fmt: skip
    announced.sort(key=lambda message: message["issued_at"])
    assert [(m["schema"], m["previous"], m["model"]["version"]) for m in announced] == [
        ("volcast.model.changed/1", first, second),
        ("volcast.model.changed/1", second, first),
    ]
    remarks = " ".join(reason for fact in watch.of(NodeChanged) for reason in fact.reasons)
    assert f"model {second} waits until its state is computed; {first} goes on" in remarks
    await asyncio.to_thread(hold, data_dir, played, [packaged_model(), other])


async def test_a_candle_that_is_revised_meanwhile_is_in_the_new_models_state(
    broker: str, data_dir: Path, other: Path, versions: tuple[str, str]
) -> None:
    """The promotion and the revision come at once, and the later forecasts are those of the revised history."""
    _, second = versions
    tape = stand.market((SYMBOL,), hours=LONG, history=HISTORY)
    async with Exchange.replaying(tape, START, LONG, SPEED) as exchange:

        async def both(watch: stand.Watch) -> None:
            await watch.until(lambda: watch.live() >= 8)
            await asyncio.to_thread(put, other, data_dir)
            exchange.fault("revise", symbol=SYMBOL, hours_ago=3)
            await watch.until(lambda: bool(watch.of(CandleRevised)) and served(watch).count(second) >= 5)

        watch, _ = await stand.run(
            exchange, broker, data_dir, symbols=(SYMBOL,), alongside=both, until=lambda watch: True, check=False
        )
        played = [c for c in exchange.tape.all(SYMBOL) if c.open_time < exchange.end_ms]
    assert len(watch.of(ModelReplaced)) == 1
    await asyncio.to_thread(hold_newest, data_dir, played, other)


def hold_newest(data_dir: Path, tape: list[Candle], bundle: Path) -> None:
    """Asserts that the newest five forecasts are those of a replay."""
    predictor = predictors.load(bundle)
    rules = Rules.of(Policy(), predictor.model.contract)
    rows = sorted(
        (
            msgspec.json.decode(row, type=Forecast)
            for (i, _), row in published_by(data_dir).items()
            if i.count(":") == 5
        ),
        key=lambda f: (f.open_time, f.revision),
    )
    newest = {f.id: f for f in rows if f.model.version == predictor.model.version}
    issued = [e for _, e in replay(rules, SYMBOL, tape, predictor.model, predictor) if isinstance(e, Issued)]
    for event in issued[-5:]:
        right = builders.forecast(event, predictor.model, "live", 0)
        assert numbers(newest[right.id]) == pytest.approx(numbers(right), rel=1e-7, abs=1e-12)


@pytest.fixture(params=[b"", b"no model", None], ids=["empty", "foreign", "cut short"])
def bad(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    whole, path = packaged_model().read_bytes(), tmp_path / "bad.onnx"
    path.write_bytes(whole[: len(whole) // 2] if request.param is None else request.param)
    return path


async def test_a_champion_that_cannot_be_used_is_named_and_the_node_goes_on(
    bad: Path, broker: str, data_dir: Path, versions: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    present, _ = versions
    tape = stand.market((SYMBOL,), hours=LONG)
    caplog.set_level(logging.ERROR)
    async with Exchange.replaying(tape, START, LONG, SPEED) as exchange:

        def named(watch: stand.Watch) -> bool:
            reasons = [reason for fact in watch.of(NodeChanged) for reason in fact.reasons]
            return any(CHAMPION in reason and f"model {present} goes on" in reason for reason in reasons)

        async def spoil(watch: stand.Watch) -> None:
            await watch.until(lambda: watch.live() >= 3)
            await asyncio.to_thread(put, bad, data_dir)
            await watch.until(lambda: named(watch))
            before = len(served(watch))
            await watch.until(lambda: len(served(watch)) > before + 2)

        watch, _ = await stand.run(
            exchange, broker, data_dir, symbols=(SYMBOL,), alongside=spoil, until=lambda watch: True
        )
    assert set(served(watch)) == {present}
    assert not watch.of(ModelReplaced)
    lines: list[Any] = [record.getMessage() for record in caplog.records if CHAMPION in record.getMessage()]
    assert len(lines) == 1
    assert "\n" not in lines[0]


def test_a_file_that_is_still_being_written_is_announced_once_it_is_not(tmp_path: Path) -> None:
    watched, path = ModelFile(lambda: model_path(None, tmp_path), known=True), tmp_path / CHAMPION
    assert watched.changed() is None
    path.write_bytes(b"first half")
    assert watched.changed() is None
    path.write_bytes(b"first half and second half")
    assert watched.changed() is None
    assert watched.changed() == path
    assert watched.changed() is None
    path.unlink()
    assert watched.changed() is None
    assert watched.changed() == packaged_model()
