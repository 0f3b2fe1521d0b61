"""Identity: what was issued is repeated, and its revisions are not reused, after restarts and alongside other nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from processor_bench import SYMBOL, Bench, bench, wrong
from scripted_broker import NOT_AUTHORIZED, Scripted

from stream.adapters.mqtt.broker import Session, broker_client
from stream.adapters.mqtt.retained_topics import RetainedTopicsReader
from stream.core.deciding.accumulation import anchor
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.market.outputs import Due
from stream.core.messages import schemas, topics
from stream.core.messages.records import Outgoing
from stream.core.messages.schemas import Forecast, PublishedScore, Recent
from stream.pipeline import identity
from stream.testing.market import simulate_symbol

pytestmark = pytest.mark.fault(42)

START = 1_704_067_200_000
RECENT = topics.symbol_topic(SYMBOL, "recent")
SCORE = topics.symbol_topic(SYMBOL, "score")


def hour(n: int) -> int:
    return START + n * HOUR_MS


async def start(made: Bench, past: Sequence[Candle]) -> None:
    await made.worker.call(made.journal.store_history, past)
    await made.processor.warm(SYMBOL, past, await made.worker.call(made.journal.processed, SYMBOL))


async def go_on(made: Bench, candles: Sequence[Candle]) -> None:
    for candle in candles:
        await made.processor.process([Due(candle, "live", 0.0)])


def lines(made: Bench) -> dict[int, dict[str, Any]]:
    recent = msgspec.json.decode(made.retained[RECENT].payload)
    return {(line["open_time"] - START) // HOUR_MS: line for line in recent["forecasts"]}


def interval(line: dict[str, Any]) -> tuple[float, float, float]:
    return (line["volatility"], line["low"], line["high"])


async def test_a_restart_after_an_anchor_step_repeats_the_lines_that_were_published(tmp_path: Path) -> None:
    step = next(h for h in range(2_200, 3_000) if anchor(hour(h)) != anchor(hour(h - 1)))
    tape = simulate_symbol(SYMBOL, START, step + 4, 5)
    async with bench(tmp_path) as made:
        await start(made, tape[: step - 30])
        await go_on(made, tape[step - 30 : step])
        published = lines(made)
    async with bench(tmp_path) as made:
        await start(made, tape[:step])
        await go_on(made, tape[step : step + 2])
        before_the_end = lines(made)
    async with bench(tmp_path) as made:
        await start(made, tape[: step + 2])
        await go_on(made, tape[step + 2 :])
        after = lines(made)
    # Hours that were issued, and hours that were only listed because the node had just begun.
    kept = [h for h in published if h in after]
    assert len(kept) > 40
    assert [interval(after[h]) for h in kept] == [interval(published[h]) for h in kept]
    assert [interval(after[h]) for h in (step, step + 1)] == [interval(before_the_end[h]) for h in (step, step + 1)]
    assert [h for h in after if "issued" in after[h]] == list(range(step - 30, step + 4))


class Broker:
    """The events that wait to be published, and those that were amended."""

    def __init__(self, made: Bench) -> None:
        self._made = made
        self.amended: dict[int, bytes] = {}

    def pending(self) -> Sequence[Outgoing]:
        return self._made.offered

    def amend(self, payloads: Mapping[int, bytes]) -> None:
        self.amended |= payloads


TAPE = simulate_symbol(SYMBOL, START, 160, 5)


async def others(folder: Path, *, spoilt: int, first: int = 50, last: int = 90) -> dict[str, bytes]:
    """Returns the retained messages of a node that received one hour wrong, and issued it again once the exchange had
    revised it."""
    async with bench(folder) as made:
        await start(made, TAPE[:first])
        await go_on(made, [wrong(c, 0.97) if h == spoilt else c for h, c in enumerate(TAPE[:last])][first:])
        assert await made.processor.revise(SYMBOL, TAPE[last - 40 : last]) == 1
        await made.processor.publish_scores()
        return {topic: item.payload for topic, item in made.retained.items()}


def numbers(made: Bench) -> dict[int, list[int]]:
    """Returns by hour the revisions that wait to be published."""
    found: dict[int, list[int]] = {}
    for event in made.offered:
        if event.topic.endswith("forecast.issued"):
            forecast = msgspec.json.decode(event.payload, type=Forecast)
            found.setdefault((forecast.open_time - START) // HOUR_MS, []).append(forecast.revision)
    return found


@pytest.mark.parametrize("when", ["before", "after"])
async def test_equal_values_have_the_revision_that_they_had(when: str, tmp_path: Path) -> None:
    """Whether the retained topics are read before the first candle, or while events wait for them."""
    retained = await others(tmp_path / "others", spoilt=70)
    async with bench(tmp_path / "ours") as made:
        await start(made, TAPE[:60])
        broker = Broker(made)
        if when == "before":
            await made.processor.learn(SYMBOL, retained, broker)
        await go_on(made, TAPE[60:95])
        if when == "after":
            assert {n for ns in numbers(made).values() for n in ns} == {0}
            await made.processor.learn(SYMBOL, retained, broker)
            stored = await made.worker.call(made.journal.outbox)
            assert broker.amended
            assert {e.seq: e.payload for e in stored} == {
                e.seq: broker.amended.get(e.seq, e.payload) for e in made.offered
            }
            made.offered = stored
        # 70 to 89 were revised by the others; no node had published the hours after them.
        assert numbers(made) == {h: [1 if 70 <= h < 90 else 0] for h in range(60, 95)}
        rows = await asyncio.to_thread(made.journal.messages, "forecasts", SYMBOL, None, None, 1_000)
        kept = {(m["open_time"] - START) // HOUR_MS: m["revision"] for m in map(msgspec.json.decode, rows)}
        assert kept == {h: n for h, (n,) in numbers(made).items()}
        shown = lines(made)
        assert {h: line["issued"]["revision"] for h, line in shown.items() if "issued" in line} == {
            h: 1 if 70 <= h < 90 else 0 for h in range(50, 95)
        }


async def test_another_value_has_the_next_revision(tmp_path: Path) -> None:
    """The others had published hour 70 wrong, and were gone when the exchange revised it."""
    async with bench(tmp_path / "others") as made:
        await start(made, TAPE[:50])
        await go_on(made, [wrong(c, 0.97) if h == 70 else c for h, c in enumerate(TAPE[:90])][50:])
        retained = {topic: item.payload for topic, item in made.retained.items()}
    async with bench(tmp_path / "ours") as made:
        await start(made, TAPE[:60])
        await made.processor.learn(SYMBOL, retained, Broker(made))
        await go_on(made, TAPE[60:95])
        assert numbers(made) == {h: [1 if 70 <= h < 90 else 0] for h in range(60, 95)}


async def test_what_is_known_of_long_ago_is_that_it_was_said(tmp_path: Path) -> None:
    """`recent` has expired; the score, which never does, reports how far the others had come."""
    retained = await others(tmp_path / "others", spoilt=70)
    reported = msgspec.json.decode(retained[SCORE], type=PublishedScore)
    assert (reported.issued_until, reported.highest_revision) == (hour(89), 1)
    async with bench(tmp_path / "ours") as made:
        await start(made, TAPE[:60])
        await made.processor.learn(SYMBOL, {SCORE: retained[SCORE]}, Broker(made))
        await go_on(made, TAPE[60:95])
        assert numbers(made) == {h: [2 if h < 90 else 0] for h in range(60, 95)}


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b'{"schema":"volcast.recent/1"}', b"\xff\xfe", b"null"],
    ids=["nothing", "half", "a list", "too little", "no text", "null"],
)
async def test_what_somebody_else_wrote_there_changes_nothing(payload: bytes, tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await start(made, TAPE[:60])
        await made.processor.learn(SYMBOL, dict.fromkeys(identity.retained_topics([SYMBOL]), payload), Broker(made))
        await go_on(made, TAPE[60:63])
        assert numbers(made) == {h: [0] for h in range(60, 63)}


async def test_a_broker_that_refuses_subscriptions_is_told_once_and_spoken_to(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reported: list[Mapping[str, bytes]] = []

    async def learn(payloads: Mapping[str, bytes]) -> None:
        reported.append(payloads)

    async with Scripted() as broker, asyncio.timeout(30):
        broker.suback = NOT_AUTHORIZED
        recall = RetainedTopicsReader([RECENT, SCORE], learn)
        for _ in range(2):
            async with broker_client(broker.url, "n") as client:
                await recall(client)
                await Session(client).publish(RECENT, b"{}", retain=True)
    assert reported == [{}, {}]
    assert broker.received_topics(RECENT) == [RECENT, RECENT]
    assert len([m for m in caplog.messages if "does not let us read" in m]) == 1


async def test_a_restart_hears_itself_and_learns_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await start(made, TAPE[:50])
        await go_on(made, TAPE[50:120])
        await made.processor.publish_scores()
        retained = {topic: item.payload for topic, item in made.retained.items()}
    async with bench(tmp_path) as made:
        broker = Broker(made)
        await start(made, TAPE[:120])
        await made.processor.learn(SYMBOL, retained, broker)
        await go_on(made, TAPE[120:])
        assert not broker.amended
        assert {n for ns in numbers(made).values() for n in ns} == {0}
        recent = msgspec.json.decode(made.retained[RECENT].payload, type=Recent)
        assert recent.highest_revision == 0
        assert len(made.retained[RECENT].payload) <= schemas.RECENT_BYTES // 2
