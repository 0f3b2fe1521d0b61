"""Scorekeeping: what matured forecasts came to, beside the way of the candle.

Alarms of the detectors are part of the candle's record and go out with it; scores are told when the candle's messages
are on their way, in a transaction that no candle waits for: they can be made again from the outcomes at any time, and
are at each start.
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


class Scorekeeper:
    """One board per symbol. What it does to them happens between two turns of the processor."""

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
        """`issued_history` is what has been said of a symbol: its score tells how far that goes."""
        self._journal = journal
        self._worker = worker
        self._model = model
        self._clock = clock
        self._observe = observe
        self._offer = offer
        self._issued_history = issued_history
        self._boards: dict[str, Scoreboard] = {}
        #: Open times of the alarms that were told.
        self._reported: dict[str, list[int]] = {}
        self._due: dict[str, State] = {}
        #: Set while scores wait to be told.
        self.waiting = asyncio.Event()

    async def adopt(self, state: State) -> None:
        """The symbol's board becomes what the journal's outcomes make it."""
        self._boards[state.symbol], self._reported[state.symbol] = await self._worker.call(self._of_journal, state)

    def _of_journal(self, state: State) -> tuple[Scoreboard, list[int]]:
        newest, version = state.last_open_time or 0, self._model.version
        hourly = self._journal.outcomes(state.symbol, newest - scoreboard.REACH_HOURS * HOUR_MS, newest)
        daily = self._journal.daily_outcomes(state.symbol, version)
        board = Scoreboard.of(self._model.contract.usual, version, hourly, daily)
        return board, self._journal.reported_alarms(state.symbol, version)

    def decays(self, symbol: str, outcomes: Sequence[Outcome]) -> list[Decay]:
        """Alarms that these outcomes, at most one of them its day's, will raise once they count, and that nobody was
        told: a revised outcome may have moved one. On any thread."""
        board, usual = self._boards[symbol], self._model.contract.usual
        raised = [alarm for outcome in outcomes if (alarm := board.alarm(outcome)) is not None]
        return [
            scoreboard.decay_message(symbol, usual, alarm, self._model.version, self._clock.wall_ms())
            for alarm in scoreboard.unpublished(self._reported[symbol], raised)
        ]

    def take(self, symbol: str, outcomes: Sequence[Outcome], decays: Sequence[Decay]) -> None:
        """These outcomes and alarms are in the journal and count from now on."""
        for outcome in outcomes:
            self._boards[symbol].add(outcome)
        self._reported[symbol] += [found.open_time for found in decays]

    def due(self, state: State) -> None:
        """The symbol's scores shall be told: after a start, and whenever outcomes came or changed."""
        self._due[state.symbol] = state
        self.waiting.set()

    async def post(self) -> None:
        """Tells all scores that are due. Nothing else may change the boards meanwhile."""
        states = list(self._due.values())
        self._due.clear()
        self.waiting.clear()
        if not states:
            return
        try:
            posted = await self._worker.call(self._post, states)
        except JournalError as failure:
            # The next one says it all again.
            self._observe(CommitFailed(str(failure)))
            return
        except ValueError:
            # A number that is none: a defect of ours, and no reason to end forecasts.
            log.exception("scores of %s cannot be published", ", ".join(state.symbol for state in states))
            return
        for score, retained in posted:
            self._offer([], [retained])
            self._observe(ScoreChanged(score))
            # Many symbols close together, and their forecasts go out meanwhile.
            await asyncio.sleep(0)

    def _post(self, states: Sequence[State]) -> list[tuple[Score, Retained]]:
        """On the work thread: arithmetic over 90 days, and the transaction."""
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
