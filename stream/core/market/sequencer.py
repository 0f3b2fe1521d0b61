"""The sequencer: takes one symbol's frames and REST's answers, and emits its candles in order.

Sans-I/O: frames, answers and times are passed in, and what is to be done about them is returned. Nothing here waits,
sends a request or reads a clock; `stream.pipeline.intake` and `stream.pipeline.backfill` drive it.

Rules of this module:
- Every candle passes once, in order, and never before its end. What the socket brings in order passes at once, also
  while REST is being asked; what follows a hole is held until REST has filled it, or has proven that it cannot be
  filled.
- If socket and REST disagree about a candle that has not passed yet, REST is right.
- A candle from REST counts once it is over by its own time, by the server's and by the estimated exchange time with a
  margin, all as of the question, and is proven final: the same answer has a later candle, or two answers some time
  apart show the same values.
"""

from __future__ import annotations

from stream.core.market.binance import KlineUpdate
from stream.core.market.candle import HOUR_MS, Candle, grid_floor
from stream.core.market.due_candles import Absences, Order, judge, overdue
from stream.core.market.exchange_time import ExchangeTime
from stream.core.market.outputs import (
    AskStatus,
    Backfill,
    Delivered,
    Done,
    Due,
    FeedState,
    FeedStateName,
    Output,
    Rejected,
    Repeated,
    Step,
    Wait,
)
from stream.core.market.rest_answer import Answer

#: After this many hours without a trade the exchange is asked whether the symbol is still traded.
FLAT_HOURS = 24
#: How many hours before a hole a question asks for as well: an answer with a candle there and one after the hole has
#: shown that it lacks the hours between.
WITNESS_HOURS = 2
#: The most that this grows to while answers do not fill the hole.
LONGEST_WITNESS_HOURS = 480
RETRY_FIRST_S, RETRY_CAP_S = 0.5, 30.0
#: Pause before REST is asked again about a candle that it did not have either.
_ASK_AGAIN_S = 30.0
#: The same if it had what was asked for: another candle may be missing soon.
_ASK_ANEW_S = 1.0
#: The same while the symbol is not traded: the question for its status costs ten times the request weight.
_ASK_AGAIN_HALTED_S = 60.0
#: If REST is known to be behind, its answers must agree for this many times longer.
_BEHIND_TIMES = 10


class Sequencer:
    """Decides which candle of one symbol passes next. Times named `now_s` and the like are monotonic seconds."""

    def __init__(self, symbol: str, time: ExchangeTime, *, apart_s: float, margin_ms: int, grace_ms: int) -> None:
        """`apart_s` is how far apart two answers must be to prove together what one cannot, `margin_ms` how far REST
        may lag the exchange just after a close, and `grace_ms` how late a candle may be before REST is asked."""
        self.symbol = symbol
        self._time = time
        self._apart_s = apart_s
        self._margin_ms = margin_ms
        self._grace_ms = grace_ms
        self.absences = Absences(apart_s)
        self.started = False
        #: Open time of the newest candle that passed, or of the one with which the history ends.
        self.last_open_time: int | None = None
        #: The hour whose candle is due: every one before it has passed or is proven not to exist.
        self.next_open_time = 0
        self.newest: Candle | None = None
        self.backfilling = False
        self.connected = False
        self.halted = False
        #: Whether the exchange denies that there is such a symbol.
        self.unlisted = False
        #: Hours without a trade up to now.
        self.flat_hours = 0
        self._feed: FeedState | None = None
        #: Open time of the newest candle that the stream has shown, closed or forming.
        self._seen_open_time = 0
        self._held: dict[int, tuple[KlineUpdate, float]] = {}
        #: Candles that REST showed as its newest, with nothing after them to prove that they are final, and since when
        #: each has had these values.
        self._unproven: dict[int, tuple[Candle, float]] = {}
        self._ask_again_at_s = 0.0
        # State of the current backfill.
        self._fetched: dict[int, Candle] = {}
        self._missing = range(0)
        self._newest_shown: int | None = None
        #: The socket reconnected while REST was being asked: what closed in between may be in neither.
        self._ask_once_more = False
        self._asked_for = 0
        self._witness_hours = WITNESS_HOURS
        self._pause_s = RETRY_FIRST_S

    @property
    def state(self) -> FeedStateName | None:
        return self._feed.state if self._feed else None

    # --- the history -------------------------------------------------------------------------------------------

    def start(self, last_open_time: int | None, next_open_time: int) -> None:
        """Begins after the warm-up: the history ends at `last_open_time`, and the candle of `next_open_time` is due."""
        self.last_open_time, self.next_open_time = last_open_time, next_open_time
        self._asked_for = next_open_time
        self.started = True

    # --- frames ------------------------------------------------------------------------------------------------

    def connect(self) -> list[Output]:
        """Notes that the socket is open. What closed before that can only come from REST."""
        self.connected = True
        self._ask_once_more = self._ask_once_more or self.backfilling
        return self._backfill()

    def disconnect(self) -> list[Output]:
        self.connected = False
        return self._notify("stale") if self.state == "live" else []

    def form(self, update: KlineUpdate, received_at_s: float, now_s: float) -> list[Output]:
        """Takes a frame of a candle that is not closed."""
        if (rejected := self._implausible(update, received_at_s)) is not None:
            return [rejected]
        self._observe(update, received_at_s)
        settled = self.started and not self.backfilling and not self.halted
        if settled and self.state != "live" and not self.overdue(now_s):
            return self._notify("live")
        return []

    def close(self, update: KlineUpdate, received_at_s: float, now_s: float) -> list[Output]:
        """Takes a closing frame."""
        if (rejected := self._implausible(update, received_at_s)) is not None:
            return [rejected]
        candle = update.candle
        self._observe(update, received_at_s)
        outputs: list[Output] = [Delivered(max(0, update.event_time - candle.close_time) / 1_000)]
        if not self.started or not self._time.known:
            self._held[candle.open_time] = (update, received_at_s)
            return outputs
        # A symbol that never had a candle begins with what REST has, not with whichever frame comes first.
        order = judge(self.last_open_time, candle.open_time) if self.last_open_time is not None else Order.HOLE
        if order is Order.DUE:
            # Also during a backfill: a REST that does not answer must not hold up what the socket brings in order.
            outputs.append(self._pass_on(Due(candle, "live", received_at_s)))
            return outputs if self.overdue(now_s) else outputs + self._notify("halted" if self.halted else "live")
        if order is Order.HOLE:
            if candle.open_time in self._held:
                outputs.append(Repeated(candle.open_time, out_of_order=False))
            self._held[candle.open_time] = (update, received_at_s)
            return outputs + self._backfill()
        late = order is Order.OUT_OF_ORDER
        contradicts = not late and self.newest is not None and candle.ohlcv != self.newest.ohlcv
        return [*outputs, Repeated(candle.open_time, late, contradicts)]

    def _implausible(self, update: KlineUpdate, received_at_s: float) -> Rejected | None:
        """Returns a rejection if the frame is ahead of the exchange's time, which is put in doubt by it: the exchange's
        next answer shows whether the frame was wrong or this machine was asleep. REST then has the candle."""
        if self._time.plausible(update.event_time, received_at_s):
            return None
        self._time.observe(update.event_time, received_at_s)
        ahead_ms = update.event_time - self._time.now_ms(received_at_s)
        return Rejected("time_range", f"{self.symbol}: {ahead_ms / 1_000:.0f} s ahead of the exchange")

    def _observe(self, update: KlineUpdate, received_at_s: float) -> None:
        self._time.observe(update.event_time, received_at_s)
        self._seen_open_time = max(self._seen_open_time, update.candle.open_time)

    # --- time --------------------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> list[Output]:
        """Begins a backfill if the due candle is overdue. To be called about once a second."""
        late = self.started and not self.backfilling and self.overdue(now_s)
        return self._backfill() if late and now_s >= self._ask_again_at_s else []

    def overdue(self, now_s: float) -> bool:
        """Returns whether the due candle is late by more than `grace_ms`; False before the exchange's time is known."""
        return self._time.known and overdue(self.last_open_time, self._time.now_ms(now_s), self._grace_ms)

    def missing_hours(self, now_s: float) -> int:
        """Returns how many candles are over by the exchange's time and have not passed."""
        if self.last_open_time is None or not self._time.known:
            return 0
        due = grid_floor(self._time.now_ms(now_s)) - HOUR_MS
        return max(0, (due - self.last_open_time) // HOUR_MS)

    # --- REST --------------------------------------------------------------------------------------------------

    def examine(self, answer: Answer, asked_ms: int | None, now_s: float) -> Answer:
        """Returns what counts of an answer, and takes in which hours it shows not to exist. `asked_ms` is the
        exchange's time at the question, None if it was not known: then no candle counts."""
        self.absences.shown(answer.absent, (c.open_time for c in answer.candles), now_s)
        # Nearly all of an answer was over long ago.
        surely = 0
        if asked_ms is not None and answer.newest_open_time is not None:
            surely = min(asked_ms - self._margin_ms - HOUR_MS + 1, answer.newest_open_time - 1)
        counted = [c for c in answer.candles if c.open_time <= surely or self._counts(c, answer, asked_ms, now_s)]
        return Answer(counted, answer.asked_at_ms, answer.newest_open_time, answer.absent)

    def _counts(self, candle: Candle, answer: Answer, asked_ms: int | None, now_s: float) -> bool:
        if asked_ms is None or candle.close_time + self._margin_ms > asked_ms:
            return False
        if answer.newest_open_time is not None and candle.open_time < answer.newest_open_time:
            return True
        # If the stream has shown a later candle and this answer has none, REST is behind.
        enough_s = self._apart_s * (_BEHIND_TIMES if self._seen_open_time > candle.open_time else 1)
        before, since_s = self._unproven.get(candle.open_time, (None, now_s))
        if before is None or before.ohlcv != candle.ohlcv:
            self._unproven = {candle.open_time: (candle, now_s)}
            return False
        return now_s - since_s >= enough_s

    def unanswered(self, now_s: float) -> list[Output]:
        """Notes that REST did not answer, or not with what is needed."""
        if self.halted or self._held or not self.started or self.overdue(now_s):
            return self._notify("halted" if self.halted else "stale")
        return []

    def listed(self, known: bool) -> None:
        """Notes whether the exchange knows the symbol."""
        if known and self.unlisted:
            self.unlisted = self.halted = False
        elif not known:
            self.unlisted = self.halted = True

    def trading(self, trades: bool) -> list[Output]:
        """Notes whether the exchange trades the symbol."""
        self.halted = not trades
        return self._notify("halted", self.next_open_time or None) if self.halted else []

    def asking(self) -> None:
        """Notes that REST is asked now: it can show what has closed until now."""
        self._ask_once_more = False

    def question(self) -> int:
        """Returns the open time from which REST is to be asked for candles, now."""
        self.asking()
        self._asked_for = self.next_open_time
        return self.next_open_time - self._witness_hours * HOUR_MS

    def answer(self, answer: Answer) -> list[Output]:
        """Takes what `examine` has left of the answer to `question`; `advance` then emits what can pass."""
        self._fetched = {c.open_time: c for c in answer.candles if c.open_time >= self.next_open_time}
        self._newest_shown = answer.newest_open_time
        times = sorted(self._fetched)
        return self._notify("backfilling", times[0], times[-1]) if len(times) > 1 else []

    def advance(self, now_s: float) -> list[Output]:
        """Emits the next candle, of REST's or of those that are held, if nothing is missing before it. To be called
        until its outputs contain no `Due`; frames may come between two calls."""
        outputs: list[Output] = []
        due = self.next_open_time
        for open_time in [t for t in self._held if t < due or self._is_early(t, now_s, outputs)]:
            del self._held[open_time]
        ahead = min((t for t in (*self._held, *self._fetched) if t >= due), default=due)
        self._missing = range(due, ahead, HOUR_MS)
        if not self.absences.proven(self._missing):
            self._fetched = {}
            return outputs
        self._missing = range(0)
        candle = self._fetched.pop(ahead, None)
        update, received_at_s = self._held.pop(ahead, (None, None))
        if update is not None and (candle is None or candle.ohlcv == update.candle.ohlcv):
            outputs.append(self._pass_on(Due(update.candle, "live", received_at_s)))
        elif candle is not None:
            outputs.append(self._pass_on(Due(candle, "backfill")))
        else:
            self._fetched = {}
        return outputs

    def _is_early(self, open_time: int, now_s: float, outputs: list[Output]) -> bool:
        """Returns whether a held candle came before its end, by the exchange's time as it is known now; if so, adds a
        rejection to `outputs`."""
        if self._time.plausible(open_time + HOUR_MS - 1, now_s):
            return False
        outputs.append(Rejected("closed_early", f"{self.symbol}: a close before its hour was over"))
        return True

    def next_step(self, now_s: float, *, status_known: bool = False) -> tuple[Step, list[Output]]:
        """Returns what to do after an answer. `status_known`: the step before was `AskStatus`."""
        if not status_known:
            # Whether REST has the due candle, but too young to count or not proven final.
            shown = self._newest_shown
            will_count = self.next_open_time in self._unproven or (shown is not None and shown > self.next_open_time)
            if self._missing or will_count:
                return self._wait_for_more(now_s)
            if self._ask_once_more:
                return Wait(0.0), []
            if self.overdue(now_s):
                return AskStatus(), []
        # Either may have come while REST or the status was asked for: then REST has more.
        if self._ask_once_more or self._held:
            return Wait(0.0), []
        return Done(), self._finish(now_s)

    def _wait_for_more(self, now_s: float) -> tuple[Step, list[Output]]:
        progressed = self.next_open_time > self._asked_for
        self._pause_s = RETRY_FIRST_S if progressed else min(RETRY_CAP_S, self._pause_s * 2)
        self._witness_hours = min(2 * self._witness_hours, LONGEST_WITNESS_HOURS)
        again_at_s = self.absences.again_at_s(self._missing) if self._missing else None
        if again_at_s is not None:
            return Wait(max(0.0, again_at_s - now_s)), []
        if self._missing and self.overdue(now_s):
            state: FeedStateName = "halted" if self.halted else "gap"
            return Wait(self._pause_s), self._notify(state, self._missing.start, self._missing.stop - HOUR_MS)
        return Wait(self._pause_s), []

    def _finish(self, now_s: float) -> list[Output]:
        late = self.overdue(now_s)
        again_s = _ASK_AGAIN_HALTED_S if self.halted else _ASK_AGAIN_S if late else _ASK_ANEW_S
        self._ask_again_at_s = now_s + again_s
        self.backfilling = False
        if late:
            return self._notify("halted" if self.halted else "gap", self.next_open_time)
        return self._notify("halted" if self.halted else "live" if self.connected else "stale")

    def _backfill(self) -> list[Output]:
        if self.backfilling:
            return []
        self.backfilling = True
        self._pause_s, self._witness_hours = RETRY_FIRST_S, WITNESS_HOURS
        return [Backfill()]

    # --- both --------------------------------------------------------------------------------------------------

    def begin(self) -> list[Output]:
        """Begins the first backfill, which starts with the history."""
        return [*self._notify("backfilling"), *self._backfill()]

    def _pass_on(self, due: Due) -> Due:
        candle = due.candle
        self.last_open_time = candle.open_time
        self.next_open_time = candle.open_time + HOUR_MS
        self.newest = candle
        self.absences.forget(candle.open_time)
        self._unproven.pop(candle.open_time, None)
        traded = candle.volume > 0
        self.flat_hours = 0 if traded else self.flat_hours + 1
        # Candles without a trade do not prove that there is any trading.
        self.halted = self.halted and not traded and self.flat_hours >= FLAT_HOURS
        return due

    def _notify(
        self, state: FeedStateName, from_open_time: int | None = None, to_open_time: int | None = None
    ) -> list[Output]:
        feed = FeedState(state, from_open_time, to_open_time)
        if feed == self._feed:
            return []
        self._feed = feed
        return [feed]
