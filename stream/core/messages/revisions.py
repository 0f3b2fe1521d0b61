"""Revisions: what has been issued for a symbol, by whichever node, and which revision a new message must have.

Rules of this module:
- (id, revision) names one value for ever, over all nodes that ever published. A value equal to the one that was issued
  has its revision; one that differs has the next.
- Candles are compared with the exchange for 48 hours, so 48 lines hold every value that may still change. Of an hour
  before them it is only known that it was issued, and how high revisions ever went: a message for it goes above that.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from stream.core.deciding.operator import RECENT_HOURS
from stream.core.forecasting.intervals import DELAY_HOURS
from stream.core.market.candle import HOUR_MS
from stream.core.messages.schemas import Decision, Forecast, IssuedAs, PublishedScore, Recent, RecentEntry
from stream.core.messages.scoring import Outcome

#: Two computations of the same number differ by less than this, relative to it.
SAME = 1e-9
#: No candle is revised more often, and no hour opens later (in 2286): a larger number is somebody's mistake.
_MOST = 1_000_000
_LATEST = 10**13

_M = TypeVar("_M", Recent, PublishedScore, Forecast, Decision)

_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)


class IssuedHistory(msgspec.Struct, frozen=True):
    """What has been issued for one symbol. `lines` are by open time; those without `issued` were shown in `recent` and
    never issued. `until` is the newest hour that was issued, 0 before the first; `highest` the highest revision of
    anything, and `received_highest` what it was when messages of others were last received."""

    lines: Mapping[int, RecentEntry] = msgspec.field(default_factory=dict)
    until: int = 0
    highest: int = 0
    received_highest: int = 0

    def line(self, open_time: int, model_version: str) -> RecentEntry | None:
        """Returns the line of the hour if that model issued it, else None."""
        found = self.lines.get(open_time)
        return found if found is not None and _model(found) == model_version else None

    def _taken(self, open_time: int, until: int) -> int:
        """Returns the revision for an hour that is not among the lines."""
        shown = self.lines.get(open_time)
        if open_time > until or (shown is not None and shown.issued is not None):
            return 0
        if shown is None and self.lines and min(self.lines) < open_time < max(self.lines):
            # The hours around it are known: nothing was issued for this one.
            return 0
        settled = open_time <= self.until - RECENT_HOURS * HOUR_MS
        return 0 if settled and not self.received_highest else self.received_highest + 1

    def number(self, forecast: Forecast, decision: Decision) -> int:
        """Returns the revision with which both must be issued. If the journal has another value of them, the caller
        must go above that one's revision, too."""
        before = self.line(forecast.open_time, forecast.model.version)
        if before is None or before.issued is None:
            return self._taken(forecast.open_time, self.until)
        number = before.issued.revision
        return number if same(before, line(forecast, decision)) else number + 1

    def score_number(self, outcome: Outcome) -> int:
        """Returns the revision with which an outcome must be issued; the same holds for the journal's outcomes."""
        before = self.line(outcome.open_time, outcome.model_version)
        if before is None or before.issued is None:
            return self._taken(outcome.open_time, self.until - DELAY_HOURS * HOUR_MS)
        if before.realized is None:
            return before.issued.score_revision
        number = before.issued.score_revision
        issued = (before.realized, before.volatility, before.low, before.high)
        ours = (outcome.realized, outcome.volatility, outcome.low, outcome.high)
        return number if close(issued, ours) else number + 1

    def after(self, pairs: Iterable[tuple[Forecast, Decision]], outcomes: Iterable[Outcome] = ()) -> IssuedHistory:
        """Returns the history after these were issued, with the revisions that they carry."""
        lines, until, highest = dict(self.lines), self.until, self.highest
        for forecast, decision in pairs:
            before = self.line(forecast.open_time, forecast.model.version)
            lines[forecast.open_time] = line(forecast, decision, before)
            until, highest = max(until, forecast.open_time), max(highest, forecast.revision)
        for outcome in outcomes:
            highest = max(highest, outcome.score_revision)
            before = lines.get(outcome.open_time)
            if before is not None and before.issued is not None and _model(before) == outcome.model_version:
                issued = msgspec.structs.replace(before.issued, score_revision=outcome.score_revision)
                lines[outcome.open_time] = msgspec.structs.replace(before, realized=outcome.realized, issued=issued)
        return IssuedHistory(newest_lines(lines), until, highest, self.received_highest)

    def merged_with(self, received: IssuedHistory) -> IssuedHistory:
        """Returns the history with what others have issued. For each hour the higher revision counts, and this node's
        line if they are equal."""
        lines = dict(self.lines)
        for open_time, theirs in received.lines.items():
            ours = lines.get(open_time)
            if ours is None or _rank(theirs) > _rank(ours):
                lines[open_time] = theirs
        highest = max(self.highest, received.highest)
        return IssuedHistory(newest_lines(lines), max(self.until, received.until), highest, highest)


def line(forecast: Forecast, decision: Decision, before: RecentEntry | None = None) -> RecentEntry:
    """Returns the line of a forecast and its decision. `before` is the line of this id until now; its outcome stays."""
    volatility, score, realized = forecast.volatility, 0, None
    if before is not None and before.issued is not None:
        score, realized = before.issued.score_revision, before.realized
    # Interned: thousands of symbols keep 48 lines each, and all of them name the same few versions.
    issued = IssuedAs(
        model_version=sys.intern(forecast.model.version),
        policy_version=sys.intern(decision.id.removeprefix(f"{forecast.id}:")),
        revision=forecast.revision,
        exposure=decision.exposure,
        previous_exposure=decision.previous_exposure,
        score_revision=score,
    )
    return RecentEntry(forecast.open_time, volatility.hourly, volatility.low, volatility.high, realized, issued)


def same(a: RecentEntry, b: RecentEntry) -> bool:
    """Returns whether two lines of one forecast id have the same values. All else in forecast and decision follows from
    the same candles as these."""
    if a.issued is None or b.issued is None or not close((a.volatility, a.low, a.high), (b.volatility, b.low, b.high)):
        return False
    if a.issued.policy_version != b.issued.policy_version:
        # The decisions have ids of their own.
        return True
    x, y = a.issued, b.issued
    return close((x.exposure, x.previous_exposure), (y.exposure, y.previous_exposure))


def repeats(ours: RecentEntry, theirs: RecentEntry) -> bool:
    """Returns whether `theirs` is nothing new to the node that issued `ours`: an earlier revision, or the same."""
    return _rank(theirs) < _rank(ours) or (_rank(theirs)[:2] == _rank(ours)[:2] and same(ours, theirs))


def close(a: Iterable[float], b: Iterable[float]) -> bool:
    return all(math.isclose(x, y, rel_tol=SAME, abs_tol=1e-15) for x, y in zip(a, b, strict=True))


def newest_lines(lines: dict[int, RecentEntry]) -> dict[int, RecentEntry]:
    """Removes all lines but the newest, as many hours as `recent` covers, and returns what is left."""
    oldest = max(lines, default=0) - (RECENT_HOURS - 1) * HOUR_MS
    for gone in [open_time for open_time in lines if open_time < oldest]:
        del lines[gone]
    return lines


def from_retained(recent: bytes, score: bytes, forecast: bytes, decision: bytes) -> IssuedHistory:
    """Returns what has been issued according to these retained payloads; each may be empty, or written by anybody."""
    history = IssuedHistory()
    if (published := _decoded(recent, Recent)) is not None:
        lines = {e.open_time: e for e in published.forecasts}
        issued = {t: e.issued.revision for t, e in lines.items() if e.issued is not None}
        highest = max((published.highest_revision, *issued.values()))
        history = _believed(history, IssuedHistory(newest_lines(lines), max(issued, default=0), highest))
    if (published_score := _decoded(score, PublishedScore)) is not None:
        history = _believed(history, IssuedHistory({}, published_score.issued_until, published_score.highest_revision))
    newest, decided = _decoded(forecast, Forecast), _decoded(decision, Decision)
    if newest is not None and decided is not None and decided.forecast_id == newest.id:
        history = _believed(history, IssuedHistory().after([(newest, decided)]))
    return history


def _believed(known: IssuedHistory, received: IssuedHistory) -> IssuedHistory:
    """Returns both merged, or only the first if no Volcast can have issued the second."""
    return known.merged_with(received) if 0 <= received.highest <= _MOST and 0 <= received.until < _LATEST else known


def _decoded(payload: bytes, kind: type[_M]) -> _M | None:
    try:
        return msgspec.json.decode(payload, type=kind) if payload else None
    except _UNREADABLE:
        return None


def _model(entry: RecentEntry) -> str | None:
    return entry.issued.model_version if entry.issued else None


def _rank(entry: RecentEntry) -> tuple[int, int, bool]:
    if entry.issued is None:
        return (-1, 0, entry.realized is not None)
    return (entry.issued.revision, entry.issued.score_revision, entry.realized is not None)
