"""Many symbols that close together, in a process of its own: `close_together.py SYMBOLS HOURS BROKER_URL FOLDER
[profile]`.

Operator, model, journal, publisher and MQTT are the product's; each symbol has arrays of its own, as after a warm-up.
Prints a line of JSON per hour: seconds from the last closing frame to the last acknowledged decision and to the last
message, CPU seconds, the loop's lag and the resident memory. With `profile`, profiles of the second half of the hours
follow, of the worker's thread and of the loop.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import json
import pstats
import random
import sys
import time
from pathlib import Path

import msgspec

from stream.adapters import predictor as predictors
from stream.adapters.bundles import packaged_model
from stream.adapters.journal.store import SqliteJournal
from stream.adapters.mqtt.broker import MqttBroker
from stream.cli import process
from stream.clock import Clock
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import State
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import warm
from stream.core.forecasting.tail import Tail, spare_rows_of
from stream.core.market.outputs import Due
from stream.core.messages.revisions import IssuedHistory
from stream.core.messages.topics import node_topic
from stream.pipeline.processing import Processor
from stream.pipeline.publishing import EventPublisher
from stream.pipeline.worker import Worker
from stream.telemetry import Fact, OutboxCounted, Published
from stream.testing.market import simulate_symbol

START = 1_704_067_200_000
PROBE_S = 0.005
PROFILE_LINES = 30


class Watch:
    """Counts acknowledged messages, and when the last decision was."""

    def __init__(self) -> None:
        self.published = 0
        self.decided_at_s = 0.0
        self.published_at_s = 0.0
        self.outbox = 0
        self.changed = asyncio.Event()

    def __call__(self, fact: Fact) -> None:
        if isinstance(fact, OutboxCounted):
            self.outbox = fact.messages
        if isinstance(fact, Published):
            self.published += 1
            self.published_at_s = time.monotonic()
            if fact.topic.endswith("event/decision.issued"):
                self.decided_at_s = self.published_at_s
            self.changed.set()


def of_its_own(state: State, symbol: str) -> State:
    assert state.past is not None
    spare = spare_rows_of(symbol)
    past = msgspec.structs.replace(
        state.past,
        each=Tail.of(state.past.each.rows, spare),
        own=None if state.past.own is None else Tail.of(state.past.own.rows, spare),
    )
    window, realized = Tail.of(state.window.rows, spare), Tail.of(state.realized.rows, spare)
    return msgspec.structs.replace(state, symbol=symbol, window=window, past=past, realized=realized)


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1_024


async def probe(lags_s: list[float]) -> None:
    while True:
        before_s = time.monotonic()
        await asyncio.sleep(PROBE_S)
        lags_s.append(time.monotonic() - before_s - PROBE_S)


async def main(symbols: int, hours: int, broker_url: str, folder: Path, profiled: bool) -> None:
    # As `volcast run` does.
    process.share_memory_between_threads()
    predictor = predictors.load(packaged_model())
    rules = Rules.of(Policy(), predictor.model.contract)
    names = [f"S{n:04}USDT" for n in range(symbols)]
    # None of them is the symbol that the bundle describes, so each has regimes of its own.
    history = rules.history_hours(names[0])
    candles = tuple(simulate_symbol(names[0], START, history + hours, 7))
    state = warm(rules, names[0], candles[:history], predictor.model, predictor)
    candles = candles[history:]
    watch, clock = Watch(), Clock()
    work, loop = cProfile.Profile(), cProfile.Profile()
    journal = SqliteJournal(folder)
    worker = Worker(clock=clock, observe=watch)
    publisher = EventPublisher(
        instance="bench", session="s", journal=journal, worker=worker, clock=clock,
        exchange_now_ms=lambda: now_ms, observe=watch,
    )  # fmt: skip
    processor = Processor(
        journal=journal, worker=worker, predictor=predictor, rules=rules, clock=clock, observe=watch,
        offer=publisher.offer,
    )  # fmt: skip
    broker = MqttBroker(
        broker_url, client_id="bench", will_topic=node_topic("bench", "state"), will=b"{}", observe=watch,
        rng=random.Random(1),
    )  # fmt: skip
    now_ms = candles[0].open_time
    await worker.call(journal.configure, names)
    for name in names:
        # A benchmark may reach inside: warming up thousands of symbols would take minutes.
        await processor._adopt(of_its_own(state, name), IssuedHistory())
    # As `volcast run` does once it has imported everything.
    gc.freeze()
    speaking = asyncio.create_task(broker.run(publisher.session))
    for candle in candles:
        batch = [Due(msgspec.structs.replace(candle, symbol=name), "live", time.monotonic()) for name in names]
        now_ms = candle.close_time + 1
        if profiled and candle is candles[-(hours // 2)]:
            await worker.call(work.enable)
            loop.enable()
        lags_s: list[float] = []
        probing = asyncio.create_task(probe(lags_s))
        began_s, cpu_s, published = time.monotonic(), time.process_time(), watch.published
        await processor.process(batch)
        while watch.outbox:
            watch.changed.clear()
            await watch.changed.wait()
        decided_s, decided_cpu_s = watch.decided_at_s - began_s, time.process_time() - cpu_s
        await processor.publish_scores()
        while watch.outbox or publisher._unsent:
            watch.changed.clear()
            await watch.changed.wait()
        probing.cancel()
        print(
            json.dumps(
                {
                    "decided_s": decided_s,
                    "decided_cpu_s": decided_cpu_s,
                    "all_s": watch.published_at_s - began_s,
                    "all_cpu_s": time.process_time() - cpu_s,
                    "messages": watch.published - published,
                    "lag_p99_s": sorted([*lags_s, 0.0])[int(0.99 * len(lags_s))],
                    "resident_mb": resident_mb(),
                }
            ),
            flush=True,
        )
    if profiled:
        loop.disable()
        await worker.call(work.disable)
        for profile in (work, loop):
            pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(PROFILE_LINES)
    publisher.close()
    await speaking
    worker.close()
    journal.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), "profile" in sys.argv[5:]))
