"""The sequencer without an event loop: whatever frames and answers come, candles pass once, in order, never too
early."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.market.binance import KlineUpdate
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.market.due_candles import lacking
from stream.core.market.exchange_time import ExchangeTime
from stream.core.market.outputs import AskStatus, Backfill, Done, Due, FeedState, Output, Wait, emitted
from stream.core.market.rest_answer import Answer
from stream.core.market.sequencer import Sequencer

START = 1_704_067_200_000
#: The newest candle of the history; what follows is played.
NEWEST = 3
HOURS = 14
APART_S = 30.0


def candle(hour: int, close: float = 100.0) -> Candle:
    return Candle("BTCUSDT", START + hour * HOUR_MS, 100.0, 200.0, 50.0, close, 1.0)


@dataclass
class Rest:
    """REST, answering like a database that may be behind, cut its pages short or leave out rows that it has."""

    tape: list[Candle]
    behind_hours: int = 0
    #: The time as of which a cache answers.
    cached_ms: int | None = None
    #: What the next answer does wrong; used once.
    page: int = 1_000
    hides: frozenset[int] = frozenset()

    def answer(self, from_open_time: int, now_ms: int) -> Answer:
        shown_ms = self.cached_ms or now_ms - self.behind_hours * HOUR_MS
        hidden = {START + h * HOUR_MS for h in self.hides}
        rows = [c for c in self.tape if from_open_time <= c.open_time <= shown_ms and c.open_time not in hidden]
        rows = rows[: self.page]
        # The row of the hour that was running then, which is not marked as forming.
        forming = 90 + shown_ms % HOUR_MS / HOUR_MS
        rows = [msgspec.structs.replace(c, close=forming) if c.close_time >= shown_ms else c for c in rows]
        times = [c.open_time for c in rows]
        self.page, self.hides = 1_000, frozenset()
        over = [c for c in rows if c.close_time < now_ms]
        return Answer(over, now_ms, times[-1] if times else None, tuple(lacking(times)))


@dataclass
class Driver:
    """Acts on the sequencer's outputs, with a clock that the test moves."""

    rest: Rest
    now_s: float = 0.0
    backfilling: bool = False
    status_next: bool = False
    ask_at_s: float = 0.0
    passed: list[Due] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    #: Per hour, the times of the answers that lacked it.
    lacked: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.time = ExchangeTime()
        for _ in range(2):
            self.time.observe(self.exchange_ms, self.now_s, self.now_s)
        self.sequencer = Sequencer("BTCUSDT", self.time, apart_s=APART_S, margin_ms=5_000, grace_ms=60_000)
        self.sequencer.start(START + NEWEST * HOUR_MS, START + (NEWEST + 1) * HOUR_MS)
        self.act(self.sequencer.connect())

    @property
    def exchange_ms(self) -> int:
        return START + (NEWEST + 1) * HOUR_MS + 20 * 60_000 + round(self.now_s * 1_000)

    def act(self, outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, Due):
                assert output.candle.close_time < self.exchange_ms, "before its end"
                self.passed.append(output)
            elif isinstance(output, Backfill):
                assert not self.backfilling, "one at a time"
                self.backfilling, self.ask_at_s = True, self.now_s
            elif isinstance(output, FeedState):
                self.states.append(output.state)

    def frame(self, hour: int, close: float = 100.0) -> None:
        """Lets the websocket bring a close, where the hour is over."""
        update = KlineUpdate(candle(hour, close), START + (hour + 1) * HOUR_MS + 50, True)
        if update.event_time <= self.exchange_ms:
            self.act(self.sequencer.close(update, self.now_s, self.now_s))

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.time.observe(self.exchange_ms, self.now_s, self.now_s)
        self.act(self.sequencer.tick(self.now_s))

    def answer(self) -> None:
        """Lets REST answer, if it is being asked now."""
        if not self.backfilling or self.now_s < self.ask_at_s:
            return
        raw = self.rest.answer(self.sequencer.question(), self.exchange_ms)
        for hour in raw.absent:
            self.lacked.setdefault(hour, []).append(self.now_s)
        answer = self.sequencer.examine(raw, self.time.now_ms(self.now_s), self.now_s)
        self.act(self.sequencer.answer(answer))
        while emitted(outputs := self.sequencer.advance(self.now_s)):
            self.act(outputs)
        step, outputs = self.sequencer.next_step(self.now_s)
        if isinstance(step, AskStatus):
            self.act(self.sequencer.trading(True))
            step, outputs = self.sequencer.next_step(self.now_s, status_known=True)
        self.act(outputs)
        if isinstance(step, Done):
            self.backfilling = False
        elif isinstance(step, Wait):
            self.ask_at_s = self.now_s + step.seconds

    def settle(self) -> None:
        """Makes REST answer correctly from now on, and gives it time."""
        self.rest.behind_hours = 0
        for _ in range(60):
            self.wait(31.0)
            self.answer()


HOUR = st.integers(NEWEST - 2, HOURS - 1)
EVENTS = st.one_of(
    st.tuples(st.just("frame"), HOUR),
    st.tuples(st.just("wrong"), HOUR),
    st.tuples(st.just("wait"), st.integers(1, 9_000)),
    st.tuples(st.just("answer"), st.just(0)),
    st.tuples(st.just("behind"), st.integers(0, 4)),
    st.tuples(st.just("short"), st.integers(0, 4)),
    st.tuples(st.just("hides"), HOUR),
    st.tuples(st.just("cut"), st.just(0)),
)


@settings(max_examples=300)
@given(st.sets(st.integers(NEWEST + 1, HOURS - 2), max_size=4), st.lists(EVENTS, max_size=60))
def test_candles_pass_once_in_order_and_none_is_lost(never: set[int], events: list[tuple[str, int]]) -> None:
    driver = Driver(Rest([candle(h) for h in range(HOURS + 6) if h not in never]))
    for kind, number in events:
        if kind in ("frame", "wrong"):
            if number not in never:
                driver.frame(number, 100.0 if kind == "frame" else 101.0)
        elif kind == "wait":
            driver.wait(float(number))
        elif kind == "answer":
            driver.answer()
        elif kind == "cut":
            driver.act(driver.sequencer.disconnect())
            driver.act(driver.sequencer.connect())
        elif kind == "behind":
            driver.rest.behind_hours = number
        elif kind == "short":
            driver.rest.page = number
        elif kind == "hides":
            driver.rest.hides = frozenset({number})
    driver.settle()

    times = [due.candle.open_time for due in driver.passed]
    assert times == sorted(set(times))
    hours = [(t - START) // HOUR_MS for t in times]
    over = (driver.exchange_ms - 5_000 - START) // HOUR_MS - 1
    # An hour is left out only where two answers that lie apart lacked it; all other candles have passed.
    skipped = set(range(NEWEST + 1, hours[-1] if hours else NEWEST)) - set(hours)
    for hour in skipped:
        shown = driver.lacked[START + hour * HOUR_MS]
        assert shown[-1] - shown[0] >= APART_S
    due = [h for h in range(NEWEST + 1, min(over, HOURS + 6)) if h not in never and h not in skipped]
    assert [h for h in hours if h < over] == due
    # Candles that came from REST have REST's values.
    assert all(d.candle.close == 100.0 for d in driver.passed if d.provenance == "backfill")


def test_one_answer_that_lacks_an_hour_declares_nothing() -> None:
    driver = Driver(Rest([candle(h) for h in range(HOURS)]))
    driver.wait(3 * 3_600.0)
    driver.rest.hides = frozenset({NEWEST + 2})
    driver.answer()
    assert [d.candle.open_time for d in driver.passed] == [START + (NEWEST + 1) * HOUR_MS]
    driver.settle()
    assert [(d.candle.open_time - START) // HOUR_MS for d in driver.passed] == [NEWEST + 1, NEWEST + 2, NEWEST + 3]


def test_what_the_socket_brings_in_order_does_not_wait_for_rest() -> None:
    driver = Driver(Rest([candle(h) for h in range(HOURS)]))
    assert driver.backfilling
    for hour in (NEWEST + 1, NEWEST + 2):
        driver.wait(3_600.0)
        driver.frame(hour)
    assert [d.provenance for d in driver.passed] == ["live", "live"]


def test_a_row_that_a_cache_repeats_is_not_final_for_half_a_minute() -> None:
    driver = Driver(Rest([candle(h) for h in range(HOURS)]))
    driver.answer()
    driver.wait(2_400 + 90.0)
    driver.rest.cached_ms = driver.exchange_ms - 100_000
    for _ in range(9):
        driver.answer()
        driver.wait(3.0)
    assert driver.passed == []
    driver.rest.cached_ms = None
    driver.settle()
    assert driver.passed[0].candle == candle(NEWEST + 1)
