"""Revision: the exchange changed a candle after it was processed.

REST is the truth: the candle is replaced, and the symbol's state becomes that of a fresh start on the corrected
history, because the state is accumulated from that alone. Forecasts, decisions and outcomes that come out differently
are issued again under their ids with a higher `revision`, each by the model and the policy that issued it, even if
others are in use now. Runs on the worker's thread and writes nothing: the caller commits the record.

Only the newest `REVISED_HOURS` are revised. An older candle stays as it was processed: its forecast is long past its
use, and its remaining weight in the state is small.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Issued, Matured, State
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import events, warm
from stream.core.forecasting.contract import ContractError
from stream.core.forecasting.intervals import DELAY_HOURS
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages import builders, recording, scoreboard, scoring
from stream.core.messages.records import Encoded, Processed, Record
from stream.core.messages.revisions import SAME, IssuedHistory, line, same
from stream.core.messages.schemas import Decay, Decision, Forecast
from stream.core.messages.scoring import Outcome
from stream.ports import Journal, Predictor

#: How many hours back candles are compared with REST.
REVISED_HOURS = 48

log = logging.getLogger(__name__)

T = TypeVar("T", Forecast, Decision)

#: Makes a predictor from the bytes of a bundle. Raises `ContractError` if they are not a usable one.
Load = Callable[[bytes], Predictor]


@dataclass(frozen=True, slots=True)
class Restated:
    """A record to commit, the state and history that count once it is, and the newest forecast's id."""

    record: Record
    state: State
    issued: IssuedHistory
    newest_id: str


@dataclass(frozen=True, slots=True)
class _Issuer:
    """A model that issued forecasts, and the rules that decided on them."""

    predictor: Predictor
    rules: Rules


def restate(
    symbol: str,
    answered: Sequence[Candle],
    journal: Journal,
    rules: Rules,
    predictor: Predictor,
    issued_at: int,
    *,
    issued: IssuedHistory | None = None,
    load: Load | None = None,
) -> Restated | None:
    """Returns what changes with `answered`, REST's closed candles in order; None if they are what was processed.

    A candle that the journal has and the answer lacks stays: the exchange once published it. `issued` is what all nodes
    have issued for the symbol; `load` loads former models, whose forecasts stay as they are without it.
    """
    processed = journal.processed(symbol)
    if processed is None:
        return None
    oldest = processed.open_time - (REVISED_HOURS - 1) * HOUR_MS
    answered = [c for c in answered if oldest <= c.open_time <= processed.open_time]
    stored = {c.open_time: c for c in journal.candles(symbol, oldest, processed.open_time)}
    changed = [c for c in answered if c.open_time not in stored or stored[c.open_time].ohlcv != c.ohlcv]
    if not changed:
        return None
    filled = tuple(c.open_time for c in changed if c.open_time not in stored)
    made = _Restating(symbol, processed, journal, rules, predictor, issued_at, issued=issued, load=load)
    return made.result(changed, filled)


class _Restating:
    """One run over the corrected history, compared with what the journal has of the old one."""

    def __init__(
        self,
        symbol: str,
        processed: Processed,
        journal: Journal,
        rules: Rules,
        predictor: Predictor,
        issued_at: int,
        *,
        issued: IssuedHistory | None = None,
        load: Load | None = None,
    ) -> None:
        self._symbol = symbol
        self._processed = processed
        self._journal = journal
        self._rules = rules
        self._predictor = predictor
        self._issued_at = issued_at
        self._history = issued or IssuedHistory()
        self._load = load

    def result(self, changed: Sequence[Candle], filled: tuple[int, ...]) -> Restated:
        symbol, newest, model = self._symbol, self._processed.open_time, self._predictor.model
        since = changed[0].open_time
        scored_since = since - DELAY_HOURS * HOUR_MS
        forecasts = {f.id: f for f in self._issued_since("forecasts", scored_since, Forecast)}
        decisions = {d.id: d for d in self._issued_since("decisions", since, Decision)}
        latest = max(forecasts.values(), key=lambda f: f.open_time, default=None)
        first = self._journal.first_forecast(symbol)
        # No forecast is added for hours before the journal's first one.
        new = frozenset(t for t in filled if first is not None and t >= first)
        ours = _Issuer(self._predictor, self._rules)
        former = list(self._former(forecasts, decisions, since))
        # A fresh start needs the last of these hours; forecasts before the newest were made from earlier ones too.
        needed = self._rules.history_hours(symbol)
        seen = max(needed, *(issuer.rules.history_hours(symbol) for issuer in former), 0)
        by_time = {
            c.open_time: c for c in self._journal.candles(symbol, newest - (seen + REVISED_HOURS) * HOUR_MS, newest)
        }
        by_time |= {c.open_time: c for c in changed}
        history = [by_time[t] for t in sorted(by_time)]

        again: list[tuple[Forecast, Decision]] = []
        matured: dict[int, float] = {}
        for issuer in (*former, ours):
            reach = newest - (issuer.rules.history_hours(symbol) + REVISED_HOURS) * HOUR_MS
            past = [c for c in history if c.open_time > reach]
            for event in events(issuer.rules, symbol, past, issuer.predictor.model, issuer.predictor, since):
                if isinstance(event, Matured):
                    matured[event.open_time] = event.realized
                if isinstance(event, Issued):
                    pair = self._issued(event, issuer, forecasts, decisions, new if issuer is ours else frozenset())
                    if pair is not None:
                        again.append(pair)
                        forecasts[pair[0].id], decisions[pair[1].id] = pair
        again.sort(key=lambda pair: pair[0].open_time)
        outcomes = self._outcomes(forecasts.values(), matured, scored_since)
        decays = tuple(recording.encoded(found) for found in self._decays(outcomes))
        recent_past = [c for c in history if c.open_time > newest - needed * HOUR_MS]
        state = warm(self._rules, symbol, recent_past, model, self._predictor)
        newest_id = self._newest_id(again, latest)
        # Lines that were shown and never issued are dropped from the first changed hour on: they are computed anew.
        shown = {t: e for t, e in self._history.lines.items() if e.issued is not None or t < since}
        issued = msgspec.structs.replace(self._history, lines=shown).after(again, outcomes)
        pairs = [(recording.encoded(forecast), recording.encoded(decision)) for forecast, decision in again]
        of_newest: tuple[Encoded[Forecast] | None, Encoded[Decision] | None] = next(
            (pair for pair in pairs if pair[0].message.id == newest_id), (None, None)
        )
        recent = builders.recent(symbol, state.recent, model, self._issued_at, issued)
        record = Record(
            symbol=symbol,
            candles=tuple(changed),
            provenance="backfill",
            filled=filled,
            forecasts=tuple(forecast for forecast, _ in pairs),
            decisions=tuple(decision for _, decision in pairs),
            outcomes=outcomes,
            decays=decays,
            events=recording.event_messages(symbol, pairs, outcomes, decays, self._issued_at),
            retained=recording.retained_messages(symbol, *of_newest, recent),
            open_time=newest,
            anchor=state.anchor,
            exposure=state.memory.exposure,
            model_version=model.version,
            policy_version=self._rules.policy.version,
        )
        return Restated(record, state, issued, newest_id)

    def _former(self, forecasts: dict[str, Forecast], decisions: dict[str, Decision], since: int) -> Iterator[_Issuer]:
        """Yields the models and policies that issued something for these hours and are no longer in use, as far as the
        journal has them."""
        pairs = {
            (forecast.model.version, decision.id.removeprefix(f"{forecast.id}:"))
            for decision in decisions.values()
            if (forecast := forecasts.get(decision.forecast_id)) is not None and forecast.open_time >= since
        }
        now = (self._predictor.model.version, self._rules.policy.version)
        for model_version, policy_version in sorted(pairs - {now}):
            predictor = self._former_model(model_version)
            policy = self._former_policy(policy_version)
            if predictor is None or policy is None:
                log.warning(
                    "%s: forecasts of model %s, policy %s for revised hours stay as they are: the journal has neither",
                    self._symbol,
                    model_version,
                    policy_version,
                    extra={"symbol": self._symbol},
                )
                continue
            yield _Issuer(predictor, Rules.of(policy, predictor.model.contract))

    def _former_model(self, version: str) -> Predictor | None:
        if version == self._predictor.model.version:
            return self._predictor
        body = self._journal.issued_by("bundles", version)
        if body is None or self._load is None:
            return None
        try:
            return self._load(body)
        except ContractError as error:
            log.warning("the earlier model %s cannot be loaded any more: %s", version, error)
            return None

    def _former_policy(self, version: str) -> Policy | None:
        if version == self._rules.policy.version:
            return self._rules.policy
        body = self._journal.issued_by("policies", version)
        try:
            return None if body is None else msgspec.json.decode(body, type=Policy)
        except msgspec.DecodeError:
            return None

    def _issued_since(self, table: str, from_open_time: int, kind: type[T]) -> list[T]:
        rows = self._journal.messages(table, self._symbol, from_open_time, self._processed.open_time, 10_000)
        return [msgspec.json.decode(row, type=kind) for row in rows]

    def _issued(
        self,
        event: Issued,
        issuer: _Issuer,
        forecasts: dict[str, Forecast],
        decisions: dict[str, Decision],
        new: frozenset[int],
    ) -> tuple[Forecast, Decision] | None:
        """Returns the forecast and decision to issue, with their revision; None if nothing changed, or if this issuer
        issued nothing for that hour and the hour is not a newly filled one."""
        forecast = builders.forecast(event, issuer.predictor.model, "backfill", self._issued_at)
        decision = builders.decision(event, "backfill", self._issued_at)
        before, decided = forecasts.get(forecast.id), decisions.get(decision.id)
        number = self._history.number(forecast, decision)
        if before is None:
            if forecast.open_time not in new:
                return None
        elif decided is None and any(d.forecast_id == forecast.id for d in decisions.values()):
            # Another policy decided here.
            return None
        elif _same(before, forecast) and (decided is None or _same(decided, decision)):
            return None
        else:
            ours = max(before.revision, decided.revision if decided else 0)
            known = self._history.line(forecast.open_time, forecast.model.version)
            agreed = known is not None and number > ours and same(known, line(forecast, decision))
            # Another node may have issued the same correction already: then its number is used.
            number = number if agreed else max(number, ours + 1)
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
            # If the replay does not show its 24 hours, only the forecast changed: its realized volatility stays.
            realized = matured.get(forecast.open_time, before.realized if before else None)
            if realized is None:
                continue
            outcome = scoring.outcome(forecast, realized)
            number = self._history.score_number(outcome)
            if before is None:
                found.append(msgspec.structs.replace(outcome, score_revision=number))
            elif not _same(msgspec.structs.replace(before, score_revision=0), outcome):
                number = max(number, before.score_revision + 1)
                found.append(msgspec.structs.replace(outcome, score_revision=number))
        return tuple(found)

    def _decays(self, outcomes: Sequence[Outcome]) -> tuple[Decay, ...]:
        """Returns the alarms that the daily outcomes, with the corrected ones in place, raise and that were not issued
        before."""
        model = self._predictor.model
        corrected = {o.forecast_id: o for o in outcomes if scoreboard.day_of(o) and o.model_version == model.version}
        if not corrected:
            return ()
        known = {o.forecast_id: o for o in self._journal.daily_outcomes(self._symbol, model.version)}
        usual = model.contract.usual
        reported = self._journal.reported_alarms(self._symbol, model.version)
        _, raised = scoreboard.alarms(usual, sorted((known | corrected).values(), key=lambda o: o.open_time))
        return tuple(
            scoreboard.decay_message(self._symbol, usual, alarm, model.version, self._issued_at)
            for alarm in scoreboard.unpublished(reported, raised)
        )

    def _newest_id(self, again: Sequence[tuple[Forecast, Decision]], latest: Forecast | None) -> str:
        newest = max((f for f, _ in again), key=lambda f: f.open_time, default=latest)
        if latest is not None and (newest is None or latest.open_time > newest.open_time):
            newest = latest
        return newest.id if newest else ""


def _same(a: Any, b: Any) -> bool:
    """Returns whether two messages differ at most in `issued_at`, `provenance` and `revision`."""
    return _close(_issued_fields(a), _issued_fields(b))


def _issued_fields(message: Any) -> Any:
    skipped = ("issued_at", "provenance", "revision")
    return {k: v for k, v in msgspec.to_builtins(message).items() if k not in skipped}


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=SAME, abs_tol=1e-15)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_close(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(_close, a, b))
    return bool(a == b)
