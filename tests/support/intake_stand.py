"""An intake on a real journal, a REST in memory, and one clock that moves when all else has come to rest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from stream.adapters.journal.store import SqliteJournal
from stream.clock import Clock
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.policy import Policy
from stream.core.market.binance import ExchangeInfo, KlineUpdate, SymbolInfo, UnknownSymbolError
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.market.due_candles import lacking
from stream.core.market.exchange_time import ExchangeTime
from stream.core.market.outputs import Due
from stream.core.market.rest_answer import Answer
from stream.core.market.sequencer import Sequencer
from stream.errors import UnreachableError
from stream.pipeline.intake import Intake
from stream.pipeline.processing import Processor
from stream.pipeline.subscription import Subscription
from stream.pipeline.worker import Worker
from stream.ports import Urgency
from stream.telemetry import Fact
from stream.testing.sample_model import sample_model, sample_predict

START = 1_704_067_200_000


SYMBOL = "BTCUSDT"


#: The newest closed candle when the test begins.
NEWEST = 100


BEGIN_MS = START + (NEWEST + 1) * HOUR_MS + 60_000


class Rest:
    """A REST that has the candles up to its own time less its lag, and answers while it is reachable."""

    def __init__(self, candles: list[Candle], now_ms: Callable[[], int], reported_time: Callable[[int], None]) -> None:
        self.candles_ = candles
        self._now_ms = now_ms
        self.lag_ms = 0
        self.reported_time = reported_time
        self.reachable = True
        self.status = "TRADING"
        self.knows = True
        self.knows_status = True
        self.asked = 0
        self.asked_for_candles = 0
        self.lacks: set[int] = set()
        #: Symbols for which there is no answer.
        self.fails: set[str] = set()
        #: Each question for candles: symbol, urgency, and from which hour to which.
        self.questions: list[tuple[str, Urgency, int, int | None]] = []
        #: Answers are held back until this is set.
        self.open = asyncio.Event()
        self.open.set()
        self.queried = asyncio.Event()

    @property
    def now_ms(self) -> int:
        return self._now_ms()

    async def server_time_ms(self) -> int:
        await self._answer()
        self.reported_time(self.now_ms)
        return self.now_ms

    async def exchange_info(self, symbol: str) -> ExchangeInfo:
        await self._answer()
        if not self.knows_status:
            raise UnreachableError("HTTP 503 from /api/v3/exchangeInfo")
        return ExchangeInfo(self.now_ms, [SymbolInfo(symbol, self.status)])

    async def first_open_time(self, symbol: str, from_open_time: int) -> int | None:
        await self._answer()
        return next((c.open_time for c in self.candles_ if c.open_time >= from_open_time), None)

    async def candles(
        self, symbol: str, from_open_time: int, to_open_time: int | None = None, *, urgency: Urgency = Urgency.NOW
    ) -> Answer:
        self.asked_for_candles += 1
        self.questions.append((symbol, urgency, from_open_time, to_open_time))
        self.reported_time(self.now_ms)
        await self._answer()
        await self.open.wait()
        if symbol in self.fails:
            raise UnreachableError("nobody there for this one")
        last = 2**60 if to_open_time is None else to_open_time
        shown = self.now_ms - self.lag_ms
        seen = [c for c in self.candles_ if c.open_time not in self.lacks and from_open_time <= c.open_time <= shown]
        times = [c.open_time for c in seen]
        found = [c for c in seen if c.open_time <= last and c.close_time < self.now_ms]
        if symbol != SYMBOL:
            found = [msgspec.structs.replace(c, symbol=symbol) for c in found]
        return Answer(found, self.now_ms, times[-1] if times else None, tuple(t for t in lacking(times) if t <= last))

    async def _answer(self) -> None:
        self.asked += 1
        self.queried.set()
        await asyncio.sleep(0)
        if not self.reachable:
            raise UnreachableError("nobody there")
        if not self.knows:
            raise UnknownSymbolError(SYMBOL)


class Predictor:
    model = sample_model()

    def __call__(self, sequence, static):  # type: ignore[no-untyped-def]
        return sample_predict(sequence, static)


class Stand:
    def __init__(self, data_dir: Path, tape: list[Candle], symbols: Sequence[str] = (SYMBOL,)) -> None:
        self.tape = tape
        self.symbols = tuple(symbols)
        self.now_s = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self.time = ExchangeTime()
        self.rest = Rest(tape, self.now_ms, lambda server_ms: self.time.observe(server_ms, self.now_s, self.now_s))
        self.facts: list[Fact] = []
        self.states: list[str] = []
        self.journal = SqliteJournal(data_dir)
        clock = Clock(monotonic_s=lambda: self.now_s, sleep=self._sleep)
        self.worker = Worker(clock=clock, observe=self.facts.append)
        self.processor = Processor(
            journal=self.journal,
            worker=self.worker,
            predictor=Predictor(),
            rules=Rules.of(Policy(), Predictor.model.contract),
            clock=clock,
            observe=self.facts.append,
            offer=lambda events, retained: None,
        )
        self.queue: asyncio.Queue[Due] = asyncio.Queue()
        self.intake = Intake(
            self.symbols,
            history=self.rest,
            journal=self.journal,
            processor=self.processor,
            worker=self.worker,
            queue=self.queue,
            exchange_time=self.time,
            time_scale=1.0,
            clock=clock,
            observe=self.facts.append,
            notify_feed=lambda symbol, state, first, last: self.states.append(state),
        )

    @property
    def subscription(self) -> Subscription:
        return self.intake.subscriptions[SYMBOL]

    @property
    def sequencer(self) -> Sequencer:
        return self.subscription.sequencer

    # There is one clock: the exchange's time is the machine's plus an offset. It moves when the test moves it, or when
    # every task waits and one of them for the clock.

    def now_ms(self) -> int:
        return BEGIN_MS + round(self.now_s * 1_000)

    def at(self, exchange_ms: int) -> None:
        """Moves the clock to that time of the exchange."""
        self.now_s = max(self.now_s, (exchange_ms - BEGIN_MS) / 1_000)
        self._wake()

    async def _sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now_s + seconds, woken))
        await woken

    def _wake(self) -> None:
        for until_s, woken in [s for s in self._sleepers if s[0] <= self.now_s]:
            self._sleepers.remove((until_s, woken))
            if not woken.done():
                woken.set_result(None)

    async def rest_of_the_loop(self) -> None:
        """Lets all tasks run until they wait for the clock."""
        for _ in range(20):
            await self.worker.call(int)
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Lets the time pass until the condition holds."""
        async with asyncio.timeout(10):
            while not condition():
                await self.rest_of_the_loop()
                if not condition() and self._sleepers:
                    self.now_s = max(self.now_s, min(s[0] for s in self._sleepers))
                    self._wake()

    async def close(self, hour: int) -> None:
        """Lets the websocket bring the close of an hour."""
        candle = self.tape[hour]
        self.at(candle.close_time + 100)
        await self.intake.closed(KlineUpdate(candle, candle.close_time + 80, True), self.now_s)

    async def idle(self) -> None:
        """Waits until the backfill that runs, if any, is done."""
        await self.until(lambda: self.subscription.backfill is None)

    async def passed(self, count: int) -> list[tuple[int, str]]:
        """Waits for the next candles that pass; returns them as (hour, provenance)."""
        await self.until(lambda: self.queue.qsize() >= count)
        found = [self.queue.get_nowait() for _ in range(count)]
        return [((due.candle.open_time - START) // HOUR_MS, due.provenance) for due in found]


@contextlib.asynccontextmanager
async def running(made: Stand) -> AsyncIterator[None]:
    running = asyncio.create_task(made.intake.run())
    yield
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await asyncio.to_thread(made.worker.close)
    await asyncio.to_thread(made.journal.close)
