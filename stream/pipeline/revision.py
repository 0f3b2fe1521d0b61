"""Revision: the exchange says something else about a past candle than what was processed.

REST is the truth: the candle is replaced, and the symbol's state becomes that of a fresh start on the corrected
history, because everything it remembers is a fold over it. Forecasts, decisions and outcomes that come out differently
are issued again under their ids with a higher `revision`. Runs on the work thread; nothing is changed here.

Only the newest `REVISED_HOURS` are looked after. An older candle stays as it was processed: its forecast is long past
its use, and what it still weighs in the fold is little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from stream.core import messages, publication, scoreboard, scoring
from stream.core.candle import HOUR_MS, Candle
from stream.core.fold import Rules
from stream.core.intervals import DELAY_HOURS
from stream.core.keyed import Issued, Matured, State
from stream.core.messages import Decay, Decision, Forecast
from stream.core.replay import replay, warm
from stream.core.scoring import Outcome
from stream.ports import Journal, Predictor, Processed, Revision

#: How far back REST is asked whether it still says the same.
REVISED_HOURS = 48
#: Two ways to the same number differ by less than this, relative to it.
_SAME = 1e-9

EVENT_EXPIRY_S = 7 * 86_400
RETAINED_EXPIRY_S = 7_200

T = TypeVar("T", Forecast, Decision)


@dataclass(frozen=True, slots=True)
class Restated:
    """A revision to commit, the state that counts once it is, and the newest forecast's id."""

    revision: Revision
    state: State
    newest_id: str


def restate(
    symbol: str, told: Sequence[Candle], journal: Journal, rules: Rules, predictor: Predictor, issued_at: int
) -> Restated | None:
    """What `told`, REST's answer about closed candles in order, changes; None where it is what was processed.

    A candle that the journal has and the answer lacks stays: what once was published exists.
    """
    processed = journal.processed(symbol)
    if processed is None:
        return None
    oldest = processed.open_time - (REVISED_HOURS - 1) * HOUR_MS
    told = [c for c in told if oldest <= c.open_time <= processed.open_time]
    stored = {c.open_time: c for c in journal.candles(symbol, oldest, processed.open_time)}
    changed = [c for c in told if c.open_time not in stored or stored[c.open_time].ohlcv != c.ohlcv]
    if not changed:
        return None
    filled = tuple(c.open_time for c in changed if c.open_time not in stored)
    return _Restating(symbol, processed, journal, rules, predictor, issued_at).result(changed, filled)


class _Restating:
    """One run over the corrected history, beside what the journal says of the old one."""

    def __init__(
        self, symbol: str, processed: Processed, journal: Journal, rules: Rules, predictor: Predictor, issued_at: int
    ) -> None:
        self._symbol = symbol
        self._processed = processed
        self._journal = journal
        self._rules = rules
        self._predictor = predictor
        self._issued_at = issued_at

    def result(self, changed: Sequence[Candle], filled: tuple[int, ...]) -> Restated:
        symbol, newest, model = self._symbol, self._processed.open_time, self._predictor.model
        # A fresh start sees the last of these hours; the forecasts before the newest saw some earlier ones.
        needed = self._rules.history_hours(symbol)
        reach = newest - (needed + REVISED_HOURS) * HOUR_MS
        by_time = {c.open_time: c for c in self._journal.candles(symbol, reach, newest)}
        by_time |= {c.open_time: c for c in changed}
        history = [by_time[t] for t in sorted(by_time)]
        since = changed[0].open_time
        scored_since = since - DELAY_HOURS * HOUR_MS
        forecasts = {f.id: f for f in self._spoken("forecasts", scored_since, Forecast)}
        decisions = {d.id: d for d in self._spoken("decisions", since, Decision)}
        latest = max(forecasts.values(), key=lambda f: f.open_time, default=None)

        again: list[tuple[Forecast, Decision]] = []
        matured: dict[int, float] = {}
        for _, event in replay(self._rules, symbol, history, model, self._predictor, since=since):
            if isinstance(event, Matured):
                matured[event.open_time] = event.realized
            if isinstance(event, Issued):
                pair = self._issued(event, forecasts, decisions, filled)
                if pair is not None:
                    again.append(pair)
                    forecasts[pair[0].id] = pair[0]
        outcomes = self._outcomes(forecasts.values(), matured, scored_since)
        decays = self._decays(outcomes)
        recent_past = [c for c in history if c.open_time > newest - needed * HOUR_MS]
        state = warm(self._rules, symbol, recent_past, model, self._predictor)
        newest_id = self._newest_id(again, latest)
        revision = Revision(
            symbol=symbol,
            candles=tuple(changed),
            filled=filled,
            forecasts=tuple(f for f, _ in again),
            decisions=tuple(d for _, d in again),
            outcomes=outcomes,
            decays=decays,
            events=self._events(again, outcomes, decays),
            retained=self._retained(again, newest_id, state),
            open_time=newest,
            anchor=state.anchor,
            exposure=state.memory.exposure,
            model_version=model.version,
            policy_version=self._rules.policy.version,
        )
        return Restated(revision, state, newest_id)

    def _spoken(self, table: str, from_open_time: int, kind: type[T]) -> list[T]:
        rows = self._journal.messages(table, self._symbol, from_open_time, self._processed.open_time, 10_000)
        return [msgspec.json.decode(row, type=kind) for row in rows]

    def _issued(
        self,
        event: Issued,
        forecasts: dict[str, Forecast],
        decisions: dict[str, Decision],
        filled: tuple[int, ...],
    ) -> tuple[Forecast, Decision] | None:
        """Forecast and decision to issue, with their revision; None where nothing changed, or where this model never
        spoke of that hour."""
        model = self._predictor.model
        forecast = publication.forecast(event, model, "backfill", self._issued_at)
        decision = publication.decision(event, "backfill", self._issued_at)
        spoken, decided = forecasts.get(forecast.id), decisions.get(decision.id)
        if spoken is None:
            return (forecast, decision) if forecast.open_time in filled else None
        if _same(spoken, forecast) and (decided is None or _same(decided, decision)):
            return None
        number = 1 + max(spoken.revision, decided.revision if decided else 0)
        return (
            msgspec.structs.replace(forecast, revision=number),
            msgspec.structs.replace(decision, revision=number),
        )

    def _outcomes(
        self, forecasts: Sequence[Forecast] | Any, matured: dict[int, float], since: int
    ) -> tuple[Outcome, ...]:
        newest = self._processed.open_time
        known = {o.forecast_id: o for o in self._journal.outcomes(self._symbol, since, newest)}
        found: list[Outcome] = []
        for forecast in sorted(forecasts, key=lambda f: (f.open_time, f.id)):
            before = known.get(forecast.id)
            # What only the forecast's own revision changed has the outcome that it had.
            realized = matured.get(forecast.open_time, before.realized if before else None)
            if realized is None:
                continue
            outcome = scoring.outcome(forecast, realized)
            if before is None:
                found.append(outcome)
            elif not _same(msgspec.structs.replace(before, score_revision=0), outcome):
                found.append(msgspec.structs.replace(outcome, score_revision=before.score_revision + 1))
        return tuple(found)

    def _decays(self, outcomes: Sequence[Outcome]) -> tuple[Decay, ...]:
        """Alarms over all daily outcomes, the corrected ones among them, that nobody was told of."""
        model = self._predictor.model
        corrected = {o.forecast_id: o for o in outcomes if scoreboard.day_of(o) and o.model_version == model.version}
        if not corrected:
            return ()
        known = {o.forecast_id: o for o in self._journal.daily_outcomes(self._symbol, model.version)}
        usual = model.contract.usual
        told = self._journal.told_alarms(self._symbol, model.version)
        _, raised = scoreboard.alarms(usual, sorted((known | corrected).values(), key=lambda o: o.open_time))
        return tuple(
            scoreboard.decay_message(self._symbol, usual, alarm, model.version, self._issued_at)
            for alarm in scoreboard.untold(told, raised)
        )

    def _newest_id(self, again: Sequence[tuple[Forecast, Decision]], latest: Forecast | None) -> str:
        newest = max((f for f, _ in again), key=lambda f: f.open_time, default=latest)
        if latest is not None and (newest is None or latest.open_time > newest.open_time):
            newest = latest
        return newest.id if newest else ""

    def _events(
        self, again: Sequence[tuple[Forecast, Decision]], outcomes: Sequence[Outcome], decays: Sequence[Decay]
    ) -> tuple[tuple[str, bytes, int], ...]:
        events: list[tuple[str, bytes, int]] = []
        for forecast, decision in again:
            events += [
                (messages.event_topic(self._symbol, "forecast.issued"), messages.encode(forecast), EVENT_EXPIRY_S),
                (messages.event_topic(self._symbol, "decision.issued"), messages.encode(decision), EVENT_EXPIRY_S),
            ]
        events += [
            (
                messages.event_topic(self._symbol, "forecast.scored"),
                messages.encode(scoring.scored(outcome, self._issued_at)),
                EVENT_EXPIRY_S,
            )
            for outcome in outcomes
        ]
        events += [
            (messages.event_topic(self._symbol, "decay.detected"), messages.encode(found), EVENT_EXPIRY_S)
            for found in decays
        ]
        return tuple(events)

    def _retained(
        self, again: Sequence[tuple[Forecast, Decision]], newest_id: str, state: State
    ) -> tuple[tuple[str, bytes, int | None, int | None], ...]:
        symbol, model = self._symbol, self._predictor.model
        until = self._processed.open_time + HOUR_MS - 1 + publication.VALID_FOR_MS
        retained: list[tuple[str, bytes, int | None, int | None]] = []
        for forecast, decision in again:
            if forecast.id == newest_id:
                retained = [
                    (
                        messages.symbol_topic(symbol, "forecast"),
                        messages.encode(forecast),
                        RETAINED_EXPIRY_S,
                        forecast.valid_until,
                    ),
                    (
                        messages.symbol_topic(symbol, "decision"),
                        messages.encode(decision),
                        RETAINED_EXPIRY_S,
                        decision.valid_until,
                    ),
                ]
        recent = messages.encode(publication.recent(symbol, state.recent, model, self._issued_at))
        return (*retained, (messages.symbol_topic(symbol, "recent"), recent, RETAINED_EXPIRY_S, until))


def _same(a: Any, b: Any) -> bool:
    """Whether two messages say the same of the market, whenever and by whichever way they came."""
    return _close(_said(a), _said(b))


def _said(message: Any) -> Any:
    skipped = ("issued_at", "provenance", "revision")
    return {k: v for k, v in msgspec.to_builtins(message).items() if k not in skipped}


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=_SAME, abs_tol=1e-15)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_close(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(_close, a, b))
    return bool(a == b)
