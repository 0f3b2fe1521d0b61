"""Intake: from frames to candles whose turn it is. The socket brings the news; REST settles what is missing.

Each symbol has a lane. What the socket brings in order passes at once; what lies behind a hole is held until REST has
filled it, or has shown twice that it cannot be filled. So every candle passes once, in order, and never before its
end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from stream.clock import Clock
from stream.core.market.answer import Answer
from stream.core.market.binance import KlineUpdate, UnknownSymbolError
from stream.core.market.candle import HOUR_MS, Candle, grid_floor
from stream.core.market.due_candles import Absences, Order, judge, overdue
from stream.core.market.exchange_time import ExchangeTime
from stream.core.messages.schemas import FeedStateName
from stream.errors import RefusedError, UnreachableError
from stream.pipeline.asking import RETRY_CAP_S, RETRY_FIRST_S, Asking, Sleep, apart_s
from stream.pipeline.audit import Audit
from stream.pipeline.lane import FLAT_HOURS, Lane
from stream.pipeline.processing import Due, Processor
from stream.pipeline.warmup import LONGEST_WITNESS_HOURS, WITNESS_HOURS, Warmup
from stream.ports import History, Journal
from stream.telemetry import (
    BackfillFailed,
    CandleDelivered,
    CandleRepeated,
    FrameRejected,
    MissingCounted,
    Observer,
    TradingObserved,
)

log = logging.getLogger(__name__)

#: A due candle may be this late on the socket before REST is asked: exchange time, and real time at least.
_LATE_AFTER_MS = 60_000
_LATE_AFTER_REAL_S = 2.0
#: Candles that may wait for the worker before the socket and REST are made to wait.
_BACKLOG = 256
#: How often REST is asked about a candle that it did not have either.
_ASK_AGAIN_S = 30.0
#: The same where it had what was asked for: something else may be missing soon.
_ASK_ANEW_S = 1.0
#: The same while the symbol is not traded: whether it is costs ten times as much to ask.
_ASK_AGAIN_HALTED_S = 60.0
_AUDIT_TICK_S = 1.0
#: So long the stream waits for symbols whose past is not there yet, while others have theirs.
_SETTLE_S = 15.0


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
        notify_feed: Callable[[str, FeedStateName, int | None, int | None], None],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`notify_feed(symbol, state, from, to)` hears each change of a lane's state; `sleep` waits between two
        questions to REST."""
        self.lanes = {symbol: Lane(symbol, Absences(apart_s(time_scale))) for symbol in symbols}
        self._history = history
        self._processor = processor
        self._queue = queue
        self._time = exchange_time
        self._clock = clock
        self._observe = observe
        self._notify_feed = notify_feed
        self._sleep = sleep
        self._grace_ms = int(max(_LATE_AFTER_MS, _LATE_AFTER_REAL_S * 1_000 * time_scale))
        self._group: asyncio.TaskGroup | None = None
        self._taken = asyncio.Event()
        self._asking_time = False
        self.feed_connected = False
        self._asking = Asking(
            history=history,
            exchange_time=exchange_time,
            time_scale=time_scale,
            clock=clock,
            observe=observe,
            stalled=self._tell_unanswered,
            sleep=sleep,
        )
        self._warmup = Warmup(
            asking=self._asking,
            history=history,
            journal=journal,
            processor=processor,
            clock=clock,
            observe=observe,
            stalled=self._look_at_stalled,
            sleep=sleep,
        )
        self._audit = Audit(
            asking=self._asking,
            processor=processor,
            exchange_time=exchange_time,
            clock=clock,
            observe=observe,
            look_at_status=self._look_at_status,
        )

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
        fast exchange run ahead of the hour that a fresh start begins with; but symbols that have their past do not wait
        for ever for one that has not."""
        waiting = [asyncio.ensure_future(lane.settled.wait()) for lane in self.lanes.values()]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(waiting, timeout=_SETTLE_S)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

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
        lane.seen_open_time = max(lane.seen_open_time, update.candle.open_time)
        settled = lane.warmed and lane.repairing is None and not lane.halted
        if settled and lane.state != "live" and not self._overdue(lane):
            self._tell(lane, "live")

    async def closed(self, update: KlineUpdate, received_at_s: float) -> None:
        candle = update.candle
        lane = self.lanes.get(candle.symbol)
        if lane is None or not self._plausible(lane, update, received_at_s):
            return
        self._time.observe(update.event_time, received_at_s)
        lane.seen_open_time = max(lane.seen_open_time, candle.open_time)
        self._observe(CandleDelivered(max(0, update.event_time - candle.close_time) / 1_000))
        if not lane.warmed or not self._time.known:
            lane.held[candle.open_time] = (update, received_at_s)
            return
        # A symbol that never had a candle begins with what REST says, not with whatever comes first.
        begun = lane.last_open_time is not None
        verdict = judge(lane.last_open_time, candle.open_time) if begun else Order.HOLE
        if verdict is Order.DUE:
            # Also during a repair: a REST that does not answer must not hold up what the socket brings in order.
            self._pass_on(lane, Due(candle, "live", received_at_s))
            if not self._overdue(lane):
                self._tell(lane, "halted" if lane.halted else "live")
            await self._room()
        elif verdict is Order.HOLE:
            if candle.open_time in lane.held:
                self._observe(CandleRepeated(candle.symbol, candle.open_time, out_of_order=False))
            lane.held[candle.open_time] = (update, received_at_s)
            self._repair(lane)
        else:
            out_of_order = verdict is Order.OUT_OF_ORDER
            if lane.newest is not None and not out_of_order and candle.ohlcv != lane.newest.ohlcv:
                # Twice, and not the same: REST says which it is.
                Audit.doubt(lane)
            self._observe(CandleRepeated(candle.symbol, candle.open_time, out_of_order))

    def _plausible(self, lane: Lane, update: KlineUpdate, received_at_s: float) -> bool:
        """Whether a frame's time can be the exchange's. One from ahead of it is set aside, and the exchange is asked
        for its time, which tells a wrong frame from a machine of ours that was asleep; REST then has the candle."""
        if self._time.plausible(update.event_time, received_at_s):
            return True
        self._time.observe(update.event_time, received_at_s)
        ahead_ms = update.event_time - self._time.now_ms(received_at_s)
        self._observe(FrameRejected("time_range", f"{lane.symbol}: {ahead_ms / 1_000:.0f} s ahead of the exchange"))
        return False

    # --- what time says ----------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Called about once a second: asks REST for what is overdue, and for the time where that is in doubt."""
        now_s = self._clock.monotonic_s()
        if self._time.doubt_ms is not None and not self._asking_time and self._group is not None:
            self._asking_time = True
            self._group.create_task(self._ask_for_the_time(), name="exchange time")
        for lane in self.lanes.values():
            late = lane.warmed and self._overdue(lane)
            self._observe(MissingCounted(lane.symbol, self._missing_hours(lane)))
            self._observe(TradingObserved(lane.symbol, lane.halted))
            if late and lane.repairing is None and now_s >= lane.ask_again_at_s:
                self._repair(lane)

    async def _ask_for_the_time(self) -> None:
        try:
            await self._history.server_time_ms()
        except UnreachableError as error:
            log.debug("the exchange does not tell its time: %s", error)
        finally:
            self._asking_time = False

    def audit(self) -> None:
        """Called about once a second: begins to hold the past of symbols against REST where that is due."""
        if self._group is not None:
            for lane in self._audit.due(self.lanes.values(), idle=self._queue.empty()):
                self._group.create_task(self._audit.run(lane), name=f"audit {lane.symbol}")

    async def _look_at_status(self, lane: Lane) -> None:
        """Asks once whether the symbol is traded: flat or silent is not yet halted. Where the exchange does not say,
        nothing changes; whether its candles come does not depend on it."""
        try:
            info = await self._history.exchange_info(lane.symbol)
        except UnknownSymbolError:
            lane.halted = True
        except UnreachableError as error:
            self._observe(BackfillFailed(lane.symbol, str(error)))
            return
        else:
            lane.halted = not any(s.trading for s in info.symbols if s.symbol == lane.symbol)
        if lane.halted:
            self._tell(lane, "halted", lane.next_open_time or None)

    async def _look_at_stalled(self, lane: Lane) -> None:
        self._tell_unanswered(lane)
        await self._look_at_status(lane)

    def _tell_unanswered(self, lane: Lane) -> None:
        if lane.halted or lane.held or not lane.warmed or self._overdue(lane):
            self._tell(lane, "halted" if lane.halted else "stale")

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
            await self._warmup.warm(lane)
        await self._asking.exchange_now_ms(lane)
        pause_s, witness_hours = RETRY_FIRST_S, WITNESS_HOURS
        while True:
            lane.ask_once_more = False
            due = lane.next_open_time
            answer = await self._asking.candles(lane, due - witness_hours * HOUR_MS)
            fetched = [c for c in answer.candles if c.open_time >= lane.next_open_time]
            if len(fetched) > 1:
                self._tell(lane, "backfilling", fetched[0].open_time, fetched[-1].open_time)
            missing = await self._merge(lane, fetched)
            if missing or self._will_count(lane, answer):
                pause_s = RETRY_FIRST_S if lane.next_open_time > due else min(RETRY_CAP_S, pause_s * 2)
                witness_hours = min(2 * witness_hours, LONGEST_WITNESS_HOURS)
                await self._wait_for_more(lane, missing, pause_s)
            elif not lane.ask_once_more:
                if self._overdue(lane):
                    # REST has nothing newer either: is the symbol still traded?
                    await self._look_at_status(lane)
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

    def _will_count(self, lane: Lane, answer: Answer) -> bool:
        """Whether REST has the due candle, which is too young to count or not proven final."""
        newest = answer.newest_open_time
        return lane.next_open_time in lane.looked_at or (newest is not None and newest > lane.next_open_time)

    async def _wait_for_more(self, lane: Lane, missing: range, pause_s: float) -> None:
        """Until another answer may settle what this one did not."""
        again_at_s = lane.absences.again_at_s(missing) if missing else None
        if again_at_s is not None:
            pause_s = max(0.0, again_at_s - self._clock.monotonic_s())
        elif missing and self._overdue(lane):
            self._tell(lane, "halted" if lane.halted else "gap", missing.start, missing.stop - HOUR_MS)
        await self._sleep(pause_s)

    async def _merge(self, lane: Lane, fetched: list[Candle]) -> range:
        """Passes on REST's candles and the held ones as far as nothing is missing between them. The hours that are, and
        are not proven not to exist."""
        counted = {candle.open_time: candle for candle in fetched}
        while True:
            # Looked at anew after every wait: the socket goes on holding candles meanwhile.
            due = lane.next_open_time
            for open_time in [t for t in lane.held if t < due or self._is_early(lane, t)]:
                del lane.held[open_time]
            ahead = min((t for t in (*lane.held, *counted) if t >= due), default=due)
            missing = range(due, ahead, HOUR_MS)
            if not lane.absences.proven(missing):
                return missing
            candle = counted.pop(ahead, None)
            update, received_at_s = lane.held.pop(ahead, (None, None))
            if update is not None and (candle is None or candle.ohlcv == update.candle.ohlcv):
                self._pass_on(lane, Due(update.candle, "live", received_at_s))
            elif candle is not None:
                # Where the two disagree REST is the truth.
                self._pass_on(lane, Due(candle, "backfill"))
            else:
                return range(0)
            await self._room()

    def _is_early(self, lane: Lane, open_time: int) -> bool:
        """Whether a held candle came before its end, seen from a time that is known by now."""
        if self._time.plausible(open_time + HOUR_MS - 1, self._clock.monotonic_s()):
            return False
        self._observe(FrameRejected("closed_early", f"{lane.symbol}: a close before its hour was over"))
        return True

    def _pass_on(self, lane: Lane, due: Due) -> None:
        """Not a coroutine: between knowing that a candle is passed and passing it nobody may be cancelled."""
        lane.last_open_time = due.candle.open_time
        lane.next_open_time = due.candle.open_time + HOUR_MS
        lane.newest = due.candle
        lane.absences.forget(due.candle.open_time)
        lane.looked_at.pop(due.candle.open_time, None)
        traded = due.candle.volume > 0
        lane.flat_hours = 0 if traded else lane.flat_hours + 1
        # Candles without a trade do not prove that there is any trading.
        lane.halted = lane.halted and not traded and lane.flat_hours >= FLAT_HOURS
        self._queue.put_nowait(due)

    async def _room(self) -> None:
        """Back-pressure: waits while too much is queued."""
        while self._queue.qsize() > _BACKLOG:
            self._taken.clear()
            await self._taken.wait()

    def took(self) -> None:
        """The worker has finished a round."""
        self._taken.set()

    def _tell(
        self, lane: Lane, state: FeedStateName, from_open_time: int | None = None, to_open_time: int | None = None
    ) -> None:
        if (state, from_open_time, to_open_time) != lane.feed:
            lane.feed = (state, from_open_time, to_open_time)
            self._notify_feed(lane.symbol, state, from_open_time, to_open_time)


def unknown_symbol(symbol: str) -> RefusedError:
    return RefusedError(f"the exchange does not list {symbol} and the journal does not know it: correct --symbols")
