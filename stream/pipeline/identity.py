"""Identity: which values a symbol's ids and revisions have been used for, from the journal and from what the broker
retains.

A node that starts from a backup, after another node or with an empty directory would otherwise use a revision again for
another value. Runs on the worker's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from stream.core.deciding.operator import RECENT_HOURS
from stream.core.market.candle import HOUR_MS
from stream.core.messages import builders, revisions, schemas, scoring, topics
from stream.core.messages.recording import encoded
from stream.core.messages.records import Encoded, Outgoing, Renumbering, Retained
from stream.core.messages.revisions import IssuedHistory
from stream.core.messages.schemas import Decision, Forecast, Recent, Score, Scored
from stream.core.messages.scoring import Outcome
from stream.ports import Journal

M = TypeVar("M", Forecast, Decision, Recent, Score)
#: The retained topics, at the broker and in the journal, that show what has been issued, and what they carry.
_KINDS: dict[topics.SymbolTopic, Any] = {"recent": Recent, "score": Score, "forecast": Forecast, "decision": Decision}
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)


def from_journal(symbol: str, journal: Journal, model_version: str) -> IssuedHistory:
    """Returns what this node has issued for a symbol, and what it has received from others."""
    processed = journal.processed(symbol)
    history = IssuedHistory(highest=journal.highest_revision(symbol))
    if processed is not None:
        since = processed.open_time - (RECENT_HOURS - 1) * HOUR_MS
        decisions = {d.forecast_id: d for d in _read(journal, "decisions", symbol, since, Decision)}
        forecasts = _read(journal, "forecasts", symbol, since, Forecast)
        # Of several forecasts for one hour the last in this order counts: the current model's, else the latest issued.
        forecasts.sort(key=lambda f: (f.model.version == model_version, f.issued_at))
        pairs = [(f, decisions[f.id]) for f in forecasts if f.id in decisions]
        history = history.after(pairs, journal.outcomes(symbol, since, processed.open_time))
    ours = (*_kept(journal, symbol, "recent"), *_kept(journal, symbol, "score"))
    return history.merged_with(from_broker({r.topic: r.payload for r in ours}, symbol))


def retained_topics(symbols: Sequence[str]) -> list[str]:
    """Returns the topics to read from the broker before anything is published."""
    return [topics.symbol_topic(symbol, leaf) for symbol in symbols for leaf in _KINDS]


def from_broker(payloads: Mapping[str, bytes], symbol: str) -> IssuedHistory:
    def payload(leaf: topics.SymbolTopic) -> bytes:
        return payloads.get(topics.symbol_topic(symbol, leaf), b"")

    return revisions.from_retained(payload("recent"), payload("score"), payload("forecast"), payload("decision"))


def newer(payloads: Mapping[str, bytes], symbol: str, ours: Callable[[str], bytes | None]) -> list[Retained]:
    """Returns the messages that the broker retains and that are newer than what this node would publish there
    (`ours(topic)`). They stay until the node has learnt from them."""
    found: list[Retained] = []
    for leaf, kind in _KINDS.items():
        topic = topics.symbol_topic(symbol, leaf)
        theirs, mine = (_decoded([payload or b""], kind) for payload in (payloads.get(topic), ours(topic)))
        if theirs and theirs[0].symbol == symbol and (not mine or _age(theirs[0]) > _age(mine[0])):
            expiry_s = None if leaf == "score" else builders.RETAINED_EXPIRY_S
            valid_until = getattr(theirs[0], "valid_until", None)
            found.append(Retained(topic, payloads[topic], expiry_s, valid_until))
    return found


def _age(message: Forecast | Decision | Recent | Score) -> tuple[int, int]:
    if isinstance(message, Forecast | Decision):
        return (message.open_time, message.revision)
    return (message.issued_at, 0)


@dataclass(frozen=True, slots=True)
class Learnt:
    """What has been issued by this node and by others, and the change that the unpublished messages of this node need;
    None if they need none."""

    history: IssuedHistory
    change: Renumbering | None


def learn(
    symbol: str, own: IssuedHistory, published: IssuedHistory, pending: Sequence[Outgoing], journal: Journal
) -> Learnt:
    """Merges `published`, what the broker retains, into `own`, what this node knows. Unacknowledged events (`pending`)
    that would use a revision that another node has used for another value get a higher one."""
    if not _others_published(own, published):
        return Learnt(own, None)
    theirs = IssuedHistory().merged_with(published)
    waiting = _Waiting(symbol, pending)
    forecasts: list[tuple[Encoded[Forecast], Encoded[Forecast]]] = []
    decisions: list[tuple[Encoded[Decision], Encoded[Decision]]] = []
    payloads: dict[int, bytes] = {}
    given: dict[str, int] = {}
    for (seq, forecast), (decision_seq, decision) in waiting.pairs():
        waits = forecast.message
        number = max(waits.revision, theirs.number(waits, decision.message), given.get(waits.id, -1) + 1)
        given[waits.id] = number
        if number == waits.revision:
            continue
        again = encoded(msgspec.structs.replace(waits, revision=number))
        decided = encoded(msgspec.structs.replace(decision.message, revision=number))
        forecasts.append((forecast, again))
        decisions.append((decision, decided))
        payloads |= {seq: again.payload, decision_seq: decided.payload}
    outcomes: list[Outcome] = []
    for seq, score in waiting.scores:
        known = journal.outcomes(symbol, score.open_time, score.open_time)
        outcome = next((o for o in known if o.forecast_id == score.forecast_id), None)
        number = 0 if outcome is None else theirs.score_number(outcome)
        if outcome is not None and number > score.revision:
            outcomes.append(msgspec.structs.replace(outcome, score_revision=number))
            payloads[seq] = schemas.encode(scoring.scored(outcomes[-1], score.issued_at))
    merged = own.merged_with(published).after(
        [(f.message, d.message) for (_, f), (_, d) in zip(forecasts, decisions, strict=True)], outcomes
    )
    retained = _retained(journal, symbol, forecasts, decisions)
    return Learnt(merged, Renumbering(tuple(forecasts), tuple(decisions), tuple(outcomes), payloads, retained))


def _others_published(own: IssuedHistory, published: IssuedHistory) -> bool:
    """Returns whether the broker retains anything that this node has neither issued nor received before."""
    if published.until > own.until or published.highest > own.highest:
        return True
    return any(
        line.issued is not None
        and ((ours := own.line(t, line.issued.model_version)) is None or not revisions.repeats(ours, line))
        for t, line in published.lines.items()
    )


class _Waiting:
    """The forecasts, decisions and scores of one symbol among the unacknowledged events, decoded."""

    def __init__(self, symbol: str, pending: Sequence[Outgoing]) -> None:
        self._forecasts: list[tuple[int, Encoded[Forecast]]] = []
        self._decisions: dict[tuple[str, int], tuple[int, Encoded[Decision]]] = {}
        self.scores: list[tuple[int, Scored]] = []
        for event in pending:
            if event.topic == topics.event_topic(symbol, "forecast.issued"):
                forecast = msgspec.json.decode(event.payload, type=Forecast)
                self._forecasts.append((event.seq, Encoded(forecast, event.payload)))
            elif event.topic == topics.event_topic(symbol, "decision.issued"):
                decision = msgspec.json.decode(event.payload, type=Decision)
                key = (decision.forecast_id, decision.revision)
                self._decisions[key] = (event.seq, Encoded(decision, event.payload))
            elif event.topic == topics.event_topic(symbol, "forecast.scored"):
                self.scores.append((event.seq, msgspec.json.decode(event.payload, type=Scored)))

    def pairs(self) -> list[tuple[tuple[int, Encoded[Forecast]], tuple[int, Encoded[Decision]]]]:
        """Returns the forecasts, in order, with their decisions, each with its number in the outbox. Where only one of
        the two still waits, the other has been published: the revision is fixed, and the pair is left out."""
        keyed = [
            (found, self._decisions.get((found[1].message.id, found[1].message.revision))) for found in self._forecasts
        ]
        return [(found, decided) for found, decided in keyed if decided is not None]


def _retained(
    journal: Journal,
    symbol: str,
    forecasts: Sequence[tuple[Encoded[Forecast], Encoded[Forecast]]],
    decisions: Sequence[tuple[Encoded[Decision], Encoded[Decision]]],
) -> tuple[Retained, ...]:
    """Returns the retained messages that carry a renumbered forecast or decision, with its new payload."""
    by_payload: dict[bytes, bytes] = {a.payload: b.payload for a, b in forecasts}
    by_payload |= {a.payload: b.payload for a, b in decisions}
    leaves: tuple[topics.SymbolTopic, ...] = ("forecast", "decision")
    kept = [r for leaf in leaves for r in _kept(journal, symbol, leaf)]
    return tuple(
        Retained(r.topic, by_payload[r.payload], r.expiry_s, r.valid_until) for r in kept if r.payload in by_payload
    )


def _kept(journal: Journal, symbol: str, leaf: topics.SymbolTopic) -> list[Retained]:
    return journal.retained([topics.symbol_topic(symbol, leaf)])


def _read(journal: Journal, table: str, symbol: str, since: int, kind: type[M]) -> list[M]:
    return _decoded(journal.messages(table, symbol, since, None, 10_000), kind)


def _decoded(payloads: Sequence[bytes], kind: type[M]) -> list[M]:
    found: list[M] = []
    for payload in payloads:
        try:
            found.append(msgspec.json.decode(payload, type=kind))
        except _UNREADABLE:
            continue
    return found
