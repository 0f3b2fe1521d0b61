"""Intake: from frames to candles whose turn it is. The socket brings the news; REST settles what is missing.

Each symbol has a lane. What the socket brings in order passes at once; what lies behind a hole is held until REST has
been asked. Its answer and the held candles are merged, and an hour that had ended before REST was asked and is in
neither does not exist. So every candle passes once, in order. What passed is held against REST once an hour: the
exchange revises candles, and what it says last is true.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from stream.core.binance import KlineUpdate, UnknownSymbolError
from stream.core.candle import HOUR_MS, Candle, grid_floor
from stream.core.exchange_time import ExchangeTime
from stream.core.ledger import Verdict, judge, overdue
from stream.core.messages import FeedStateName
from stream.pipeline.processing import Due, Processor
from stream.pipeline.revision import REVISED_HOURS
from stream.ports import (
    BackfillFailed,
    BackfillRequested,
    CandleDelivered,
    CandleRepeated,
    Clock,
    CommitFailed,
    FrameRejected,
    History,
    Journal,
    JournalError,
    MissingCounted,
    Observer,
    RefusedError,
    TradingObserved,
    UnreachableError,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

#: REST reads from a database that may lag the matching engine just after a close.
REST_LAG_MS = 5_000
#: A due candle may be this late on the socket before REST is asked: exchange time, and real time at least.
_LATE_AFTER_MS = 60_000
_LATE_AFTER_REAL_S = 2.0
#: A frame this far ahead of the exchange's clock (times the scale) is not believed.
_FAR_AHEAD_MS = 2 * HOUR_MS
#: Candles that may wait for the worker before the socket and REST are made to wait.
_BACKLOG = 256
_RETRY_FIRST_S, _RETRY_CAP_S = 0.5, 30.0
#: How often REST is asked about a candle that it did not have either.
_ASK_AGAIN_S = 30.0
#: The same where it had what was asked for: something else may be missing soon.
_ASK_ANEW_S = 1.0
#: The same while the symbol is not traded: whether it is costs ten times as much to ask.
_ASK_AGAIN_HALTED_S = 60.0
#: So long after each full hour the past is held against REST.
_AUDIT_AFTER_MS = 600_000
_AUDIT_TICK_S = 1.0
_AUDIT_AGAIN_S = 60.0
#: Symbols whose past is asked for at a time.
_AUDITS_AT_ONCE = 8
#: After so many hours without a trade the exchange is asked whether the symbol is still traded.
_FLAT_HOURS = 24


@dataclass(slots=True)
class Lane:
    """One symbol's way through the intake."""

    symbol: str
    last_open_time: int | None = None
    #: Where the next question to REST begins.
    next_open_time: int = 0
    warmed: bool = False
    repairing: asyncio.Task[None] | None = None
    held: dict[int, tuple[KlineUpdate, float]] = field(default_factory=dict)
    said: tuple[FeedStateName, int | None, int | None] | None = None
    halted: bool = False
    #: The socket came back while REST was being asked: what closed in between is in neither.
    ask_once_more: bool = False
    ask_again_at_s: float = 0.0
    #: Hours without a trade up to now.
    flat_hours: int = 0
    #: The newest candle that passed.
    newest: Candle | None = None
    #: The full hour after which the past was last held against REST.
    audited_hour: int = 0
    audit_again_at_s: float = 0.0
    auditing: bool = False
    #: It has its past, or has found that it cannot have it now.
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> FeedStateName | None:
        return self.said[0] if self.said else None


class Intake:
    """`stream.ports.FeedListener`. `queue` receives `Due` candles, in order within each symbol."""

    def __init__(
        self,
        symbols: Iterable[str],
        *,
        history: History,
        journal: Journal,
        processor: Processor,
        queue: asyncio.Queue[Due],
        exchange_time: ExchangeTime,
        time_scale: float,
        clock: Clock,
        observe: Observer,
        tell_feed: Callable[[str, FeedStateName, int | None, int | None], None],
    ) -> None:
        """`tell_feed(symbol, state, from, to)` hears each change of a lane's state."""
        self.lanes = {symbol: Lane(symbol) for symbol in symbols}
        self._history = history
        self._journal = journal
        self._processor = processor
        self._queue = queue
        self._time = exchange_time
        self._clock = clock
        self._observe = observe
        self._tell_feed = tell_feed
        self._scale = time_scale
        self._grace_ms = int(max(_LATE_AFTER_MS, _LATE_AFTER_REAL_S * 1_000 * time_scale))
        self._group: asyncio.TaskGroup | None = None
        self._taken = asyncio.Event()
        self.feed_connected = False

    async def run(self) -> None:
        """Warms all lanes up, then keeps the repairs until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            for lane in self.lanes.values():
                self._tell(lane, "backfilling")
                self._repair(lane)
            while True:
                await asyncio.sleep(_AUDIT_TICK_S)
                self.audit()

    async def settled(self) -> None:
        """Returns once each lane knows where it begins, or that REST does not answer. Listening earlier would let a
        fast exchange run ahead of the hour that a fresh start begins with."""
        for lane in self.lanes.values():
            await lane.settled.wait()

    # --- what the feed says ------------------------------------------------------------------------------------

    def connected(self) -> None:
        self.feed_connected = True
        # What closed while nobody listened has no other way to reach us.
        for lane in self.lanes.values():
            if lane.repairing is not None:
                lane.ask_once_more = True
            else:
                self._repair(lane)

    def disconnected(self, reason: str) -> None:
        self.feed_connected = False
        for lane in self.lanes.values():
            if lane.state == "live":
                self._tell(lane, "stale")

    def forming(self, update: KlineUpdate, received_at_s: float) -> None:
        lane = self.lanes.get(update.candle.symbol)
        if lane is None or not self._plausible(lane, update, received_at_s):
            return
        self._time.observe(update.event_time, received_at_s)
        settled = lane.warmed and lane.repairing is None and not lane.halted
        if settled and lane.state != "live" and not self._overdue(lane):
            self._tell(lane, "live")

    async def closed(self, update: KlineUpdate, received_at_s: float) -> None:
        candle = update.candle
        lane = self.lanes.get(candle.symbol)
        if lane is None or not self._plausible(lane, update, received_at_s):
            return
        self._time.observe(update.event_time, received_at_s)
        self._observe(CandleDelivered(max(0, update.event_time - candle.close_time) / 1_000))
        if not lane.warmed:
            lane.held[candle.open_time] = (update, received_at_s)
            return
        # A symbol that never had a candle begins with what REST says, not with whatever comes first.
        begun = lane.last_open_time is not None
        verdict = judge(lane.last_open_time, candle.open_time) if begun else Verdict.HOLE
        if verdict is Verdict.DUE:
            # Also during a repair: a REST that does not answer must not hold up what the socket brings in order.
            self._pass_on(lane, Due(candle, "live", received_at_s))
            if not self._overdue(lane):
                self._tell(lane, "halted" if lane.halted else "live")
            await self._room()
        elif verdict is Verdict.HOLE:
            if candle.open_time in lane.held:
                self._observe(CandleRepeated(candle.symbol, candle.open_time, out_of_order=False))
            lane.held[candle.open_time] = (update, received_at_s)
            self._repair(lane)
        else:
            out_of_order = verdict is Verdict.OUT_OF_ORDER
            if lane.newest is not None and not out_of_order and candle.ohlcv != lane.newest.ohlcv:
                # Twice, and not the same: REST says which it is.
                lane.audited_hour = 0
            self._observe(CandleRepeated(candle.symbol, candle.open_time, out_of_order))

    def _plausible(self, lane: Lane, update: KlineUpdate, received_at_s: float) -> bool:
        """Whether a frame's time can be the exchange's. One from far ahead would declare everything out of date: it
        is set aside, and REST is asked for the time, which is right also after this machine was asleep."""
        if not self._time.known or not self._scale:
            return True
        ahead_ms = update.event_time - self._time.now_ms(received_at_s)
        if ahead_ms <= _FAR_AHEAD_MS * max(1.0, self._scale):
            return True
        self._observe(FrameRejected("time_range", f"{lane.symbol}: {ahead_ms / 3.6e6:.0f} h ahead of the exchange"))
        if lane.warmed and lane.repairing is None and received_at_s >= lane.ask_again_at_s:
            self._repair(lane)
        return False

    # --- what time says ----------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Called about once a second: asks REST for what is overdue."""
        now_s = self._clock.monotonic_s()
        for lane in self.lanes.values():
            late = lane.warmed and self._overdue(lane)
            self._observe(MissingCounted(lane.symbol, self._missing_hours(lane)))
            self._observe(TradingObserved(lane.symbol, lane.halted))
            if late and lane.repairing is None and now_s >= lane.ask_again_at_s:
                self._repair(lane)

    def audit(self) -> None:
        """Called about once a second: begins to hold the past of symbols against REST where that is due."""
        if self._group is None or not self._time.known:
            return
        now_s = self._clock.monotonic_s()
        hour = grid_floor(self._time.now_ms(now_s) - _AUDIT_AFTER_MS)
        free = _AUDITS_AT_ONCE - sum(lane.auditing for lane in self.lanes.values())
        for lane in self.lanes.values():
            idle = lane.warmed and lane.repairing is None and not lane.auditing
            if free > 0 and idle and hour > lane.audited_hour and now_s >= lane.audit_again_at_s:
                free -= 1
                lane.auditing = True
                self._group.create_task(self._audit(lane, hour), name=f"audit {lane.symbol}")

    async def _audit(self, lane: Lane, hour: int) -> None:
        lane.audit_again_at_s = self._clock.monotonic_s() + _AUDIT_AGAIN_S
        try:
            newest = lane.last_open_time
            if newest is not None:
                self._observe(BackfillRequested(lane.symbol))
                oldest = newest - (REVISED_HOURS - 1) * HOUR_MS
                answer = await self._history.candles(lane.symbol, oldest, newest)
                proven_ms = answer.asked_at_ms - REST_LAG_MS
                told = [c for c in answer.candles if c.close_time < proven_ms]
                await self._processor.revise(lane.symbol, told)
            if lane.flat_hours >= _FLAT_HOURS:
                await self._look_at_status(lane)
            lane.audited_hour, lane.audit_again_at_s = hour, 0.0
        except (UnreachableError, UnknownSymbolError) as error:
            self._observe(BackfillFailed(lane.symbol, str(error)))
        finally:
            lane.auditing = False

    async def _look_at_status(self, lane: Lane) -> None:
        """Candles without a trade may go on long after a symbol's end: flat is not yet halted."""
        info = await self._history.exchange_info(lane.symbol)
        lane.halted = not any(s.trading for s in info.symbols if s.symbol == lane.symbol)
        if lane.halted:
            self._tell(lane, "halted", lane.next_open_time)

    def _overdue(self, lane: Lane) -> bool:
        if not self._time.known:
            return False
        return overdue(lane.last_open_time, self._time.now_ms(self._clock.monotonic_s()), self._grace_ms)

    def _missing_hours(self, lane: Lane) -> int:
        if lane.last_open_time is None or not self._time.known:
            return 0
        due = grid_floor(self._time.now_ms(self._clock.monotonic_s())) - HOUR_MS
        return max(0, (due - lane.last_open_time) // HOUR_MS)

    # --- repair ------------------------------------------------------------------------------------------------

    def _repair(self, lane: Lane) -> None:
        if lane.repairing is None and self._group is not None:
            lane.repairing = self._group.create_task(self._mend(lane), name=f"repair {lane.symbol}")

    async def _mend(self, lane: Lane) -> None:
        if not lane.warmed:
            await self._warm(lane)
        while True:
            lane.ask_once_more = False
            answer = await self._ask(lane, partial(self._history.candles, lane.symbol, lane.next_open_time))
            if len(answer.candles) > 1:
                self._tell(lane, "backfilling", answer.candles[0].open_time, answer.candles[-1].open_time)
            proven_ms = answer.asked_at_ms - REST_LAG_MS
            if not await self._merge(lane, answer.candles, proven_ms):
                # The newest hours are too young for REST to be believed about them.
                await asyncio.sleep(_RETRY_FIRST_S)
            elif not lane.ask_once_more:
                if self._overdue(lane):
                    # REST has nothing newer either: is the symbol still traded?
                    info = await self._ask(lane, partial(self._history.exchange_info, lane.symbol))
                    lane.halted = not any(s.trading for s in info.symbols if s.symbol == lane.symbol)
                # Either may have come while we asked: then REST has more to say.
                if not lane.ask_once_more and not lane.held:
                    break
        again_s = _ASK_AGAIN_HALTED_S if lane.halted else _ASK_AGAIN_S if self._overdue(lane) else _ASK_ANEW_S
        lane.ask_again_at_s = self._clock.monotonic_s() + again_s
        lane.repairing = None
        if self._overdue(lane):
            self._tell(lane, "halted" if lane.halted else "gap", lane.next_open_time)
        else:
            self._tell(lane, "halted" if lane.halted else "live" if self.feed_connected else "stale")

    async def _merge(self, lane: Lane, fetched: list[Candle], proven_ms: int) -> bool:
        """Passes on REST's candles and the held ones. False where a hole remains that REST was not asked about."""
        settled = {candle.open_time: candle for candle in fetched}
        order = deque(settled)
        while True:
            # Looked at anew after every wait: the socket goes on holding candles meanwhile.
            last = lane.last_open_time
            for open_time in [t for t in lane.held if last is not None and t <= last]:
                del lane.held[open_time]
            while order and last is not None and order[0] <= last:
                order.popleft()
            ahead = [*lane.held, *([order[0]] if order else [])]
            if not ahead:
                return True
            open_time = min(ahead)
            if last is not None and open_time - HOUR_MS > last and open_time > proven_ms:
                return False
            candle = settled.pop(open_time, None)
            update, received_at_s = lane.held.pop(open_time, (None, None))
            if update is not None and (candle is None or candle.ohlcv == update.candle.ohlcv):
                self._pass_on(lane, Due(update.candle, "live", received_at_s))
            elif candle is not None:
                # Where the two disagree REST is the truth.
                self._pass_on(lane, Due(candle, "backfill"))
            await self._room()

    def _pass_on(self, lane: Lane, due: Due) -> None:
        """Not a coroutine: between knowing that a candle is passed and passing it nobody may be cancelled."""
        lane.last_open_time = due.candle.open_time
        lane.next_open_time = due.candle.open_time + HOUR_MS
        lane.newest = due.candle
        traded = due.candle.volume > 0
        lane.flat_hours = 0 if traded else lane.flat_hours + 1
        # Candles without a trade do not prove that there is any trading.
        lane.halted = lane.halted and not traded and lane.flat_hours >= _FLAT_HOURS
        self._queue.put_nowait(due)

    async def _room(self) -> None:
        """Back-pressure: waits while too much is queued."""
        while self._queue.qsize() > _BACKLOG:
            self._taken.clear()
            await self._taken.wait()

    def took(self) -> None:
        """The worker has finished a round."""
        self._taken.set()

    # --- start-up, which is recovery ---------------------------------------------------------------------------

    async def _warm(self, lane: Lane) -> None:
        symbol = lane.symbol
        done = await self._processor.in_journal(self._journal.processed, symbol)
        if done is not None:
            newest = done.open_time
        else:
            newest = grid_floor(await self._ask(lane, self._history.server_time_ms)) - HOUR_MS
        oldest = newest - (self._processor.history_hours(symbol) - 1) * HOUR_MS
        candles = await self._processor.in_journal(self._journal.candles, symbol, oldest, newest)
        if done is None or not candles or candles[0].open_time > oldest:
            until = newest if done is None or not candles else candles[0].open_time - HOUR_MS
            answer = await self._ask(lane, partial(self._history.candles, symbol, oldest, until))
            candles = answer.candles + (candles if done is not None else [])
        first_due: list[Candle] = []
        if done is None and candles:
            # Nothing was ever forecast here: the newest closed candle is the first.
            candles, first_due = candles[:-1], candles[-1:]
        await self._store_history(candles)
        await self._processor.warm(symbol, candles, done)
        lane.last_open_time = candles[-1].open_time if candles else None
        lane.next_open_time = newest + HOUR_MS if not candles else candles[-1].open_time + HOUR_MS
        lane.warmed = True
        lane.settled.set()
        for candle in first_due:
            self._pass_on(lane, Due(candle, "backfill"))

    async def _store_history(self, candles: list[Candle]) -> None:
        """Until the journal takes it: a full disk at the start is waited out like one later on."""
        while True:
            try:
                await self._processor.in_journal(self._journal.store_history, candles)
            except JournalError as error:
                if self._processor.failing is None:
                    log.error("%s; waiting until it can be written", error)
                self._processor.failing = str(error)
                self._observe(CommitFailed(str(error)))
                await asyncio.sleep(_RETRY_FIRST_S)
            else:
                self._processor.failing = None
                return

    async def _ask(self, lane: Lane, question: Callable[[], Awaitable[T]]) -> T:
        """Asks REST until it answers. `RefusedError` where the symbol is unknown to exchange and journal."""
        delay_s = _RETRY_FIRST_S
        known: str | None = None
        denied = False
        while True:
            self._observe(BackfillRequested(lane.symbol))
            try:
                answer = await question()
                if denied:
                    lane.halted = False
                return answer
            except UnreachableError as error:
                reason = str(error)
            except UnknownSymbolError:
                known_here = await self._processor.in_journal(self._journal.processed, lane.symbol) is not None
                if not lane.warmed and not known_here:
                    raise unknown_symbol(lane.symbol) from None
                reason = "the exchange does not list it any more"
                lane.halted = denied = True
            self._observe(BackfillFailed(lane.symbol, reason))
            lane.settled.set()
            if lane.halted or lane.held or not lane.warmed or self._overdue(lane):
                self._tell(lane, "halted" if lane.halted else "stale")
            if reason != known:
                log.warning("%s: no answer from the exchange, asking on: %s", lane.symbol, reason)
                known = reason
            await asyncio.sleep(delay_s)
            delay_s = min(_RETRY_CAP_S, delay_s * 2)

    def _tell(
        self, lane: Lane, state: FeedStateName, from_open_time: int | None = None, to_open_time: int | None = None
    ) -> None:
        if (state, from_open_time, to_open_time) != lane.said:
            lane.said = (state, from_open_time, to_open_time)
            self._tell_feed(lane.symbol, state, from_open_time, to_open_time)


def unknown_symbol(symbol: str) -> RefusedError:
    return RefusedError(f"the exchange does not list {symbol} and the journal does not know it: correct --symbols")
