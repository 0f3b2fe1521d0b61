"""Processing: candles that are due go through the operator, the model and the journal, in that order.

The operator's new state counts only once its record is committed: a failed commit is retried with the same record, and
nothing new is published meanwhile. Operator, model and journal share the worker's thread, so that a batch crosses to it
and back once; the event loop only waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import msgspec

from stream.clock import Clock
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Ready, State
from stream.core.deciding.replay import predict_ready, warm
from stream.core.forecasting import serving
from stream.core.forecasting.contract import Model
from stream.core.forecasting.intervals import DELAY_HOURS
from stream.core.forecasting.predictions import Prediction
from stream.core.forecasting.rolling import Rolling
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.market.outputs import Due
from stream.core.messages import builders, recording, scoring, turn
from stream.core.messages.records import IN_JOURNAL, Outgoing, Processed, Record, Retained
from stream.core.messages.revisions import IssuedHistory
from stream.core.messages.turn import Standing, Turn
from stream.errors import JournalError
from stream.pipeline import identity, reporting, succession
from stream.pipeline.revision import Load, Restated, restate
from stream.pipeline.scorekeeping import Board, Scorekeeper
from stream.pipeline.succession import Successor
from stream.pipeline.worker import Worker
from stream.ports import Journal, Predictor
from stream.telemetry import ForecastFailed, Inferred, ModelReplaced, Observer, Resumed
from stream.times import utc

log = logging.getLogger(__name__)

#: Symbols of one turn. More that close together take several, one after the other: what a turn makes of a symbol takes
#: some 30 kB, and the first turn's events go out during the second.
_TURN_SYMBOLS = 300


class Waiting(Protocol):
    """Access to the events that the broker has not acknowledged: see `EventPublisher`."""

    def pending(self) -> Sequence[Outgoing]: ...

    def amend(self, payloads: Mapping[int, bytes]) -> None: ...


class Processor:
    """Owns the operators' states. Takes one turn at a time: a batch of due candles, or a revision of past ones."""

    def __init__(
        self,
        *,
        journal: Journal,
        worker: Worker,
        predictor: Predictor,
        rules: Rules,
        clock: Clock,
        observe: Observer,
        offer: Callable[[Sequence[Outgoing], Sequence[Retained]], None],
        load: Load | None = None,
        routine: int = logging.INFO,
    ) -> None:
        """`offer` receives the events and retained messages that were committed, for publishing. `load` makes a
        predictor from the bytes of a former bundle. `routine` is the log level of what each symbol's start tells."""
        self._journal = journal
        self._worker = worker
        self._predictor = predictor
        self._rules = rules
        self._clock = clock
        self._observe = observe
        self._offer = offer
        self._load = load
        self._routine = routine
        self._rolling = Rolling()
        self._states: dict[str, State] = {}
        #: By symbol: what has been issued, by this node and by others.
        self._issued: dict[str, IssuedHistory] = {}
        #: By symbol: what the broker retains for symbols that are not warmed up yet.
        self._received: dict[str, tuple[Mapping[str, bytes], Waiting]] = {}
        #: By symbol and open time: forecasts in the journal whose 24 hours are not over, as `scoring.awaited` keeps
        #: them. Kept here so that no closing candle waits for a read.
        self._unscored: dict[str, dict[int, tuple[bytes, ...]]] = {}
        self._turn_lock = asyncio.Lock()
        self._scores = Scorekeeper(
            journal=journal,
            worker=worker,
            model=predictor.model,
            clock=clock,
            observe=observe,
            offer=offer,
            issued_history=lambda symbol: self._issued.get(symbol, IssuedHistory()),
        )
        #: What waits to forecast, or why it cannot: a sentence; None if nothing does.
        self.successor: str | None = None
        #: Symbols whose newest candle has no forecast because the model gave no usable one.
        self.unforecast: set[str] = set()

    @property
    def model(self) -> Model:
        """The model that forecasts."""
        return self._predictor.model

    def newest(self) -> dict[str, int]:
        """Returns the open time of the newest processed candle of each symbol that has one."""
        return {s: state.last_open_time for s, state in self._states.items() if state.last_open_time is not None}

    def history_hours(self, symbol: str) -> int:
        """Returns how many candles the symbol's operator must have seen to issue what one that always ran would."""
        return self._rules.history_hours(symbol)

    def buffer_hours(self, symbol: str) -> int:
        state = self._states.get(symbol)
        return 0 if state is None else int((state.window.rows[:, 3] > 0).sum())

    def serving_baseline(self) -> dict[str, str]:
        """Returns the symbols for which `har` is served, each with the reason as a sentence."""
        return {
            symbol: (
                f"{symbol}: har is served, the model's QLIKE of the last {serving.DAYS} days is above its by "
                f"{serving.mean_excess(state.days):.2f} a day (limit {serving.LIMIT})"
            )
            for symbol, state in self._states.items()
            if state.serving == "har"
        }

    async def warm(self, symbol: str, candles: Sequence[Candle], expected: Processed | None) -> None:
        """Builds the state of the symbol's operator from its past candles. `expected` is what the journal has of the
        state at the newest of them, None at a fresh start; a difference is logged, and what was computed counts."""
        model = self._predictor.model
        async with self._turn_lock:
            state = await self._worker.call(warm, self._rules, symbol, candles, model, self._predictor)
            history = await self._worker.call(identity.from_journal, symbol, self._journal, model.version)
            await self._adopt(state, history)
            if (received := self._received.pop(symbol, None)) is not None:
                await self._learn(symbol, *received)
        extra = {"symbol": symbol, "candles": len(candles)}
        log.log(self._routine, "%s: warmed up on %d candles", symbol, len(candles), extra=extra)
        if expected is not None and expected.model_version not in ("", model.version):
            await self._announce([symbol], expected.model_version, "the node started with another model")
        if expected is not None:
            newest = await self._worker.call(self._journal.newest, symbol)
            self._observe(Resumed(symbol, expected.open_time, self.buffer_hours(symbol), *newest))
        self._scores.due(state)
        if (
            expected is not None
            and (expected.model_version, expected.policy_version) == (model.version, self._rules.policy.version)
            and (expected.anchor, expected.exposure) != (state.anchor, state.memory.exposure)
        ):
            log.warning(
                "%s: the journal says exposure %.6f, its candles lead to %.6f; continuing with the latter",
                symbol,
                expected.exposure,
                state.memory.exposure,
                extra={"symbol": symbol},
            )

    async def prepare(self, successor: Successor) -> dict[str, State]:
        """Returns the states of all symbols under another model, while candles go on under the present one."""
        prepared: dict[str, State] = {}
        for symbol, state in list(self._states.items()):
            past = await self._worker.call(succession.past, successor, state, self._journal)
            prepared[symbol] = await asyncio.to_thread(succession.state_of, successor, symbol, past)
        return prepared

    async def succeed(self, successor: Successor, prepared: Mapping[str, State], reason: str) -> None:
        """Has another model forecast from the next candle on. `prepared` are the states that `prepare` returned; what
        has closed since is added to them. Raises `JournalError`, and changes nothing, if the journal cannot be read."""
        model = successor.predictor.model
        async with self._turn_lock:
            former, taken = self._predictor.model, []
            for symbol, present in self._states.items():
                before = prepared.get(symbol)
                state = await self._worker.call(succession.caught_up, successor, before, present, self._journal)
                waiting = await self._waiting_for_outcomes(state)
                taken.append((state, self._issued[symbol], waiting, await self._scores.read(state, model)))
            await self._worker.commit(partial(self._journal.keep_issuer, successor.issuer))
            self._predictor, self._rules = successor.predictor, successor.rules
            self._scores.replace_model(model)
            for one in taken:
                self._settle(*one)
                self._scores.due(one[0])
            await self._announce(list(self._states), former.version, reason)
        self._observe(ModelReplaced(former.version, model))

    async def _announce(self, symbols: Sequence[str], previous: str, reason: str) -> None:
        """Publishes that another model forecasts from now on."""
        now_ms, model = self._clock.wall_ms(), self._predictor.model
        events = [recording.model_changed(symbol, previous, model, reason, now_ms) for symbol in symbols]
        seqs = await self._worker.commit(partial(self._journal.post, events, ()))
        self._offer([Outgoing(seq, *event) for seq, event in zip(seqs, events, strict=True)], ())

    async def learn(self, symbol: str, payloads: Mapping[str, bytes], waiting: Waiting) -> None:
        """Takes in what the broker retains for a symbol, by topic, before anything is published there; if the symbol is
        not warmed up, that happens once it is. Raises `JournalError` if it cannot be stored."""
        if symbol not in self._states:
            self._received[symbol] = (payloads, waiting)
            return
        async with self._turn_lock:
            await self._learn(symbol, payloads, waiting)

    async def _learn(self, symbol: str, payloads: Mapping[str, bytes], waiting: Waiting) -> None:
        reported = await self._worker.call(identity.from_broker, payloads, symbol)
        pending = waiting.pending()
        learnt = await self._worker.call(identity.learn, symbol, self._issued[symbol], reported, pending, self._journal)
        if learnt.change is None:
            return
        retained = (*learnt.change.retained, self._recent(symbol, learnt.history))
        change = msgspec.structs.replace(learnt.change, retained=retained)
        await self._worker.call(self._journal.renumber, change)
        waiting.amend(change.payloads)
        self._issued[symbol] = learnt.history
        self._offer([], change.retained)
        self._unscored[symbol] = await self._waiting_for_outcomes(self._states[symbol])
        self._scores.due(self._states[symbol])
        await self._scores.post()
        log.info(
            "%s: other nodes have published up to %s; %d of our unpublished forecast(s) get a higher revision",
            symbol,
            utc(reported.until),
            len(change.forecasts),
            extra={"symbol": symbol, "forecasts": len(change.forecasts)},
        )

    def _recent(self, symbol: str, reported: IssuedHistory) -> Retained:
        model, now_ms = self._predictor.model, self._clock.wall_ms()
        message = builders.recent(symbol, self._states[symbol].recent, model, now_ms, reported)
        return recording.retained_recent(message)

    async def _adopt(self, state: State, reported: IssuedHistory) -> None:
        """Makes the state the current one, with the outcomes and the unscored forecasts that the journal has for it."""
        waiting, board = await self._waiting_for_outcomes(state), await self._scores.read(state, self._predictor.model)
        self._settle(state, reported, waiting, board)

    def _settle(
        self, state: State, reported: IssuedHistory, waiting: dict[int, tuple[bytes, ...]], board: Board
    ) -> None:
        self._scores.adopt(state.symbol, board)
        lines = builders.lines_of(state.recent, reported.lines)
        self._issued[state.symbol] = msgspec.structs.replace(reported, lines=lines)
        self._states[state.symbol], self._unscored[state.symbol] = state, waiting

    async def _waiting_for_outcomes(self, state: State) -> dict[int, tuple[bytes, ...]]:
        waiting: dict[int, tuple[bytes, ...]] = {}
        if state.last_open_time is not None:
            since = state.last_open_time - (DELAY_HOURS - 1) * HOUR_MS
            for forecast in await self._worker.call(self._journal.unscored, state.symbol, since):
                waiting[forecast.open_time] = (*waiting.get(forecast.open_time, ()), scoring.awaited(forecast))
        return waiting

    async def revise(self, symbol: str, reported: Sequence[Candle]) -> int:
        """Compares REST's answer about past candles with what was processed, and returns how many of them changed.

        If any did, the journal and the state become what they would be had the candles come like this, and messages
        that change are issued again with a higher revision.
        """
        async with self._turn_lock:
            found = await self._worker.call(self._restate, symbol, tuple(reported))
            if found is None:
                return 0
            record = found.record
            seqs = await self._worker.commit(partial(self._journal.commit, [record]))
            await self._adopt(found.state, found.issued)
            outgoing = [Outgoing(seq, *event) for seq, event in zip(seqs, record.events, strict=True)]
            self._offer(outgoing, record.retained)
            if record.outcomes:
                self._scores.due(found.state)
        reporting.revised(found.record, found.newest_id, self._observe)
        self._scores.report([alarm.message for alarm in found.record.decays])
        return len(record.candles)

    def _restate(self, symbol: str, reported: Sequence[Candle]) -> Restated | None:
        history, now_ms = self._issued.get(symbol), self._clock.wall_ms()
        return restate(
            symbol, reported, self._journal, self._rules, self._predictor, now_ms, issued=history, load=self._load
        )

    async def scores_wait(self) -> None:
        """Waits until there are scores to publish."""
        await self._scores.waiting.wait()

    async def publish_scores(self) -> None:
        """Publishes the scores that are due; a candle that comes meanwhile waits for a millisecond or two."""
        async with self._turn_lock:
            await self._scores.post()

    async def process(self, batch: Sequence[Due]) -> None:
        """Takes at most one due candle of each symbol through operator and model, and returns once they are in the
        journal."""
        async with self._turn_lock:
            retained: list[Retained] = []
            for first in range(0, len(batch), _TURN_SYMBOLS):
                retained += await self._process(batch[first : first + _TURN_SYMBOLS])
                if len(batch) > _TURN_SYMBOLS:
                    # They wait for the last turn, and `recent` is long.
                    retained = [item._replace(payload=IN_JOURNAL) for item in retained]
            # Subscribers wait for the decisions of all symbols before anybody waits for these.
            self._offer([], retained)

    async def _process(self, batch: Sequence[Due]) -> list[Retained]:
        """Takes one turn and offers its events; returns its retained messages."""
        taken, seqs, inferred, failure = await self._worker.call(self._turn, batch)
        if inferred is not None:
            self._observe(inferred)
        if failure is not None:
            seqs = await self._worker.commit(partial(self._journal.commit, taken.records), failure)
        numbers = iter(seqs)
        served = {state.symbol: self._states[state.symbol].serving for state in taken.states}
        for due, state, record, history in zip(batch, taken.states, taken.records, taken.histories, strict=True):
            self._states[state.symbol], self._issued[state.symbol] = state, history
            self._await_outcome(record)
            self._scores.take(state, record.outcomes, [found.message for found in record.decays])
            outgoing = [
                Outgoing(next(numbers), *event, due.arrived_at_s, timed=event.topic.endswith("forecast.issued"))
                for event in record.events
            ]
            self._offer(outgoing, [])
        # Lets the publisher run before the observers: subscribers wait for messages, nobody waits for observers.
        await asyncio.sleep(0)
        for due, state, record in zip(batch, taken.states, taken.records, strict=True):
            reporting.processed(due, record, self.buffer_hours(state.symbol), self._observe)
            self._judge(state.symbol, due.candle.open_time, usable=state.symbol not in taken.refused)
            if state.serving != served[state.symbol]:
                self._log_serving(state)
        self._scores.report(taken.decays)
        for state, record in zip(taken.states, taken.records, strict=True):
            if record.outcomes:
                self._scores.due(state)
        return [item for record in taken.records for item in record.retained]

    def _log_serving(self, state: State) -> None:
        if state.serving == "har":
            log.warning("%s", self.serving_baseline()[state.symbol], extra={"symbol": state.symbol, "serving": "har"})
        else:
            log.info("%s: the model is served again", state.symbol, extra={"symbol": state.symbol, "serving": "model"})

    def _turn(self, batch: Sequence[Due]) -> tuple[Turn, list[int], Inferred | None, JournalError | None]:
        """Takes the turn and makes a first attempt to commit it, on the worker's thread. Returns the turn, the numbers
        of its events in the outbox, the inference if there was one, and the error of the commit if it failed."""
        symbols = [due.candle.symbol for due in batch]
        inferred: Inferred | None = None

        def predict(ready: Sequence[Ready]) -> Sequence[Prediction]:
            nonlocal inferred
            started_s = self._clock.monotonic_s()
            predictions = self._predict(ready)
            if ready:
                inferred = Inferred(self._clock.monotonic_s() - started_s, len(ready))
            return predictions

        taken = turn.take(
            batch,
            {s: Standing(self._states[s], self._issued[s], self._unscored[s]) for s in symbols},
            rules=self._rules,
            model=self._predictor.model,
            predict=predict,
            alarms=self._scores.decays,
            now_ms=self._clock.wall_ms(),
        )
        try:
            return taken, self._journal.commit(taken.records), inferred, None
        except JournalError as error:
            return taken, [], inferred, error

    def _predict(self, ready: Sequence[Ready]) -> list[Prediction]:
        """Predicts for all symbols at once. If the model raises, predicts for each alone, so that only the symbol whose
        input causes it goes without a forecast."""
        try:
            return predict_ready(ready, self._predictor.model, self._predictor, self._rolling)
        except Exception:
            if len(ready) == 1:
                log.exception("%s: the model fails", ready[0].symbol, extra={"symbol": ready[0].symbol})
                return []
            return [prediction for one in ready for prediction in self._predict([one])]

    def _await_outcome(self, record: Record) -> None:
        """Remembers a committed forecast until its outcome is due, and forgets those whose 24 hours are over."""
        waiting = self._unscored[record.symbol]
        for due in [t for t in waiting if t <= record.open_time - DELAY_HOURS * HOUR_MS]:
            del waiting[due]
        if record.forecasts:
            waiting[record.open_time] = tuple(scoring.awaited(forecast.message) for forecast in record.forecasts)

    def _judge(self, symbol: str, open_time: int, *, usable: bool) -> None:
        if usable:
            self.unforecast.discard(symbol)
            return
        if symbol not in self.unforecast:
            log.error(
                "%s: the model's output is no volatility; no forecast until it gives one",
                symbol,
                extra={"symbol": symbol, "open_time": open_time},
            )
        self.unforecast.add(symbol)
        self._observe(ForecastFailed(symbol, open_time))
