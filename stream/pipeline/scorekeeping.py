"""Scorekeeping: live scores of matured forecasts, and the alarms of the decay detectors.

Alarms are part of the candle's record and are published with it. Scores are published after the candle's messages, in a
transaction that no candle waits for: they can be computed again from the outcomes at any time, and are at each start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from stream.clock import Clock
from stream.core.deciding.operator import State
from stream.core.forecasting.contract import Model
from stream.core.market.candle import HOUR_MS
from stream.core.messages import schemas, scoreboard, topics
from stream.core.messages.records import Outgoing, Retained
from stream.core.messages.revisions import IssuedHistory
from stream.core.messages.schemas import Decay, PublishedScore, Score
from stream.core.messages.scoreboard import Scoreboard
from stream.core.messages.scoring import Outcome
from stream.errors import JournalError
from stream.pipeline.worker import Worker
from stream.ports import Journal
from stream.telemetry import CommitFailed, DecayFound, Observer, ScoreChanged
from stream.times import utc

log = logging.getLogger(__name__)

#: Scores that are computed and stored at a time: all at once would take memory for thousands of them.
_AT_ONCE = 300
#: A symbol's board, and the open times of the alarms that have been issued.
Board = tuple[Scoreboard, list[int]]


class Scorekeeper:
    """Keeps one scoreboard per symbol. The processor calls it one turn at a time, so no two calls change a board at
    once."""

    def __init__(
        self,
        *,
        journal: Journal,
        worker: Worker,
        model: Model,
        clock: Clock,
        observe: Observer,
        offer: Callable[[Sequence[Outgoing], Sequence[Retained]], None],
        issued_history: Callable[[str], IssuedHistory] = lambda symbol: IssuedHistory(),
    ) -> None:
        """`issued_history(symbol)` returns what has been issued for a symbol; the score message carries its newest hour
        and highest revision."""
        self._journal = journal
        self._worker = worker
        self._model = model
        self._clock = clock
        self._observe = observe
        self._offer = offer
        self._issued_history = issued_history
        self._boards: dict[str, Scoreboard] = {}
        #: By symbol: open times of the alarms that have been issued.
        self._reported: dict[str, list[int]] = {}
        self._due: dict[str, State] = {}
        #: Set while scores wait to be published.
        self.waiting = asyncio.Event()

    def replace_model(self, model: Model) -> None:
        """Takes another model into use; each symbol's board is of the former one until another is adopted."""
        self._model = model

    async def read(self, state: State, model: Model) -> Board:
        """Builds the symbol's board from the outcomes in the journal."""
        return await self._worker.call(self._of_journal, state, model)

    def adopt(self, symbol: str, board: Board) -> None:
        self._boards[symbol], self._reported[symbol] = board

    def _of_journal(self, state: State, model: Model) -> Board:
        newest, version = state.last_open_time or 0, model.version
        hourly = self._journal.outcomes(state.symbol, newest - scoreboard.REACH_HOURS * HOUR_MS, newest)
        daily = self._journal.daily_outcomes(state.symbol, version)
        board = Scoreboard.of(model.contract.usual, version, hourly, daily, state)
        return board, self._journal.reported_alarms(state.symbol, version)

    def decays(self, symbol: str, outcomes: Sequence[Outcome]) -> list[Decay]:
        """Returns the alarms that these outcomes, of which at most one closes a UTC day, will raise once they count.
        Those that were issued already are left out: a revised outcome may move one. May be called on any thread."""
        board, usual = self._boards[symbol], self._model.contract.usual
        raised = [alarm for outcome in outcomes if (alarm := board.alarm(outcome)) is not None]
        return [
            scoreboard.decay_message(symbol, usual, alarm, self._model.version, self._clock.wall_ms())
            for alarm in scoreboard.unpublished(self._reported[symbol], raised)
        ]

    def take(self, state: State, outcomes: Sequence[Outcome], decays: Sequence[Decay]) -> None:
        """Adds outcomes and alarms that have been committed; they count from now on. `state` is the symbol's after the
        candle that made them known."""
        for outcome in outcomes:
            self._boards[state.symbol].add(outcome, state)
        self._reported[state.symbol] += [found.open_time for found in decays]

    def due(self, state: State) -> None:
        """Marks the symbol's score as due: after a start, and whenever outcomes were added or changed."""
        self._due[state.symbol] = state
        self.waiting.set()

    async def post(self) -> None:
        """Publishes all scores that are due, a part at a time. Nothing else may change the boards meanwhile."""
        states = list(self._due.values())
        self._due.clear()
        self.waiting.clear()
        for first in range(0, len(states), _AT_ONCE):
            await self._post_and_offer(states[first : first + _AT_ONCE])

    async def _post_and_offer(self, states: Sequence[State]) -> None:
        try:
            posted = await self._worker.call(self._post, states)
        except JournalError as failure:
            # The symbol's next score has all of it.
            self._observe(CommitFailed(str(failure)))
            return
        except ValueError:
            # NaN or infinity in a score: a defect in this code, and no reason to end forecasts.
            log.exception("scores of %s cannot be published", ", ".join(state.symbol for state in states))
            return
        for score, retained in posted:
            self._offer([], [retained])
            self._observe(ScoreChanged(score))
            # Many symbols close at once: lets their forecasts go out between two scores.
            await asyncio.sleep(0)

    def _post(self, states: Sequence[State]) -> list[tuple[Score, Retained]]:
        """Computes the scores, over up to 90 days, and stores them in one transaction, on the worker's thread."""
        now_ms = self._clock.wall_ms()
        scores = [self._boards[state.symbol].score(state, now_ms) for state in states]
        posted = [(s, Retained(topics.symbol_topic(s.symbol, "score"), self._payload(s))) for s in scores]
        self._journal.post([], [retained for _, retained in posted])
        return posted

    def _payload(self, score: Score) -> bytes:
        issued = self._issued_history(score.symbol)
        fields = {name: getattr(score, name) for name in Score.__struct_fields__}
        return schemas.encode(PublishedScore(**fields, issued_until=issued.until, highest_revision=issued.highest))

    def report(self, decays: Sequence[Decay]) -> None:
        for found in decays:
            log.warning(
                "%s: the model decays (%s): mean %.3f over %d day(s) since %s, usual is %.3f",
                found.symbol,
                found.kind,
                found.mean,
                found.days,
                utc(found.since),
                found.usual_mean,
                extra={"symbol": found.symbol, "kind": found.kind},
            )
            self._observe(DecayFound(found))
