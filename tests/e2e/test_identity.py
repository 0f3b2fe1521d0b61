"""(id, revision) names one value for ever, whichever node publishes it: restored, new, or with another model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiomqtt
import fault_harness as stand
import fault_oracle
import msgspec
import pytest
from fault_harness import PACED, START, hour

from stream.adapters.bundles import packaged_model
from stream.adapters.journal.database import FILE_NAME
from stream.adapters.mqtt.broker import Session, broker_client
from stream.adapters.mqtt.retained_topics import RetainedTopicsReader
from stream.commands import backup
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages.topics import symbol_topic
from stream.telemetry import CandleProcessed, CandleRevised, CommitFailed, ForecastRevised
from stream.testing.exchange import Exchange

BTC = ("BTCUSDT",)
#: The hour whose candle the exchange first sends with another value, and the hours that the tests play in all.
WRONG, HOURS = 10, 40


@pytest.fixture
def broker() -> Iterator[str]:
    """A broker that is empty for each test, so that it holds only what the test published."""
    with stand.new_broker() as url:
        yield url


@pytest.fixture(scope="module")
def right() -> dict[str, list[Candle]]:
    return stand.market(BTC, hours=HOURS)


@pytest.fixture(scope="module")
def wrong(right: dict[str, list[Candle]]) -> dict[str, list[Candle]]:
    def spoilt(candle: Candle) -> Candle:
        close = candle.close * 0.97
        return msgspec.structs.replace(candle, close=close, low=min(candle.low, close))

    return {s: [spoilt(c) if c.open_time == hour(WRONG) else c for c in series] for s, series in right.items()}


async def live(
    tape: dict[str, list[Candle]], first: int, last: int, broker: str, data_dir: Path, **changes: Any
) -> tuple[stand.Watch, stand.Ear]:
    """Runs a node on an exchange on which `first` is the newest closed hour, until `last` is processed."""
    async with Exchange.replaying(tape, hour(first), last - first + 1, PACED) as exchange:
        return await stand.run(exchange, broker, data_dir, **({"check": False, "settle": True} | changes))


async def a_former_life(
    wrong: dict[str, list[Candle]], right: dict[str, list[Candle]], broker: str, data_dir: Path, until_backup: int = 6
) -> None:
    """Runs a node that publishes WRONG and the hours after it, and again once the exchange has revised that hour."""
    await live(wrong, 0, until_backup, broker, data_dir)
    await asyncio.to_thread(backup.copy_journal, data_dir, data_dir.with_suffix(".backup"))
    await live(wrong, until_backup, 18, broker, data_dir)
    watch, _ = await live(right, 18, 21, broker, data_dir, also=lambda w: bool(w.of(CandleRevised)))
    assert [f.open_time for f in watch.of(CandleRevised)] == [hour(WRONG)]


def revisions(keys: Iterable[tuple[str, int]]) -> dict[int, set[int]]:
    """Returns by hour the revisions with which forecasts were issued."""
    found: dict[int, set[int]] = {}
    for identity, revision in keys:
        if len(parts := identity.split(":")) == 6:
            found.setdefault((int(parts[4]) - START) // HOUR_MS, set()).add(revision)
    return found


@pytest.mark.fault(42)
@pytest.mark.parametrize("how", ["restored", "standby"])
async def test_who_goes_on_from_an_old_journal_uses_no_revision_for_another_value(
    how: str, broker: str, wrong: dict[str, list[Candle]], right: dict[str, list[Candle]], tmp_path: Path
) -> None:
    former = tmp_path / "former"
    await a_former_life(wrong, right, broker, former)
    newest = {h: max(numbers) for h, numbers in revisions(stand.PUBLISHED[broker]).items()}
    assert newest[WRONG] == 1
    there = tmp_path / how
    there.mkdir()
    former.with_suffix(".backup").rename(there / FILE_NAME)
    other = {"instance": "second", "standby": True} if how == "standby" else {}
    _, ear = await live(right, 23, 26, broker, there, check=True, **other)
    # Equal values keep their revision, and hours that no node had published begin with 0.
    assert revisions(ear.events) == {h: {newest.get(h, 0)} for h in range(7, 27)}


@pytest.mark.fault(42)
async def test_a_correction_that_a_backup_lacks_is_made_again_under_its_number(
    broker: str, wrong: dict[str, list[Candle]], right: dict[str, list[Candle]], tmp_path: Path
) -> None:
    await a_former_life(wrong, right, broker, tmp_path / "former", until_backup=14)
    there = tmp_path / "restored"
    there.mkdir()
    (tmp_path / "former.backup").rename(there / FILE_NAME)
    watch, ear = await live(right, 23, 26, broker, there, check=True, also=lambda w: bool(w.of(CandleRevised)))
    assert [f.open_time for f in watch.of(CandleRevised)] == [hour(WRONG)]
    assert {h: n for h, n in revisions(ear.events).items() if h <= 14} == {h: {1} for h in range(WRONG, 15)}


@pytest.mark.fault(42)
async def test_a_fresh_directory_uses_no_revision_for_another_value(
    broker: str, wrong: dict[str, list[Candle]], right: dict[str, list[Candle]], tmp_path: Path
) -> None:
    """The former node is gone, and published a candle that the exchange revised afterwards."""
    await live(wrong, 0, 18, broker, tmp_path / "former")
    _, ear = await live(right, 18, 22, broker, tmp_path / "fresh")
    assert revisions(ear.events) == {h: {1 if h == 18 else 0} for h in range(18, 23)}
    recent = await retained(broker, symbol_topic("BTCUSDT", "recent"))
    # Late subscribers see what was issued by both nodes.
    issued = {(line["open_time"] - START) // 3_600_000 for line in recent["forecasts"] if "issued" in line}
    assert issued == set(range(23))


@pytest.mark.fault(42)
async def test_the_same_journal_says_the_same_again(
    broker: str, right: dict[str, list[Candle]], tmp_path: Path
) -> None:
    for first, last in ((0, 5), (7, 12)):
        _, ear = await live(right, first, last, broker, tmp_path, check=True)
        assert set.union(*revisions(ear.events).values()) == {0}


async def retained(broker: str, topic: str) -> Any:
    host, _, port = broker.removeprefix("mqtt://").partition(":")
    async with asyncio.timeout(10):
        async with aiomqtt.Client(host, int(port), protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.subscribe(topic)
            async for message in client.messages:
                return json.loads(message.payload)  # type: ignore[arg-type]
    return None


@pytest.mark.fault(43)
@pytest.mark.parametrize("gone", ["directory", "journal"])
async def test_a_journal_that_is_removed_under_the_node_is_put_back_before_the_next_word(
    gone: str, broker: str, right: dict[str, list[Candle]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data_dir = tmp_path / "var"

    def remove() -> None:
        if gone == "directory":
            shutil.rmtree(data_dir)
        else:
            (data_dir / FILE_NAME).unlink()

    async def act(watch: stand.Watch) -> None:
        await watch.until(lambda: len(watch.of(CandleProcessed)) >= 5)
        await asyncio.to_thread(remove)

    # The oracle: every message that was received is in the journal, and every candle.
    _, ear = await live(right, 0, HOURS - 1, broker, data_dir, alongside=act, check=True)
    kept = await asyncio.to_thread(fault_oracle.published_by, data_dir)
    assert {key for key in ear.events if len(key[0].split(":")) in (6, 7) and "scored" not in key[0]} <= kept.keys()
    assert len([m for m in caplog.messages if "was removed under the running node" in m]) == 1


@pytest.mark.fault(43)
async def test_a_journal_that_is_replaced_under_the_node_is_left_alone_and_nothing_more_is_said(
    broker: str, right: dict[str, list[Candle]], tmp_path: Path
) -> None:
    data_dir = tmp_path / "var"

    def replace() -> None:
        (data_dir / "other").write_bytes(b"another journal")
        (data_dir / "other").rename(data_dir / FILE_NAME)

    processed = -1

    async def act(watch: stand.Watch) -> None:
        nonlocal processed
        await watch.until(lambda: len(watch.of(CandleProcessed)) >= 5)
        await asyncio.to_thread(replace)
        processed = len(watch.of(CandleProcessed))
        await watch.until(lambda: bool(watch.of(CommitFailed)))
        watch.stop.set()

    watch, _ = await live(right, 0, HOURS - 1, broker, data_dir, alongside=act, settle=False)
    assert len(watch.of(CandleProcessed)) <= processed + 1
    assert "restart the node" in watch.of(CommitFailed)[0].reason
    assert (data_dir / FILE_NAME).read_bytes() == b"another journal"


@pytest.mark.fault(44)
async def test_what_a_former_model_said_is_corrected_by_it(
    broker: str, wrong: dict[str, list[Candle]], right: dict[str, list[Candle]], tmp_path: Path
) -> None:
    # Another bundle with the same weights: appended bytes change its version.
    other = tmp_path / "other.onnx"
    bundle = await asyncio.to_thread(packaged_model().read_bytes)
    await asyncio.to_thread(other.write_bytes, bundle + b"\x32\x05later")
    first, second = [await asyncio.to_thread(fault_oracle.version_of, path) for path in (packaged_model(), other)]
    await live(wrong, 0, 14, broker, tmp_path / "var")
    watch, ear = await live(
        right, 15, 17, broker, tmp_path / "var", model=other, also=lambda w: bool(w.of(CandleRevised))
    )
    again = [f.forecast for f in watch.of(ForecastRevised)]
    former = {f.open_time: f for f in again if f.model.version != second}
    assert sorted(former) == [hour(h) for h in range(WRONG, 15)]
    assert {f.revision for f in former.values()} == {1}
    assert {f.model.version for f in former.values()} == {first}
    assert {(f.id, 1) for f in former.values()} <= ear.events.keys()
    # The new revisions are the former model's forecasts on the right candles.
    await asyncio.to_thread(fault_oracle.hold_forecasts, list(former.values()), right["BTCUSDT"])


WRITE_ONLY = "topic write volcast/#\n"


async def test_who_may_publish_and_not_read_hears_nothing_and_publishes(mosquitto: Any, tmp_path: Path) -> None:
    received: list[Any] = []

    async def learn(payloads: Mapping[str, bytes]) -> None:
        received.append(dict(payloads))

    (tmp_path / "strict").mkdir()
    strict = type(mosquitto)(tmp_path / "strict", WRITE_ONLY)
    await asyncio.to_thread(strict.start)
    try:
        recall = RetainedTopicsReader([symbol_topic("BTCUSDT", "recent"), symbol_topic("BTCUSDT", "score")], learn)
        for _ in range(2):
            async with broker_client(strict.url, "test") as client:
                await recall(client)
                await Session(client).publish(symbol_topic("BTCUSDT", "recent"), b"{}", retain=True)
    finally:
        await asyncio.to_thread(strict.stop)
    assert received == [{}, {}]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_symbol_that_leaves_before_its_first_candle_leaves_no_topic_behind(
    volcast: Callable[..., Any], mosquitto: Any, subscribe: Callable[..., Any], tmp_path: Path, until: Any
) -> None:
    def run(symbols: str) -> Any:
        return volcast(
            "run", "--symbols", symbols, "--ws-url", f"ws://127.0.0.1:{free_port()}", "--rest-url",
            f"http://127.0.0.1:{free_port()}", "--mqtt-url", mosquitto.url, "--http-port", 0,
            "--data-dir", tmp_path / "var",
        )  # fmt: skip

    subscriber = subscribe(mosquitto.port, "5")
    first = run("BTCUSDT,ETHUSDT")
    until(lambda: subscriber.payloads("ETHUSDT/1h/feed"), "the feed's state")
    assert first.stop() == 0
    second = run("BTCUSDT")
    topic = "volcast/v1/binance/spot/ETHUSDT/1h/feed"
    until(lambda: f"0 {topic} \n" in subscriber._file.read_text(), "the topic's end")
    assert second.stop() == 0
